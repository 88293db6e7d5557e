"""Tensors as binary data in a map of their own: every dtype, spelling and order of keys, and what is refused."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING, Any, Final

import msgpack
import msgpack_numpy
import numpy as np
import pytest
from transform_messages import (
    FLOAT32_EPS,
    FLOAT64_EPS,
    LOGITS,
    PROBABILITIES,
    SPELLINGS,
    Spelling,
    array_of,
    assert_accurate,
    bin_form,
    ext_form,
    float32,
    loaded,
    map_of,
    nested,
    packed,
    softmax_rows,
    stored,
    str_form,
    transformed,
    verdict,
)

from service.transform.profiles import Profile, Profiles

if TYPE_CHECKING:
    from collections.abc import Callable

    Entries = dict[bytes, tuple[bytes, bytes]]
    Form = Callable[[bytes], bytes]

BY_NAME: Final = {spelling.name: spelling for spelling in SPELLINGS}
spellings = pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda spelling: spelling.name)
FORMS: Final[dict[str, Form]] = {
    "str": str_form,
    "bin": bin_form,
    "long str": lambda name: str_form(name, 3),
    "long bin": lambda name: bin_form(name, 3),
}
PAIR: Final = np.array([1.0, 1.0])


def entries_of(encoding: str, data: bytes, dtype: bytes, shape: bytes, key: Form = str_form) -> Entries:
    """The entries of a tensor map by their names; data, dtype and shape are msgpack already."""
    flag, word = (b"nd", b"type") if encoding == "T4" else (b"__ndarray__", b"dtype")
    values = {flag: b"\xc3", word: dtype, b"shape": shape, b"data": data}
    if encoding == "T4":
        values[b"kind"] = key(b"")
    return {name: (key(name), value) for name, value in values.items()}


def small(encoding: str) -> Entries:
    """Two equal logits."""
    return entries_of(encoding, bin_form(stored(PAIR, "<f4")), packed("<f4"), array_of(b"\x02"))


def both(tensor: bytes) -> bytes:
    """The answer to a bare tensor, which is the one it has in a field and as a head."""
    answer = transformed(tensor)
    assert transformed(map_of((LOGITS, tensor))) == map_of((PROBABILITIES, answer))
    heads = map_of((b"\x01", tensor), (b"\xa1h", tensor))
    expected = map_of((PROBABILITIES, map_of((b"\x01", answer), (b"\xa1h", answer))))
    assert transformed(map_of((LOGITS, heads))) == expected
    return answer


def reason(tensor: bytes) -> str:
    """Why a tensor is refused, bare, in a field and as a head."""
    found = {verdict(message)[0] for message in (tensor, map_of((LOGITS, tensor)))}
    found.add(verdict(map_of((LOGITS, map_of((b"\x01", tensor)))))[0])
    (one,) = found
    assert isinstance(one, str)
    return one


# Answered


@spellings
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoding", ["T4", "T5"])
def test_a_tensor_map_leaves_as_it_came_with_its_data_and_dtype_in_place(
    encoding: str, form: str, spelling: Spelling
) -> None:
    """Keys and all that does not change are echoed; a dtype that changes stays text or bin, in its own family."""
    values, write = np.array([[0, 1, 2], [100, 127, 127]]), FORMS[form]
    name, answer = spelling.name.encode(), spelling.answer.encode()
    payload, shape = stored(values, spelling.stored), b"\xdc\0\2\xd0\2\xcd\0\3"
    tensor = entries_of(encoding, bin_form(payload, 3), write(name), shape, write)
    found = both(map_of(*tensor.values(), form=2))
    dtype = write(name) if name == answer else bin_form(answer) if "bin" in form else str_form(answer)
    size = 6 * np.dtype(spelling.answered_in).itemsize
    data = found[-size:] if encoding == "T5" else found[found.index(b"data") + 4 :][2 : 2 + size]
    expected = entries_of(encoding, bin_form(data), dtype, shape, write)
    assert found == map_of(*expected.values())
    probabilities = np.frombuffer(data, spelling.answered_in).reshape(2, 3)
    eps = FLOAT64_EPS if spelling.answered_in == "<f8" else FLOAT32_EPS
    assert_accurate(probabilities, loaded(payload, spelling.stored).reshape(2, 3), eps)


@pytest.mark.parametrize("encoding", ["T4", "T5"])
def test_the_keys_of_a_tensor_map_may_stand_in_any_order(encoding: str) -> None:
    """And leave in the same one."""
    answered = entries_of(encoding, bin_form(stored(PAIR / 2, "<f4")), packed("<f4"), array_of(b"\x02"))
    came = entries_of(encoding, bin_form(stored(PAIR, ">f8")), packed(">f8"), array_of(b"\x02"))
    wide = entries_of(encoding, bin_form(stored(PAIR / 2, "<f8")), packed("<f8"), array_of(b"\x02"))
    for order in permutations(came):
        assert transformed(map_of(*(came[name] for name in order))) == map_of(*(wide[name] for name in order))
    for order in permutations(answered):
        tensor = small(encoding)
        assert transformed(map_of(*(tensor[name] for name in order))) == map_of(*(answered[name] for name in order))


@pytest.mark.parametrize("kind", [None, b"\xa0", b"\xd9\0", b"\xdb\0\0\0\0", b"\xc4\0", b"\xc6\0\0\0\0"])
def test_an_empty_kind_is_echoed_and_may_be_absent(kind: bytes | None) -> None:
    """It is empty for numbers."""
    tensor = small("T4")
    del tensor[b"kind"]
    if kind is not None:
        tensor[b"kind"] = (b"\xa4kind", kind)
    found = transformed(map_of(*tensor.values()))
    tensor[b"data"] = (b"\xa4data", bin_form(stored(PAIR / 2, "<f4")))
    assert found == map_of(*tensor.values())


@pytest.mark.parametrize("code", ["<f2", ">f4", "<f8", "|i1", ">u8", "<i4"])
@pytest.mark.parametrize("shape", [(4,), (2, 3), (1, 1, 5), (2, 1, 2, 2)], ids=str)
def test_what_msgpack_numpy_packs_it_unpacks_as_probabilities(code: str, shape: tuple[int, ...]) -> None:
    """The library whose encoding it is reads the answer, with the shape of its own array."""
    values = np.random.default_rng(7).integers(0, 60, shape).astype(code)
    found = msgpack.unpackb(
        transformed(msgpack.packb(values, default=msgpack_numpy.encode)), object_hook=msgpack_numpy.decode
    )
    assert (found.shape, found.dtype) == (shape, np.dtype("<f8" if code == "<f8" else "<f4"))
    classes = shape[-1]
    np.testing.assert_allclose(found.reshape(-1, classes), softmax_rows(values.reshape(-1, classes)), rtol=1e-5)


@pytest.mark.parametrize("encoding", ["T4", "T5"])
@pytest.mark.parametrize(
    ("name", "forced", "answer"),
    [
        ("<f4", "float64", "<f8"), ("float32", "float64", "float64"), ("FP32", "float64", "FP64"),
        ("BF16", "float64", "FP64"), ("|u1", "float64", "<f8"), (">f8", "float32", "<f4"),
        ("float64", "float32", "float32"), ("FP64", "float32", "FP32"), ("<f8", "float64", "<f8"),
    ],
)  # fmt: skip
def test_a_forced_dtype_is_spelled_in_the_manner_of_the_message(
    encoding: str, name: str, forced: str, answer: str
) -> None:
    """It decides what leaves, whatever came."""
    profiles = Profiles(default=Profile(dtype=forced))
    data = stored(PAIR, BY_NAME[name].stored)
    tensor = map_of(*entries_of(encoding, bin_form(data), packed(name), array_of(b"\x02")).values())
    expected = entries_of(encoding, bin_form(stored(PAIR / 2, forced)), packed(answer), array_of(b"\x02"))
    assert transformed(tensor, profiles=profiles) == map_of(*expected.values())


# Refused

DTYPE_KEYS: Final = {"T4": b"type", "T5": b"dtype"}
FLAGS: Final = {"T4": b"nd", "T5": b"__ndarray__"}
encodings = pytest.mark.parametrize("encoding", ["T4", "T5"])


def changed(encoding: str, **values: bytes | None) -> bytes:
    """A small tensor map with other values for some keys (`dtype`, `flag` by role), `None` for no such key."""
    tensor = small(encoding)
    roles = {"dtype": DTYPE_KEYS[encoding], "flag": FLAGS[encoding]}
    for role, value in values.items():
        name = roles.get(role, role.encode())
        if value is None:
            del tensor[name]
        else:
            tensor[name] = (packed(name.decode()), value)
    return map_of(*tensor.values())


def extended(encoding: str, *entries: tuple[bytes, bytes]) -> bytes:
    """A small tensor map and further entries."""
    return map_of(*small(encoding).values(), *entries)


@encodings
@pytest.mark.parametrize("flag", [b"\xc2", b"\xc0", b"\x01", b"\xa4true", b"\x91\xc3", b"\xca\x3f\x80\0\0"])
def test_a_flag_that_is_not_true_makes_no_tensor(encoding: str, flag: bytes) -> None:
    """Nor does it make a map of heads."""
    assert reason(changed(encoding, flag=flag)) == "unsupported_encoding"


@encodings
@pytest.mark.parametrize(
    "key",
    [
        *(b"\xa1x", b"\xc4\1x", b"\x01", b"\xc0", b"\xc3", b"\xcb" + bytes(8), b"\xa0", b"\x90", b"\x80", b"\xa4Data"),
        *(array_of(b"\xa4data"), b"\xa5data\0", b"\xa7complex", b"\xa5order"),
    ],
    ids=lambda key: key.hex(),
)
def test_a_key_that_is_none_of_its_own_is_refused(encoding: str, key: bytes) -> None:
    """What it means is unknown, so that the tensor is."""
    assert reason(extended(encoding, (key, b"\xc0"))) == "unsupported_encoding"
    assert reason(map_of((key, b"\xc0"), *small(encoding).values())) == "unsupported_encoding"


def test_the_keys_of_one_encoding_are_not_those_of_the_other() -> None:
    """Even if either is there twice over."""
    for encoding, other in (("T4", "T5"), ("T5", "T4")):
        assert reason(extended(encoding, (packed(FLAGS[other].decode()), b"\xc3"))) == "unsupported_encoding"
        assert reason(extended(encoding, (packed(DTYPE_KEYS[other].decode()), packed("<f4")))) == "unsupported_encoding"
    assert reason(extended("T5", (b"\xa4kind", b"\xa0"))) == "unsupported_encoding"


@encodings
def test_a_key_that_stands_twice_is_refused_before_all_else(encoding: str) -> None:
    """Once as text and once as bin is twice too."""
    for name in small(encoding):
        for key in (str_form(name), bin_form(name), str_form(name, 2)):
            assert reason(extended(encoding, (key, b"\xc0"))) == "duplicate_field"
            assert reason(extended(encoding, (b"\xa1x", b"\xc0"), (key, b"\xc0"))) == "duplicate_field"
            assert reason(map_of((key, b"\xc2"), *small(encoding).values(), (b"\x01", b"\xc0"))) == "duplicate_field"


@encodings
@pytest.mark.parametrize("data", [None, b"\xc0", b"\xa8abcdefgh", array_of(float32(1)), b"\x80", b"\x01", nested(6)])
def test_data_that_is_no_bin_is_refused(encoding: str, data: bytes | None) -> None:
    """Text is none: what it holds need not be what was meant."""
    assert reason(changed(encoding, data=data)) == "unsupported_encoding"


@encodings
@pytest.mark.parametrize(
    "dtype",
    [
        *(None, b"\xc0", b"\x04", array_of(packed("<f4")), b"\x80", b"\xa0", b"\xc4\0"),
        *(packed(name) for name in ("O", "|O", "V4", "|V4", "<c8", "f4", "=f4", "bool", "?", "<M8[s]", "FP8", "<f4 ")),
        *(bin_form(name) for name in (b"|O", b"V8", b"f4", b"<f4\0")),
        array_of(array_of(packed("a"), packed("<f4"))),
    ],
    ids=lambda dtype: repr(dtype)[2:14],
)
def test_a_dtype_that_is_not_listed_is_refused(encoding: str, dtype: bytes | None) -> None:
    """Objects and structures among them."""
    assert reason(changed(encoding, dtype=dtype)) == "unsupported_dtype"


@pytest.mark.parametrize(
    "kind", [b"\xc0", b"\xa1O", b"\xc4\1O", b"\xa1V", b"\xc4\1V", b"\x90", b"\x00", b"\xc2", b"\xa1\0"]
)
def test_a_kind_that_is_not_empty_is_refused(kind: bytes) -> None:
    """Structured arrays, and pickles, which are never loaded."""
    assert reason(changed("T4", kind=kind)) == "unsupported_dtype"


def test_a_pickle_from_msgpack_numpy_is_refused() -> None:
    """As is a structured array: made by the library itself."""
    pickled = np.array([{"a": 1}], object)
    structured = np.zeros(2, [("a", "<f4"), ("b", "<i2")])
    for array in (pickled, structured, np.zeros(3, np.complex64), np.zeros(2, "<U3"), np.zeros(2, bool)):
        message: Any = msgpack.packb(array, default=msgpack_numpy.encode)
        assert reason(message) == "unsupported_dtype"


@encodings
@pytest.mark.parametrize(
    "shape",
    [
        *(None, b"\xc0", b"\x02", b"\x80", b"\xa12", b"\x90", array_of(*[b"\x01"] * 5), array_of(b"\x03"), b"\x91\xff"),
        *(array_of(b"\x02", b"\x02"), array_of(b"\xff", b"\xfe"), array_of(b"\xc0"), array_of(b"\x91\x02")),
        *(array_of(b"\xca\x40\0\0\0"), array_of(b"\xcf" + b"\xff" * 8), packed([2**32, 2**32, 2**63, 2**63])),
        *(array_of(b"\x02", b"\xc3"), array_of(b"\x80"), bin_form(b"\x02"), packed([2**63, 0])),
    ],
    ids=lambda shape: repr(shape)[2:14],
)
def test_a_shape_that_is_not_that_of_the_data_is_refused(encoding: str, shape: bytes | None) -> None:
    """No size is trusted, however large its product would be."""
    assert reason(changed(encoding, shape=shape)) == "shape_mismatch"


@encodings
@pytest.mark.parametrize("shape", [[0], [0, 2], [2, 0], [1, 0, 3]], ids=str)
def test_no_numbers_are_empty(encoding: str, shape: list[int]) -> None:
    """The shape is true, but holds no class or no row."""
    assert reason(changed(encoding, data=b"\xc4\0", shape=packed(shape))) == "empty"


@encodings
def test_an_extension_inside_comes_first(encoding: str) -> None:
    """As a key or anywhere in a value, before a key that stands twice."""
    extension = ext_form(1, b"abcd")
    again = (packed(FLAGS[encoding].decode()), b"\xc3")
    for entry in ((extension, b"\xc0"), (b"\xa1x", array_of(extension)), (map_of((extension, b"\1")), b"\xc0")):
        assert reason(extended(encoding, entry)) == "extension_type"
        assert reason(extended(encoding, again, entry)) == "extension_type"
    assert reason(changed(encoding, data=extension)) == "extension_type"


@encodings
def test_of_several_faults_the_earliest_is_told(encoding: str) -> None:
    """Encoding, then dtype, then shape."""
    unlisted, unfit = packed("|O"), array_of(b"\x05")
    assert reason(changed(encoding, flag=b"\xc2", dtype=unlisted, shape=unfit)) == "unsupported_encoding"
    assert reason(changed(encoding, data=None, dtype=unlisted, shape=None)) == "unsupported_encoding"
    assert reason(changed(encoding, dtype=unlisted, shape=unfit)) == "unsupported_dtype"
    assert reason(changed(encoding, dtype=None, shape=None)) == "unsupported_dtype"
    nan = bin_form(stored(np.array([np.nan, 1]), "<f4"))
    assert reason(changed(encoding, data=nan, shape=unfit)) == "shape_mismatch"
    assert reason(changed(encoding, data=nan)) == "nan"
