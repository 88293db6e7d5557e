"""The dtypes on the list, their spellings, and numbers as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from transform_messages import SPELLINGS, Spelling, float_list, loaded, stored

from service.transform.dtypes import (
    FLOAT32,
    FLOAT64,
    Elements,
    binary_answer,
    list_answer,
    listed_elements,
    parse_dtype,
    respell,
)
from service.transform.tensors import Grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

spellings = pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda spelling: spelling.name)


def numbers(elements: Elements, payload: bytes) -> NDArray[Any]:
    """The numbers of binary data, widened as they are before anything is computed."""
    record = np.frombuffer(payload, np.uint8).reshape(1, -1)
    grid = Grid.packed(elements, 0, (len(payload) // elements.stride,))
    found: NDArray[Any] = elements.values(grid.numbers(record))[0]
    return found


def test_the_list_of_spellings_is_complete() -> None:
    """Two byte orders for each wider type, one code for each byte, and two families of twelve names."""
    names = [spelling.name for spelling in SPELLINGS]
    assert len(names) == len(set(names)) == 2 * 9 + 2 + 12 + 12


@spellings
def test_numbers_of_every_spelling_are_read_exactly(spelling: Spelling) -> None:
    """Values that every dtype holds come out as they went in."""
    elements = parse_dtype(spelling.name.encode())
    assert elements is not None
    payload = stored(np.array([0, 1, 2, 100, 127]), spelling.stored)
    assert numbers(elements, payload).tolist() == [0, 1, 2, 100, 127]
    assert elements.stride == spelling.width


@spellings
def test_extreme_numbers_of_every_spelling_are_read_exactly(spelling: Spelling) -> None:
    """Subnormal and negative numbers, NaN and the largest integers too."""
    elements = parse_dtype(spelling.name.encode())
    assert elements is not None
    payload = b"\x00\x80\xff\x7f\x01\x00\xfe\x3f" * spelling.width
    found = numbers(elements, payload).astype(np.longdouble)
    np.testing.assert_array_equal(found, loaded(payload, spelling.stored))


@spellings
def test_small_floats_are_computed_in_float32_and_all_else_in_float64(spelling: Spelling) -> None:
    """float16, bfloat16 and float32 alone are computed in float32, and float64 alone leaves as such."""
    elements = parse_dtype(spelling.name.encode())
    assert elements is not None
    small = spelling.stored == "bf16" or spelling.stored[1:] in {"f2", "f4"}
    assert elements.computed_in == (FLOAT32 if small else FLOAT64)
    assert elements.answered_in == np.dtype(spelling.answered_in)


@spellings
def test_the_answer_is_spelled_in_the_family_of_the_question(spelling: Spelling) -> None:
    """A numpy code for a code, a name for a name, a protocol's word for one."""
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
    """Numpy's other spellings, other cases, padding and lookalikes have no meaning here."""
    assert parse_dtype(spelling.encode()) is None


def test_every_spelling_of_two_characters_or_fewer_is_unknown() -> None:
    """A sweep over all short byte strings: no numpy shorthand slips through."""
    short = [bytes([a, b]) for a in range(256) for b in range(256)] + [bytes([a]) for a in range(256)]
    assert [spelling for spelling in short if parse_dtype(spelling)] == []


def test_every_numpy_code_of_three_characters_is_known_only_if_listed() -> None:
    """A sweep over all codes of a byte order, a kind and a size."""
    listed = {spelling.name.encode() for spelling in SPELLINGS if len(spelling.name) == 3}
    codes = [bytes([order, kind, size]) for order in b"<>|=@!" for kind in range(128) for size in range(128)]
    assert {code for code in codes if parse_dtype(code)} == listed


TAGS = {
    0xCA: (b"\x3f\xc0\0\0", 1.5), 0xCB: (b"\xc0\x04" + bytes(6), -2.5),
    0xCC: (b"\xff", 255), 0xCD: (b"\xff\xfe", 65_534), 0xCE: (b"\xff" * 4, 2**32 - 1), 0xCF: (b"\xff" * 8, 2**64 - 1),
    0xD0: (b"\x80", -128), 0xD1: (b"\x80\0", -(2**15)), 0xD2: (b"\x80" + bytes(3), -(2**31)),
    0xD3: (b"\x80" + bytes(7), -(2**63)),
}  # fmt: skip


@pytest.mark.parametrize("tag", TAGS, ids=hex)
def test_the_numbers_of_a_list_follow_their_tags(tag: int) -> None:
    """Big-endian, each behind a tag of its own."""
    elements = listed_elements(tag)
    assert elements is not None
    payload, value = TAGS[tag]
    assert (elements.stride, elements.offset, elements.tagged) == (1 + len(payload), 1, True)
    assert numbers(elements, (bytes([tag]) + payload) * 3).tolist() == [value] * 3


def test_small_integers_are_their_own_tags() -> None:
    """From -32 to 127, in one byte."""
    for tag in range(256):
        elements = listed_elements(tag)
        if tag < 0x80 or tag >= 0xE0:
            assert elements is not None
            assert (elements.stride, elements.offset, elements.tagged) == (1, 0, True)
            assert numbers(elements, bytes([tag])).tolist() == [tag if tag < 0x80 else tag - 256]
        else:
            assert (elements is None) is (tag not in TAGS)


@pytest.mark.parametrize("tag", [*TAGS, 0x00], ids=hex)
def test_a_tag_is_right_for_its_own_kind_of_number_only(tag: int) -> None:
    """Small integers are one kind, whatever their value."""
    elements = listed_elements(tag)
    assert elements is not None
    tags = np.arange(256, dtype=np.uint8)
    right = [*range(0x80), *range(0xE0, 0x100)] if tag == 0 else [tag]
    assert tags[elements.tags_right(tags)].tolist() == right


@pytest.mark.parametrize("tag", [*TAGS, 0x05], ids=hex)
def test_of_listed_numbers_only_float32_is_computed_in_float32(tag: int) -> None:
    """Integers are computed in float64 and leave as float32."""
    elements = listed_elements(tag)
    assert elements is not None
    assert elements.computed_in == (FLOAT32 if tag == 0xCA else FLOAT64)
    assert elements.answered_in == (FLOAT64 if tag == 0xCB else FLOAT32)


@pytest.mark.parametrize(("dtype", "code"), [(FLOAT32, ">f4"), (FLOAT64, ">f8")])
def test_a_list_leaves_as_tagged_big_endian_numbers(dtype: np.dtype[Any], code: str) -> None:
    """What is written into the places of such elements reads as msgpack."""
    elements = list_answer(dtype)
    content = np.full((1, 3 * elements.stride), elements.tag, np.uint8)
    Grid.packed(elements, 0, (3,)).numbers(content)[...] = [1.5, -2, 0]
    assert content.tobytes() == float_list([1.5, -2, 0], code)[1:]


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
def test_binary_data_leaves_little_endian(dtype: np.dtype[Any]) -> None:
    """On machines of either byte order."""
    elements = binary_answer(dtype)
    content = np.empty((1, 2 * elements.stride), np.uint8)
    Grid.packed(elements, 0, (2,)).numbers(content)[...] = [1.5, -2]
    assert content.tobytes() == np.array([1.5, -2]).astype(dtype.newbyteorder("<")).tobytes()
    assert not elements.tagged
