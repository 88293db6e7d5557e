"""The way through: messages in, outputs and refusals out."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import numpy as np

from service.transform.columnar import Workspace, transform_columns
from service.transform.general import transform_one
from service.transform.layout import Layout, Layouts, learn
from service.transform.message import parse
from service.transform.profiles import DEFAULT, Profiles
from service.transform.refusals import InvalidMessage, Reason
from service.transform.softmax import arithmetic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from service.transform.columnar import Outputs
    from service.transform.message import Message

    Bytes = NDArray[np.uint8]

K = TypeVar("K")

# From so many records of one kind on, a layout is learnt for them (90 us, where one record alone takes 80). Where
# one is known, it is used for a single record too (50 us).
MIN_TO_LEARN: Final = 2
# Records of one length joined and transformed at once: more leaves the core's caches (3.8 us a record of
# 1000 classes with 256 KiB, 3.4 us from here on, 6 us without a bound).
CHUNK_BYTES: Final = 640 << 10
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
        models: by position, the name of the profile that applied; meaningless for a refused record.
        refusals: by position, why.
        columnar: records that were transformed together with others of their layout.
        general: records that were transformed one at a time.
    """

    outputs: list[bytes | None]
    models: list[str]
    refusals: dict[int, InvalidMessage] = field(default_factory=dict)
    columnar: int = 0
    general: int = 0


class _Key(NamedTuple):
    """What is known of a message before it is looked at.

    Attributes:
        length: in bytes.
        model: the profile that its header selects, unless a field does; `None` if that is refused.
    """

    length: int
    model: str | None


@dataclass(frozen=True, slots=True)
class _Core:
    """What lives on from one micro-batch to the next."""

    limits: Limits
    profiles: Profiles
    layouts: Layouts
    workspace: Workspace


class Pipeline:
    """Transforms micro-batches; remembers the layouts it has met and nothing else."""

    def __init__(self, limits: Limits, profiles: Profiles | None = None) -> None:
        """Start without any known layout."""
        self._core = _Core(limits, profiles or Profiles(), Layouts(), Workspace())

    @property
    def needs_models(self) -> bool:
        """Whether it matters what a record's header `model` says."""
        return self._core.profiles.matter

    def transform(
        self,
        values: Sequence[bytes | None],
        models: Sequence[bytes | None] | None = None,
        mark: Callable[[str], object] = str,
    ) -> Outcome:
        """Transform a micro-batch.

        A record's output does not depend on the others: not on their number, order or content.

        Args:
            values: the records' values, `None` for tombstones.
            models: the values of their headers `model`, `None` where one has none.
            mark: called with the name of a stage (`layout`, `decode`, `softmax`, `encode`,
                `general`) when a stretch of it ends, so that a caller with a clock can time them.
        """
        batch = _MicroBatch(self._core, values, models if self.needs_models else None, mark)
        with arithmetic():
            for key, positions in batch.by_key():
                step = max(MIN_TO_LEARN, CHUNK_BYTES // max(key.length, 1))
                for start in range(0, len(positions), step):
                    batch.general(batch.columnar(key, positions[start : start + step]))
        return batch.outcome


class _MicroBatch:
    """One micro-batch on its way through."""

    def __init__(
        self,
        core: _Core,
        values: Sequence[bytes | None],
        models: Sequence[bytes | None] | None,
        mark: Callable[[str], object],
    ) -> None:
        self.outcome = Outcome([None] * len(values), [DEFAULT] * len(values))
        self._core = core
        self._values = values
        self._models = models
        self._mark = mark

    def by_key(self) -> Iterable[tuple[_Key, list[int]]]:
        """Positions of the records that may be transformed, grouped by key; the others are refused."""
        lengths = [-1 if value is None else len(value) for value in self._values]
        groups: Mapping[tuple[int, str | None], list[int]]
        if self._models is None:
            groups = {(length, DEFAULT): positions for length, positions in _grouped(lengths).items()}
        else:
            groups = _grouped(list(zip(lengths, self._header_models(self._models), strict=True)))
        self._mark("layout")
        for (length, model), positions in groups.items():
            if not 0 <= length <= self._core.limits.max_message_bytes:
                self._refuse_length(length, positions)
            else:
                yield _Key(length, model), positions

    def _refuse_length(self, length: int, positions: list[int]) -> None:
        longest = self._core.limits.max_message_bytes
        refusal = (
            InvalidMessage(Reason.NULL_VALUE, "the record has no value")
            if length < 0
            else InvalidMessage(Reason.TOO_LARGE, f"{length} bytes are more than limits.max_message_bytes = {longest}")
        )
        self.outcome.refusals |= dict.fromkeys(positions, refusal)

    def columnar(self, key: _Key, positions: list[int]) -> list[int]:
        """Transform those with one key that share a layout; return the positions left over."""
        known = self._core.layouts.of(key)
        if not known and len(positions) < MIN_TO_LEARN:
            return positions
        joined = b"".join([self._values[position] for position in positions])  # type: ignore[misc]
        records = np.frombuffer(joined, np.uint8).reshape(len(positions), key.length)
        left = np.asarray(positions)
        leftover: list[int] = []
        for layout in known:
            records, left = self._apply(key, layout, records, left, leftover)
        for _ in range(MAX_LESSONS):
            if len(left) < MIN_TO_LEARN:
                break
            learnt = self._lesson(int(left[0]))
            if learnt is None:
                leftover.append(int(left[0]))
                records, left = records[1:], left[1:]
            else:
                records, left = self._apply(key, learnt, records, left, leftover)
        self._mark("layout")
        return sorted([*leftover, *left.tolist()])

    def general(self, positions: Sequence[int]) -> None:
        """Transform records one at a time."""
        outcome = self.outcome
        for position in positions:
            try:
                message = self._parse(position)
                outcome.outputs[position] = transform_one(message, self._core.workspace)
                outcome.models[position] = message.selected.name
                outcome.general += 1
            except InvalidMessage as refusal:
                outcome.refusals[position] = refusal.alone()
        if positions:
            self._mark("general")

    def _header_models(self, headers: Sequence[bytes | None]) -> Iterable[str | None]:
        """For each record, the profile that its header selects."""
        selected = {header: self._core.profiles.select(None, header) for header in set(headers)}
        names = {header: None if found.refused else found.name for header, found in selected.items()}
        return [names[header] for header in headers]

    def _parse(self, position: int) -> Message:
        value, model = self._values[position], self._models[position] if self._models else None
        if value is None:
            raise AssertionError(position)
        return parse(value, model, self._core.profiles, self._core.limits.max_classes)

    def _lesson(self, position: int) -> Layout | None:
        try:
            return learn(self._parse(position))
        except InvalidMessage:
            return None

    def _apply(
        self, key: _Key, layout: Layout, records: Bytes, positions: NDArray[np.intp], leftover: list[int]
    ) -> tuple[Bytes, NDArray[np.intp]]:
        """Transform the records that meet `layout`; return the others.

        Records that meet it and whose values have no distribution go to `leftover`: the general
        path finds out why.
        """
        if not len(records):
            return records, positions
        mine, at, others, left = records, positions, records[:0], positions[:0]
        if not layout.met_by_all(records):
            met = layout.met_by(records)
            if not met.any():
                return records, positions
            mine, at, others, left = records[met], positions[met], records[~met], positions[~met]
        self._core.layouts.use(key, layout)
        self._mark("layout")
        done = 0
        for outputs in transform_columns(mine, layout, self._core.workspace, self._mark):
            following = done + len(outputs.content)
            self._place(outputs, at[done:following].tolist(), layout.model, leftover)
            done = following
            self._mark("encode")
        return others, left

    def _place(self, outputs: Outputs, positions: list[int], model: str, leftover: list[int]) -> None:
        """Put each row into its record's place."""
        outcome = self.outcome
        width = outputs.content.shape[1]
        blob = outputs.content.tobytes()
        begins = range(0, len(blob), width)
        if outputs.lengths is None:
            rows = [blob[begin : begin + width] for begin in begins]
        else:
            rows = [blob[b : b + length] for b, length in zip(begins, outputs.lengths.tolist(), strict=True)]
        if outputs.valid is not None:
            valid = outputs.valid.tolist()
            leftover += [position for position, ok in zip(positions, valid, strict=True) if not ok]
            positions = [position for position, ok in zip(positions, valid, strict=True) if ok]
            rows = [row for row, ok in zip(rows, valid, strict=True) if ok]
        outcome.columnar += len(rows)
        for position, row in zip(positions, rows, strict=True):
            outcome.outputs[position] = row
        if model != DEFAULT:
            for position in positions:
                outcome.models[position] = model


def _grouped(keys: Sequence[K]) -> dict[K, list[int]]:
    """The positions of each key, in order of first appearance."""
    if keys and keys.count(keys[0]) == len(keys):  # mostly so
        return {keys[0]: list(range(len(keys)))}
    groups: defaultdict[K, list[int]] = defaultdict(list)
    for position, key in enumerate(keys):
        groups[key].append(position)
    return groups
