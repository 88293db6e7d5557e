"""Arrays of numbers, nested or not, in whatever form they are written."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transform_messages import array_of, container_form, float32, float64, map_of, nested, packed, str_form

from service.transform.arrays import read_array
from service.transform.dtypes import FLOAT32, FLOAT64
from service.transform.refusals import InvalidMessage, Reason
from service.transform.tensors import NestedArrays

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from service.transform.tensors import Tensor


@dataclass(frozen=True)
class Kind:
    """A way to write numbers, by a struct format behind a tag, and some that can be written so."""

    tag: bytes
    code: str
    samples: tuple[float, ...]

    def write(self, value: float) -> bytes:
        return self.tag + struct.pack(self.code, value)


KINDS: Final = {
    "float32": Kind(b"\xca", ">f", (1.5, -2.0, 0.0)),
    "float64": Kind(b"\xcb", ">d", (1.5, -2.0, 1e300)),
    "positive fixint": Kind(b"", "b", (0, 1, 127)),
    "fixint": Kind(b"", "b", (-32, 127, -1)),
    **{
        f"tag {0xCC + at:x}": Kind(bytes([0xCC + at]), f">{code}", (0, 1, 2 ** (8 * struct.calcsize(code) - 1) - 1))
        for at, code in enumerate("BHIQbhiq")
    },
}
SHAPES: Final = [(1,), (3,), (16,), (2, 3), (3, 1), (1, 17), (17, 2), (2, 1, 3), (2, 3, 2, 4), (1, 1, 1, 1)]


def written(values: NDArray[Any], kind: Kind, forms: Sequence[int]) -> bytes:
    """Nested arrays, the headers of each level in one form."""
    if not values.ndim:
        return kind.write(values.item())
    inner = [written(np.asarray(value, object), kind, forms[1:]) for value in values]
    return container_form("array", len(inner), forms[0]) + b"".join(inner)


def read_within(message: bytes) -> Tensor:
    """The tensor of an array that stands between other bytes, which must not matter."""
    found = read_array(b"\xc1" * 5 + message + b"\xca\x91\x01", 5, 5 + len(message))
    assert found.at == 5
    return found


def numbers(tensor: Tensor, message: bytes) -> list[float]:
    """All numbers of a tensor, in order."""
    if tensor.source is None:
        assert tensor.loose is not None
        return [float(value) for value in tensor.loose.reshape(-1)]
    record = np.frombuffer(b"\xc1" * 5 + message, np.uint8).reshape(1, -1)
    return [float(value) for value in tensor.source.numbers(record).reshape(-1)]


def refusal(message: bytes) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as caught:
        read_within(message)
    return caught.value


# On a grid


@pytest.mark.parametrize("form", [0, 1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_one_kind_lie_on_a_grid(kind: str, shape: tuple[int, ...], form: int) -> None:
    """Whatever their tag and rank, and in whatever form the headers are, if each level has one form."""
    values = np.resize(np.array(KINDS[kind].samples, object), shape)
    for forms in ([form] * 4, [2, 0, 1, form]):
        message = written(values, KINDS[kind], forms)
        found = read_within(message)
        assert found.source is not None
        assert found.loose is None
        assert found.fault is None
        assert found.shape == shape
        assert found.container == NestedArrays(shape)
        assert numbers(found, message) == values.astype(float).reshape(-1).tolist()
        assert found.computed_in == (FLOAT32 if kind == "float32" else FLOAT64)
        assert found.answered_in == (FLOAT64 if kind == "float64" else FLOAT32)


# Not on a grid


@st.composite
def irregular(draw: st.DrawFn) -> tuple[bytes, tuple[int, ...], list[float], set[int]]:
    """Nested arrays of numbers of any kinds, every header in a form of its own."""
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    kinds = draw(st.sampled_from([["float32"], ["fixint", "float32"], sorted(KINDS)]))
    values: list[float] = []
    tags: set[int] = set()

    def part(sizes: list[int]) -> bytes:
        if not sizes:
            kind = KINDS[draw(st.sampled_from(kinds))]
            value = draw(st.sampled_from(kind.samples))
            values.append(float(value))
            raw = kind.write(value)
            tags.add(raw[0])
            return raw
        inner = b"".join(part(sizes[1:]) for _ in range(sizes[0]))
        return container_form("array", sizes[0], draw(st.integers(0, 2))) + inner

    return part(shape), tuple(shape), values, tags


@given(drawn=irregular())
def test_arrays_of_any_numbers_in_any_forms_are_read_in_order(
    drawn: tuple[bytes, tuple[int, ...], list[float], set[int]],
) -> None:
    """A mix is computed in float64, and leaves as float64 if any number was one."""
    message, shape, values, tags = drawn
    found = read_within(message)
    assert found.shape == shape
    assert found.container == NestedArrays(shape)
    assert found.fault is None
    assert numbers(found, message) == values
    assert found.computed_in == (FLOAT32 if tags == {0xCA} else FLOAT64)
    assert found.answered_in == (FLOAT64 if 0xCB in tags else FLOAT32)


LONG: Final = 70_000


@pytest.mark.parametrize(
    "message",
    [
        container_form("array", LONG) + b"\x01" * (LONG - 1) + b"\xcc\x01",
        container_form("array", LONG) + b"\xca\x3f\x80\0\0" + b"\x01" * (LONG - 1),
        container_form("array", LONG, 2) + b"\xcc\x01" * (LONG - 1) + b"\x01",
    ],
    ids=["last", "first", "long header"],
)
def test_one_number_of_another_kind_in_a_long_list_is_seen(message: bytes) -> None:
    """The list is then read number by number."""
    found = read_within(message)
    assert found.source is None
    assert numbers(found, message) == [1.0] * LONG


@pytest.mark.parametrize("wide", [packed(2**53 + 1), packed(2**64 - 1), packed(-(2**63)), packed(2**63)])
def test_integers_become_the_nearest_float64_on_either_way(wide: bytes) -> None:
    """Numbers on a grid and loose numbers are rounded alike."""
    regular, loose = array_of(wide, wide), array_of(wide, wide, b"\x01")
    on_a_grid = read_within(regular)
    assert on_a_grid.source is not None
    record = np.frombuffer(b"\xc1" * 5 + regular, np.uint8).reshape(1, -1)
    assert on_a_grid.source.numbers(record).astype(np.float64)[0, 0] == numbers(read_within(loose), loose)[0]


# One object in a list of others of the same length: an integer that looks like a row, a number like another.
DISGUISED: Final[dict[str, tuple[bytes, object]]] = {
    "an integer among rows": (array_of(b"\x92\1\2", b"\xcd\1\2"), "ragged"),
    "text among rows": (array_of(b"\x92\1\2", b"\xa2\1\2"), "ragged"),
    "a map among rows": (array_of(b"\x92\1\2", b"\x81\1\2"), "ragged"),
    "a longer row and a shorter": (array_of(b"\x92\1\2", b"\x93\1\2\3", b"\x91\1"), "ragged"),
    "an integer among rows of rows": (array_of(array_of(b"\x91\1"), array_of(b"\xcc\1")), "ragged"),
    **{f"{other.hex()} among small integers": (array_of(b"\1", other), "not numeric") for other in (
        b"\xc0", b"\xc2", b"\xc3", b"\xa0", b"\x80",
    )},
    "nil among rows of small integers": (array_of(b"\x92\1\2", b"\x92\1\xc0"), "not numeric"),
    "text among float32": (array_of(float32(1), b"\xa4abcd"), "not numeric"),
    "text among rows of float32": (array_of(array_of(float32(1)), array_of(b"\xa4abcd")), "not numeric"),
    "an integer among float32": (array_of(float32(1), b"\xce\0\0\0\1"), [1.0, 1.0]),
    "an integer among rows of float32": (array_of(array_of(float32(1)), array_of(b"\xd2\0\0\0\1")), [1.0, 1.0]),
    "an integer among planes of float64": (nested(4, innermost=array_of(float64(1), b"\xd3" + bytes(8))), [1.0, 0.0]),
    "int8 among uint8": (array_of(array_of(b"\xcc\1"), array_of(b"\xd0\1")), [1.0, 1.0]),
}  # fmt: skip


@pytest.mark.parametrize("name", DISGUISED)
def test_an_object_as_long_as_its_neighbours_is_not_taken_for_one_of_them(name: str) -> None:
    """What it is follows from its own tag, not from its place."""
    message, expected = DISGUISED[name]
    if expected == "ragged":
        assert refusal(message).reason is Reason.RAGGED
        return
    found = read_within(message)
    assert found.source is None
    if expected == "not numeric":
        assert found.fault is not None
        assert found.fault.reason is Reason.NOT_NUMERIC
        return
    assert numbers(found, message) == expected


# Refused

ONE: Final = float32(1)
PAIR: Final = array_of(ONE, ONE)
NO_NUMBER: Final = {
    "nil": b"\xc0", "true": b"\xc3", "false": b"\xc2", "text": b"\xa11", "long text": str_form(bytes(300)),
    "bin": b"\xc4\x01\x01", "an empty map": b"\x80", "a map": map_of((b"\x01", ONE)), "a deep map": nested(5, "map"),
    "a map of arrays": map_of((b"\x01", nested(5)), (nested(6), b"\x01")),
}  # fmt: skip
# By name: an array that is no rectangle, and where the first one stands that shows it.
RAGGED: Final = {
    "rows of unequal length": (array_of(PAIR, array_of(ONE)), 1 + len(PAIR)),
    "a longer row": (array_of(PAIR, array_of(ONE, ONE, ONE)), 1 + len(PAIR)),
    "an empty row": (array_of(PAIR, b"\x90"), 1 + len(PAIR)),
    "a row after an empty one": (array_of(b"\x90", PAIR), 2),
    "a number after a row": (array_of(PAIR, ONE), 0),
    "a row after a number": (array_of(ONE, PAIR), 0),
    "an empty row after a number": (array_of(ONE, b"\x90"), 0),
    "a number after an empty row": (array_of(b"\x90", ONE), 0),
    "nil after a row": (array_of(PAIR, b"\xc0"), 0),
    "a row after nil": (array_of(b"\xc0", PAIR), 0),
    "a map after a row": (array_of(PAIR, b"\x80"), 0),
    "a deeper row": (array_of(PAIR, array_of(PAIR, PAIR)), 1 + len(PAIR)),
    "a flatter row": (array_of(array_of(PAIR, PAIR), PAIR), 2 + 2 * len(PAIR)),
    "unequal planes": (array_of(array_of(PAIR), array_of(PAIR, PAIR)), 2 + len(PAIR)),
    "the total of a rectangle": (array_of(array_of(ONE), array_of(ONE, ONE, ONE)), 7),
}


@pytest.mark.parametrize("name", RAGGED)
def test_arrays_that_are_no_rectangle_are_ragged(name: str) -> None:
    """Told with the first array that differs from those before."""
    message, at = RAGGED[name]
    found = refusal(message)
    assert (found.reason, found.at) == (Reason.RAGGED, 5 + at)


@pytest.mark.parametrize("name", NO_NUMBER)
def test_an_element_that_is_no_number_is_the_tensor_s_fault(name: str) -> None:
    """Told with its place, once the number of classes has been judged, so that the shape must be known."""
    value = NO_NUMBER[name]
    for message, shape, at in (
        (array_of(value), (1,), 1),
        (array_of(ONE, value, value), (3,), 6),
        (array_of(PAIR, array_of(ONE, value)), (2, 2), 2 + len(PAIR) + 5),
        (array_of(array_of(value, value), array_of(value, ONE)), (2, 2), 2),
    ):
        found = read_within(message)
        assert found.shape == shape
        assert (found.source, found.loose) == (None, None)
        assert found.fault is not None
        assert (found.fault.reason, found.fault.at) == (Reason.NOT_NUMERIC, 5 + at)


@pytest.mark.parametrize("name", NO_NUMBER)
def test_ragged_comes_before_an_element_that_is_no_number(name: str) -> None:
    """Wherever the element stands."""
    value = NO_NUMBER[name]
    for message in (array_of(value, PAIR), array_of(PAIR, value), array_of(array_of(value), PAIR)):
        assert refusal(message).reason is Reason.RAGGED


@pytest.mark.parametrize("innermost", [b"\x90", b"\x91\x01", b"\x91\xc0", b"\x91\x80"], ids=bytes.hex)
@pytest.mark.parametrize("kind", ["array", "array 16", "array 32"])
def test_a_rank_of_four_is_borne_and_five_is_not(kind: str, innermost: bytes) -> None:
    """Whatever the arrays hold, empty ones too."""
    assert len(read_within(nested(4, kind, innermost)).shape) == 4
    for depth in (5, 6, 60):
        assert refusal(nested(depth, kind, innermost)).reason is Reason.SHAPE_MISMATCH


@pytest.mark.parametrize("deep", [nested(4), nested(4, innermost=b"\x91\x01"), nested(4, innermost=b"\x91\xc0")])
def test_the_rank_is_judged_before_anything_else(deep: bytes) -> None:
    """Where the deep array stands last, beside arrays that are flat, ragged, empty or hold no numbers."""
    for others in ([ONE], [PAIR], [b"\x90"], [b"\xc0"], [b"\x80", PAIR], [PAIR, b"\x90", ONE]):
        assert refusal(array_of(*others, deep)).reason is Reason.SHAPE_MISMATCH
        assert refusal(array_of(deep, *others)).reason is Reason.SHAPE_MISMATCH


@pytest.mark.parametrize("inside", [nested(9), map_of((b"\x01", nested(9)))])
def test_arrays_within_maps_add_nothing_to_the_rank(inside: bytes) -> None:
    """The map is what is no number."""
    for message in (array_of(map_of((b"\x01", inside))), nested(4, innermost=array_of(map_of((inside, b"\x01"))))):
        fault = read_within(message).fault
        assert fault is not None
        assert fault.reason is Reason.NOT_NUMERIC


@pytest.mark.parametrize(
    ("message", "shape"),
    [
        (b"\x90", (0,)),
        (container_form("array", 0, 2), (0,)),
        (array_of(b"\x90"), (1, 0)),
        (array_of(b"\x90", b"\xdc\0\0"), (2, 0)),
        (array_of(array_of(b"\x90", b"\x90"), array_of(b"\x90", b"\x90")), (2, 2, 0)),
        (nested(4), (1, 1, 1, 0)),
    ],
)
def test_empty_arrays_have_a_shape_that_says_so(message: bytes, shape: tuple[int, ...]) -> None:
    """It is judged with the shapes of other tensors."""
    found = read_within(message)
    assert (found.shape, found.fault) == (shape, None)
