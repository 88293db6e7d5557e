"""The dtypes on the list, their spellings, and numbers as bytes."""

from __future__ import annotations

import numpy as np
import pytest
from transform_messages import SPELLINGS, Spelling, float_list, loaded, stored

from service.transform.tensors import (
    FLOAT32,
    FLOAT64,
    LIST_FLOAT32,
    LIST_FLOAT64,
    bin_elements,
    list_elements,
    parse_dtype,
    respell,
)

spellings = pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda spelling: spelling.name)


def test_the_list_of_spellings_is_complete() -> None:
    """Two byte orders for each wider type, one code for each byte, and two families of twelve names."""
    names = [spelling.name for spelling in SPELLINGS]
    assert len(names) == len(set(names)) == 2 * 9 + 2 + 12 + 12


@spellings
def test_numbers_of_every_spelling_are_read_exactly(spelling: Spelling) -> None:
    elements = parse_dtype(spelling.name.encode())
    assert elements is not None
    payload = stored(np.array([0, 1, 2, 100, 127]), spelling.stored)
    found = elements.read(np.frombuffer(payload, np.uint8).reshape(1, -1))
    assert found.tolist() == [[0, 1, 2, 100, 127]]
    assert elements.stride == spelling.width


@spellings
def test_extreme_numbers_of_every_spelling_are_read_exactly(spelling: Spelling) -> None:
    elements = parse_dtype(spelling.name.encode())
    assert elements is not None
    payload = b"\x00\x80\xff\x7f\x01\x00\xfe\x3f" * spelling.width
    found = elements.read(np.frombuffer(payload, np.uint8).reshape(1, -1)).astype(np.longdouble)
    np.testing.assert_array_equal(found[0], loaded(payload, spelling.stored))


@spellings
def test_small_floats_are_computed_in_float32_and_all_else_in_float64(spelling: Spelling) -> None:
    elements = parse_dtype(spelling.name.encode())
    assert elements is not None
    small = spelling.stored == "bf16" or spelling.stored[1:] in {"f2", "f4"}
    assert elements.computed_in == (FLOAT32 if small else FLOAT64)
    assert elements.answered_in == np.dtype(spelling.answered_in)


@spellings
def test_the_answer_is_spelled_in_the_family_of_the_question(spelling: Spelling) -> None:
    assert respell(np.dtype(spelling.answered_in), spelling.name.encode()) == spelling.answer.encode()


@pytest.mark.parametrize(
    "spelling",
    [
        *(
            "",
            "f4",
            "=f4",
            "|f4",
            "<i1",
            ">i1",
            "<u1",
            "|i2",
            "<f1",
            "<f16",
            "<c8",
            "<V4",
            "|V4",
            "|O",
            "O",
            "|S4",
            "<U4",
            "?",
            "|b1",
        ),
        *("<f4 ", " <f4", "<f4\n", "<f4,<f4", "(2,)<f4", "<F4", "float", "double", "half", "int", "uint", "bool"),
        *(
            "Float32",
            "FLOAT32",
            "fp32",
            "Fp32",
            "bf16",
            "BFLOAT16",
            "Int8",
            "BOOL",
            "BYTES",
            "FP8",
            "float8",
            "float128",
        ),
        *("int128", "datetime64", "<M8", "<m8", "longdouble", "complex64", "float32\0", "<f\u0664", "\xff"),
    ],
)
def test_spellings_beyond_the_list_are_unknown(spelling: str) -> None:
    assert parse_dtype(spelling.encode()) is None


def test_every_spelling_of_two_characters_or_fewer_is_unknown() -> None:
    """A sweep over all short byte strings: no numpy shorthand slips through."""
    short = [bytes([a, b]) for a in range(256) for b in range(256)] + [bytes([a]) for a in range(256)]
    assert [spelling for spelling in short if parse_dtype(spelling)] == []


def test_every_numpy_code_of_three_characters_is_known_only_if_listed() -> None:
    listed = {spelling.name.encode() for spelling in SPELLINGS if len(spelling.name) == 3}
    codes = [bytes([order, kind, size]) for order in b"<>|=@!" for kind in range(128) for size in range(128)]
    assert {code for code in codes if parse_dtype(code)} == listed


@pytest.mark.parametrize(("elements", "dtype"), [(LIST_FLOAT32, ">f4"), (LIST_FLOAT64, ">f8")])
def test_packed_numbers_are_the_list(elements: object, dtype: str) -> None:
    chosen = list_elements(FLOAT32 if dtype == ">f4" else FLOAT64)
    assert chosen is elements
    assert bytes(chosen.pack(np.array([1.5, -2, 0]))) == float_list([1.5, -2, 0], dtype)[1:]


def test_binary_data_leaves_little_endian() -> None:
    for dtype in (FLOAT32, FLOAT64):
        elements = bin_elements(dtype)
        assert (
            bytes(elements.pack(np.array([1.5, -2])))
            == np.array([1.5, -2], dtype).astype(dtype.newbyteorder("<")).tobytes()
        )


def test_tags_must_match_at_every_number_of_a_record() -> None:
    good = float_list([1.0, 2.0, 3.0])[1:]
    bad = [bytes([*good[:at], 0xCE, *good[at + 1 :]]) for at in (0, 5, 10)]
    columns = np.frombuffer(b"".join([good, *bad]), np.uint8).reshape(4, -1)
    assert LIST_FLOAT32.tags_match(columns).tolist() == [True, False, False, False]


def test_untagged_numbers_match_always() -> None:
    columns = np.zeros((3, 8), np.uint8)
    assert bin_elements(FLOAT32).tags_match(columns).tolist() == [True] * 3
