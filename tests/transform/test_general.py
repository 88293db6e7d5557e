"""One message: what leaves is what came, byte for byte, with the probabilities in the tensor's place."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transform_messages import (
    DTYPE,
    FLOAT32_EPS,
    FLOAT64_EPS,
    LOGITS,
    PROBABILITIES,
    SHAPE,
    SPELLINGS,
    Spelling,
    array_of,
    assert_accurate,
    assert_sums_to_one,
    bin_form,
    bin_message,
    container_form,
    ext_form,
    float32,
    float64,
    float_list,
    listed,
    loaded,
    map_of,
    packed,
    raw_fields,
    stored,
    str_form,
    transformed,
    verdict,
)

from service.transform.message import MAX_HEADS

if TYPE_CHECKING:
    from numpy.typing import NDArray

Fields = list[tuple[bytes, bytes]]
spellings = pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda spelling: spelling.name)


def in_a_map(tensor: bytes) -> bytes:
    """The answer to a tensor that is a map's only field, without the map."""
    answer = transformed(map_of((LOGITS, tensor)))
    assert answer.startswith(b"\x81" + PROBABILITIES)
    return answer[1 + len(PROBABILITIES) :]


# Lists


@pytest.mark.parametrize(("dtype", "eps"), [(">f4", FLOAT32_EPS), (">f8", FLOAT64_EPS)])
@pytest.mark.parametrize("classes", [1, 2, 8, 15, 16])
def test_a_float_list_leaves_in_its_own_width(dtype: str, eps: float, classes: int) -> None:
    """float32 as float32, float64 as float64."""
    logits = np.linspace(-3, 4, classes).astype(dtype[1:])
    answer = listed(in_a_map(float_list(logits, dtype)))
    assert answer.dtype == np.dtype(dtype[1:])
    assert_accurate(answer, logits, eps)
    assert_sums_to_one(answer)


INTEGERS = {
    "positive fixint": (b"\x05", 5),
    "negative fixint": (b"\xfb", -5),
    "uint8": (b"\xcc\x05", 5),
    "uint16": (b"\xcd\x00\x05", 5),
    "uint32": (b"\xce\x00\x00\x00\x05", 5),
    "uint64": (b"\xcf" + (2**64 - 1).to_bytes(8, "big"), 2**64 - 1),
    "int8": (b"\xd0\x85", -123),
    "int16": (b"\xd1\xff\x85", -123),
    "int32": (b"\xd2\xff\xff\xff\x85", -123),
    "int64": (b"\xd3\x80" + bytes(7), -(2**63)),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_of_every_width_are_read_and_leave_as_float32(name: str) -> None:
    """To the extremes of each."""
    raw, value = INTEGERS[name]
    answer = listed(in_a_map(array_of(raw, raw, b"\x06")))
    assert answer.dtype == np.float32
    assert_accurate(answer, np.array([value, value, 6], np.float64).astype(np.longdouble))


def test_neighbouring_integers_of_64_bits_are_read_as_float64() -> None:
    """2**53 is exact in the width of the computation, and so is its distance of 1 to the next below."""
    answer = listed(in_a_map(array_of(packed(2**53), packed(2**53 - 1))))
    assert_accurate(answer, np.array([0, -1]))


def test_integers_are_computed_in_float64() -> None:
    """2**24 + 1 has no float32: computed there, both would tie."""
    answer = listed(in_a_map(array_of(packed(2**24 + 1), packed(2**24))))
    assert_accurate(answer, np.array([1, 0]))


def test_float32_with_integers_is_computed_in_float64_and_leaves_as_float32() -> None:
    """The distance between them would be lost in float32."""
    answer = listed(in_a_map(array_of(packed(2**24 + 1), float32(2.0**24))))
    assert answer.dtype == np.float32
    assert_accurate(answer, np.array([1, 0]))


@pytest.mark.parametrize("other", [float32(-1.5), packed(3), packed(-200), packed(70_000)])
@pytest.mark.parametrize("first", [True, False])
def test_a_list_with_any_float64_leaves_as_float64(other: bytes, *, first: bool) -> None:
    """Whatever stands beside it, before or after."""
    elements = [float64(0.1), other] if first else [other, float64(0.1)]
    value = msgpack.unpackb(other)
    answer = listed(in_a_map(array_of(*elements)))
    assert answer.dtype == np.float64
    assert_accurate(answer, np.array([0.1, value] if first else [value, 0.1]), FLOAT64_EPS)


numbers = st.one_of(
    st.floats(-80, 80, width=32).map(lambda z: (float32(z), z)),
    st.floats(-80, 80).map(lambda z: (float64(z), z)),
    st.integers(-(2**63), 2**64 - 1).map(lambda z: (packed(z), float(z))),
    st.integers(-40, 130).map(lambda z: (packed(z), float(z))),
)


@given(elements=st.lists(numbers, min_size=1, max_size=8))
def test_any_mix_of_numbers_has_the_distribution_of_their_values(elements: list[tuple[bytes, float]]) -> None:
    """As near as the width that leaves allows."""
    answer = listed(in_a_map(array_of(*(raw for raw, _ in elements))))
    wide = any(raw[0] == 0xCB for raw, _ in elements)
    only32 = all(raw[0] == 0xCA for raw, _ in elements)
    assert answer.dtype == (np.float64 if wide else np.float32)
    values = np.array([value for _, value in elements], np.longdouble)
    assert_accurate(answer, values.astype(np.float32) if only32 else values, FLOAT64_EPS if wide else FLOAT32_EPS)
    assert_sums_to_one(answer)


@pytest.mark.parametrize("form", [0, 1, 2])
@pytest.mark.parametrize("classes", [1, 15, 16, 255, 65_535, 65_536])
def test_a_bare_list_leaves_as_a_bare_list_with_the_shortest_header(classes: int, form: int) -> None:
    """Whatever header it came with."""
    logits = np.zeros(classes, np.float32)
    answer = transformed(float_list(logits, form=form))
    assert answer == float_list(np.full(classes, np.float32(1) / np.float32(classes)))


@pytest.mark.parametrize(
    "tensor",
    [
        float_list([1.0, -2.0, 0.25]),
        float_list([1.0, 1e300], ">f8"),
        array_of(packed(1), packed(300)),
        array_of(b"\x07", float32(1)),
    ],
)
def test_a_bare_list_has_the_probabilities_of_the_same_list_in_a_map(tensor: bytes) -> None:
    """To the last bit."""
    assert transformed(tensor) == in_a_map(tensor)


@pytest.mark.parametrize("dtype", [">f4", ">f8"])
def test_minus_infinity_is_a_mask_in_a_list(dtype: str) -> None:
    """Exactly 0, in either width."""
    assert transformed(float_list([-np.inf, 0.0, -np.inf, 0.0], dtype)) == float_list([0, 0.5, 0, 0.5], dtype)


def test_minus_infinity_is_a_mask_among_mixed_numbers() -> None:
    """Exactly 0 there too."""
    assert transformed(array_of(float32(-np.inf), b"\x05", b"\x05")) == float_list([0, 0.5, 0.5])


# Echo


@st.composite
def surrounded(draw: st.DrawFn, tensor_fields: Fields) -> tuple[Fields, int]:
    """Fields of a message in any order, the tensor's among them, and a form of the map's header."""
    fields = draw(raw_fields(max_size=3)) + tensor_fields
    return draw(st.permutations(fields)), draw(st.integers(0, 2))


def any_tensor(values: list[float], form: int) -> st.SearchStrategy[bytes]:
    """A list, nested lists, a tensor map or heads."""
    numbers = float_list(values, form=form)
    data = (b"\xa4data", bin_form(np.array(values, "<f4").tobytes(), form))
    tensor = map_of((b"\xa2nd", b"\xc3"), (b"\xa4type", b"\xa3<f4"), (SHAPE, packed([len(values)])), data)
    heads = map_of((b"\x01", numbers), (str_form(b"h", form), tensor), form=form)
    return st.sampled_from([numbers, array_of(numbers, numbers), tensor, heads])


@given(data=st.data(), key_form=st.integers(0, 3), form_of_tensor=st.integers(0, 2))
def test_every_other_field_of_a_message_is_echoed_in_place(
    data: st.DataObject, key_form: int, form_of_tensor: int
) -> None:
    """Only `logits` changes its name and value; headers and the key around the tensor leave in the shortest form."""
    values = data.draw(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=17))
    tensor = data.draw(any_tensor(values, form_of_tensor))
    logits = (str_form(b"logits", key_form), tensor)
    fields, form = data.draw(surrounded([logits]))
    probabilities = (PROBABILITIES, in_a_map(tensor))
    expected = map_of(*(probabilities if field is logits else field for field in fields))
    assert transformed(map_of(*fields, form=form)) == expected


@given(data=st.data(), key_form=st.integers(0, 3), bin_length_form=st.integers(1, 3))
def test_every_other_field_of_a_bin_message_is_echoed_in_place(
    data: st.DataObject, key_form: int, bin_length_form: int
) -> None:
    """`dtype` and `shape` that do not change are echoed too, keys and values in whatever form they came."""
    values = np.array(data.draw(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=17)), "<f4")
    logits = (str_form(b"logits", key_form), bin_form(values.tobytes(), bin_length_form))
    dtype = (str_form(b"dtype", key_form), str_form(b"float32", data.draw(st.integers(0, 3))))
    size = data.draw(st.sampled_from([b"\xcd", b"\xd3"]))
    width = {b"\xcd": 2, b"\xd3": 8}[size]
    shape = (
        str_form(b"shape", key_form),
        container_form("array", 1, data.draw(st.integers(0, 2))) + size + len(values).to_bytes(width, "big"),
    )
    fields, form = data.draw(surrounded([logits, dtype, shape]))
    answer = listed(transformed(float_list(values)))
    probabilities = (PROBABILITIES, bin_form(answer.astype("<f4").tobytes()))
    expected = map_of(*(probabilities if field is logits else field for field in fields))
    assert transformed(map_of(*fields, form=form)) == expected


@pytest.mark.parametrize(
    "value",
    [
        *(b"\xcf" + (2**64 - 1).to_bytes(8, "big"), b"\xd3\x80" + bytes(7), b"\xcf" + bytes(8), b"\xd2" + bytes(4)),
        *(b"\xa3\xff\xfe\x80", b"\xdb\0\0\0\x02\xc3\x28", b"\xd9\0", b"\xc4\0", b"\xc6\0\0\0\x01\xc1", b"\xc7\0\x07"),
        *(ext_form(-1, bytes(3)), ext_form(5, b"\xc1" * 16), ext_form(-128, b"x" * 300), b"\xcb\x7f\xf8" + bytes(6)),
        *(b"\xdf\0\0\0\0", b"\xdd\0\0\0\x01\xc0", map_of((b"\x80", b"\x90"), (b"\xc0", b"\xc0"), (b"\xc0", b"\xc0"))),
        map_of((LOGITS, packed(1)), (LOGITS, packed(2)), (PROBABILITIES, b"\xc0")),
    ],
    ids=lambda value: value[:8].hex(),
)
def test_unusual_values_are_echoed(value: bytes) -> None:
    """Text that is no UTF-8, long forms, extensions, repeated keys."""
    message = map_of((b"\xa2id", value), (LOGITS, float_list([0.0])), (b"\xa1z", value))
    assert transformed(message) == map_of((b"\xa2id", value), (PROBABILITIES, float_list([1.0])), (b"\xa1z", value))


@pytest.mark.parametrize(
    "key",
    [
        *(
            bin_form(b"logits"),
            bin_form(b"probabilities"),
            b"\xa6Logits",
            b"\xa7logits\0",
            b"\xa5logit",
            array_of(LOGITS),
        ),
        *(b"\xc0", b"\x01", b"\xcb" + bytes(8), ext_form(1, b"logits"), map_of((LOGITS, b"\x01")), b"\xa0", b"\xa2nd"),
    ],
    ids=lambda key: key.hex(),
)
def test_keys_that_merely_resemble_are_echoed(key: bytes) -> None:
    """Other types, cases and lengths are other names."""
    message = map_of((key, b"\xc3"), (LOGITS, float_list([0.0])))
    assert transformed(message) == map_of((key, b"\xc3"), (PROBABILITIES, float_list([1.0])))


def test_fields_of_the_same_name_that_mean_nothing_are_all_echoed() -> None:
    """A list needs no dtype and no shape."""
    twice: Fields = [(b"\xa2id", b"\x01"), (b"\xa2id", b"\x02"), (DTYPE, b"\xc0"), (DTYPE, b"\x07"), (SHAPE, b"\xc0")]
    assert transformed(map_of(*twice, (LOGITS, float_list([0.0])))) == map_of(
        *twice, (PROBABILITIES, float_list([1.0]))
    )


@pytest.mark.parametrize("count", [15, 16, 65_536])
def test_the_header_of_a_map_of_any_size_is_shortest(count: int) -> None:
    """Whatever header it came with."""
    others: Fields = [(b"\xc0", b"\xc0")] * (count - 1)
    for form in range(3):
        message = map_of(*others, (LOGITS, float_list([0.0])), form=form)
        assert transformed(message) == map_of(*others, (PROBABILITIES, float_list([1.0])))


# Nested lists


def nested_list(values: NDArray[Any], dtype: str = ">f4") -> bytes:
    """Arrays of arrays, down to lists of floats."""
    if values.ndim == 1:
        return float_list(values, dtype)
    return array_of(*(nested_list(inner, dtype) for inner in values))


@pytest.mark.parametrize("dtype", [">f4", ">f8"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (16, 2), (3, 300), (2, 1, 3), (2, 3, 2, 4), (1, 1, 1, 1)], ids=str)
def test_nested_lists_leave_nested_alike_with_a_distribution_in_each_innermost(
    shape: tuple[int, ...], dtype: str
) -> None:
    """Every innermost list becomes what it would be by itself."""
    values = np.random.default_rng(4).normal(size=shape).astype(dtype[1:])
    alone = [listed(transformed(float_list(row, dtype))) for row in values.reshape(-1, shape[-1])]
    expected = nested_list(np.array(alone).reshape(shape), dtype)
    assert transformed(nested_list(values, dtype)) == expected
    assert in_a_map(nested_list(values, dtype)) == expected


@pytest.mark.parametrize("wide", [False, True])
def test_nested_lists_of_mixed_numbers_leave_in_the_wider_of_their_floats(*, wide: bool) -> None:
    """One float64 anywhere makes all of them float64."""
    last = float64(2.0) if wide else float32(2.0)
    message = array_of(array_of(b"\x02", b"\xcc\x02"), b"\xdc\0\2" + b"\xd1\0\2" + last)
    expected = nested_list(np.full((2, 2), 0.5), ">f8" if wide else ">f4")
    assert transformed(message) == in_a_map(message) == expected


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_headers_of_nested_lists_leave_in_the_shortest_form(rank: int) -> None:
    """Whatever form each had."""
    inner = expected = b""
    for level in range(rank):
        inner = container_form("array", 1, 2 - level % 3) + (inner or float32(5))
        expected = b"\x91" + (expected or float32(1))
    assert transformed(inner) == expected


# Heads

HEAD_NAMES = [
    b"\xa3age", b"\xd9\3sex", b"\x01", b"\xc0", b"\xc3", b"\xa0", b"\xc4\3age", b"\xff", b"\x90", b"\x80",
    map_of((LOGITS, b"\x01")), LOGITS, PROBABILITIES, DTYPE, b"\xa3\xff\xfe\x80", packed("x" * 300),
]  # fmt: skip


def test_every_head_becomes_what_it_would_be_alone_under_its_own_name() -> None:
    """Of whatever encoding, size and type of number; names are echoed, whatever they are, also twice."""
    tensors = [
        float_list([1.0, 2.0]),
        float_list([0.1] * 20, ">f8", form=2),
        array_of(b"\x01", b"\x02", b"\xcc\x03"),
        array_of(float_list([1.0, 2.0]), array_of(b"\x01", b"\x02")),
        nested_list(np.zeros((2, 2, 2, 3))),
        packed({"nd": True, "type": "|i1", "shape": [2], "data": b"\1\2"}),
        packed({b"__ndarray__": True, "shape": [2], b"dtype": b"BF16", "data": bytes(4)}),
    ]  # fmt: skip
    heads = [(name, tensors[at % len(tensors)]) for at, name in enumerate([*HEAD_NAMES, HEAD_NAMES[0]])]
    expected = map_of(*((name, transformed(tensor)) for name, tensor in heads))
    for form in range(3):
        assert in_a_map(map_of(*heads, form=form)) == expected
    for name, tensor in heads:
        assert in_a_map(map_of((name, tensor))) == map_of((name, transformed(tensor)))


def test_an_extension_may_name_a_head() -> None:
    """A name may be anything, and is echoed."""
    name = ext_form(1, b"abcd")
    assert in_a_map(map_of((name, float_list([0.0])))) == map_of((name, float_list([1.0])))


@pytest.mark.parametrize("count", [15, 16, MAX_HEADS])
def test_the_header_of_the_heads_is_shortest(count: int) -> None:
    """Up to as many as there may be."""
    heads, answers = [(b"\x01", array_of(b"\x07"))] * count, [(b"\x01", float_list([1.0]))] * count
    assert in_a_map(map_of(*heads, form=2)) == map_of(*answers)


# Bins


def sample(spelling: Spelling, count: int) -> NDArray[Any]:
    """Numbers that every byte order and width of the dtype holds exactly."""
    low = 0 if spelling.stored[1:2] == "u" else -60
    return np.random.default_rng(count).integers(low, 60, count)


@spellings
@pytest.mark.parametrize("shape", [[6], [1], [2, 3], [3, 1], [2, 1, 4], [1, 2, 3, 2], [1, 1, 1, 1]], ids=str)
def test_a_bin_of_every_dtype_and_rank_leaves_little_endian_and_spelled_alike(
    spelling: Spelling, shape: list[int]
) -> None:
    """Softmax along the last axis; `dtype` in the family of the input's spelling; the shape as it was."""
    payload = stored(sample(spelling, int(np.prod(shape))), spelling.stored)
    answer = transformed(bin_message(payload, spelling.name, shape, (b"\xa2id", b"\x2a")))
    fields = msgpack.unpackb(answer)
    assert list(fields) == ["probabilities", "dtype", "shape", "id"]
    assert (fields["dtype"], fields["shape"], fields["id"]) == (spelling.answer, shape, 42)
    found = np.frombuffer(fields["probabilities"], spelling.answered_in).reshape(-1, shape[-1])
    eps = FLOAT64_EPS if spelling.answered_in == "<f8" else FLOAT32_EPS
    assert_accurate(found, loaded(payload, spelling.stored).reshape(-1, shape[-1]), eps)
    assert_sums_to_one(found)
    # Byte for byte: nothing but the shortest forms in place.
    assert answer == map_of(
        (PROBABILITIES, bin_form(found.tobytes())),
        (DTYPE, packed(spelling.answer)),
        (SHAPE, packed(shape)),
        (b"\xa2id", b"\x2a"),
    )


@pytest.mark.parametrize("order", list(permutations(range(4))), ids=str)
@pytest.mark.parametrize("spelling", [">f4", "INT8", "bfloat16"])
def test_dtype_and_shape_may_stand_anywhere_around_the_bin(spelling: str, order: tuple[int, ...]) -> None:
    """Before and after it, and leave where they stood."""
    (known,) = [candidate for candidate in SPELLINGS if candidate.name == spelling]
    payload = stored(np.array([5, 5]), known.stored)
    fields = [
        (LOGITS, bin_form(payload)),
        (DTYPE, packed(spelling)),
        (SHAPE, array_of(b"\x02")),
        (b"\xa1x", float_list([7.0])),
    ]
    answers = [
        (PROBABILITIES, bin_form(np.array([0.5, 0.5], "<f4").tobytes())),
        (DTYPE, packed(known.answer)),
        *fields[2:],
    ]
    assert transformed(map_of(*(fields[at] for at in order))) == map_of(*(answers[at] for at in order))


@pytest.mark.parametrize("spelling", ["<f4", "float32", "FP32", "<f8", "float64", "FP64"])
def test_bins_and_lists_of_the_same_floats_have_the_same_bits(spelling: str) -> None:
    """The encoding changes no number."""
    (known,) = [candidate for candidate in SPELLINGS if candidate.name == spelling]
    values = np.random.default_rng(3).normal(size=300)
    as_list = listed(transformed(float_list(values, ">" + known.stored[1:])))
    as_bin = msgpack.unpackb(transformed(bin_message(values.astype(known.stored).tobytes(), spelling, [300])))
    assert as_bin["probabilities"] == as_list.astype(known.stored).tobytes()


@pytest.mark.parametrize(
    "pair", [("<f2", ">f2"), ("<f4", ">f4"), ("<f8", ">f8"), ("<i4", ">i4"), ("<u8", ">u8")], ids=str
)
def test_the_byte_order_of_the_input_changes_nothing_else(pair: tuple[str, str]) -> None:
    """Nor its spelling."""
    values = np.arange(12)
    little, big = (transformed(bin_message(values.astype(code).tobytes(), code, [3, 4])) for code in pair)
    assert little == big


@pytest.mark.parametrize("classes", [1, 2, 255, 256, 257, 1000])
def test_each_row_of_a_bin_has_the_bits_it_has_alone(classes: int) -> None:
    """In either memory layout."""
    rows = np.random.default_rng(classes).normal(size=(3, classes)).astype("<f4")
    together = msgpack.unpackb(transformed(bin_message(rows.tobytes(), "<f4", [3, classes])))["probabilities"]
    alone = [
        msgpack.unpackb(transformed(bin_message(row.tobytes(), "<f4", [classes])))["probabilities"] for row in rows
    ]
    assert together == b"".join(alone)


def test_an_empty_array_of_other_fields_or_a_wide_shape_changes_nothing() -> None:
    """A size may be written in any integer form, and is echoed in it."""
    shape = array_of(b"\xcf" + (1).to_bytes(8, "big"), b"\xd0\x02")
    message = map_of((LOGITS, bin_form(bytes(8), 2)), (DTYPE, str_form(b"float32", 2)), (SHAPE, shape))
    expected = bin_form(np.array([0.5, 0.5], "<f4").tobytes())
    assert transformed(message) == map_of((PROBABILITIES, expected), (DTYPE, str_form(b"float32", 2)), (SHAPE, shape))


@pytest.mark.parametrize("length", [63, 64, 16_383, 16_384])
def test_the_header_of_a_bin_grows_with_its_answer(length: int) -> None:
    """Bytes become four times as many: 64 of them need a length of 16 bits, 16 384 one of 32 bits."""
    answer = transformed(bin_message(bytes(length), "int8", [length]))
    expected = np.full(length, np.float32(1 / length), "<f4")
    assert answer.startswith(map_of((PROBABILITIES, bin_form(expected.tobytes())), (b"", b""), (b"", b"")))


@pytest.mark.parametrize("spelling", ["float16", "bfloat16"])
def test_every_pattern_of_sixteen_bits_is_answered_or_refused(spelling: str) -> None:
    """All 65 536 of them against a logit of 1, signalling NaNs too: no warning, no wrong number."""
    (known,) = [candidate for candidate in SPELLINGS if candidate.name == spelling]
    patterns = np.arange(1 << 16, dtype="<u2")
    values = loaded(patterns.tobytes(), known.stored)
    usable = patterns[~np.isnan(values) & ~np.isposinf(values)]
    pairs = np.stack([usable, np.full_like(usable, np.frombuffer(stored(np.ones(1), known.stored), "<u2")[0])], axis=1)
    fields = msgpack.unpackb(transformed(bin_message(pairs.tobytes(), spelling, [len(usable), 2])))
    found = np.frombuffer(fields["probabilities"], "<f4").reshape(-1, 2)
    assert_accurate(found, loaded(pairs.tobytes(), known.stored).reshape(-1, 2))
    assert_sums_to_one(found)
    for pattern, value in zip(patterns.tolist(), values.tolist(), strict=True):
        if np.isnan(value) or value == np.inf:
            refused = verdict(bin_message(pattern.to_bytes(2, "little"), spelling, [1]))
            assert refused[0] == ("nan" if np.isnan(value) else "positive_infinity")
