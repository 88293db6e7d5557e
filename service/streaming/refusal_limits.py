"""When so much is refused that it is the producer's fault, or ours: then nobody wants all of it as dead letters."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Final

import numpy as np

from service.errors import DeadLetterLimitError
from service.transform.refusals import Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiokafka import TopicPartition

    from service.settings import Settings
    from service.streaming.records import Part

# Over how many records of the whole input the ratio is taken.
WINDOW: Final = 10_000


class RefusalLimits:
    """Watches how many records are refused, in a row on a partition and of the last ones on all."""

    def __init__(self, settings: Settings) -> None:
        """Have seen nothing."""
        self._max_run = settings.limits.dead_letter_max_run
        self._max_ratio = settings.limits.dead_letter_max_ratio
        self._tombstones_count = settings.topics.tombstones == "dead_letter"
        # By partition: up to which offset it was counted, so that records that are read again do not count twice.
        self._seen: dict[TopicPartition, int] = {}
        self._runs: dict[TopicPartition, int] = {}
        self._window: deque[tuple[int, int]] = deque()
        self._reasons: Counter[str] = Counter()

    def check(self, parts: Sequence[Part]) -> None:
        """Count transformed records.

        Raises:
            DeadLetterLimitError: too many of them, and of those before, are refused.
        """
        for part in parts:
            offsets = part.frames.offsets[part.start : part.stop]
            new = offsets >= self._seen.get(part.partition, 0)
            if not new.any():
                continue
            refused = self._refused(part)[new]
            self._seen[part.partition] = int(offsets[-1]) + 1
            self._check_run(part, refused)
            self._check_ratio(part, len(refused), int(refused.sum()))

    def forget(self) -> None:
        """Other partitions are ours now."""
        self._seen.clear()
        self._runs.clear()

    def _refused(self, part: Part) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        refused = np.zeros(len(part), bool)
        for position, refusal in part.refusals.items():
            if self._tombstones_count or refusal.reason is not Reason.NULL_VALUE:
                refused[position - part.start] = True
                self._reasons[refusal.reason.value] += 1
        return refused

    def _check_run(self, part: Part, refused: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
        before = self._runs.get(part.partition, 0)
        breaks = np.flatnonzero(~refused)
        if len(breaks):
            longest = max(before + int(breaks[0]), int(np.diff(breaks).max(initial=1)) - 1)
            self._runs[part.partition] = len(refused) - 1 - int(breaks[-1])
        else:
            longest = self._runs[part.partition] = before + len(refused)
        longest = max(longest, self._runs[part.partition])
        if self._max_run and longest >= self._max_run:
            raise self._error(part, f"{longest} records in a row of {_name(part)} are refused", "dead_letter_max_run")

    def _check_ratio(self, part: Part, records: int, refused: int) -> None:
        self._window.append((records, refused))
        total, bad = (sum(column) for column in zip(*self._window, strict=True))
        if total >= WINDOW and bad > self._max_ratio * total:
            problem = f"{bad} of the last {total} records are refused"
            raise self._error(part, problem, "dead_letter_max_ratio")
        while total - self._window[0][0] >= WINDOW:
            gone, _ = self._window.popleft()
            total -= gone

    def _error(self, part: Part, problem: str, limit: str) -> DeadLetterLimitError:
        ((reason, count),) = self._reasons.most_common(1)
        example = next(
            ((position, r) for position, r in sorted(part.refusals.items()) if r.reason.value == reason),
            next(iter(part.refusals.items())),
        )
        position, refusal = example
        return DeadLetterLimitError(
            f"{problem}, most for {reason} ({count}); for example {_name(part)} @{int(part.frames.offsets[position])}"
            f" for {refusal.reason.value}: {refusal.detail}",
            f"See what writes the input; limits.{limit} is the limit",
        )


def _name(part: Part) -> str:
    return f"{part.partition.topic}-{part.partition.partition}"
