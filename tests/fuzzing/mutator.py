"""Changes of a message that leave it msgpack more often than not: tags, counts, entries, dtypes, shapes.

The parser here is the fuzzer's own and forgives everything: it takes what it finds as far as it goes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

# So many objects of a message are looked at.
_MOST_NODES: Final = 400
# Headers: kind, bytes of the length or count, further bytes before the payload.
_HEADERS: Final = {
    0xC4: ("bin", 1, 0), 0xC5: ("bin", 2, 0), 0xC6: ("bin", 4, 0),
    0xC7: ("ext", 1, 1), 0xC8: ("ext", 2, 1), 0xC9: ("ext", 4, 1),
    0xD9: ("str", 1, 0), 0xDA: ("str", 2, 0), 0xDB: ("str", 4, 0),
    0xDC: ("array", 2, 0), 0xDD: ("array", 4, 0), 0xDE: ("map", 2, 0), 0xDF: ("map", 4, 0),
}  # fmt: skip
_WIDTHS: Final = {
    0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
    0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17,
}  # fmt: skip
_NUMPY: Final = [f"{order}{kind}{size}" for order in "<>" for kind in "fiu" for size in (2, 4, 8)]
_NAMES: Final = [f"{kind}{bits}" for kind in ("float", "int", "uint") for bits in (8, 16, 32, 64)]
DTYPES: Final = [
    word.encode()
    for word in (
        *_NUMPY, *_NAMES, *(name.replace("float", "fp").upper() for name in _NAMES),
        "|i1", "|u1", "bfloat16", "BF16", "<i1", "=f4", "|f4", "|O", "|V8", "f4", "<f16", "Float32", "fp32", "",
    )
]  # fmt: skip
WORDS: Final = [
    b"logits", b"probabilities", b"model", b"dtype", b"shape", b"data", b"nd", b"type", b"kind", b"__ndarray__",
    b"id", b"a", b"b", b"default", b"log_probabilities", b"predicted", b"label", b"confidence", b"entropy", b"margin",
    b"top_k", b"O", b"V", b"", b"\xff", b"a-name-of-some-length",
]  # fmt: skip
NUMBERS: Final = [
    *(b"\xca" + bytes.fromhex(bits) for bits in (
        "00000000", "80000000", "3f800000", "7f800000", "ff800000", "7fc00000", "7f800001", "7f7fffff", "00000001",
    )),
    *(b"\xcb" + bytes.fromhex(bits) for bits in (
        "0000000000000000", "3ff0000000000000", "7ff0000000000000", "fff0000000000000", "7ff8000000000000",
        "7ff0000000000001", "7fefffffffffffff", "ffefffffffffffff", "0000000000000001", "47f0000000000000",
    )),
    b"\x00", b"\x7f", b"\xff", b"\xe0", b"\xcc\xff", b"\xcd\xff\xff", b"\xce" + b"\xff" * 4, b"\xcf" + b"\xff" * 8,
    b"\xd0\x80", b"\xd1\x80\x00", b"\xd2\x80" + b"\0" * 3, b"\xd3\x80" + b"\0" * 7,
]  # fmt: skip
# float16 and bfloat16: NaN, +inf, -inf.
_HALVES: Final = [bytes.fromhex(bits) for bits in ("7e00", "7c00", "fc00", "7fc0", "7f80", "ff80")]
OBJECTS: Final = [
    *NUMBERS, b"\xc0", b"\xc2", b"\xc3", b"\x90", b"\x80", b"\xa0", b"\xc4\x00", b"\xd4\x01\x00", b"\xc7\x00\xff",
    b"\x91\x01", b"\x81\xa1a\x01", b"\xc1", b"\x92\xca\x3f\x80\x00\x00\x01", b"\xd6\xff\x00\x00\x00\x00",
]  # fmt: skip


@dataclass(slots=True)
class Node:
    """An object of a message.

    Attributes:
        kind: `array`, `map`, `str`, `bin`, `ext` or `scalar`.
        start: of the object.
        body: end of its header.
        end: of the object.
        children: of an array or a map, keys and values in turn.
    """

    kind: str
    start: int
    body: int
    end: int
    children: list[Node] = field(default_factory=list)


def survey(message: bytes) -> list[Node]:
    """The objects of a message, each before its children, as far as it can be read."""
    found: list[Node] = []
    around: list[tuple[Node, int]] = []
    pos = 0
    while pos < len(message) and len(found) < _MOST_NODES:
        kind, body, size = _head(message, pos)
        node = Node(kind, pos, body, len(message))
        found.append(node)
        if around:
            around[-1][0].children.append(node)
        if kind in {"array", "map"}:
            pos = body
            around.append((node, 2 * size if kind == "map" else size))
        else:
            pos = node.end = min(body + size, len(message))
        while around and len(around[-1][0].children) >= around[-1][1]:
            around.pop()[0].end = pos
        if not around:
            break
    return found


def _head(message: bytes, pos: int) -> tuple[str, int, int]:
    """The kind of the object at `pos`, the end of its header, and its count or its payload's length."""
    tag = message[pos]
    if 0x80 <= tag <= 0x9F:
        return ("map" if tag < 0x90 else "array"), pos + 1, tag & 0x0F
    if 0xA0 <= tag <= 0xBF:
        return "str", pos + 1, tag & 0x1F
    if tag in _HEADERS:
        kind, width, extra = _HEADERS[tag]
        return kind, pos + 1 + width + extra, int.from_bytes(message[pos + 1 : pos + 1 + width], "big")
    return "scalar", pos + 1, _WIDTHS.get(tag, 0)


def header(kind: str, size: int, form: int = 0) -> bytes:
    """The header of a kind: form 0 is the shortest, higher ones are longer."""
    fix, room = {"array": (0x90, 16), "map": (0x80, 16), "str": (0xA0, 32)}.get(kind, (0, 0))
    if form == 0 and size < room:
        return bytes([fix | size])
    forms = [(tag, width) for tag, (name, width, _) in _HEADERS.items() if name == kind]
    for place, (tag, width) in enumerate(forms, 1):
        if place >= min(form, len(forms)) and size < 1 << (8 * width):
            return bytes([tag]) + size.to_bytes(width, "big")
    return header(kind, size % (1 << 16), form)


def mutate(message: bytes, chance: Random) -> bytes:
    """A message changed in one to three places."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        nodes = survey(message)
        for _ in range(8):
            changed = chance.choice(_CHANGES)(message, nodes, chance)
            if changed is not None and changed != message:
                message = changed
                break
    return message


def _pick(nodes: list[Node], chance: Random, *kinds: str) -> Node | None:
    fitting = [node for node in nodes if not kinds or node.kind in kinds]
    return chance.choice(fitting) if fitting else None


def _with(message: bytes, node: Node, new: bytes) -> bytes:
    return message[: node.start] + new + message[node.end :]


def _raw(message: bytes, node: Node) -> bytes:
    return message[node.start : node.end]


def _retag(message: bytes, nodes: list[Node], chance: Random) -> bytes | None:
    """Another tag, the bytes after it as they were."""
    node = _pick(nodes, chance)
    return None if node is None else message[: node.start] + bytes([chance.choice(_TAGS)]) + message[node.start + 1 :]


_TAGS: Final = [*range(0xC0, 0xE0), 0x00, 0x7F, 0x80, 0x81, 0x8F, 0x90, 0x91, 0x9F, 0xA0, 0xA1, 0xBF, 0xE0, 0xFF]


def _recount(message: bytes, nodes: list[Node], chance: Random) -> bytes | None:
    """Another count or length, or the same in another form."""
    node = _pick(nodes, chance, "array", "map", "str", "bin")
    if node is None:
        return None
    _, _, size = _head(message, node.start)
    other = chance.choice((size, size, size + 1, max(size - 1, 0), 0, 2 * size, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
    if other >= 1 << 16 and node.kind in {"array", "map", "str", "bin"}:
        new = header(node.kind, other, 3)
    else:
        new = header(node.kind, other, chance.randrange(4))
    return message[: node.start] + new + message[node.body :]


def _rearrange(message: bytes, nodes: list[Node], chance: Random) -> bytes | None:
    """Entries of a map, or elements of an array, exchanged, doubled, lost or repeated, and counted rightly."""
    node = _pick([node for node in nodes if node.children], chance, "array", "map")
    if node is None:
        return None
    each = 2 if node.kind == "map" else 1
    parts = [
        b"".join(_raw(message, child) for child in node.children[at : at + each])
        for at in range(0, len(node.children), each)
    ]
    one, other = chance.randrange(len(parts)), chance.randrange(len(parts))
    change = chance.randrange(5)
    if change == 0:
        parts[one], parts[other] = parts[other], parts[one]
    elif change == 1:
        parts.insert(other, parts[one])
    elif change == 2:
        del parts[one]
    elif change == 3:
        parts += [parts[one]] * chance.choice((1, 2, 15, 16, 100, 400))
    else:
        parts = parts[: one + 1]
    return _with(message, node, header(node.kind, len(parts), chance.choice((0, 0, 0, 1, 2))) + b"".join(parts))


def _replace(message: bytes, nodes: list[Node], chance: Random) -> bytes | None:
    """Another object in one's place."""
    node = _pick(nodes, chance)
    return None if node is None else _with(message, node, chance.choice(OBJECTS))


def _renumber(message: bytes, nodes: list[Node], chance: Random) -> bytes | None:
    """Another number, of the same tag if possible."""
    node = _pick(nodes, chance, "scalar")
    if node is None:
        return None
    alike = [number for number in NUMBERS if number[0] == message[node.start]]
    return _with(message, node, chance.choice(alike or NUMBERS))


def _renumber_bin(message: bytes, nodes: list[Node], chance: Random) -> bytes | None:
    """Other bytes at a number's place of a bin."""
    node = _pick(nodes, chance, "bin")
    if node is None or node.end - node.body < 2:
        return None
    number = chance.choice((*(number[1:] for number in NUMBERS if len(number) > 1), *_HALVES))[
        :: chance.choice((1, -1))
    ]
    width = len(number)
    at = node.body + chance.randrange(max((node.end - node.body) // width, 1)) * width
    return message[:at] + number[: node.end - at] + message[at + len(number) :]


def _graft(message: bytes, nodes: list[Node], chance: Random) -> bytes | None:
    """A copy of one object in another's place."""
    node = _pick(nodes, chance)
    return None if node is None else _with(message, node, _raw(message, chance.choice(nodes)))


def _wrap(message: bytes, nodes: list[Node], chance: Random) -> bytes | None:
    """An array or a map around an object, or what is in one in its place."""
    node = _pick(nodes, chance)
    if node is None:
        return None
    whole = _raw(message, node)
    if node.children and chance.random() < 0.5:
        return _with(message, node, _raw(message, chance.choice(node.children)))
    around = chance.choice((b"\x91", b"\x91" * 3, b"\x91" * 60, b"\x81\xa6logits", b"\x81\xa1h", b"\x92" + whole))
    return _with(message, node, around + whole)


def _reword(message: bytes, nodes: list[Node], chance: Random) -> bytes | None:
    """Another word, or the same one as str instead of bin, or in a longer form."""
    node = _pick(nodes, chance, "str", "bin")
    if node is None:
        return None
    word, kind = message[node.body : node.end], node.kind
    change = chance.randrange(4)
    if change == 0:
        word = chance.choice(WORDS)
    elif change == 1:  # what no refusal may repeat
        word = bytes(chance.choices(b"abcdefghijklmnopqrstuvwxyz", k=chance.randint(8, 20)))
    elif change == 2:
        kind = "bin" if kind == "str" else "str"
    return _with(message, node, header(kind, len(word), chance.choice((0, 0, 0, 1, 2, 3))) + word)


def _insert(message: bytes, nodes: list[Node], chance: Random) -> bytes | None:
    """A further entry of a map, or element of an array."""
    node = _pick(nodes, chance, "array", "map")
    if node is None:
        return None
    size = len(node.children) // (2 if node.kind == "map" else 1)
    word = chance.choice(WORDS)
    key = header(chance.choice(("str", "str", "bin")), len(word)) + word if node.kind == "map" else b""
    value = chance.choice(OBJECTS) if chance.random() < 0.7 else _raw(message, chance.choice(nodes))
    inner = message[node.body : node.end]
    inner = key + value + inner if chance.random() < 0.5 else inner + key + value
    return _with(message, node, header(node.kind, size + 1) + inner)


def _redtype(message: bytes, nodes: list[Node], chance: Random) -> bytes | None:
    """Another dtype, and often as many bytes as it needs."""
    node = _pick([node for node in nodes if message[node.body : node.end] in DTYPES], chance, "str", "bin")
    if node is None:
        return None
    word = chance.choice(DTYPES)
    changed = _with(message, node, header(node.kind, len(word)) + word)
    return _fitted(changed, chance) if chance.random() < 0.7 else changed


def _reshape(message: bytes, nodes: list[Node], chance: Random) -> bytes | None:
    """Another shape, and often as many bytes as it needs."""
    node = _pick([node for node in nodes if _sizes(message, node)], chance)
    if node is None:
        return None
    sizes = _sizes(message, node)
    change = chance.randrange(5)
    if change == 0:
        sizes = [chance.choice(_SIZES) for _ in sizes]
    elif change == 1:
        sizes.insert(chance.randrange(len(sizes) + 1), chance.choice((1, 1, 2, 3)))
    elif change == 2:
        sizes = [math.prod(sizes)]
    elif change == 3:
        chance.shuffle(sizes)
    else:
        sizes = [*sizes[:-1], *_split(sizes[-1], chance)]
    told = header("array", len(sizes)) + b"".join(_integer(size, chance) for size in sizes)
    changed = _with(message, node, told)
    return _fitted(changed, chance) if chance.random() < 0.7 else changed


_SIZES: Final = (0, 1, 2, 3, 7, 8, 9, 16, 17, 127, 383, 384, 511, 512, 1000, 1 << 16, 1 << 24, 1 << 28, 1 << 63)


def _split(size: int, chance: Random) -> list[int]:
    divisor = chance.choice([each for each in (2, 3, 4, 5, 7, 8, 1) if size % each == 0])
    return [divisor, size // divisor]


def _integer(value: int, chance: Random) -> bytes:
    """An integer, mostly in its shortest form."""
    widths = [width for width in (1, 2, 4, 8) if value < 1 << (8 * width)]
    if not widths or (value < 0x80 and chance.random() < 0.9):
        return bytes([value % 0x80])
    width = widths[0] if chance.random() < 0.9 else chance.choice(widths)
    tag = {1: 0xCC, 2: 0xCD, 4: 0xCE, 8: 0xCF}[width] + chance.choice((0, 4))
    return bytes([tag]) + value.to_bytes(width, "big")


def _sizes(message: bytes, node: Node) -> list[int]:
    """What an array of a few integers holds; nothing where it is something else."""
    if node.kind != "array" or len(node.children) > 6:
        return []
    sizes = []
    for child in node.children:
        tag = message[child.start]
        if child.kind != "scalar" or not (tag < 0x80 or 0xCC <= tag <= 0xD3):
            return []
        sizes.append(tag if tag < 0x80 else int.from_bytes(message[child.start + 1 : child.end], "big"))
    return sizes


def _fitted(message: bytes, chance: Random) -> bytes | None:
    """Make a bin as long as the dtype and the shape of the message say."""
    nodes = survey(message)
    shapes = [sizes for node in nodes if (sizes := _sizes(message, node))]
    words = [message[node.body : node.end] for node in nodes if node.kind in {"str", "bin"}]
    widths = [_width(word) for word in words if word and word in DTYPES]
    bins = sorted((node for node in nodes if node.kind == "bin"), key=lambda node: node.end - node.body)
    if not (shapes and widths and bins):
        return message
    wanted = math.prod(chance.choice(shapes)) * widths[0]
    if wanted > 2000:
        return message
    node = bins[-1]
    payload = message[node.body : node.end] or bytes(4)
    payload = (payload * (wanted // len(payload) + 1))[:wanted]
    return _with(message, node, header("bin", wanted) + payload)


def _refit(message: bytes, _nodes: list[Node], chance: Random) -> bytes | None:
    return _fitted(message, chance)


def _width(dtype: bytes) -> int:
    digits = int(b"".join(bytes([byte]) for byte in dtype if 0x30 <= byte <= 0x39) or b"1")
    return digits if dtype[:1] in b"<>|=" else max(digits // 8, 1)


_CHANGES: Final[list[Callable[[bytes, list[Node], Random], bytes | None]]] = [
    _retag, _recount, _rearrange, _rearrange, _replace, _renumber, _renumber_bin, _graft, _wrap, _reword,
    _insert, _redtype, _redtype, _reshape, _reshape, _refit,
]  # fmt: skip
