"""The way through: messages in, outputs and refusals out."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from service.transform import byte_rows
from service.transform.assembly import Block
from service.transform.columnar import Workspace, transform_columns
from service.transform.general import transform_one
from service.transform.layout import Layout, Layouts, learn
from service.transform.message import parse
from service.transform.profiles import DEFAULT, Profiles
from service.transform.refusals import InvalidMessage, Reason
from service.transform.softmax import arithmetic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from service.transform.columnar import Outputs
    from service.transform.message import Message

    Bytes = NDArray[np.uint8]
    Integers = NDArray[np.int64]
    Mark = Callable[[str], object]

# From so many records of one kind on, a layout is learnt for them (90 us, where one record alone takes 80); and for
# one that is the second of its kind to come alone. Where a layout is known, it is used for a single record too (50 us).
MIN_TO_LEARN: Final = 2
# Records of one length joined and transformed at once: more leaves the core's caches (3.8 us a record of
# 1000 classes with 256 KiB, 3.4 us from here on, 6 us without a bound).
CHUNK_BYTES: Final = 640 << 10
# Attempts to learn a new layout from one group: hostile mixtures take the general path instead.
MAX_LESSONS: Final = 4
# Blocks, or messages transformed alone, that a micro-batch's sample is taken from at most: thousands of kinds must not
# make a sample of thousands of pieces.
MAX_SAMPLED: Final = 32


@dataclass(frozen=True, slots=True)
class Limits:
    """What a message may ask of the service.

    Attributes:
        max_message_bytes: longest value.
        max_classes: most numbers on the last axis.
    """

    max_message_bytes: int
    max_classes: int


@dataclass(frozen=True, slots=True)
class Messages:
    """A micro-batch's messages, in one array.

    Attributes:
        data: shape (bytes,), uint8.
        begins: where each begins, shape (messages,), int64.
        lengths: bytes of each, -1 for a record without a value.
        models: what each one's header `model` says, `None` where it has none; `None` if it does not matter.
    """

    data: Bytes
    begins: Integers
    lengths: Integers
    models: Sequence[bytes | None] | None = None

    @classmethod
    def of(cls, values: Sequence[bytes | None], models: Sequence[bytes | None] | None = None) -> Messages:
        """The same from single objects."""
        lengths = np.array([-1 if value is None else len(value) for value in values], np.int64)
        sizes = np.maximum(lengths, 0)
        data = np.frombuffer(b"".join([value for value in values if value is not None]), np.uint8)
        return cls(data, np.cumsum(sizes) - sizes, lengths, models)

    def __len__(self) -> int:
        """How many."""
        return len(self.lengths)

    def __getitem__(self, position: int) -> bytes:
        """One message that is there."""
        begin = int(self.begins[position])
        return self.data[begin : begin + int(self.lengths[position])].tobytes()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of messages, as single objects; each is either in `outputs` or in `refusals`.

    Attributes:
        outputs: by position, the output; `None` for a refused message.
        models: by position, the name of the profile that applied; meaningless for a refused message.
        refusals: by position, why.
        columnar: messages that were transformed together with others of their layout.
        general: messages that were transformed one at a time.
    """

    outputs: list[bytes | None]
    models: list[str]
    refusals: dict[int, InvalidMessage]
    columnar: int
    general: int


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
        self, values: Sequence[bytes | None], models: Sequence[bytes | None] | None = None, mark: Mark = str
    ) -> Outcome:
        """Transform messages that are single objects.

        An output does not depend on the other messages: not on their number, order or content.

        Args:
            values: the records' values, `None` for tombstones.
            models: the values of their headers `model`, `None` where one has none.
            mark: as for `begin`.
        """
        work = self.begin(Messages.of(values, models), mark)
        for _ in work.by_columns():
            pass
        work.one_by_one()
        outputs: list[bytes | None] = [None] * len(values)
        names = [DEFAULT] * len(values)
        for block in work.blocks:
            for position, value in zip(block.positions.tolist(), block.values(), strict=True):
                outputs[position] = value
                names[position] = block.model
        return Outcome(outputs, names, work.refusals, work.columnar, work.general)

    def begin(self, messages: Messages, mark: Mark = str, *, sampled: bool = False) -> Work:
        """Begin to transform a micro-batch; the workspace is the work's until it is done.

        Args:
            messages: the records' values.
            mark: called with the name of a stage (`layout`, `decode`, `softmax`, `encode`,
                `general`) when a stretch of it ends, so that a caller with a clock can time them.
            sampled: whether the work's `sample` is wanted.
        """
        return Work(self._core, messages, mark, sampled=sampled)


class Work:
    """One micro-batch on its way through: `by_columns`, then `one_by_one`.

    Attributes:
        blocks: the outputs so far.
        refusals: by position, why; in the end every record is here or in `blocks`.
        columnar: records that were transformed together with others of their layout.
        general: records that were transformed one at a time.
        sample: some of the distributions, each with its profile's name, shape (rows, classes); empty if not asked for.
    """

    def __init__(self, core: _Core, messages: Messages, mark: Mark, *, sampled: bool) -> None:
        """Nothing is done yet."""
        self.blocks: list[Block] = []
        self.refusals: dict[int, InvalidMessage] = {}
        self.columnar = 0
        self.general = 0
        self.sample: list[tuple[str, NDArray[Any]]] = []
        self._sampled = sampled
        self._core = core
        self._messages = messages
        self._mark = mark
        self._leftover: list[int] = []

    def by_columns(self) -> Iterator[None]:
        """Transform those that share a layout; yields between steps of about `CHUNK_BYTES`."""
        for key, positions in self._by_key():
            step = max(MIN_TO_LEARN, CHUNK_BYTES // max(key.length, 1))
            for start in range(0, len(positions), step):
                with arithmetic():
                    self._leftover += self._columnar(key, positions[start : start + step])
                yield

    @property
    def bytes_left(self) -> int:
        """Bytes of the messages that `one_by_one` has to look at."""
        return int(self._messages.lengths[self._leftover].sum()) if self._leftover else 0

    def one_by_one(self) -> None:
        """Transform what is left; any one message may take long."""
        if not self._leftover:
            return
        with arithmetic():
            for position in self._leftover:
                try:
                    message = self._parse(position)
                    sample: list[NDArray[Any]] | None = [] if self._samples_more() else None
                    content = np.frombuffer(transform_one(message, self._core.workspace, sample), np.uint8)[None]
                    self.blocks.append(Block(np.array([position]), content, None, message.selected.name))
                    self.sample += [(message.selected.name, rows) for rows in sample or ()]
                    self.general += 1
                except InvalidMessage as refusal:
                    self.refusals[position] = refusal.alone()
        self._mark("general")
        self._leftover = []

    def _samples_more(self) -> bool:
        """Whether the sample has room."""
        return self._sampled and len(self.sample) < MAX_SAMPLED

    def _by_key(self) -> Iterator[tuple[_Key, Integers]]:
        """Positions of the records that may be transformed, grouped by key; the others are refused."""
        everything = np.arange(len(self._messages))
        for length, group in byte_rows.groups(self._messages.lengths + 1):
            positions = everything[group]
            if 0 < length <= self._core.limits.max_message_bytes + 1:
                for model, some in self._by_model(positions):
                    yield _Key(length - 1, model), some
            else:
                self._refuse_length(length - 1, positions.tolist())

    def _by_model(self, positions: Integers) -> Iterable[tuple[str | None, Integers]]:
        """The same grouped by the profile that the header selects."""
        models = self._messages.models if self._core.profiles.matter else None
        if models is None:
            return [(DEFAULT, positions)]
        groups: defaultdict[bytes | None, list[int]] = defaultdict(list)
        for position in positions.tolist():
            groups[models[position]].append(position)
        by_profile: defaultdict[str | None, list[int]] = defaultdict(list)
        for header, some in groups.items():
            selected = self._core.profiles.select(None, header)
            by_profile[None if selected.refused else selected.name] += some
        return [(model, np.array(sorted(some))) for model, some in by_profile.items()]

    def _refuse_length(self, length: int, positions: list[int]) -> None:
        longest = self._core.limits.max_message_bytes
        refusal = (
            InvalidMessage(Reason.NULL_VALUE, "the record has no value")
            if length < 0
            else InvalidMessage(Reason.TOO_LARGE, f"{length} bytes are more than limits.max_message_bytes = {longest}")
        )
        self.refusals |= dict.fromkeys(positions, refusal)

    def _columnar(self, key: _Key, left: Integers) -> list[int]:
        """Transform those with one key that share a layout; return the positions left over."""
        known = self._core.layouts.of(key)
        worth_learning = MIN_TO_LEARN
        if not known and len(left) < MIN_TO_LEARN:
            if not self._core.layouts.second_sight(key):
                return [int(position) for position in left]
            worth_learning = 1
        records = byte_rows.take(self._messages.data, self._messages.begins[left], key.length)
        leftover: list[int] = []
        for layout in known:
            records, left = self._apply(key, layout, records, left, leftover)
        for _ in range(MAX_LESSONS):
            if len(left) < worth_learning:
                break
            learnt = self._lesson(int(left[0]))
            if learnt is None:
                leftover.append(int(left[0]))
                records, left = records[1:], left[1:]
            else:
                records, left = self._apply(key, learnt, records, left, leftover)
        self._mark("layout")
        return sorted([*leftover, *left.tolist()])

    def _parse(self, position: int) -> Message:
        models = self._messages.models if self._core.profiles.matter else None
        model = models[position] if models else None
        return parse(self._messages[position], model, self._core.profiles, self._core.limits.max_classes)

    def _lesson(self, position: int) -> Layout | None:
        try:
            return learn(self._parse(position))
        except InvalidMessage:
            return None

    def _apply(
        self, key: _Key, layout: Layout, records: Bytes, positions: Integers, leftover: list[int]
    ) -> tuple[Bytes, Integers]:
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
        outcomes = transform_columns(mine, layout, self._core.workspace, self._mark, sampled=self._samples_more())
        for outputs in outcomes:
            self.sample += [(layout.model, rows) for rows in outputs.sample]
            following = done + len(outputs.content)
            self._keep(outputs, at[done:following], layout.model, leftover)
            done = following
            self._mark("encode")
        return others, left

    def _keep(self, outputs: Outputs, positions: Integers, model: str, leftover: list[int]) -> None:
        """Copy outputs out of the workspace, but for those that are none."""
        content, lengths = outputs.content, outputs.lengths
        if outputs.valid is None:
            content = content.copy()
        else:
            leftover += positions[~outputs.valid].tolist()
            positions, content = positions[outputs.valid], content[outputs.valid]
            lengths = None if lengths is None else lengths[outputs.valid]
        if len(positions):
            self.columnar += len(positions)
            self.blocks.append(Block(positions, content, lengths, model))
