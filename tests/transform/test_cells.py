"""Columns of msgpack objects: every record's are those that it would have alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transform_messages import array_of, container_form, float_list, packed

from service.transform import cells
from service.transform.dtypes import FLOAT32, FLOAT64

if TYPE_CHECKING:
    from service.transform.cells import Cells

BOUNDARIES = [0, 1, 127, 128, 255, 256, 65_535, 65_536, 2**31, 2**32 - 1]


def rows(columns: Cells) -> list[bytes]:
    """The bytes of each record."""
    content, lengths = columns.packed()
    assert len(content) == len(columns)
    if lengths is None:
        return [row.tobytes() for row in content]
    return [row[:length].tobytes() for row, length in zip(content, lengths, strict=True)]


@pytest.mark.parametrize("value", BOUNDARIES)
def test_an_integer_has_its_shortest_form_at_every_boundary(value: int) -> None:
    """Alone, beside itself, and beside numbers of every other length in any order."""
    assert rows(cells.integers(np.array([[value]]))) == [packed(value)]
    for other in BOUNDARIES:
        found = rows(cells.integers(np.array([[value, other], [other, value], [0, value]])))
        assert found == [packed(a) + packed(b) for a, b in ((value, other), (other, value), (0, value))]


@given(
    values=st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.lists(st.sampled_from(BOUNDARIES) | st.integers(0, 2**32 - 1), min_size=width, max_size=width),
            min_size=1,
            max_size=6,
        )
    )
)
def test_integers_are_those_of_msgpack(values: list[list[int]]) -> None:
    """Rows of differing lengths in one column."""
    expected = [b"".join(map(packed, row)) for row in values]
    assert rows(cells.integers(np.array(values))) == expected


def test_small_integers_need_no_mask() -> None:
    """Rows of one length are not moved: it is the usual case."""
    assert cells.integers(np.array([[0, 127], [5, 5]])).kept is None
    assert cells.integers(np.array([[0, 128], [5, 5]])).kept is not None


@pytest.mark.parametrize(("dtype", "code"), [(FLOAT32, ">f4"), (FLOAT64, ">f8")])
@pytest.mark.parametrize("computed", [FLOAT32, FLOAT64])
def test_floats_are_tagged_and_as_wide_as_told(dtype: np.dtype[Any], code: str, computed: np.dtype[Any]) -> None:
    """Whatever they were computed in, and whatever their layout in memory."""
    values = np.array([[0.1, -np.inf, 0.0], [1.5, 2**-130, np.inf]], computed)
    headers = [float_list(row.astype(dtype), code)[1:] for row in values]
    assert rows(cells.floats(values, dtype)) == headers
    assert rows(cells.floats(np.asfortranarray(values), dtype)) == headers
    assert rows(cells.floats(values[:, ::-1], dtype)) == [float_list(row[::-1], code)[1:] for row in values]


objects = st.binary(max_size=9) | st.sampled_from([b"", b"\0", b"\0\0\0", b"x" * 1000])


@given(chosen=st.lists(objects, max_size=8))
def test_ready_objects_keep_their_bytes(chosen: list[bytes]) -> None:
    """Zero bytes at their ends too: what fills a row up is not taken for them."""
    assert rows(cells.objects(chosen)) == chosen


columns = st.integers(1, 5).flatmap(
    lambda records: st.lists(
        st.one_of(
            st.lists(objects, min_size=records, max_size=records),
            st.binary(min_size=1, max_size=4).map(lambda content: [content] * records),
        ),
        min_size=1,
        max_size=4,
    )
)


@given(parts=columns)
def test_columns_beside_each_other_are_joined_record_by_record(parts: list[list[bytes]]) -> None:
    """Those that are the same for all among them."""
    made = [
        cells.same(len(part), part[0]) if len(set(part)) == 1 and part[0] else cells.objects(part) for part in parts
    ]
    assert rows(cells.beside(made)) == [b"".join(record) for record in zip(*parts, strict=True)]


@given(chosen=st.lists(objects, min_size=12, max_size=12), records=st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_regrouped_cells_are_joined_in_order(chosen: list[bytes], records: int) -> None:
    """As many neighbours in each record as there must be."""
    each = 12 // records
    expected = [b"".join(chosen[start : start + each]) for start in range(0, 12, each)]
    assert rows(cells.regrouped(cells.objects(chosen), records)) == expected


@given(shape=st.lists(st.integers(1, 4), max_size=3), records=st.integers(1, 3), data=st.data())
def test_rows_are_nested_as_their_tensor_was(shape: list[int], records: int, data: st.DataObject) -> None:
    """Arrays of arrays, in C order, around the values of each record's rows; a rank of one has no array around it."""
    count = records * math.prod(shape)
    leaves = data.draw(st.lists(st.integers(0, 300).map(packed), min_size=count, max_size=count))

    def around(values: list[bytes], sizes: list[int]) -> bytes:
        if not sizes:
            return values[0]
        step = len(values) // sizes[0]
        return array_of(*(around(values[start : start + step], sizes[1:]) for start in range(0, len(values), step)))

    each = count // records
    expected = [around(leaves[start : start + each], shape) for start in range(0, count, each)]
    assert rows(cells.nested(cells.objects(leaves), tuple(shape))) == expected


@pytest.mark.parametrize("size", [15, 16, 65_535, 65_536])
def test_arrays_of_rows_have_the_shortest_header(size: int) -> None:
    """At every boundary of its forms."""
    found = cells.nested(cells.integers(np.zeros((size, 1), np.intp)), (size,))
    assert rows(found) == [container_form("array", size) + bytes(size)]


def test_cells_of_one_length_are_not_copied_to_be_packed() -> None:
    """Only what was shorter than its neighbours is moved."""
    content = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert cells.Cells(content).packed() == (content, None)
    kept = np.array([[True, False, True], [False, False, True]])
    assert rows(cells.Cells(content, kept)) == [b"\0\2", b"\5"]
