"""Hostile bytes: nothing but a refusal escapes, every record ends once, and memory stays in proportion."""

from __future__ import annotations

import tracemalloc
from typing import Final

import msgpack
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transform_messages import (
    LOGITS,
    MANY_CLASSES,
    MIB,
    array_of,
    bin_message,
    container_form,
    float32,
    float64,
    float_list,
    map_of,
    packed,
    raw_objects,
    verdict,
    verdicts,
)

from service.transform.general import transform_one
from service.transform.pipeline import Limits, Pipeline
from service.transform.refusals import InvalidMessage

NESTED_SHAPE: Final = bin_message(bytes(4), "<f4", [[1]])
LISTS: Final = [
    float_list([1.0, -2.0, 3.0]),
    float_list([1.0, -2.0], ">f8", form=2),
    map_of((b"\xa2id", b"\xa4abcd"), (LOGITS, float_list([1.0, -2.0])), (b"\xa1m", array_of(b"\x05", b"\xc3"))),
    map_of((LOGITS, array_of(float32(1), float64(2), b"\x05", b"\xd1\xff\x01")), (b"\x01", map_of((b"\x02", b"\xc0")))),
    map_of((b"\xa5model", b"\xa1a"), (LOGITS, float_list(np.arange(20.0), form=1)), form=1),
]
BINS: Final = [
    bin_message(np.arange(6, dtype="<f4").tobytes(), "<f4", [2, 3], (b"\xa2id", b"\x01")),
    bin_message(np.arange(4, dtype=">f2").tobytes(), ">f2", [4]),
    bin_message(bytes(8), "BF16", [1, 2, 2]),
    bin_message(bytes(range(8)), "UINT8", [8]),
    bin_message(bytes(range(16)), "int64", [2]),
]

changes = st.lists(
    st.tuples(st.sampled_from(["flip", "set", "insert", "delete", "double"]), st.integers(0, 200), st.integers(0, 255)),
    min_size=1,
    max_size=4,
)


def mutated(message: bytes, edits: list[tuple[str, int, int]]) -> bytes:
    """A message with some bytes flipped, set, inserted, deleted or doubled."""
    data = bytearray(message)
    for kind, place, byte in edits:
        at = place % (len(data) + 1)
        if kind == "insert":
            data.insert(at, byte)
        elif at < len(data):
            if kind == "flip":
                data[at] ^= 1 << (byte % 8)
            elif kind == "set":
                data[at] = byte
            elif kind == "double":
                data[at : at + 1] = data[at : at + 1] * 2
            else:
                del data[at]
    return bytes(data)


def probabilities_of(output: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """The distributions of an output, read by msgpack itself: pairs for maps, since keys may be anything."""
    message = msgpack.unpackb(output, raw=True, strict_map_key=False, use_list=False, object_pairs_hook=tuple)
    if output[0] >= 0x90 and output[0] not in {0xDE, 0xDF}:
        return np.array([message], np.float64)
    fields = {key: value for key, value in message if isinstance(key, bytes)}
    found = fields[b"probabilities"]
    if isinstance(found, tuple):
        return np.array([found], np.float64)
    wide = fields[b"dtype"] in {b"<f8", b"float64", b"FP64"}
    return np.frombuffer(found, "<f8" if wide else "<f4").reshape(-1, fields[b"shape"][-1]).astype(np.float64)


def assert_contained(message: bytes, neighbour: bytes) -> None:
    """Refused or rightly answered alone; the same in any company; no other exception."""
    expected = verdict(message)
    if isinstance(expected, bytes):
        rows = probabilities_of(expected)
        assert ((rows >= 0) & (rows <= 1)).all()
        np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=0, atol=1e-5)
    pipeline = Pipeline(Limits(MIB, MANY_CLASSES))
    batch = [neighbour, message, neighbour, message]
    for _ in "two":
        found = verdicts(pipeline, batch)
        assert found[1] == found[3] == expected
        assert found[0] == found[2] == verdict(neighbour)


@given(message=st.binary(max_size=64))
def test_arbitrary_bytes_are_contained(message: bytes) -> None:
    assert_contained(message, LISTS[0])


@given(value=raw_objects(), tail=st.binary(max_size=3))
def test_arbitrary_objects_are_contained_as_message_and_as_tensor(value: bytes, tail: bytes) -> None:
    for message in (value + tail, map_of((LOGITS, value)), map_of((LOGITS, value + tail)), array_of(value)):
        assert_contained(message, LISTS[2])


@given(base=st.sampled_from(LISTS), edits=changes)
def test_damaged_lists_are_contained(base: bytes, edits: list[tuple[str, int, int]]) -> None:
    assert_contained(mutated(base, edits), base)


@given(base=st.sampled_from(BINS), edits=changes)
@example(base=NESTED_SHAPE, edits=[])
def test_damaged_bins_are_contained(base: bytes, edits: list[tuple[str, int, int]]) -> None:
    assert_contained(mutated(base, edits), BINS[0])


@pytest.mark.parametrize(
    "base",
    # The first bin's shape has two sizes: with its header doubled it nests like itself.
    [*LISTS, *BINS],
)
def test_any_two_neighbouring_bytes_may_be_lost_or_doubled(base: bytes) -> None:
    """Every place of every base message, without chance."""
    for at in range(len(base)):
        for message in (base[:at] + base[at + 2 :], base[: at + 2] + base[at:], base[:at] + b"\xc1" + base[at:]):
            assert_contained(message, base)


@given(messages=st.lists(st.binary(max_size=12) | st.sampled_from(LISTS) | st.none(), max_size=30))
def test_every_record_of_any_batch_ends_exactly_once(messages: list[bytes | None]) -> None:
    found = verdicts(Pipeline(Limits(40, MANY_CLASSES)), messages)
    for message, result in zip(messages, found, strict=True):
        if message is not None and len(message) <= 40:
            assert result == verdict(message)


# Memory

SMALL_MULTIPLE: Final = 24
NEGATIVE: Final = container_form("array", MIB) + b"\xe0" * MIB
POSITIVE: Final = container_form("array", MIB) + b"\x01" * MIB
SINGLES: Final = bin_message(bytes(MIB), "int8", [MIB, 1])
TAGS: Final = {"array": b"\xdd", "map": b"\xdf", "str": b"\xdb", "bin": b"\xc6", "ext": b"\xc9"}
CLAIMS: Final = {kind: tag + b"\xff" * 4 + b"\xc0" * 1000 for kind, tag in TAGS.items()}

GREEDY: Final = {
    "nested arrays": b"\x91" * MIB,
    "nested arrays of many claims": b"\xdc\xff\xff" * (MIB // 12),
    "nested maps": b"\x81\xc0" * (MIB // 8),
    "a map of nil to nil": container_form("map", 500_000) + b"\xc0" * 1_000_000,
    "float32 list": float_list(np.zeros(MIB // 5)),
    "float64 list": float_list(np.zeros(MIB // 9), ">f8"),
    "float32 bin": bin_message(bytes(MIB), "float32", [MIB // 4]),
    "int8 bin": bin_message(bytes(MIB), "int8", [MIB]),
    "int8 bin of short rows": bin_message(bytes(MIB), "int8", [MIB // 16, 16]),
    "a list of nil": container_form("array", MIB) + b"\xc0" * MIB,
    "a list of empty lists": container_form("array", MIB // 32) + b"\x90" * (MIB // 32),
    "a field of many scalars": map_of(
        (LOGITS, float_list([1.0])), (b"\xa1x", container_form("array", MIB) + bytes(MIB))
    ),
    "a huge key": map_of((packed("x" * MIB), b"\x01"), (LOGITS, float_list([1.0]))),
    **{f"the claim of a {kind}": message for kind, message in CLAIMS.items()},
    **{f"the claim of a {kind} as tensor": map_of((LOGITS, message)) for kind, message in CLAIMS.items()},
}


def peak_of(message: bytes) -> float:
    """How many times its length a message makes the transform allocate at its peak."""
    tracemalloc.start()
    try:
        transform_one(message, MANY_CLASSES)
    except InvalidMessage:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak / len(message)


def surplus(ratio: float, message: bytes) -> str:
    return f"{ratio:.1f} times the {len(message)} bytes"


@pytest.mark.parametrize("name", GREEDY)
def test_a_message_allocates_a_small_multiple_of_its_length(name: str) -> None:
    message = GREEDY[name]
    ratio = peak_of(message)
    assert ratio <= SMALL_MULTIPLE, surplus(ratio, message)


HEAVY: Final = {"positive fixints": POSITIVE, "negative fixints": NEGATIVE, "an int8 bin of single classes": SINGLES}


@pytest.mark.parametrize("name", HEAVY)
def test_integers_of_one_byte_allocate_a_small_multiple_of_their_length(name: str) -> None:
    """A number of eight bytes is made of each, and an answer of four or five, some of it twice: no Python object."""
    ratio = peak_of(HEAVY[name])
    assert ratio <= SMALL_MULTIPLE, surplus(ratio, HEAVY[name])


@pytest.mark.parametrize("name", HEAVY)
def test_integers_of_one_byte_allocate_less_than_a_hundredfold(name: str) -> None:
    """The ceiling that holds whatever becomes of the finer one."""
    assert peak_of(HEAVY[name]) < 100
