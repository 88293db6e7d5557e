"""Where the parts of a msgpack message lie.

One walker finds the end of any object without building it. It keeps one integer per open
container instead of recursing, so nesting costs eight bytes a level and cannot overflow a stack.
The byte layout is the msgpack specification's.
"""

from __future__ import annotations

from typing import Final, NoReturn

from service.transform.refusals import InvalidMessage, Reason

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

# For each width, the tags that have it: the alphabet of a run of objects of one size.
_SAME_WIDTH: Final = {w: bytes(tag for tag in range(256) if WIDTH[tag] == w) for w in set(WIDTH) - {0}}
_FIRST_WINDOW: Final = 32


def malformed(detail: str) -> NoReturn:
    """Refuse the message as no msgpack at all."""
    raise InvalidMessage(Reason.MALFORMED_MSGPACK, detail)


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
        malformed(f"the message ends inside the {kind} header at byte {pos}")
    return kind, int.from_bytes(data[pos + 1 : start], "big"), start


def sized_payload(data: bytes, pos: int) -> tuple[int, int]:
    """Where the payload of the scalar, str, bin or ext at `pos` begins and ends."""
    tag = data[pos]
    if width := WIDTH[tag]:
        return pos + 1, pos + width
    if tag not in _SIZED:
        malformed(f"byte {pos} is 0xc1, which msgpack never uses")
    size, extra = _SIZED[tag]
    start = pos + 1 + size
    if start > len(data):
        malformed(f"the message ends inside the length at byte {pos}")
    length = int.from_bytes(data[pos + 1 : start], "big")
    return start + extra, start + extra + length


def run_length(data: bytes, pos: int, width: int, limit: int) -> int:
    """Count objects of `width` bytes that follow one another from `pos` on, at most `limit`.

    Every width-th byte is looked at in one slice; the window doubles while the run lasts, so that
    a short run stays cheap and a long one costs no Python per object.
    """
    alphabet = _SAME_WIDTH[width]
    count, window = 0, _FIRST_WINDOW
    while count < limit:
        begin = pos + count * width
        tags = data[begin : begin + min(window, limit - count) * width : width]
        matched = len(tags) - len(tags.lstrip(alphabet))
        count += matched
        if matched < window:
            break
        window *= 2
    return count


class Walker:
    """Walks over the objects of one message.

    Attributes:
        deepest: the deepest nesting met, in containers.
    """

    __slots__ = ("data", "deepest")

    def __init__(self, data: bytes) -> None:
        """Start with nothing walked."""
        self.data = data
        self.deepest = 0

    def skip(  # noqa: C901 - one loop; a call per object would cost twice its time
        self,
        pos: int,
        depth: int,
        *,
        tags: set[int] | None = None,
        payloads: list[tuple[int, int, int]] | None = None,
    ) -> int:
        """Find the end of the object at `pos`, which lies inside `depth` containers.

        Args:
            pos: where the object's tag is.
            depth: how many containers are open around it.
            tags: if given, receives the tags of all objects inside, containers included.
            payloads: if given, receives tag, start and end of every scalar's payload, in order;
                the walk then goes object by object.

        Raises:
            InvalidMessage: `malformed_msgpack`, where the object is cut short or no msgpack.
        """
        data, end = self.data, len(self.data)
        open_containers: list[int] = []
        remaining = 1
        while True:
            while remaining:
                if pos >= end:
                    malformed(f"the message ends after {end} bytes, inside an object")
                width = WIDTH[data[pos]]
                if width and payloads is None and remaining > 1:
                    count = run_length(data, pos, width, remaining)
                    if tags is not None:
                        tags.update(data[pos : pos + count * width : width])
                    pos += count * width
                    remaining -= count
                    continue
                if tags is not None:
                    tags.add(data[pos])
                remaining -= 1
                if (header := None if width else container(data, pos)) is None:
                    tag, (start, pos) = pos, sized_payload(data, pos)
                    if payloads is not None:
                        payloads.append((tag, start, pos))
                    continue
                kind, count, pos = header
                open_containers.append(remaining)
                self.deepest = max(self.deepest, depth + len(open_containers))
                remaining = 2 * count if kind == "map" else count
            if not open_containers:
                break
            remaining = open_containers.pop()
        if pos > end:
            malformed(f"the message ends after {end} bytes, inside an object")
        return pos


def text(data: bytes, pos: int, end: int) -> bytes | None:
    """The bytes of the str that fills `pos:end`, or `None` where another kind of object stands."""
    tag = data[pos]
    if 0xA0 <= tag <= 0xBF or tag in {0xD9, 0xDA, 0xDB}:
        return data[sized_payload(data, pos)[0] : end]
    return None


def container_header(kind: str, count: int) -> bytes:
    """The shortest header of an array or map of `count` entries."""
    fix, short = (0x90, 0xDC) if kind == "array" else (0x80, 0xDE)
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
    """The shortest msgpack str that holds `value`."""
    if len(value) < 32:
        return bytes([0xA0 | len(value)]) + value
    if len(value) < 256:
        return bytes([0xD9, len(value)]) + value
    return b"\xda" + len(value).to_bytes(2, "big") + value
