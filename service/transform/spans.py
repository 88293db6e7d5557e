"""Where the parts of a msgpack message lie, found without building objects.

Ends of objects are found by msgpack's own parser, which skips two nanoseconds' worth per object and
keeps a stack of fixed size instead of recursing; kinds of objects by patterns over their tags.
The byte layout is the msgpack specification's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from msgpack import Unpacker
from msgpack.exceptions import FormatError, OutOfData, StackError

from service.transform.refusals import InvalidMessage, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DEPTH: Final = 64

# Total size of objects whose size follows from the tag alone; 0 for all others.
WIDTH: Final = bytes(
    1 if tag <= 0x7F or tag >= 0xE0 or tag in {0xC0, 0xC2, 0xC3}
    else 1 + (tag & 0x1F) if 0xA0 <= tag <= 0xBF
    else {0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9,
          0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18}.get(tag, 0)
    for tag in range(256)
)  # fmt: skip

# str, bin and ext with a length of their own: bytes of that length, further bytes before the data.
_SIZED: Final = {
    0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0),
    0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0),
    0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1),
}  # fmt: skip
_ARRAY: Final = {0xDC: 2, 0xDD: 4}
_MAP: Final = {0xDE: 2, 0xDF: 4}

ARRAYS: Final = frozenset(range(0x90, 0xA0)) | _ARRAY.keys()
MAPS: Final = frozenset(range(0x80, 0x90)) | _MAP.keys()
BINS: Final = frozenset({0xC4, 0xC5, 0xC6})
EXTENSIONS: Final = frozenset(range(0xD4, 0xD9)) | {0xC7, 0xC8, 0xC9}

# Patterns eat whole objects, tag and payload, and never give one back: 20 to 30 ns an object, where
# a step of Python takes 150.
_INTEGER: Final = rb"[\x00-\x7f\xe0-\xff]|[\xcc\xd0].|[\xcd\xd1]..|[\xce\xd2].{4}|[\xcf\xd3].{8}"
_FLOAT32: Final = rb"\xca.{4}"
_FLOAT64: Final = rb"\xcb.{8}"
_ARRAY_HEADER: Final = rb"[\x90-\x9f]|\xdc..|\xdd.{4}"
_MAP_HEADER: Final = rb"[\x80-\x8f]|\xde..|\xdf.{4}"
_CONSTANT: Final = rb"[\xc0\xc2\xc3]"


def _run_of(*kinds: bytes) -> re.Pattern[bytes]:
    return re.compile(rb"(?:" + b"|".join(kinds) + rb")*+", re.DOTALL)


INTEGERS: Final = _run_of(_INTEGER)
FLOAT32_AND_ARRAYS: Final = _run_of(_FLOAT32, _ARRAY_HEADER)
NUMBERS: Final = _run_of(_INTEGER, _FLOAT32, _FLOAT64)
NUMBERS_AND_ARRAYS: Final = _run_of(_INTEGER, _FLOAT32, _FLOAT64, _ARRAY_HEADER)
NUMBERS_AND_ARRAYS_BUT_FLOAT64: Final = _run_of(_INTEGER, _FLOAT32, _ARRAY_HEADER)
_ALL_BUT_TEXT_AND_EXTENSIONS: Final = _run_of(
    _INTEGER, _FLOAT32, _FLOAT64, _ARRAY_HEADER, _MAP_HEADER, _CONSTANT, rb"\xa0"
)

# msgpack's parser keeps at most so many containers open, and a Python caller cannot lower that.
_PARSER_DEPTH: Final = 1024
_UNBOUNDED: Final = (1 << 31) - 1
_NESTED: Final = b"\x91"
# An extension of 2**32 - 1 bytes: the parser adds one for its code, and takes it for an empty one.
_OVERFLOW: Final = b"\xc9\xff\xff\xff\xff"


class Entry(NamedTuple):
    """One entry of a map, by offsets: its key begins, its value begins, it ends."""

    key: int
    value: int
    end: int


def malformed(detail: str, at: int) -> NoReturn:
    """Refuse the message as no msgpack at all."""
    raise InvalidMessage(Reason.MALFORMED_MSGPACK, detail, at)


def parser(data: bytes | memoryview, before: bytes = b"") -> Unpacker:
    """A msgpack parser at the start of `data`; what stands `before` counts as read."""
    # Its buffer would be a megabyte otherwise, even for a message of ten bytes.
    unpacker = Unpacker(max_buffer_size=_UNBOUNDED, read_size=len(before) + len(data) or 1)
    if before:
        unpacker.feed(before)
    unpacker.feed(data)
    return unpacker


def nests_deeper(data: bytes | memoryview, depth: int) -> bool:
    """Whether the object that `data` begins with has more than `depth` containers in each other.

    The parser's own bound does the counting: with 1024 - `depth` arrays around it, an object that
    nests deeper exceeds the bound, and any other does not.

    Raises:
        OutOfData: the object is cut short.
        FormatError: a tag that msgpack does not use.
    """
    try:
        parser(data, _NESTED * (_PARSER_DEPTH - depth)).skip()
    except StackError:
        return True
    return False


def check_whole(data: bytes) -> None:
    """Require that `data` is one msgpack object, no more, and not too deep.

    Raises:
        InvalidMessage: `malformed_msgpack`, `trailing_bytes`, `too_deep`.
    """
    if _OVERFLOW in data:
        _end_at_any_depth(data)
    around = _PARSER_DEPTH - MAX_DEPTH
    unpacker = parser(data, _NESTED * around)
    deep = False
    try:
        unpacker.skip()
        end = unpacker.tell() - around
    except OutOfData:
        malformed(f"the message ends after {len(data)} bytes, inside an object", len(data))
    except FormatError:
        at = max(unpacker.tell() - around, 0)
        malformed(f"byte {at} is 0xc1, which msgpack never uses", at)
    except StackError:
        deep, end = True, _end_at_any_depth(data)
    if end < len(data):
        raise InvalidMessage(
            Reason.TRAILING_BYTES, f"{len(data) - end} bytes follow the message's end at byte {end}", end
        )
    if deep:
        raise InvalidMessage(Reason.TOO_DEEP, f"containers nest more than {MAX_DEPTH} deep")


def _end_at_any_depth(data: bytes) -> int:
    """Where the object ends, however deep it nests: a count of objects to come needs no stack."""
    pos, to_come, length = 0, 1, len(data)
    while to_come:
        if pos >= length:
            malformed(f"the message ends after {length} bytes, inside an object", length)
        to_come -= 1
        if width := WIDTH[data[pos]]:
            pos += width
        elif header := container(data, pos):
            kind, count, pos = header
            to_come += 2 * count if kind == "map" else count
        else:
            _, pos = sized_payload(data, pos)
    if pos > length:
        malformed(f"the message ends after {length} bytes, inside an object", length)
    return pos


def container(data: bytes, pos: int) -> tuple[str, int, int] | None:
    """Read the header of the array or map at `pos`.

    Returns:
        The kind (`"array"` or `"map"`), the number of entries and where the first begins;
        `None` where another kind of object stands.
    """
    tag = data[pos]
    if 0x80 <= tag <= 0x9F:
        return ("map" if tag < 0x90 else "array"), tag & 0x0F, pos + 1
    kind, size = ("array", _ARRAY[tag]) if tag in _ARRAY else ("map", _MAP.get(tag, 0))
    if not size:
        return None
    start = pos + 1 + size
    if start > len(data):
        malformed(f"the message ends inside the {kind} header at byte {pos}", len(data))
    return kind, int.from_bytes(data[pos + 1 : start], "big"), start


def sized_payload(data: bytes, pos: int) -> tuple[int, int]:
    """Where the payload of the scalar, str, bin or ext at `pos` begins and ends."""
    tag = data[pos]
    if width := WIDTH[tag]:
        return pos + 1, pos + width
    if tag not in _SIZED:
        malformed(f"byte {pos} is 0xc1, which msgpack never uses", pos)
    size, extra = _SIZED[tag]
    start = pos + 1 + size
    if start > len(data):
        malformed(f"the message ends inside the length at byte {pos}", len(data))
    length = int.from_bytes(data[pos + 1 : start], "big")
    return start + extra, start + extra + length


def entries(data: bytes, pos: int = 0) -> Iterator[Entry]:
    """The entries of the map at `pos` of a message that `check_whole` has seen.

    One by one: a hostile map has half a million of them in a megabyte.
    """
    unpacker = parser(memoryview(data)[pos:])
    tell, skip = unpacker.tell, unpacker.skip
    for _ in range(unpacker.read_map_header()):
        key = tell()
        skip()
        value = tell()
        skip()
        yield Entry(pos + key, pos + value, pos + tell())


def find_extension(data: bytes, start: int, end: int) -> int | None:
    """Where the first extension type in the objects `start:end` stands, containers looked into."""
    pos = start
    while (pos := run_end(_ALL_BUT_TEXT_AND_EXTENSIONS, data, pos, end)) < end:
        if data[pos] in EXTENSIONS:
            return pos
        _, pos = sized_payload(data, pos)
    return None


def is_run(kinds: re.Pattern[bytes], data: bytes, start: int, end: int) -> bool:
    """Whether the objects `start:end` are all of these kinds."""
    return run_end(kinds, data, start, end) == end


def run_end(kinds: re.Pattern[bytes], data: bytes, start: int, end: int) -> int:
    """Where the objects of these kinds that begin at `start` end, at most at `end`."""
    match = kinds.match(data, start, end)
    if match is None:
        raise AssertionError(kinds)
    return match.end()


def scalars(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Tag, payload's start and payload's end of every object in `start:end` that is no container."""
    pos = start
    while pos < end:
        if header := container(data, pos):
            pos = header[2]
        else:
            tag = pos
            begin, pos = sized_payload(data, pos)
            yield tag, begin, pos


def text(data: bytes, pos: int, end: int) -> bytes | None:
    """The bytes of the str that fills `pos:end`, or `None` where another kind of object stands."""
    tag = data[pos]
    if 0xA0 <= tag <= 0xBF or tag in {0xD9, 0xDA, 0xDB}:
        return data[sized_payload(data, pos)[0] : end]
    return None


def text_or_bin(data: bytes, pos: int, end: int) -> bytes | None:
    """The bytes of the str or bin that fills `pos:end`, or `None` where another kind of object stands."""
    if data[pos] in BINS:
        return data[sized_payload(data, pos)[0] : end]
    return text(data, pos, end)


def array_header(count: int) -> bytes:
    """The shortest header of an array of `count` elements."""
    return _container_header(0x90, 0xDC, count)


def map_header(count: int) -> bytes:
    """The shortest header of a map of `count` entries."""
    return _container_header(0x80, 0xDE, count)


def _container_header(fix: int, short: int, count: int) -> bytes:
    if count < 16:
        return bytes([fix | count])
    if count < 1 << 16:
        return bytes([short]) + count.to_bytes(2, "big")
    return bytes([short + 1]) + count.to_bytes(4, "big")


def bin_header(length: int) -> bytes:
    """The shortest header of a bin of `length` bytes."""
    for tag, size in ((0xC4, 1), (0xC5, 2), (0xC6, 4)):
        if length < 1 << (8 * size):
            return bytes([tag]) + length.to_bytes(size, "big")
    raise OverflowError(length)


def str_object(value: bytes) -> bytes:
    """The shortest msgpack str that holds `value`, of less than 64 KiB."""
    if len(value) < 32:
        return bytes([0xA0 | len(value)]) + value
    if len(value) < 256:
        return bytes([0xD9, len(value)]) + value
    return b"\xda" + len(value).to_bytes(2, "big") + value
