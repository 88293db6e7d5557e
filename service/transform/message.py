"""What a message says: its tensors, its model and the fields around them, or why it is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from service.transform.arrays import read_array
from service.transform.binaries import Spelling, flag_of, read_bin, read_tensor_map
from service.transform.profiles import Output
from service.transform.refusals import InvalidMessage, Reason
from service.transform.spans import (
    ARRAYS,
    BINS,
    MAPS,
    Entry,
    check_whole,
    container,
    entries,
    find_extension,
    text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from service.transform.profiles import Profile, Profiles, Selected
    from service.transform.tensors import Tensor

T = TypeVar("T")
R = TypeVar("R")

LOGITS: Final = b"logits"
MODEL: Final = b"model"
DTYPE: Final = b"dtype"
SHAPE: Final = b"shape"
# Each head costs as much as a message, in time and in memory.
MAX_HEADS: Final = 1024
_NAMES: Final = frozenset({LOGITS, MODEL, DTYPE, SHAPE, *(output.encode() for output in Output)})


class BinaryFields(NamedTuple):
    """The fields beside a bin of logits that tell how to read it."""

    dtype: Entry
    shape: Entry
    spelling: Spelling


@dataclass(frozen=True, slots=True)
class Outer:
    """The map around the tensor.

    Attributes:
        count: entries of the map.
        body: first byte after the map's header.
        logits: the entry of the tensor.
        binary: the fields beside it, if it is a bin.
    """

    count: int
    body: int
    logits: Entry
    binary: BinaryFields | None


@dataclass(frozen=True, slots=True)
class Head:
    """One tensor of a message.

    Attributes:
        key: its name, a whole msgpack object; empty where the message has one tensor only.
        tensor: its logits.
    """

    key: bytes
    tensor: Tensor


@dataclass(frozen=True, slots=True)
class Message:
    """A message understood.

    Attributes:
        data: the message.
        outer: the map around the tensor; `None` for a bare tensor.
        heads: its tensors.
        selected: the profile that applies.
    """

    data: bytes
    outer: Outer | None
    heads: tuple[Head, ...]
    selected: Selected


def parse(data: bytes, header_model: bytes | None, profiles: Profiles, max_classes: int) -> Message:
    """Understand one message.

    Args:
        data: the record's value.
        header_model: the record's header `model`, if it has one.
        profiles: one of which applies.
        max_classes: most numbers on the last axis.

    Raises:
        InvalidMessage: with the earliest reason of the list that the structure shows; values, and
            an unknown model, are judged later.
    """
    if not data:
        raise InvalidMessage(Reason.MALFORMED_MSGPACK, "the value is empty", 0)
    check_whole(data)
    header = container(data, 0)
    fields = _Fields(data, header[1], header[2]) if header and header[0] == "map" else None
    if fields is None or fields.is_bare_tensor:
        selected = profiles.select(None, header_model)
        outer, heads = None, _bare(data, fields)
    else:
        selected = profiles.select(fields.model, header_model)
        outer, heads = fields.read(selected.profile)
    _earliest(lambda head: _judge(head.tensor, selected.profile, max_classes), heads)
    return Message(data, outer, heads, selected)


def _earliest(act: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Do it with all; if some are refused, tell the reason that stands first in the list."""
    done: list[R] = []
    refusals: list[InvalidMessage] = []
    for item in items:
        try:
            done.append(act(item))
        except InvalidMessage as refusal:
            refusals.append(refusal)
    if refusals:
        raise min(refusals, key=lambda refusal: refusal.precedence)
    return done


def _judge(tensor: Tensor, profile: Profile, max_classes: int) -> None:
    """Judge what the shape shows, then the fault that was met on the way."""
    classes, expected, at = tensor.classes, profile.expected_classes, tensor.at
    if 0 in tensor.shape:
        raise InvalidMessage(Reason.EMPTY, f"the tensor at byte {at} holds no number", at)
    if classes > max_classes:
        raise InvalidMessage(
            Reason.TOO_MANY_CLASSES, f"{classes} classes are more than limits.max_classes = {max_classes}", at
        )
    if expected is not None and classes != expected:
        raise InvalidMessage(
            Reason.UNEXPECTED_CLASSES, f"{classes} classes where the model's profile has {expected}", at
        )
    if tensor.fault is not None:
        raise tensor.fault


def _bare(data: bytes, fields: _Fields | None) -> tuple[Head, ...]:
    """The message is the tensor itself."""
    if (at := find_extension(data, 0, len(data))) is not None:
        raise _extension(at)
    if fields is not None:
        return (Head(b"", read_tensor_map(data, 0, fields.flag or b"")),)
    if data[0] not in ARRAYS:
        raise InvalidMessage(Reason.UNSUPPORTED_ENCODING, "the message is neither a map nor an array of numbers", 0)
    return (Head(b"", read_array(data, 0, len(data))),)


def _refuse_extensions(data: bytes, value: int, end: int) -> None:
    """Refuse logits that are or hold an extension type, save as the name of a head, which may be anything."""
    heads = data[value] in MAPS and flag_of(data, value) is None
    for start, stop in ((head.value, head.end) for head in entries(data, value)) if heads else ((value, end),):
        if (at := find_extension(data, start, stop)) is not None:
            raise _extension(at)


def _extension(at: int) -> InvalidMessage:
    return InvalidMessage(Reason.EXTENSION_TYPE, f"the logits hold an extension type at byte {at}", at)


class _Fields:
    """The fields of the outermost map.

    Attributes:
        count: how many there are.
        named: those whose names mean something, by name, the first two of each.
        flag: the key that would make the map a tensor.
    """

    def __init__(self, data: bytes, count: int, body: int) -> None:
        self._data = data
        self._body = body
        self.count = count
        self.named: dict[bytes, list[Entry]] = {}
        for entry in entries(data):
            name = text(data, entry.key, entry.value)
            if name in _NAMES:
                if name == LOGITS:
                    _refuse_extensions(data, entry.value, entry.end)
                occurrences = self.named.setdefault(name, [])
                if len(occurrences) < 2:  # a third says nothing more than the second
                    occurrences.append(entry)
        self.flag = None if LOGITS in self.named else flag_of(data, 0)

    @property
    def is_bare_tensor(self) -> bool:
        """Whether the map is itself the tensor."""
        return self.flag is not None

    @property
    def model(self) -> bytes | None:
        """The text of the field `model`, if there is one, once, and it is text."""
        match self.named.get(MODEL, []):
            case [entry]:
                return text(self._data, entry.value, entry.end)
        return None

    def read(self, profile: Profile) -> tuple[Outer, tuple[Head, ...]]:
        """Understand the field of the logits and what belongs to it."""
        data = self._data
        occurrences = self.named.get(LOGITS, [])
        self._refuse_duplicates(profile)
        if not occurrences:
            raise InvalidMessage(Reason.MISSING_LOGITS, f"none of the map's {self.count} fields is named logits", 0)
        (logits,) = occurrences
        binary = None
        if data[logits.value] in BINS:
            heads, binary = self._read_bin(logits)
        elif data[logits.value] in MAPS:
            heads = _read_map(data, logits.value)
        elif data[logits.value] in ARRAYS:
            heads = (Head(b"", read_array(data, logits.value, logits.end)),)
        else:
            raise _unsupported(logits.value, "logits is neither an array, a map nor a bin")
        return Outer(self.count, self._body, logits, binary), heads

    def _read_bin(self, logits: Entry) -> tuple[tuple[Head, ...], BinaryFields]:
        dtype, shape = (self.named.get(name, [None])[0] for name in (DTYPE, SHAPE))
        tensor, spelling = read_bin(self._data, logits.value, logits.end, dtype, shape)
        if dtype is None or shape is None:
            raise AssertionError(logits)
        return (Head(b"", tensor),), BinaryFields(dtype, shape, spelling)

    def _refuse_duplicates(self, profile: Profile) -> None:
        unique = [LOGITS]
        if any(self._data[entry.value] in BINS for entry in self.named.get(LOGITS, [])):
            unique += [DTYPE, SHAPE]
        for name in unique:
            if len(found := self.named.get(name, [])) > 1:
                raise InvalidMessage(
                    Reason.DUPLICATE_FIELD,
                    f"field {name.decode()} stands at bytes {found[0].key} and {found[1].key}",
                    found[1].key,
                )
        for output in profile.outputs:
            if added := self.named.get(output.encode()):
                raise InvalidMessage(
                    Reason.DUPLICATE_FIELD,
                    f"field {output} at byte {added[0].key} has the name of a field that the output adds",
                    added[0].key,
                )


def _read_map(data: bytes, value: int) -> tuple[Head, ...]:
    """A tensor map, or a map of heads."""
    if flag := flag_of(data, value):
        return (Head(b"", read_tensor_map(data, value, flag)),)
    header = container(data, value)
    if header is None:
        raise AssertionError(value)
    _, count, _ = header
    if not count:
        raise InvalidMessage(Reason.EMPTY, f"the map of heads at byte {value} is empty", value)
    if count > MAX_HEADS:
        raise InvalidMessage(
            Reason.SHAPE_MISMATCH, f"the {count} heads at byte {value} are more than {MAX_HEADS}", value
        )
    return tuple(_earliest(lambda entry: _read_head(data, entry), entries(data, value)))


def _read_head(data: bytes, entry: Entry) -> Head:
    key, value, end = entry
    if data[value] in ARRAYS:
        return Head(data[key:value], read_array(data, value, end))
    if data[value] in MAPS and (flag := flag_of(data, value)):
        return Head(data[key:value], read_tensor_map(data, value, flag))
    raise _unsupported(value, "the head is neither an array nor a tensor map")


def _unsupported(at: int, what: str) -> InvalidMessage:
    return InvalidMessage(Reason.UNSUPPORTED_ENCODING, f"{what} (byte {at})", at)
