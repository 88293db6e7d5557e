"""Hostile bytes: nothing but a refusal escapes, every record ends once, and memory stays in proportion."""

from __future__ import annotations

import tracemalloc
from typing import Final

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from plain_msgpack import Node, read
from transform_messages import (
    LOGITS,
    MANY_CLASSES,
    MIB,
    array_of,
    bin_form,
    bin_message,
    container_form,
    ext_form,
    float32,
    float64,
    float_list,
    map_of,
    nested,
    packed,
    raw_objects,
    verdict,
    verdicts,
)

from service.transform.message import MAX_HEADS
from service.transform.pipeline import Limits, Pipeline

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

T4: Final = map_of(
    (b"\xa2nd", b"\xc3"), (b"\xc4\4type", b"\xa3<f4"), (b"\xa4kind", b"\xa0"), (b"\xa5shape", b"\x92\1\2"),
    (b"\xa4data", bin_form(np.array([1, 2], "<f4").tobytes())),
)  # fmt: skip
MAPS: Final = [
    T4,
    map_of(
        (b"\xa2id", b"\x05"),
        (
            LOGITS,
            map_of(
                (b"\xab__ndarray__", b"\xc3"),
                (b"\xa5dtype", b"\xc4\4INT8"),
                (b"\xa5shape", b"\x91\3"),
                (b"\xa4data", b"\xc4\3\1\2\3"),
            ),
        ),
    ),
    map_of((LOGITS, map_of((b"\xa1a", float_list([1.0])), (b"\x05", array_of(b"\1", b"\2")))), (b"\xa1x", b"\x01")),
    map_of((LOGITS, array_of(float_list([1.0, 2.0]), float_list([3.0, 4.0])))),
    array_of(array_of(array_of(array_of(b"\x01", b"\xcc\x02")))),
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


def field_of(node: Node, *names: bytes) -> Node:
    """The value of the first field that has one of these names, as text or bin."""
    return next(value for key, value in node.pairs if key.payload in names)


def binary_rows(data: Node, dtype: Node, shape: Node) -> list[list[float]]:
    wide = dtype.payload in {b"<f8", b"float64", b"FP64"}
    classes = shape.children[-1].value
    assert data.payload is not None
    assert isinstance(classes, int)
    rows: list[list[float]] = np.frombuffer(data.payload, "<f8" if wide else "<f4").reshape(-1, classes).tolist()
    return rows


def rows_of(tensor: Node, message: Node) -> list[list[float]]:
    """The distributions of an output's tensor, of whatever encoding."""
    if tensor.kind == "array" and tensor.children[0].kind != "array":
        assert {number.kind for number in tensor.children} in ({"float32"}, {"float64"})
        return [[float(str(number.value)) for number in tensor.children]]
    if tensor.kind == "array":
        return [row for inner in tensor.children for row in rows_of(inner, message)]
    if tensor.kind == "bin":
        return binary_rows(tensor, field_of(message, b"dtype"), field_of(message, b"shape"))
    names = {key.payload for key, _ in tensor.pairs}
    if names & {b"nd", b"__ndarray__"}:
        return binary_rows(*(field_of(tensor, *wanted) for wanted in ((b"data",), (b"type", b"dtype"), (b"shape",))))
    return [row for _, head in tensor.pairs for row in rows_of(head, message)]


def distributions_of(output: bytes) -> list[list[float]]:
    """All distributions of an output, read by a parser that shares nothing with the service."""
    message = read(output)
    if message.kind == "map":
        for key, value in message.pairs:
            if key.kind == "str" and key.value == b"probabilities":
                return rows_of(value, message)
    return rows_of(message, message)


def assert_contained(message: bytes, neighbour: bytes) -> None:
    """Refused or rightly answered alone; the same in any company; no other exception."""
    expected = verdict(message)
    if isinstance(expected, bytes):
        for row in distributions_of(expected):
            assert all(0 <= probability <= 1 for probability in row)
            assert abs(sum(row) - 1) < 1e-5
    pipeline = Pipeline(Limits(MIB, MANY_CLASSES))
    batch = [neighbour, message, neighbour, message]
    for _ in "two":
        found = verdicts(pipeline, batch)
        assert found[1] == found[3] == expected
        assert found[0] == found[2] == verdict(neighbour)


@given(message=st.binary(max_size=64))
def test_arbitrary_bytes_are_contained(message: bytes) -> None:
    """Nearly all are refused."""
    assert_contained(message, LISTS[0])


@given(value=raw_objects(), tail=st.binary(max_size=3))
def test_arbitrary_objects_are_contained_as_message_and_as_tensor(value: bytes, tail: bytes) -> None:
    """Of every kind and form."""
    for message in (value + tail, map_of((LOGITS, value)), map_of((LOGITS, value + tail)), array_of(value)):
        assert_contained(message, LISTS[2])


@given(base=st.sampled_from(LISTS), edits=changes)
def test_damaged_lists_are_contained(base: bytes, edits: list[tuple[str, int, int]]) -> None:
    """Whatever the damage."""
    assert_contained(mutated(base, edits), base)


@given(base=st.sampled_from(BINS), edits=changes)
@example(base=NESTED_SHAPE, edits=[])
def test_damaged_bins_are_contained(base: bytes, edits: list[tuple[str, int, int]]) -> None:
    """Whatever the damage."""
    assert_contained(mutated(base, edits), BINS[0])


@given(base=st.sampled_from(MAPS), edits=changes)
def test_damaged_maps_and_nested_lists_are_contained(base: bytes, edits: list[tuple[str, int, int]]) -> None:
    """Whatever the damage."""
    assert_contained(mutated(base, edits), base)


# The first bin's shape has two sizes: with its header doubled it nests like itself.
@pytest.mark.parametrize("base", [*LISTS, *BINS, *MAPS])
def test_any_two_neighbouring_bytes_may_be_lost_or_doubled(base: bytes) -> None:
    """Every place of every base message, without chance."""
    for at in range(len(base)):
        for message in (base[:at] + base[at + 2 :], base[: at + 2] + base[at:], base[:at] + b"\xc1" + base[at:]):
            assert_contained(message, base)


@given(messages=st.lists(st.binary(max_size=12) | st.sampled_from(LISTS) | st.none(), max_size=30))
def test_every_record_of_any_batch_ends_exactly_once(messages: list[bytes | None]) -> None:
    """Refused or answered."""
    found = verdicts(Pipeline(Limits(40, MANY_CLASSES)), messages)
    for message, result in zip(messages, found, strict=True):
        if message is not None and len(message) <= 40:
            assert result == verdict(message)


# Memory

# Each of a number's bytes may become a float64, of which there are two or three at a time, and five bytes that leave,
# once where they are made and once where they stay.
SMALL_MULTIPLE: Final = 32
# Long enough that nothing else shows; tracing takes a hundred times as long as the transform.
LONG: Final = 1 << 14


def many(count: int, element: bytes) -> bytes:
    return container_form("array", count) + element * count


def entries(count: int, entry: bytes) -> bytes:
    return container_form("map", count) + entry * count


TAGS: Final = {"array": b"\xdd", "map": b"\xdf", "str": b"\xdb", "bin": b"\xc6", "ext": b"\xc9"}
CLAIMS: Final = {kind: tag + b"\xff" * 4 + b"\xc0" * LONG for kind, tag in TAGS.items()}

TENSORS: Final = {
    "float32": float_list(np.zeros(LONG // 5)),
    "float64": float_list(np.zeros(LONG // 9), ">f8"),
    "positive fixints": many(LONG, b"\x01"),
    "negative fixints": many(LONG, b"\xe0"),
    "mixed integers": container_form("array", LONG // 3 * 2) + b"\xe0\xd0\x80" * (LONG // 3),
    "rows of one number": many(LONG // 2, b"\x91\x00"),
    "rows of one number, one of them longer": many(LONG // 2, b"\x91\0") [:-2] + b"\x91\xd0\1",
    "rows of one number, the last too long": many(LONG // 2, b"\x91\0")[:-2] + b"\x92\0\0",
    "rows of nil": many(LONG // 2, b"\x91\xc0"),
    "rows of four levels": many(LONG // 4, b"\x91\x91\x91\x00"),
    "rows of four irregular levels": many(LONG // 4, b"\x91\x91\x91\0")[:-1] + b"\xcc\1",
    "rows of five levels": many(LONG // 5, b"\x91\x91\x91\x91\x00"),
    "empty rows": many(LONG, b"\x90"),
    "empty rows of empty rows": many(LONG // 4, b"\x93\x90\x90\x90"),
    "rows after a number": many(LONG // 2, b"\x91\0").replace(b"\x91\0", b"\0", 1),
    "nil": many(LONG, b"\xc0"),
    "empty maps": many(LONG, b"\x80"),
    "text": many(LONG // 2, b"\xa1x"),
    "text after an array": many(LONG // 2, b"\xa1x").replace(b"\xa1x", b"\x90", 1),
    "maps of maps": many(LONG // 4, b"\x81\xc0\x81\xc0\xc0"),
    "extensions": many(LONG // 3, ext_form(1, b"a")),
    "deep arrays, one beside the other": many(LONG // 64, nested(60)),
    "a tensor map of many keys": entries(LONG // 2, b"\xc0\xc0")[:-2] + b"\xa2nd\xc3",
    "a tensor map of one key again and again": entries(LONG // 4, b"\xa2nd\xc3"),
    "int8 in a tensor map": packed({"nd": True, "type": "|i1", "shape": [LONG], "data": bytes(LONG)}),
    "rows of one int8 in a tensor map": packed({"nd": True, "type": "|i1", "shape": [LONG, 1], "data": bytes(LONG)}),
}  # fmt: skip

AROUND: Final = ["mixed integers", "rows of one number", "rows of nil", "empty rows", "a tensor map of many keys"]

GREEDY: Final = {
    "nested arrays": b"\x91" * LONG,
    "nested arrays to their end": nested(LONG),
    "nested arrays of many claims": b"\xdc\xff\xff" * (LONG // 12),
    "nested maps": b"\x81\xc0" * (LONG // 2),
    "a map of nil to nil": entries(LONG // 2, b"\xc0\xc0"),
    "a map of nil to nil beside the logits": entries(LONG // 2, b"\xc0\xc0")[:-2] + LOGITS + array_of(b"\x01"),
    "logits again and again": entries(LONG // 8, LOGITS + b"\xc0"),
    "models again and again": entries(LONG // 7, b"\xa5model\xc0"),
    "float32 bin": bin_message(bytes(LONG), "float32", [LONG // 4]),
    "int8 bin": bin_message(bytes(LONG), "int8", [LONG]),
    "int8 bin of single classes": bin_message(bytes(LONG), "int8", [LONG, 1]),
    "int8 bin of short rows": bin_message(bytes(LONG), "int8", [LONG // 16, 16]),
    "a field of many scalars": map_of((LOGITS, float_list([1.0])), (b"\xa1x", many(LONG, b"\0"))),
    "a field of many maps": map_of((LOGITS, float_list([1.0])), (b"\xa1x", many(LONG // 3, b"\x81\0\0"))),
    "a huge key": map_of((packed("x" * LONG), b"\x01"), (LOGITS, float_list([1.0]))),
    **{f"the claim of a {kind}": message for kind, message in CLAIMS.items()},
    **{f"the claim of a {kind} as tensor": map_of((LOGITS, message)) for kind, message in CLAIMS.items()},
    **TENSORS,
    **{f"{name}, as field": map_of((LOGITS, TENSORS[name])) for name in AROUND},
    **{f"{name}, as head": map_of((LOGITS, map_of((b"\xc0", TENSORS[name])))) for name in AROUND},
}  # fmt: skip


# Heads are objects of Python's, of which there may only be so many.
HEADS: Final = {
    **{name: map_of((LOGITS, entries(LONG // (1 + len(head)), b"\xc0" + head))) for name, head in {
        "nil": b"\xc0", "one number": b"\x91\0", "two kinds of number": b"\x92\0\xcc\0", "no number": b"\x91\xc0",
        "no head": b"\x80", "no class": b"\x90", "tensor maps": T4, "empty tensor maps": b"\x81\xa2nd\xc3",
    }.items()},
    "as many heads as there may be": map_of((LOGITS, entries(MAX_HEADS, b"\xc0" + many(500, b"\x01")))),
    "as many irregular heads": map_of((LOGITS, entries(MAX_HEADS, b"\xc0" + many(500, b"\x01")[:-1] + b"\xcc\1"))),
}  # fmt: skip
HEAD_BYTES: Final = 4096


def peak_of(messages: list[bytes]) -> int:
    """How many bytes messages make the transform allocate at its peak."""
    pipeline = Pipeline(Limits(MIB, MANY_CLASSES))
    tracemalloc.start()
    pipeline.transform(messages)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("name", GREEDY)
def test_a_message_allocates_a_small_multiple_of_its_length(name: str) -> None:
    """However many objects it holds: none of them becomes one of Python's that stays."""
    ratio = peak_of([GREEDY[name]]) / len(GREEDY[name])
    assert ratio <= SMALL_MULTIPLE, f"{ratio:.1f} times the {len(GREEDY[name])} bytes"


@pytest.mark.parametrize("name", HEADS)
def test_heads_allocate_a_small_multiple_and_so_much_each(name: str) -> None:
    """More than there may be are refused before any is looked at."""
    peak, length = peak_of([HEADS[name]]), len(HEADS[name])
    assert peak <= SMALL_MULTIPLE * length + HEAD_BYTES * MAX_HEADS, f"{peak} bytes for {length}"


@pytest.mark.parametrize("name", ["positive fixints", "mixed integers", "rows of one number", "int8 in a tensor map"])
def test_messages_of_one_kind_allocate_a_small_multiple_of_their_length(name: str) -> None:
    """On the columnar path as well."""
    ratio = peak_of([TENSORS[name]] * 3) / (3 * len(TENSORS[name]))
    assert ratio <= SMALL_MULTIPLE, f"{ratio:.1f} times the {len(TENSORS[name])} bytes"
