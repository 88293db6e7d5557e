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
        # Records and refusals of each part, and the sums of both: there may be as many parts as records.
        self._window: deque[tuple[int, int]] = deque()
        self._records = self._bad = 0
        self._reasons: Counter[str] = Counter()
        # By reason, one that was refused for it lately.
        self._examples: dict[str, str] = {}

    def check(self, parts: Sequence[Part]) -> None:
        """Count transformed records.

        Raises:
            DeadLetterLimitError: too many of them, and of those before, are refused.
        """
        for part in parts:
            offsets = part.frames.offsets[part.start : part.stop]
            again = int(np.searchsorted(offsets, self._seen.get(part.partition, 0)))
            if again == len(offsets):
                continue
            self._seen[part.partition] = int(offsets[-1]) + 1
            refusals = 0
            if part.refusals:
                refused = self._refused(part)[again:]
                self._check_run(part, refused)
                refusals = int(refused.sum())
            else:
                self._runs[part.partition] = 0
            self._check_ratio(len(offsets) - again, refusals)

    def forget(self) -> None:
        """Other partitions are ours now."""
        self._seen.clear()
        self._runs.clear()

    def _refused(self, part: Part) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        refused = np.zeros(len(part), bool)
        examples: dict[str, str] = {}
        for position, refusal in sorted(part.refusals.items()):
            if self._tombstones_count or refusal.reason is not Reason.NULL_VALUE:
                refused[position - part.start] = True
                reason = refusal.reason.value
                self._reasons[reason] += 1
                if reason not in examples:
                    where = f"{_name(part)} @{int(part.frames.offsets[position])}"
                    examples[reason] = f"{where} for {reason}: {refusal.detail}"
        self._examples |= examples
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
            raise self._error(f"{longest} records in a row of {_name(part)} are refused", "dead_letter_max_run")

    def _check_ratio(self, records: int, refused: int) -> None:
        self._window.append((records, refused))
        self._records += records
        self._bad += refused
        if self._records >= WINDOW and self._bad > self._max_ratio * self._records:
            problem = f"{self._bad} of the last {self._records} records are refused"
            raise self._error(problem, "dead_letter_max_ratio")
        while self._records - self._window[0][0] >= WINDOW:
            gone, gone_bad = self._window.popleft()
            self._records -= gone
            self._bad -= gone_bad

    def _error(self, problem: str, limit: str) -> DeadLetterLimitError:
        ((reason, count),) = self._reasons.most_common(1)
        return DeadLetterLimitError(
            f"{problem}, most for {reason} ({count}); for example {self._examples[reason]}",
            f"See what writes the input; limits.{limit} is the limit",
        )


def _name(part: Part) -> str:
    return f"{part.partition.topic}-{part.partition.partition}"
