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

# A record alone costs the same on either path (35 us each); from two on, the columns win.
MIN_COLUMNAR: Final = 2
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
            mark: called with the name of a stage (`layout`, `columnar`, `general`) when a stretch
                of it ends, so that a caller with a clock can time the stages.
        """
        outcome = Outcome([None] * len(values))
        groups = self._by_length(values, outcome)
        mark("layout")
        for length, positions in groups:
            rest = positions
            if len(positions) >= MIN_COLUMNAR:
                rest = self._columnar(values, length, positions, outcome)
                mark("columnar")
            if rest:
                self._general(values, rest, outcome)
                mark("general")
        return outcome

    def _by_length(self, values: Sequence[bytes | None], outcome: Outcome) -> Iterable[tuple[int, list[int]]]:
        """Positions of the records that may be transformed, grouped by length."""
        if values and values.count(None) == 0:
            lengths = list(map(len, values))  # type: ignore[arg-type]
            if lengths.count(lengths[0]) == len(lengths) and lengths[0] <= self._limits.max_message_bytes:
                return [(lengths[0], list(range(len(values))))]
        groups: defaultdict[int, list[int]] = defaultdict(list)
        for position, value in enumerate(values):
            if value is None:
                outcome.refusals[position] = InvalidMessage(Reason.NULL_VALUE, "the record has no value")
            else:
                groups[len(value)].append(position)
        for length in [length for length in groups if length > self._limits.max_message_bytes]:
            for position in groups.pop(length):
                outcome.refusals[position] = InvalidMessage(
                    Reason.TOO_LARGE,
                    f"{length} bytes are more than limits.max_message_bytes = {self._limits.max_message_bytes}",
                )
        return groups.items()

    def _columnar(
        self, values: Sequence[bytes | None], length: int, positions: list[int], outcome: Outcome
    ) -> list[int]:
        """Transform those of equal length that share a layout; return the positions left over."""
        joined = b"".join([values[position] for position in positions])  # type: ignore[misc]
        records = np.frombuffer(joined, np.uint8).reshape(len(positions), length)
        left = np.arange(len(positions))
        refused: list[int] = []
        for layout in self._layouts.of_length(length):
            left = self._apply(layout, records, left, positions, outcome, refused)
            if not len(left):
                break
        for _ in range(MAX_LESSONS):
            if len(left) < MIN_COLUMNAR:
                break
            first = int(left[0])
            layout_found = self._lesson(records[first].tobytes())
            if layout_found is None:
                refused.append(positions[first])
                left = left[1:]
                continue
            left = self._apply(layout_found, records, left, positions, outcome, refused)
        return sorted([*refused, *(positions[row] for row in left)])

    def _lesson(self, data: bytes) -> Layout | None:
        try:
            return learn(data, parse(data, self._limits.max_classes))
        except InvalidMessage:
            return None

    def _apply(
        self,
        layout: Layout,
        records: NDArray[np.uint8],
        left: NDArray[np.intp],
        positions: list[int],
        outcome: Outcome,
        refused: list[int],
    ) -> NDArray[np.intp]:
        """Transform the rows `left` that meet `layout`; return the others."""
        candidates = records if len(left) == len(records) else records[left]
        met = layout.met_by(candidates)
        matched = int(np.count_nonzero(met))
        if not matched:
            return left
        self._layouts.use(records.shape[1], layout)
        rows = left if matched == len(left) else left[met]
        outputs, valid = transform_columns(candidates if matched == len(left) else candidates[met], layout)
        width = outputs.shape[1]
        blob = outputs.tobytes()
        pieces = [blob[at : at + width] for at in range(0, len(blob), width)]
        if matched == len(outcome.outputs) and valid.all():
            outcome.outputs = pieces  # type: ignore[assignment]
        else:
            for row, piece, good in zip(rows.tolist(), pieces, valid.tolist(), strict=True):
                if good:
                    outcome.outputs[positions[row]] = piece
                else:
                    refused.append(positions[row])
        outcome.columnar += int(np.count_nonzero(valid))
        return left[:0] if matched == len(left) else left[~met]

    def _general(self, values: Sequence[bytes | None], positions: Iterable[int], outcome: Outcome) -> None:
        for position in positions:
            value = values[position]
            if value is None:
                raise AssertionError(position)
            try:
                outcome.outputs[position] = transform_one(value, self._limits.max_classes)
                outcome.general += 1
            except InvalidMessage as refusal:
                outcome.refusals[position] = refusal
