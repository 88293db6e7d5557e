"""Messages built by hand, byte for byte, and the distributions they ought to become.

The expectations are independent of the code under test; of it, only the way through one message is used here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np
from hypothesis import strategies as st

from service.transform.columnar import Workspace
from service.transform.general import transform_one
from service.transform.message import parse
from service.transform.profiles import Profiles
from service.transform.refusals import InvalidMessage
from service.transform.softmax import arithmetic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import SearchStrategy
    from numpy.typing import NDArray

    from service.transform.pipeline import Pipeline

    Floats = NDArray[np.floating[Any]]
    # What became of a message: its output, or the reason and the detail of its refusal.
    Verdict = bytes | tuple[str, str]

MIB: Final = 1 << 20
MANY_CLASSES: Final = 1 << 21
LOGITS: Final = b"\xa6logits"
PROBABILITIES: Final = b"\xadprobabilities"
PROFILELESS: Final = Profiles()
DTYPE: Final = b"\xa5dtype"
SHAPE: Final = b"\xa5shape"
FLOAT32_EPS: Final = float(np.finfo(np.float32).eps)
FLOAT64_EPS: Final = float(np.finfo(np.float64).eps)

# (fix tag, entries it can hold, 16-bit tag, 32-bit tag)
_CONTAINERS: Final = {"array": (0x90, 16, 0xDC, 0xDD), "map": (0x80, 16, 0xDE, 0xDF)}


def container_form(kind: str, count: int, form: int = 0) -> bytes:
    """The header of an array or map: 0 its shortest form, 1 with a length of 16 bits, 2 of 32 bits."""
    fix, room, short, long = _CONTAINERS[kind]
    if form == 0 and count < room:
        return bytes([fix | count])
    if form <= 1 and count < 1 << 16:
        return bytes([short]) + count.to_bytes(2, "big")
    return bytes([long]) + count.to_bytes(4, "big")


def str_form(payload: bytes, form: int = 0) -> bytes:
    """A str, UTF-8 or not: 0 its shortest form, 1 to 3 with a length of 8, 16 or 32 bits."""
    if form == 0 and len(payload) < 32:
        return bytes([0xA0 | len(payload)]) + payload
    return _sized((0xD9, 0xDA, 0xDB), payload, form)


def bin_form(payload: bytes, form: int = 0) -> bytes:
    """A bin: 0 and 1 with a length of 8 bits if that will do, 2 and 3 of 16 or 32 bits."""
    return _sized((0xC4, 0xC5, 0xC6), payload, form)


def ext_form(kind: int, payload: bytes, form: int = 0) -> bytes:
    """An extension object: 0 as fixext if there is one, 1 to 3 with a length of 8, 16 or 32 bits."""
    code = kind.to_bytes(1, "big", signed=True)
    fix = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}.get(len(payload))
    if form == 0 and fix is not None:
        return bytes([fix]) + code + payload
    tagged = _sized((0xC7, 0xC8, 0xC9), payload, form)
    header = len(tagged) - len(payload)
    return tagged[:header] + code + payload


def _sized(tags: tuple[int, int, int], payload: bytes, form: int) -> bytes:
    for number, (tag, size) in enumerate(zip(tags, (1, 2, 4), strict=True), start=1):
        if number >= form and len(payload) < 1 << (8 * size):
            return bytes([tag]) + len(payload).to_bytes(size, "big") + payload
    raise OverflowError(len(payload))


def array_of(*elements: bytes) -> bytes:
    """An array of objects that are msgpack already."""
    return container_form("array", len(elements)) + b"".join(elements)


def map_of(*fields: tuple[bytes, bytes], form: int = 0) -> bytes:
    """A map of keys and values that are msgpack already."""
    return container_form("map", len(fields), form) + b"".join(key + value for key, value in fields)


# A container of one entry, up to where its entry's nested object begins, and what follows that.
LINKS: Final = {
    "array": (b"\x91", b""),
    "array 16": (b"\xdc\0\1", b""),
    "array 32": (b"\xdd\0\0\0\1", b""),
    "second element": (b"\x92\xca\0\0\0\0", b""),
    "map": (b"\x81\xc0", b""),
    "map 16": (b"\xde\0\1\xa1x", b""),
    "map 32": (b"\xdf\0\0\0\1\xc4\0", b""),
    "key": (b"\x81", b"\xc0"),
}


def nested(depth: int, kind: str = "array", innermost: bytes = b"\x90") -> bytes:
    """Containers that nest `depth` deep, the innermost of them given."""
    opening, closing = LINKS[kind]
    return opening * (depth - 1) + innermost + closing * (depth - 1)


def packed(value: object) -> bytes:
    """An object in its shortest form; Python's floats become float64."""
    return bytes(msgpack.packb(value))


def float32(value: float) -> bytes:
    """One element of a float32 list."""
    return b"\xca" + struct.pack(">f", value)


def float64(value: float) -> bytes:
    """One element of a float64 list."""
    return b"\xcb" + struct.pack(">d", value)


def float_list(values: Sequence[float] | Floats, dtype: str = ">f4", form: int = 0) -> bytes:
    """A T1 list of float32 (`>f4`) or float64 (`>f8`)."""
    tagged = np.empty(len(values), [("tag", "u1"), ("number", dtype)])
    tagged["tag"] = {">f4": 0xCA, ">f8": 0xCB}[dtype]
    tagged["number"] = values
    return container_form("array", len(values), form) + tagged.tobytes()


def bin_message(payload: bytes, dtype: object, shape: object, *extra: tuple[bytes, bytes]) -> bytes:
    """A T3 message."""
    return map_of((LOGITS, bin_form(payload)), (DTYPE, packed(dtype)), (SHAPE, packed(shape)), *extra)


@dataclass(frozen=True)
class Spelling:
    """A way to write a dtype, what it means (`bf16` or numpy's code) and how the answer writes its own."""

    name: str
    stored: str
    answer: str

    @property
    def answered_in(self) -> str:
        """The numpy code of the probabilities."""
        return "<f8" if self.answer in {"<f8", "float64", "FP64"} else "<f4"

    @property
    def width(self) -> int:
        """Bytes of one number."""
        return 2 if self.stored == "bf16" else np.dtype(self.stored).itemsize


SPELLINGS: Final = [
    *(Spelling(code, code, "<f4") for code in ("<f2", ">f2", "<f4", ">f4", "|i1", "|u1")),
    *(
        Spelling(f"{order}{kind}", f"{order}{kind}", "<f4")
        for order in "<>"
        for kind in ("i2", "i4", "i8", "u2", "u4", "u8")
    ),
    *(Spelling(code, code, "<f8") for code in ("<f8", ">f8")),
    Spelling("float16", "<f2", "float32"),
    Spelling("bfloat16", "bf16", "float32"),
    Spelling("float32", "<f4", "float32"),
    Spelling("float64", "<f8", "float64"),
    *(Spelling(f"int{8 * size}", f"<i{size}", "float32") for size in (1, 2, 4, 8)),
    *(Spelling(f"uint{8 * size}", f"<u{size}", "float32") for size in (1, 2, 4, 8)),
    Spelling("FP16", "<f2", "FP32"),
    Spelling("BF16", "bf16", "FP32"),
    Spelling("FP32", "<f4", "FP32"),
    Spelling("FP64", "<f8", "FP64"),
    *(Spelling(f"INT{8 * size}", f"<i{size}", "FP32") for size in (1, 2, 4, 8)),
    *(Spelling(f"UINT{8 * size}", f"<u{size}", "FP32") for size in (1, 2, 4, 8)),
]


def stored(values: NDArray[Any], as_: str) -> bytes:
    """Numbers as they stand in a bin; bfloat16 is the upper half of a float32."""
    if as_ == "bf16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype(as_).tobytes()


def loaded(payload: bytes, as_: str) -> Floats:
    """Numbers of a bin, exactly, in a type that holds any of them."""
    with np.errstate(invalid="ignore"):  # a signalling NaN makes numpy warn where it widens
        if as_ == "bf16":
            return (np.frombuffer(payload, "<u2").astype("<u4") << 16).view("<f4").astype(np.longdouble)
        return np.frombuffer(payload, as_).astype(np.longdouble)


def listed(array: bytes) -> Floats:
    """The numbers of a msgpack list of one float type, after its header of any form."""
    header = {0xDC: 3, 0xDD: 5}.get(array[0], 1)
    width, dtype = (5, ">f4") if array[header] == 0xCA else (9, ">f8")
    tagged = np.frombuffer(array, [("tag", "u1"), ("number", dtype)], offset=header)
    assert set(tagged["tag"].tolist()) == {array[header]}
    assert len(array) == header + width * len(tagged)
    numbers: Floats = tagged["number"].astype(dtype[1:])
    return numbers


def softmax_rows(logits: Floats) -> Floats:
    """The softmax of each row in 64 bits of mantissa."""
    exact = np.atleast_2d(logits).astype(np.longdouble)
    exponentials = np.exp(exact - exact.max(axis=1, keepdims=True))
    rows: Floats = exponentials / exponentials.sum(axis=1, keepdims=True)
    return rows


def assert_accurate(probabilities: Floats, logits: Floats, eps: float = FLOAT32_EPS) -> None:
    """The specification's bound on every probability of each row, and the exact zeros of masks."""
    found, exact = np.atleast_2d(probabilities).astype(np.longdouble), np.atleast_2d(logits).astype(np.longdouble)
    expected = softmax_rows(exact)
    distance = exact.max(axis=1, keepdims=True) - exact
    smallest = 2.0**-126 if eps == FLOAT32_EPS else 2.0**-1022
    masked = np.isneginf(exact)
    distance[masked] = 0
    excess = np.abs(found - expected) - np.maximum((8 + distance) * eps * expected, smallest)
    assert found.shape == exact.shape
    assert (excess <= 0).all(), f"off by {float((np.abs(found - expected) / eps).max())} eps, absolute"
    assert (found[masked] == 0).all()


def assert_sums_to_one(probabilities: Floats) -> None:
    """The specification's bound on the sum of each row of up to 10 000 classes."""
    sums = np.atleast_2d(probabilities).astype(np.longdouble).sum(axis=1)
    assert (np.abs(sums - 1) <= 4 * FLOAT32_EPS).all(), f"sums are off by {float(np.abs(sums - 1).max())}"


def transformed(
    message: bytes, max_classes: int = MANY_CLASSES, profiles: Profiles = PROFILELESS, model: bytes | None = None
) -> bytes:
    """The output of a message that is transformed by itself; `model` is its header's."""
    with arithmetic():
        return transform_one(parse(message, model, profiles, max_classes), Workspace())


def verdict(
    message: bytes, max_classes: int = MANY_CLASSES, profiles: Profiles = PROFILELESS, model: bytes | None = None
) -> Verdict:
    """What becomes of a message that is transformed by itself."""
    try:
        return transformed(message, max_classes, profiles, model)
    except InvalidMessage as refusal:
        return str(refusal.reason), refusal.detail


def verdicts(
    pipeline: Pipeline, batch: Sequence[bytes | None], models: Sequence[bytes | None] | None = None
) -> list[Verdict]:
    """What becomes of a batch; each record must be answered or refused, never both, never neither."""
    outcome = pipeline.transform(batch, models)
    assert len(outcome.outputs) == len(outcome.models) == len(batch)
    answered = {position for position, output in enumerate(outcome.outputs) if output is not None}
    assert answered | set(outcome.refusals) == set(range(len(batch)))
    assert not answered & set(outcome.refusals)
    assert outcome.columnar + outcome.general == len(answered)
    found: list[Verdict] = []
    for position, output in enumerate(outcome.outputs):
        if output is None:
            refusal = outcome.refusals[position]
            found.append((str(refusal.reason), refusal.detail))
        else:
            found.append(output)
    return found


def raw_objects() -> SearchStrategy[bytes]:
    """Any msgpack object as bytes, in any of its forms, text that is not UTF-8 included."""
    form = st.integers(0, 3)
    payload = st.binary(max_size=40)
    sized_integers = st.sampled_from(
        [(0xCC, 1), (0xCD, 2), (0xCE, 4), (0xCF, 8), (0xD0, 1), (0xD1, 2), (0xD2, 4), (0xD3, 8)]
    )
    scalars = st.one_of(
        st.integers(0, 0x7F).map(lambda tag: bytes([tag])),
        st.integers(0xE0, 0xFF).map(lambda tag: bytes([tag])),
        st.sampled_from([b"\xc0", b"\xc2", b"\xc3"]),
        sized_integers.flatmap(lambda t: st.binary(min_size=t[1], max_size=t[1]).map(lambda b: bytes([t[0]]) + b)),
        st.binary(min_size=4, max_size=4).map(lambda number: b"\xca" + number),
        st.binary(min_size=8, max_size=8).map(lambda number: b"\xcb" + number),
        st.builds(str_form, payload, form),
        st.builds(bin_form, payload, form),
        st.builds(ext_form, st.integers(-128, 127), payload, form),
        st.builds(ext_form, st.integers(-128, 127), st.sampled_from([bytes(1 << n) for n in range(5)])),
    )
    return st.recursive(
        scalars,
        lambda inner: st.one_of(
            st.builds(
                lambda items, form: container_form("array", len(items), form) + b"".join(items),
                st.lists(inner, max_size=5),
                st.integers(0, 2),
            ),
            st.builds(
                lambda pairs, form: map_of(*pairs, form=form),
                st.lists(st.tuples(inner, inner), max_size=4),
                st.integers(0, 2),
            ),
        ),
        max_leaves=12,
    )


def text_of(raw: bytes) -> bytes | None:
    """The payload of a raw str object, `None` for any other object."""
    header = 1 if 0xA0 <= raw[0] <= 0xBF else {0xD9: 2, 0xDA: 3, 0xDB: 5}.get(raw[0])
    return None if header is None else raw[header:]


def raw_fields(max_size: int) -> SearchStrategy[list[tuple[bytes, bytes]]]:
    """Fields of which none has a name that means something to the service."""
    meaningful = {b"logits", b"probabilities", b"dtype", b"shape"}
    return st.lists(
        st.tuples(raw_objects().filter(lambda key: text_of(key) not in meaningful), raw_objects()), max_size=max_size
    )
