"""Kafka's integers of variable length: single ones and columns agree with the format, written down plainly."""

from __future__ import annotations

from typing import Final

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.transform import varints

LIMIT: Final = 1 << 63
# As many of each length as of any other.
integers = st.integers(1, 64).flatmap(lambda bits: st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1))


def plain(value: int) -> bytes:
    """The format: twice the value, or twice its distance from -1 and one; seven bits a byte, the low ones first."""
    rest = 2 * value if value >= 0 else -2 * value - 1
    groups = [rest & 127]
    while rest := rest >> 7:
        groups.append(rest & 127)
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


@given(integers)
@example(LIMIT - 1)
@example(-LIMIT)
def test_a_single_integer_is_written_and_read(value: int) -> None:
    assert varints.encode(value) == plain(value)
    assert varints.decode(b"\xff" + plain(value) + b"\xff", 1) == (value, 1 + len(plain(value)))


@given(st.lists(integers, max_size=40))
@example([LIMIT - 1, -LIMIT, 0, -1])
def test_columns_are_read_and_written_as_single_ones(values: list[int]) -> None:
    column = np.array(values, np.int64)
    written = [plain(value) for value in values]
    ends = np.cumsum([len(one) for one in written], dtype=np.int64)
    begins = ends - [len(one) for one in written]
    data = np.frombuffer(b"".join(written), np.uint8)
    found, following = varints.read(data, begins.astype(np.int64))
    assert found.tolist() == values
    assert following.tolist() == ends.tolist()
    if not values:
        return
    sizes = varints.sizes(column)
    assert sizes.tolist() == [len(one) for one in written]
    rows = varints.rows(column, sizes)
    assert [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)] == written


@given(integers, st.integers(0, 9))
def test_what_is_cut_off_is_an_error(value: int, left: int) -> None:
    cut = plain(value)[: min(left, len(plain(value)) - 1)]
    with pytest.raises(IndexError):
        varints.decode(cut, 0)
    with pytest.raises(IndexError):
        varints.read(np.frombuffer(cut, np.uint8), np.array([0], np.int64))


def test_an_integer_that_does_not_end_is_an_error() -> None:
    data = np.full(64, 0x80, np.uint8)
    with pytest.raises(IndexError):
        varints.read(data, np.array([0], np.int64))
    with pytest.raises(IndexError):
        varints.decode(data.data, 0)
