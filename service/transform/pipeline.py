"""The way through: messages in, outputs and refusals out."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from service.transform.columnar import transform_columns
from service.transform.general import parse, transform_one
from service.transform.layout import Layout, Layouts, learn
from service.transform.refusals import InvalidMessage, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

# A record alone costs the same on either path (35 us each); from two on, the columns win.
MIN_COLUMNAR: Final = 2
# Records of one length transformed at once: larger matrices are fresh memory, page by page (12.9 us
# a record of 1000 classes without this bound, 6.6 us with it).
CHUNK_BYTES: Final = 1 << 19
# Attempts to learn a new layout from one group: hostile mixtures take the general path instead.
MAX_LESSONS: Final = 4


@dataclass(frozen=True, slots=True)
class Limits:
    """What a message may ask of the service.

    Attributes:
        max_message_bytes: longest value.
        max_classes: most numbers on the last axis.
    """

    max_message_bytes: int
    max_classes: int


@dataclass(slots=True)
class Outcome:
    """What became of a micro-batch; every record is either in `outputs` or in `refusals`.

    Attributes:
        outputs: by position, the output; `None` for a refused record.
        refusals: by position, why.
        columnar: records that were transformed together with others of their layout.
        general: records that were transformed one at a time.
    """

    outputs: list[bytes | None]
    refusals: dict[int, InvalidMessage] = field(default_factory=dict)
    columnar: int = 0
    general: int = 0


class Pipeline:
    """Transforms micro-batches; remembers the layouts it has met and nothing else."""

    def __init__(self, limits: Limits) -> None:
        """Start without any known layout."""
        self._limits = limits
        self._layouts = Layouts()

    def transform(self, values: Sequence[bytes | None], mark: Callable[[str], object] = str) -> Outcome:
        """Transform a micro-batch.

        A record's output does not depend on the others: not on their number, order or content.

        Args:
            values: the records' values, `None` for tombstones.
            mark: called with the name of a stage (`layout`, `decode`, `softmax`, `encode`,
                `general`) when a stretch of it ends, so that a caller with a clock can time them.
        """
        batch = _MicroBatch(values, self._limits, self._layouts, mark)
        for length, positions in batch.by_length():
            if len(positions) < MIN_COLUMNAR:
                batch.general(positions)
                continue
            step = max(MIN_COLUMNAR, CHUNK_BYTES // max(length, 1))
            for start in range(0, len(positions), step):
                batch.general(batch.columnar(length, positions[start : start + step]))
        return batch.outcome


class _MicroBatch:
    """One micro-batch on its way through."""

    def __init__(
        self,
        values: Sequence[bytes | None],
        limits: Limits,
        layouts: Layouts,
        mark: Callable[[str], object],
    ) -> None:
        self.outcome = Outcome([None] * len(values))
        self._values = values
        self._limits = limits
        self._layouts = layouts
        self._mark = mark

    def by_length(self) -> Iterable[tuple[int, list[int]]]:
        """Positions of the records that may be transformed, grouped by length; the others are refused."""
        values, longest = self._values, self._limits.max_message_bytes
        if values and None not in values:  # nearly always, and nearly always of one length
            lengths = list(map(len, values))  # type: ignore[arg-type]
            if lengths[0] <= longest and lengths.count(lengths[0]) == len(lengths):
                self._mark("layout")
                return [(lengths[0], list(range(len(values))))]
        groups: defaultdict[int, list[int]] = defaultdict(list)
        for position, value in enumerate(values):
            if value is None:
                self.outcome.refusals[position] = InvalidMessage(Reason.NULL_VALUE, "the record has no value")
            else:
                groups[len(value)].append(position)
        for length in [length for length in groups if length > longest]:
            for position in groups.pop(length):
                self.outcome.refusals[position] = InvalidMessage(
                    Reason.TOO_LARGE, f"{length} bytes are more than limits.max_message_bytes = {longest}"
                )
        self._mark("layout")
        return groups.items()

    def columnar(self, length: int, positions: list[int]) -> list[int]:
        """Transform those of equal length that share a layout; return the positions left over."""
        joined = b"".join([self._values[position] for position in positions])  # type: ignore[misc]
        records = np.frombuffer(joined, np.uint8).reshape(len(positions), length)
        left = np.asarray(positions)
        leftover: list[int] = []
        for layout in self._layouts.of_length(length):
            records, left = self._apply(layout, records, left, leftover)
        for _ in range(MAX_LESSONS):
            if len(left) < MIN_COLUMNAR:
                break
            learnt = self._lesson(records[0].tobytes())
            if learnt is None:
                leftover.append(int(left[0]))
                records, left = records[1:], left[1:]
            else:
                records, left = self._apply(learnt, records, left, leftover)
        self._mark("layout")
        return sorted([*leftover, *left.tolist()])

    def general(self, positions: Sequence[int]) -> None:
        """Transform records one at a time."""
        outcome, max_classes = self.outcome, self._limits.max_classes
        for position in positions:
            value = self._values[position]
            if value is None:
                raise AssertionError(position)
            try:
                outcome.outputs[position] = transform_one(value, max_classes)
                outcome.general += 1
            except InvalidMessage as refusal:
                outcome.refusals[position] = refusal
        if positions:
            self._mark("general")

    def _lesson(self, data: bytes) -> Layout | None:
        try:
            return learn(data, parse(data, self._limits.max_classes))
        except InvalidMessage:
            return None

    def _apply(
        self, layout: Layout, records: Bytes, positions: NDArray[np.intp], leftover: list[int]
    ) -> tuple[Bytes, NDArray[np.intp]]:
        """Transform the records that meet `layout`; return the others.

        Records that meet it and whose values have no distribution go to `leftover`: the general
        path finds out why.
        """
        met = layout.met_by(records)
        matched = int(np.count_nonzero(met))
        if not matched:
            return records, positions
        self._layouts.use(records.shape[1], layout)
        all_met = matched == len(records)
        mine, at = (records, positions) if all_met else (records[met], positions[met])
        self._mark("layout")
        outputs, valid = transform_columns(mine, layout, self._mark)
        self._place(outputs, at, valid, leftover)
        self._mark("encode")
        return (records[:0], positions[:0]) if all_met else (records[~met], positions[~met])

    def _place(
        self, outputs: Bytes, positions: NDArray[np.intp], valid: NDArray[np.bool_], leftover: list[int]
    ) -> None:
        """Put each row into its record's place."""
        width = outputs.shape[1]
        blob = outputs.tobytes()
        rows = [blob[at : at + width] for at in range(0, len(blob), width)]
        outcome = self.outcome
        good = int(np.count_nonzero(valid))
        outcome.columnar += good
        if good == len(outcome.outputs):
            outcome.outputs = rows  # type: ignore[assignment]
            return
        if good == len(rows):
            for position, row in zip(positions.tolist(), rows, strict=True):
                outcome.outputs[position] = row
            return
        for position, row, ok in zip(positions.tolist(), rows, valid.tolist(), strict=True):
            if ok:
                outcome.outputs[position] = row
            else:
                leftover.append(position)
