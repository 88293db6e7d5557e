"""A slow and plain reader of msgpack that remembers where each object stands, and a writer of shortest headers."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final, NamedTuple

DEEPEST: Final = 64


class RefusedError(Exception):
    """Raised where a fault is found."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Tag(NamedTuple):
    """What a first byte means.

    Attributes:
        kind: the kind of object.
        form: `value` where the byte is all there is, `number` where one follows, `count` where the byte says how many
            bytes or objects follow, `length` where a length of its own does.
        argument: the value; the number's struct format; the count; the width of the length.
    """

    kind: str
    form: str
    argument: object


_TAGS: Final = {
    **{tag: Tag("int", "value", tag) for tag in range(0x80)},
    **{0x80 | count: Tag("map", "count", count) for count in range(16)},
    **{0x90 | count: Tag("array", "count", count) for count in range(16)},
    **{0xA0 | count: Tag("str", "count", count) for count in range(32)},
    0xC0: Tag("nil", "value", None),
    0xC2: Tag("bool", "value", False),  # noqa: FBT003 - msgpack's false
    0xC3: Tag("bool", "value", True),  # noqa: FBT003 - msgpack's true
    **{0xC4 + power: Tag("bin", "length", 1 << power) for power in range(3)},
    **{0xC7 + power: Tag("ext", "length", 1 << power) for power in range(3)},
    0xCA: Tag("float32", "number", ">f"),
    0xCB: Tag("float64", "number", ">d"),
    **{0xCC + at: Tag("int", "number", f">{letter}") for at, letter in enumerate("BHIQbhiq")},
    **{0xD4 + power: Tag("ext", "count", 1 << power) for power in range(5)},
    **{0xD9 + power: Tag("str", "length", 1 << power) for power in range(3)},
    **{0xDC + power: Tag("array", "length", 2 << power) for power in range(2)},
    **{0xDE + power: Tag("map", "length", 2 << power) for power in range(2)},
    **{tag: Tag("int", "value", tag - 0x100) for tag in range(0xE0, 0x100)},
}


@dataclass(eq=False)
class Node:
    """One msgpack object and where it stands.

    Attributes:
        value: of a scalar; the payload of a str, bin or ext, the ext's code before it.
        children: elements, or keys and values in turns.
        missing: how many children are yet to be read.
    """

    source: bytes
    kind: str
    start: int
    value: object = None
    missing: int = 0
    stop: int = 0
    children: list[Node] = field(default_factory=list)

    @property
    def raw(self) -> bytes:
        return self.source[self.start : self.stop]

    @property
    def pairs(self) -> list[tuple[Node, Node]]:
        """The entries of a map."""
        return list(zip(self.children[::2], self.children[1::2], strict=True))

    @property
    def payload(self) -> bytes | None:
        """The bytes of a str or bin."""
        return self.value if self.kind in {"str", "bin"} and isinstance(self.value, bytes) else None


class _Reader:
    """Reads tokens one after another."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0

    def _take(self, count: int) -> bytes:
        taken = self.data[self.place : self.place + count]
        if len(taken) < count:
            raise RefusedError("malformed_msgpack")
        self.place += count
        return taken

    def node(self) -> Node:
        """The next object, its children unread."""
        start = self.place
        tag = _TAGS.get(self._take(1)[0])
        if tag is None:
            raise RefusedError("malformed_msgpack")
        node = Node(self.data, tag.kind, start)
        if tag.form == "value":
            node.value = tag.argument
        elif tag.form == "number":
            node.value = struct.unpack(str(tag.argument), self._take(struct.calcsize(str(tag.argument))))[0]
        else:
            self._sized(node, tag)
        return node

    def _sized(self, node: Node, tag: Tag) -> None:
        assert isinstance(tag.argument, int)
        count = tag.argument if tag.form == "count" else int.from_bytes(self._take(tag.argument), "big")
        if node.kind in {"array", "map"}:
            node.missing = count * (2 if node.kind == "map" else 1)
        else:
            node.value = self._take(count + (node.kind == "ext"))


def read(data: bytes) -> Node:
    """The one object of a message, without recursion.

    Raises:
        RefusedError: it is none, or not alone, or too deep.
    """
    reader, deepest = _Reader(data), 0
    unfinished: list[Node] = []
    while True:
        unfinished.append(reader.node())
        deepest = max(deepest, len(unfinished) - (unfinished[-1].kind not in {"array", "map"}))
        while not unfinished[-1].missing:
            node = unfinished.pop()
            node.stop = reader.place
            if not unfinished:
                if node.stop < len(data):
                    raise RefusedError("trailing_bytes")
                if deepest > DEEPEST:
                    raise RefusedError("too_deep")
                return node
            unfinished[-1].children.append(node)
            unfinished[-1].missing -= 1


def nodes(root: Node) -> list[Node]:
    """An object and all that is in it."""
    found = [root]
    for node in found:
        found += node.children
    return found


# Writing

_HEADERS: Final = {
    "map": (0x80, 16, {2: 0xDE, 4: 0xDF}),
    "array": (0x90, 16, {2: 0xDC, 4: 0xDD}),
    "str": (0xA0, 32, {1: 0xD9, 2: 0xDA, 4: 0xDB}),
    "bin": (0, 0, {1: 0xC4, 2: 0xC5, 4: 0xC6}),
    "int": (0, 128, {1: 0xCC, 2: 0xCD, 4: 0xCE, 8: 0xCF}),
}


def header(kind: str, count: int) -> bytes:
    """The shortest header, or the whole of an integer from zero up."""
    fix, room, tags = _HEADERS[kind]
    if count < room:
        return bytes([fix | count])
    width = next(width for width in tags if count < 1 << (8 * width))
    return bytes([tags[width]]) + count.to_bytes(width, "big")


def text(words: str) -> bytes:
    encoded = words.encode()
    return header("str", len(encoded)) + encoded
