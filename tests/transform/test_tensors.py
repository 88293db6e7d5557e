"""Where the numbers of a tensor lie, and the containers that are laid out for an answer."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transform_messages import array_of, bin_form, float32, float64, float_list

from service.transform.dtypes import FIXINT, FLOAT32, FLOAT64, binary_answer, list_answer, parse_dtype
from service.transform.tensors import MAX_RANK, Binary, Grid, NestedArrays, Tensor

if TYPE_CHECKING:
    from service.transform.tensors import Container

SHAPES = [(1,), (3,), (16,), (2, 3), (3, 1), (15, 16), (2, 1, 3), (1, 1, 1, 1), (2, 3, 2, 4), (1, 70_000), (70_000, 1)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
widths = pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)


def filled(container: Container, dtype: np.dtype[Any], values: np.ndarray[Any, Any]) -> bytes:
    """What a container holds once numbers stand in their places, somewhere in an output."""
    template, grid = container.frame(dtype)
    output = np.frombuffer(bytearray(b"\xc1" * 7 + template + b"\xc1"), np.uint8).reshape(1, -1)
    grid.moved(7).numbers(output)[0] = values
    assert (output[0, :7].tobytes(), output[0, -1]) == (b"\xc1" * 7, 0xC1)
    return output[0, 7:-1].tobytes()


def arrays(values: np.ndarray[Any, Any]) -> bytes:
    """Nested arrays of floats, headers in the shortest form."""
    if values.ndim == 1:
        return float_list(values, values.dtype.newbyteorder(">").str)
    return array_of(*map(arrays, values))


@widths
@shapes
def test_numbers_written_into_nested_arrays_are_those_arrays(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Every header in its shortest form, every number with its tag, in C order."""
    values = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    assert filled(NestedArrays(shape), dtype, values) == arrays(values)


@widths
@shapes
def test_numbers_written_into_a_bin_are_its_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Little-endian, in C order, behind the shortest header."""
    values = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    assert filled(Binary(shape), dtype, values) == bin_form(values.astype(dtype.newbyteorder("<")).tobytes())


@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=MAX_RANK), start=st.integers(0, 5))
def test_packed_numbers_lie_one_after_another(shape: list[int], start: int) -> None:
    """Along the last axis first; whatever stands before and after belongs to the record too."""
    elements = parse_dtype(b">i2")
    assert elements is not None
    count = math.prod(shape)
    grid = Grid.packed(elements, start, tuple(shape))
    values = [np.arange(first, first + count, dtype=">i2").reshape(shape) for first in (0, 1000)]
    records = [bytes(start) + each.tobytes() + b"\xff" for each in values]
    columns = np.frombuffer(b"".join(records), np.uint8).reshape(2, -1)
    assert grid.numbers(columns).tolist() == [each.tolist() for each in values]
    tensor = Tensor.regular(start, grid, Binary(grid.shape))
    places = [tensor.place(index) for index in product(*map(range, shape))]
    assert places == list(range(start, start + 2 * count, 2))


def test_numbers_of_many_records_are_told_from_their_tags() -> None:
    """The bytes of the numbers are what is free in a message; the tags are what is not."""
    elements = list_answer(FLOAT32)
    columns = np.frombuffer((b"\x92" + float32(1) + float32(2)) + (b"\x92" + float32(3) + float32(4)), np.uint8)
    columns = columns.reshape(2, -1)
    grid = Grid.packed(elements, 1, (2,))
    assert grid.numbers(columns).tolist() == [[1, 2], [3, 4]]
    assert grid.tags(columns).tolist() == [[0xCA, 0xCA]] * 2
    assert grid.number_bytes(columns)[1].tobytes() == float32(3)[1:] + float32(4)[1:]


def test_small_integers_are_number_and_tag_at_once() -> None:
    """Their one byte is both."""
    columns = np.frombuffer(b"\x92\x05\xff", np.uint8).reshape(1, -1)
    grid = Grid.packed(FIXINT, 1, (2,))
    assert grid.numbers(columns).tolist() == [[5, -1]]
    assert grid.tags(columns).tolist() == [[5, 0xFF]]
    assert grid.number_bytes(columns).tobytes() == b"\x05\xff"


def test_a_tensor_counts_its_rows_and_classes() -> None:
    """The classes are the last axis, the rows all others."""
    for shape, rows in (((5,), 1), ((2, 5), 2), ((2, 3, 4, 5), 24)):
        tensor = Tensor.regular(0, Grid.packed(binary_answer(FLOAT64), 0, shape), Binary(shape))
        assert (tensor.rows, tensor.classes) == (rows, 5)


def test_the_places_of_tagged_numbers_are_their_tags() -> None:
    """What an error points at is where the object begins."""
    message = array_of(array_of(float64(1), float64(2)), array_of(float64(3), float64(4)))
    grid = NestedArrays((2, 2)).frame(FLOAT64).grid
    tensor = Tensor.regular(0, grid, NestedArrays((2, 2)))
    places = [tensor.place(index) for index in product(range(2), range(2))]
    assert [msgpack.unpackb(message[place : place + 9]) for place in places if place] == [1, 2, 3, 4]
