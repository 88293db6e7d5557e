"""Hypothesis strategies: messages of every encoding, ordinary and hostile, damage to them, and profiles.

A message is drawn as a template, whose numbers and free scalars are slots of fixed length. Members of one template
differ in these alone, so that they are of one layout.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

from hypothesis import strategies as st
from plain_msgpack import Node, RefusedError, header, nodes, read
from reference import Profile, Profiles
from transform_messages import (
    DTYPE,
    LOGITS,
    SHAPE,
    SPELLINGS,
    array_of,
    bin_form,
    container_form,
    ext_form,
    float32,
    float64,
    map_of,
    packed,
    raw_fields,
    raw_objects,
    str_form,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import SearchStrategy

ENCODINGS: Final = ("T1", "T2", "T3", "T4", "T5", "T6")
ANY_RANK: Final = (1, 1, 2, 3, 4)
BARE: Final = ("T1", "T2", "T4", "T5")
MODELS: Final = ("alpha", "beta", "default", "nowhere")
# Words that no refusal may repeat.
MARKER: Final = b"0123-planted-in-the-payload-4567"

forms = st.integers(0, 2)
long_forms = st.integers(0, 3)
objects = raw_objects()
other_fields = raw_fields(max_size=2)
class_counts = st.sampled_from([1, 2, 3, 4, 5, 9, 17])


# Numbers and other slots

MOODS: Final = ("ordinary", "ordinary", "ties", "extremes", "masks", "poison", "bits")
_EXTREMES: Final = {
    "e": [65504.0, -65504.0, 6e-8, -6e-8, 6.2e-5, 0.0, -0.0],
    "bfloat16": [3.38e38, -3.38e38, 1e30, -1e30, 1e-40, -1e-40, 0.0, -0.0],
    "f": [3.4028234663852886e38, -3.4028234663852886e38, 1e30, -1e30, 1e-45, 1.1754944e-38, -87.5, -104.0, 0.0, -0.0],
    "d": [1.7976931348623157e308, -1.7976931348623157e308, 1e300, -1e30, 5e-324, 2.3e-308, -708.5, -746.0, 0.0, -0.0],
}
_NEIGHBOURS: Final = [2**53, 2**53 + 1, 2**24, 2**24 + 1, -(2**53) - 1]


@dataclass(frozen=True)
class Slot:
    """A place that each member of a template fills anew.

    Attributes:
        code: a struct format with its byte order, `bfloat16`, `fixint`, or `raw` for any bytes.
        size: bytes that fill it.
    """

    code: str
    size: int

    @cache  # noqa: B019 - slots are few
    def values(self, mood: str) -> SearchStrategy[bytes]:
        """What may stand here, as bytes."""
        if self.code == "raw" or (mood == "bits" and self.code != "fixint"):
            return st.binary(min_size=self.size, max_size=self.size)
        letter = self.code[-1]
        if letter in "efd" or self.code == "bfloat16":
            return _floats(self.code, mood)
        return _integers(self.code, mood)


@cache
def _floats(code: str, mood: str) -> SearchStrategy[bytes]:
    ordinary = st.floats(-12, 12, width=16)
    strange = {
        "ties": st.sampled_from([1.0, 1.0, 2.0]),
        "extremes": st.sampled_from(_EXTREMES[code if code == "bfloat16" else code[-1]]),
        "masks": st.just(-math.inf),
        "poison": st.sampled_from([math.nan, math.inf]),
    }
    usual = [ordinary] * (6 if mood == "poison" else 1)
    numbers = st.one_of(*usual, strange[mood]) if mood in strange else st.floats(-12, 12)
    if code == "bfloat16":
        return numbers.map(lambda number: struct.pack("<f", number)[2:])
    return numbers.map(lambda number: struct.pack(code, number))


@cache
def _integers(code: str, mood: str) -> SearchStrategy[bytes]:
    if code == "fixint":
        values = st.sampled_from([1, 2]) if mood == "ties" else st.integers(-32, 127)
        return values.map(lambda value: bytes([value & 0xFF]))
    bits = 8 * struct.calcsize(code)
    low, high = (0, 2**bits - 1) if code[-1].isupper() else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    within = [value for value in (low, low + 1, *_NEIGHBOURS, high - 1, high) if low <= value <= high]
    strange = {"ties": st.sampled_from([1, 2]), "extremes": st.sampled_from(within), "bits": st.integers(low, high)}
    values = strange.get(mood, st.integers(max(low, -20), min(high, 20)))
    return values.map(lambda value: struct.pack(code, value))


Pieces = list["bytes | Slot"]


@dataclass(frozen=True)
class Template:
    """A layout of messages.

    Attributes:
        pieces: what is the same in all members, and slots.
        classes: how many classes its first tensor has.
    """

    pieces: tuple[bytes | Slot, ...]
    classes: int


@st.composite
def members(draw: st.DrawFn, template: Template) -> bytes:
    """One message of a template."""
    mood = draw(st.sampled_from(MOODS))
    return b"".join(piece if isinstance(piece, bytes) else draw(piece.values(mood)) for piece in template.pieces)


# Tensors

_ELEMENTS: Final[dict[str, Pieces]] = {
    "float32": [b"\xca", Slot(">f", 4)],
    "float64": [b"\xcb", Slot(">d", 8)],
    "fixint": [Slot("fixint", 1)],
    **{
        f"tag {0xCC + at:x}": [bytes([0xCC + at]), Slot(f">{letter}", struct.calcsize(letter))]
        for at, letter in enumerate("BHIQbhiq")
    },
}
mixtures = st.sampled_from([["float32"], ["float32"], ["float64"], ["fixint"], ["float32", "fixint"], [*_ELEMENTS]])
_LETTERS: Final = {"f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q"}


@cache
def shapes(ranks: tuple[int, ...], classes: int) -> SearchStrategy[list[int]]:
    """Shapes of some ranks, that many classes along the last axis."""
    outer = st.sampled_from(ranks).flatmap(
        lambda rank: st.lists(st.integers(1, 3), min_size=rank - 1, max_size=rank - 1)
    )
    return outer.map(lambda sizes: [*sizes, classes])


@st.composite
def lists(draw: st.DrawFn, shape: Sequence[int]) -> Pieces:
    """T1 and T2: elements of one type or several, headers of any form."""
    kinds = draw(mixtures)

    def part(sizes: Sequence[int]) -> Pieces:
        if not sizes:
            return _ELEMENTS[draw(st.sampled_from(kinds))]
        pieces: Pieces = [container_form("array", sizes[0], draw(forms))]
        for _ in range(sizes[0]):
            pieces += part(sizes[1:])
        return pieces

    return part(shape)


@dataclass(frozen=True)
class Binary:
    """The parts of T3, T4 and T5."""

    data: Pieces
    dtype: bytes
    shape: bytes


@st.composite
def binaries(draw: st.DrawFn, shape: Sequence[int], *, text_only: bool) -> Binary:
    """Data of any dtype in any spelling; lengths and sizes in any form."""
    spelling = draw(st.sampled_from(SPELLINGS))
    count, name = math.prod(shape), spelling.name.encode()
    whole = bin_form(bytes(count * spelling.width), draw(long_forms))
    head = whole[: len(whole) - count * spelling.width]
    dtype = draw(st.builds(str_form, st.just(name), long_forms) | st.builds(bin_form, st.just(name), long_forms))
    if text_only:
        dtype = str_form(name, draw(long_forms))
    sizes = container_form("array", len(shape), draw(forms)) + b"".join(draw(_sizes(size)) for size in shape)
    return Binary([head, *[_slot(spelling.stored, spelling.width)] * count], dtype, sizes)


def _slot(stored: str, width: int) -> Slot:
    if stored == "bf16":
        return Slot("bfloat16", 2)
    letter = _LETTERS[stored[1:].replace("u", "i")]
    return Slot(stored[0].replace("|", "<") + (letter.upper() if stored[1] == "u" else letter), width)


@cache
def _sizes(size: int) -> SearchStrategy[bytes]:
    """A small size as an integer of any width."""
    wide = [bytes([tag]) + bytes((1 << tag % 4) - 1) for tag in range(0xCC, 0xD4)]
    return st.sampled_from([b"", b"", b"", *wide]).map(lambda tag: tag + bytes([size]))


@cache
def names(name: bytes) -> SearchStrategy[bytes]:
    """A key of T4 or T5, as str or bin."""
    return st.builds(str_form, st.just(name), long_forms) | st.builds(bin_form, st.just(name), long_forms)


@st.composite
def tensor_maps(draw: st.DrawFn, encoding: str, shape: Sequence[int]) -> Pieces:
    """T4 and T5, keys in any order and form."""
    binary = draw(binaries(shape, text_only=False))
    flag, dtype = (b"nd", b"type") if encoding == "T4" else (b"__ndarray__", b"dtype")
    entries: list[tuple[bytes, Pieces]] = [
        (flag, [b"\xc3"]),
        (dtype, [binary.dtype]),
        (b"shape", [binary.shape]),
        (b"data", binary.data),
    ]
    if encoding == "T4" and draw(st.booleans()):
        entries.append((b"kind", [draw(st.sampled_from([b"\xa0", b"\xd9\0", b"\xc4\0", b"\xc5\0\0"]))]))
    pieces: Pieces = [container_form("map", len(entries), draw(forms))]
    for name, value in draw(st.permutations(entries)):
        pieces += [draw(names(name)), *value]
    return pieces


_head_names: Final = st.one_of(
    st.sampled_from([b"\xa3age", b"\xa3sex", str_form(MARKER), bin_form(MARKER, 3), b"\x01", b"\xc0", b"\xa0"]),
    objects.filter(lambda raw: read(raw).payload not in {b"nd", b"__ndarray__"}),
)


@st.composite
def heads(draw: st.DrawFn, classes: int) -> Pieces:
    """T6: a few heads, mostly of as many classes, names that may be anything."""
    count = draw(st.integers(1, 3))
    pieces: Pieces = [container_form("map", count, draw(forms))]
    for _ in range(count):
        encoding = draw(st.sampled_from(BARE))
        of_this = draw(st.sampled_from([classes, classes, classes, 2]))
        pieces += [draw(_head_names), *draw(tensors(encoding, of_this))]
    return pieces


@cache
def tensors(encoding: str, classes: int) -> SearchStrategy[Pieces]:
    """Tensors of any encoding but T3."""
    ranks = {"T1": (1,), "T2": (2, 2, 3, 4)}.get(encoding, ANY_RANK)
    if encoding == "T6":
        return heads(classes)
    if encoding in {"T1", "T2"}:
        return shapes(ranks, classes).flatmap(lists)
    return shapes(ranks, classes).flatmap(lambda shape: tensor_maps(encoding, shape))


# Messages

_FREE: Final[dict[bytes, Pieces]] = {
    b"\xa2id": [b"\xd3", Slot("raw", 8)],
    b"\xa2at": [b"\xcb", Slot("raw", 8)],
    b"\xa4name": [b"\xa8", Slot("raw", 8)],
    b"\xa5trace": [b"\xc4\x10", Slot("raw", 16)],
    str_form(MARKER): [str_form(MARKER)],
    b"\xa3ext": [b"\xd6\x05", Slot("raw", 4)],
    b"\xa4list": [b"\x92\xd9\x03", Slot("raw", 3), b"\xca", Slot("raw", 4)],
}
models = st.sampled_from([*map(packed, MODELS), str_form(b"alpha", 2), b"\xc0", b"\xa2\xff\xfe", bin_form(b"alpha")])


model_fields = st.lists(models, max_size=1) | st.lists(models, max_size=2)
free_fields = st.lists(st.sampled_from(sorted(_FREE)), max_size=3, unique=True)


@st.composite
def templates(draw: st.DrawFn, encoding: str) -> Template:
    """Messages of one encoding, other fields around the tensor."""
    classes = draw(class_counts)
    free = draw(free_fields)
    fields: list[Pieces] = [[key, *_FREE[key]] for key in free]
    fields += [[key, value] for key, value in draw(other_fields)]
    fields += [[b"\xa5model", model] for model in draw(model_fields)]
    logits: Pieces
    if encoding == "T3":
        binary = draw(shapes(ANY_RANK, classes).flatmap(lambda shape: binaries(shape, text_only=True)))
        logits = binary.data
        fields += [[str_form(b"dtype", draw(long_forms)), binary.dtype]]
        fields += [[str_form(b"shape", draw(long_forms)), binary.shape]]
    else:
        logits = draw(tensors(encoding, classes))
    fields.append([str_form(b"logits", draw(long_forms)), *logits])
    ordered = draw(st.permutations(fields))
    head = container_form("map", len(fields), draw(forms))
    return Template((head, *(piece for field in ordered for piece in field)), classes)


@st.composite
def bare_templates(draw: st.DrawFn) -> Template:
    classes = draw(class_counts)
    return Template(tuple(draw(tensors(draw(st.sampled_from(BARE)), classes))), classes)


any_template = st.one_of(*map(templates, ENCODINGS), bare_templates())


# Damage

_REPLACEMENTS: Final = [
    *(b"\xc0", b"\xc2", b"\xc3", b"\x00", b"\x01", b"\x02", b"\xff", b"\xcf" + b"\xff" * 8),
    *(packed(2**32), packed(2**63)),
    *(b"\xa0", b"\xc4\0", str_form(MARKER), bin_form(MARKER), ext_form(5, MARKER), b"\xd4\x01\x00"),
    *(b"\x80", b"\x90", b"\x91\x01", map_of((str_form(MARKER), b"\x01")), array_of(b"\x90")),
    *(map_of((b"\xa2nd", b"\xc3")), b"\xca\x7f\x80\0\x01", b"\xcb\x7f\xf0" + bytes(5) + b"\1"),
    *(float32(math.nan), float32(math.inf), float64(-math.inf)),
    *(LOGITS, DTYPE, SHAPE, b"\xa4type", b"\xa4data", b"\xa4kind", b"\xc4\x0b__ndarray__", b"\xa9predicted"),
    *(packed(name) for name in ("<f4", ">f8", "|i1", "BF16", "FP64", "float16", "O", "|O", "V4", "f4", "bool", "")),
    *(bin_form(b"<f4"), bin_form(b"INT16"), b"\x91" * 62 + b"\x90", b"\x91" * 70 + b"\xc0"),
]  # fmt: skip


replacements = st.sampled_from(_REPLACEMENTS) | objects


@st.composite
def altered(draw: st.DrawFn, message: bytes) -> bytes:
    """A message in which one object is replaced, doubled or gone; still msgpack."""
    node = draw(st.sampled_from(nodes(read(message))))
    width = 2 if node.kind == "map" else 1
    if node.kind not in {"array", "map"} or draw(st.booleans()):
        replacement = draw(replacements)
    else:
        entries = [node.children[at : at + width] for at in range(0, len(node.children), width)]
        replacement = _container(node.kind, draw(_entries(entries)))
    return message[: node.start] + replacement + message[node.stop :]


@st.composite
def _entries(draw: st.DrawFn, entries: list[list[Node]]) -> list[list[Node]]:
    """Entries of which one is doubled or gone, or in another order."""
    if not entries:
        return entries
    chosen = draw(st.integers(0, len(entries) - 1))
    how = draw(st.sampled_from(["double", "remove", "permute"]))
    if how == "double":
        place = draw(st.integers(0, len(entries)))
        return [*entries[:place], entries[chosen], *entries[place:]]
    return [*entries[:chosen], *entries[chosen + 1 :]] if how == "remove" else draw(st.permutations(entries))


def _container(kind: str, entries: list[list[Node]]) -> bytes:
    return header(kind, len(entries)) + b"".join(node.raw for entry in entries for node in entry)


@st.composite
def damaged(draw: st.DrawFn, message: bytes) -> bytes:
    """A message with a byte or two flipped, set, inserted, lost or doubled, or cut short."""
    data = bytearray(message)
    for _ in range(draw(st.integers(1, 2))):
        how = draw(st.sampled_from(["flip", "set", "insert", "lose", "double", "cut"]))
        at, byte = draw(st.integers(0, len(data))), draw(st.integers(0, 255))
        here = bytes(data[at : at + 1])
        if how == "cut":
            del data[at:]
        else:
            data[at : at + 1] = _changed(here, how, byte)
    return bytes(data)


def _changed(here: bytes, how: str, byte: int) -> bytes:
    """What comes in the place of one byte, or of none at the end."""
    if how == "flip":
        return bytes(each ^ 1 << byte % 8 for each in here)
    return {"set": bytes([byte]), "insert": bytes([byte]) + here, "lose": b"", "double": here * 2}[how]


def spoilt(message: bytes) -> SearchStrategy[bytes]:
    """Any damage, of the structure or of the bytes."""
    twice = altered(message).filter(_is_readable).flatmap(altered)
    return st.one_of(altered(message), altered(message), twice, damaged(message))


def _is_readable(message: bytes) -> bool:
    try:
        read(message)
    except RefusedError:
        return False
    return True


# Profiles

OUTPUTS: Final = (
    "probabilities", "log_probabilities", "predicted", "label", "confidence", "entropy", "margin", "top_k",
)  # fmt: skip
_TEMPERATURES: Final = [1.0, 1.0, 0.1, 0.5, 2.0, 3.7, 1e-6, 1e6, 2.0**-126, 3e38]
_LABELS: Final = ["cat", "-", "\N{LATIN SMALL LETTER E WITH ACUTE}" * 20, "x" * 300, "0", "cat "]


@st.composite
def model_profiles(draw: st.DrawFn, classes: int) -> Profile:
    """A profile that mostly suits that many classes."""
    count = draw(st.sampled_from([0, 0, classes, classes, classes + 1]))
    labels = tuple((_LABELS[at] if at < len(_LABELS) else f"class {at}") for at in range(count))
    allowed = [name for name in OUTPUTS if name != "label" or labels]
    wanted = draw(st.just(["probabilities"]) | st.lists(st.sampled_from(allowed), min_size=1, unique=True))
    return Profile(
        temperature=draw(st.sampled_from(_TEMPERATURES)),
        classes=draw(st.sampled_from([None, None, count or classes])),
        labels=labels,
        masked=tuple(draw(st.lists(st.integers(0, classes + 3), max_size=3, unique=True))),
        top_k=draw(st.integers(1, classes + 2)) if "top_k" in wanted else None,
        outputs=tuple(wanted),
        dtype=draw(st.sampled_from([None, None, "float32", "float64"])),
    )


@st.composite
def profiles(draw: st.DrawFn, classes: int) -> Profiles:
    """Profiles for some of `MODELS` and for the rest."""
    if draw(st.integers(0, 3)) == 0:
        return Profiles()
    named = draw(st.dictionaries(st.sampled_from(MODELS[:2]), model_profiles(classes), max_size=2))
    return Profiles(named, draw(model_profiles(classes)), draw(st.booleans()))


model_headers = st.sampled_from([None, None, *(name.encode() for name in MODELS), b"\xff\xfe", b""])
