"""Any message, one at a time: what it says, or precisely why it is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgpack
import numpy as np

from service.transform.refusals import InvalidMessage, Reason
from service.transform.softmax import empty_logits, softmax_in_place
from service.transform.spans import (
    MAX_DEPTH,
    WIDTH,
    Walker,
    bin_header,
    container,
    container_header,
    run_length,
    sized_payload,
    str_object,
    text,
)
from service.transform.tensors import (
    FLOAT32,
    FLOAT64,
    LIST_FLOAT32,
    LIST_FLOAT64,
    Elements,
    bin_elements,
    list_elements,
    parse_dtype,
    respell,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_RANK: Final = 4
_FIXINTS: Final = frozenset(range(0x80)) | frozenset(range(0xE0, 0x100))
_INTEGERS: Final = _FIXINTS | frozenset(range(0xCC, 0xD4))
_NUMBERS: Final = _INTEGERS | {0xCA, 0xCB}
_NUMBER_TAGS: Final = bytes(sorted(_NUMBERS))
_ARRAYS: Final = frozenset(range(0x90, 0xA0)) | {0xDC, 0xDD}
_MAPS: Final = frozenset(range(0x80, 0x90)) | {0xDE, 0xDF}
_BINS: Final = frozenset({0xC4, 0xC5, 0xC6})
_EXTENSIONS: Final = frozenset(range(0xD4, 0xD9)) | {0xC7, 0xC8, 0xC9}
_KEYS: Final = frozenset({b"logits", b"probabilities", b"dtype", b"shape"})


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where the logits lie in the message and how their probabilities leave.

    Attributes:
        start: first byte of the numbers (after the array's or bin's header).
        stop: first byte after them.
        rows: distributions in the record.
        classes: numbers in each.
        source: how the numbers are stored; `None` for a list that mixes encodings.
        computed_in: float32 or float64.
        target: how the probabilities are stored.
    """

    start: int
    stop: int
    rows: int
    classes: int
    source: Elements | None
    computed_in: np.dtype[Any]
    target: Elements


@dataclass(frozen=True, slots=True)
class Edit:
    """Bytes `start:stop` of the message leave as `replacement`; `None` stands for the probabilities."""

    start: int
    stop: int
    replacement: bytes | None


@dataclass(frozen=True, slots=True)
class Message:
    """A message understood: its tensor and, in order, all that differs in its output."""

    tensor: Tensor
    edits: tuple[Edit, ...]


def parse(data: bytes, max_classes: int) -> Message:
    """Understand one message.

    Raises:
        InvalidMessage: with the earliest reason of the list that the bytes alone can show;
            values are judged by `transform_one`.
    """
    fields = _Fields.of(data)
    message = fields.message() if fields.is_map else _bare_list(data)
    classes, rows = message.tensor.classes, message.tensor.rows
    if not classes or not rows:
        raise InvalidMessage(Reason.EMPTY, "the logits hold no number")
    if classes > max_classes:
        raise InvalidMessage(
            Reason.TOO_MANY_CLASSES, f"{classes} classes are more than limits.max_classes = {max_classes}"
        )
    if message.tensor.source is None:
        _check_numeric(data, message.tensor)
    return message


def transform_one(data: bytes, max_classes: int) -> bytes:
    """Turn one message into its output.

    Raises:
        InvalidMessage: the message is refused.
    """
    message = parse(data, max_classes)
    tensor = message.tensor
    logits = _logits(data, tensor)
    valid = softmax_in_place(logits)
    if not valid.all():
        _refuse_values(_logits(data, tensor))
    return apply_edits(data, message.edits, tensor.target.pack(logits))


def apply_edits(data: bytes, edits: tuple[Edit, ...], payload: bytes | memoryview) -> bytes:
    """Copy the message with its edits made and `payload` in the tensor's place."""
    parts: list[bytes | memoryview] = []
    done = 0
    for edit in edits:
        parts += [data[done : edit.start], payload if edit.replacement is None else edit.replacement]
        done = edit.stop
    parts.append(data[done:])
    return b"".join(parts)


def _logits(data: bytes, tensor: Tensor) -> NDArray[Any]:
    logits = empty_logits(tensor.rows, tensor.classes, tensor.computed_in)
    if tensor.source is None:
        # Number by number into the array: a list of Python numbers would take 32 bytes for each byte.
        unpacker = msgpack.Unpacker(max_buffer_size=tensor.stop - tensor.start)
        unpacker.feed(memoryview(data)[tensor.start : tensor.stop])
        logits[0] = np.fromiter(unpacker, np.float64, tensor.classes)
    else:
        columns = np.frombuffer(data, np.uint8)[tensor.start : tensor.stop].reshape(1, -1)
        logits[...] = tensor.source.read(columns).reshape(tensor.rows, tensor.classes)
    return logits


def _refuse_values(numbers: NDArray[Any]) -> NoReturn:
    values = numbers.reshape(-1)
    for reason, faulty, name in (
        (Reason.NAN, np.isnan(values), "NaN"),
        (Reason.POSITIVE_INFINITY, np.isposinf(values), "+infinity"),
    ):
        if faulty.any():
            raise InvalidMessage(reason, f"logit {int(faulty.argmax())} of {values.size} is {name}")
    row = int(np.isneginf(numbers).all(axis=1).argmax())
    raise InvalidMessage(Reason.ALL_MASKED, f"row {row}: all {numbers.shape[1]} logits are -infinity")


@dataclass(frozen=True, slots=True)
class _Fields:
    """The outermost object: what it is and, for a map, where the fields of interest lie.

    Attributes:
        data: the message.
        is_map: whether the message is a map; else a bare list.
        count: entries of the map.
        body: first byte after the map's header.
        spans: by name, the (key, value, end) offsets of each occurrence, in order.
        looks_like_tensor_map: a key `nd` or `__ndarray__` was met.
        extension: where a field `logits` is or holds an extension type.
    """

    data: bytes
    is_map: bool
    count: int
    body: int
    spans: dict[bytes, list[tuple[int, int, int]]]
    looks_like_tensor_map: bool
    extension: int | None

    @classmethod
    def of(cls, data: bytes) -> _Fields:
        """Walk the whole message once."""
        if not data:
            raise InvalidMessage(Reason.MALFORMED_MSGPACK, "the value is empty")
        walker = Walker(data)
        header = container(data, 0)
        is_map = header is not None and header[0] == "map"
        spans: dict[bytes, list[tuple[int, int, int]]] = {}
        tensor_map = False
        extension: int | None = None
        count = body = 0
        if header is not None and is_map:
            walker.deepest = 1
            _, count, body = header
            pos = body
            for _ in range(count):
                key = pos
                value = walker.skip(key, 1)
                pos = walker.skip(value, 1)
                name = text(data, key, value)
                if name in _KEYS:
                    occurrences = spans.setdefault(name, [])
                    if len(occurrences) < 2:  # a third says nothing more than the second
                        occurrences.append((key, value, pos))
                    if name == b"logits" and extension is None and _holds_extension(data, value):
                        extension = value
                elif name in {b"nd", b"__ndarray__"} or data[key:value] in {b"\xc4\x02nd", b"\xc4\x0b__ndarray__"}:
                    tensor_map = True
        else:
            pos = walker.skip(0, 0)
        if pos != len(data):
            raise InvalidMessage(
                Reason.TRAILING_BYTES, f"{len(data) - pos} bytes follow the message's end at byte {pos}"
            )
        if walker.deepest > MAX_DEPTH:
            raise InvalidMessage(Reason.TOO_DEEP, f"containers nest {walker.deepest} deep; {MAX_DEPTH} is the limit")
        return cls(data, is_map, count, body, spans, tensor_map, extension)

    def message(self) -> Message:
        """Understand the map around the tensor."""
        logits = self.spans.get(b"logits", [])
        if self.extension is not None:
            raise InvalidMessage(
                Reason.EXTENSION_TYPE, f"logits at byte {self.extension} is or holds an extension type"
            )
        self._refuse_duplicates()
        if not logits:
            if self.looks_like_tensor_map:
                raise InvalidMessage(Reason.UNSUPPORTED_ENCODING, "tensor maps are not supported")
            raise InvalidMessage(Reason.MISSING_LOGITS, f"none of the map's {self.count} fields is named logits")
        ((key, value, end),) = logits
        tag = self.data[value]
        if tag in _ARRAYS:
            tensor, edits = _list(self.data, value, end)
        elif tag in _BINS:
            tensor, edits = self._bin(value, end)
        else:
            what = "a map" if tag in _MAPS else "neither an array nor a bin"
            raise InvalidMessage(Reason.UNSUPPORTED_ENCODING, f"logits at byte {value} is {what}")
        edits += [
            Edit(0, self.body, container_header("map", self.count)),
            Edit(key, value, str_object(b"probabilities")),
        ]
        return Message(tensor, tuple(sorted(edits, key=lambda edit: edit.start)))

    def _refuse_duplicates(self) -> None:
        logits = self.spans.get(b"logits", [])
        unique = [b"logits"]
        if any(self.data[value] in _BINS for _, value, _ in logits):
            unique += [b"dtype", b"shape"]
        for name in unique:
            if len(found := self.spans.get(name, [])) > 1:
                raise InvalidMessage(
                    Reason.DUPLICATE_FIELD, f"field {name.decode()} stands at bytes {found[0][0]} and {found[1][0]}"
                )
        if added := self.spans.get(b"probabilities"):
            raise InvalidMessage(
                Reason.DUPLICATE_FIELD, f"field probabilities at byte {added[0][0]} has the name of an output field"
            )

    def _bin(self, value: int, end: int) -> tuple[Tensor, list[Edit]]:
        source, edits = self._dtype()
        rows, classes = self._shape()
        start, _ = sized_payload(self.data, value)
        if rows * classes * source.stride != end - start:
            raise InvalidMessage(
                Reason.SHAPE_MISMATCH,
                f"{end - start} bytes are not the {rows} x {classes} numbers of {source.stride} bytes that are told",
            )
        target = bin_elements(source.answered_in)
        tensor = Tensor(start, end, rows, classes, source, source.computed_in, target)
        header = Edit(value, start, bin_header(rows * classes * target.stride))
        return tensor, [*edits, header, Edit(start, end, None)]

    def _dtype(self) -> tuple[Elements, list[Edit]]:
        found = self.spans.get(b"dtype")
        if not found:
            raise InvalidMessage(Reason.UNSUPPORTED_DTYPE, "logits is a bin and there is no field dtype")
        _, value, end = found[0]
        spelling = text(self.data, value, end)
        elements = None if spelling is None else parse_dtype(spelling)
        if spelling is None or elements is None:
            raise InvalidMessage(Reason.UNSUPPORTED_DTYPE, f"dtype at byte {value} is none of the supported spellings")
        respelled = respell(elements.answered_in, spelling)
        if respelled == spelling:
            return elements, []
        return elements, [Edit(value, end, str_object(respelled))]

    def _shape(self) -> tuple[int, int]:
        found = self.spans.get(b"shape")
        if not found:
            raise InvalidMessage(Reason.SHAPE_MISMATCH, "logits is a bin and there is no field shape")
        _, value, end = found[0]
        header = container(self.data, value)
        if header is None or header[0] != "array" or not 1 <= header[1] <= MAX_RANK:
            raise InvalidMessage(Reason.SHAPE_MISMATCH, f"shape at byte {value} is no array of 1 to {MAX_RANK} sizes")
        tags: set[int] = set()
        pos = header[2]
        while pos < end:
            pos = Walker(self.data).skip(pos, 1, tags=tags)
        sizes = msgpack.unpackb(self.data[value:end]) if tags <= _INTEGERS else [-1]
        if min(sizes) < 0:
            raise InvalidMessage(Reason.SHAPE_MISMATCH, f"shape at byte {value} holds something else than sizes")
        return math.prod(sizes[:-1]), sizes[-1]


def _bare_list(data: bytes) -> Message:
    if _holds_extension(data, 0):
        raise InvalidMessage(Reason.EXTENSION_TYPE, "the message is or holds an extension type")
    if data[0] not in _ARRAYS:
        raise InvalidMessage(Reason.UNSUPPORTED_ENCODING, "the message is neither a map nor an array of numbers")
    tensor, edits = _list(data, 0, len(data))
    return Message(tensor, tuple(edits))


def _holds_extension(data: bytes, pos: int) -> bool:
    tags: set[int] = set()
    Walker(data).skip(pos, 0, tags=tags)
    return bool(tags & _EXTENSIONS)


def _list(data: bytes, value: int, end: int) -> tuple[Tensor, list[Edit]]:
    """Understand the array at `value`; numbers that are none are left to `_check_numeric`."""
    header = container(data, value)
    if header is None:
        raise AssertionError(value)
    _, count, start = header
    source = _same_elements(data, start, end, count)
    if source is not None:
        computed_in, answered_in = source.computed_in, source.answered_in
    else:
        tags: set[int] = set()
        walker = Walker(data)
        walker.skip(value, 0, tags=tags)
        if walker.deepest > 1:
            _refuse_nested(data, start, count)
        computed_in, answered_in = FLOAT64, FLOAT64 if 0xCB in tags else FLOAT32
    target = list_elements(answered_in)
    tensor = Tensor(start, end, 1, count, source, computed_in, target)
    return tensor, [Edit(value, start, container_header("array", count)), Edit(start, end, None)]


def _same_elements(data: bytes, start: int, end: int, count: int) -> Elements | None:
    for elements in (LIST_FLOAT32, LIST_FLOAT64):
        if count and end - start == count * elements.stride:
            tags = data[start : end : elements.stride]
            if tags.count(tags[:1]) == count and tags[0] == elements.tag:
                return elements
    return None


def _refuse_nested(data: bytes, start: int, count: int) -> None:
    """Refuse an array that holds arrays; one that holds maps is left to `_check_numeric`."""
    walker = Walker(data)
    arrays = numbers = others = 0
    pos = start
    for _ in range(count):
        tag = data[pos]
        arrays += tag in _ARRAYS
        numbers += tag in _NUMBERS
        others += tag not in _ARRAYS and tag not in _NUMBERS
        pos = walker.skip(pos, 0)
    if arrays and (numbers or others):
        raise InvalidMessage(Reason.RAGGED, f"the array at byte {start} mixes {arrays} arrays with other elements")
    if arrays:
        raise InvalidMessage(Reason.UNSUPPORTED_ENCODING, f"nested arrays at byte {start} are not supported")


def _check_numeric(data: bytes, tensor: Tensor) -> None:
    pos = tensor.start
    index = 0
    while index < tensor.classes:
        width = WIDTH[data[pos]]
        run = run_length(data, pos, width, tensor.classes - index) if width else 1
        tags = data[pos : pos + max(width, 1) * run : max(width, 1)]
        at = len(tags) - len(tags.lstrip(_NUMBER_TAGS))
        if at < len(tags):
            raise InvalidMessage(Reason.NOT_NUMERIC, f"element {index + at} at byte {pos + at * width} is not a number")
        pos += width * run
        index += run
