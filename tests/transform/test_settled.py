"""Byte for byte: every spelling of every dtype, every line of the list of refusals, every corner that is settled.

What is expected is written out here, and the reference must agree with it too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest
from judged import answer_of, reason_of, verdict_on
from message_strategies import OUTPUTS
from reference import REASONS, Limits, Profile, Profiles
from tensor_maps import appended, logits, nd, ndarray
from transform_messages import (
    DTYPE,
    LOGITS,
    PROBABILITIES,
    SHAPE,
    SPELLINGS,
    Spelling,
    array_of,
    bin_form,
    bin_message,
    container_form,
    ext_form,
    float32,
    float64,
    float_list,
    map_of,
    packed,
    stored,
    str_form,
)

if TYPE_CHECKING:
    from collections.abc import Callable

NAN, INF = math.nan, math.inf


# Every dtype, spelling and encoding, byte for byte: of two equal logits either has the probability 1/2

WIDER: Final = {"<f4": "<f8", "float32": "float64", "FP32": "FP64"}
NARROWER: Final = {wide: narrow for narrow, wide in WIDER.items()}
HALVES: Final = {"float32": np.array([0.5, 0.5], "<f4").tobytes(), "float64": np.array([0.5, 0.5], "<f8").tobytes()}
spellings = pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda spelling: spelling.name)
forced = pytest.mark.parametrize("dtype", [None, "float32", "float64"])


def leaves(spelling: Spelling, dtype: str | None) -> tuple[str, bytes]:
    """The dtype of the answer as it is spelled, and the answer's data."""
    wide = spelling.answer in NARROWER if dtype is None else dtype == "float64"
    answer = (WIDER if wide else NARROWER).get(spelling.answer, spelling.answer)
    return answer, HALVES["float64" if wide else "float32"]


@forced
@spellings
def test_a_bin_of_every_spelling_leaves_in_it(spelling: Spelling, dtype: str | None) -> None:
    answer, data = leaves(spelling, dtype)
    message = bin_message(stored(np.array([1, 1]), spelling.stored), spelling.name, [1, 2], (b"\xa2id", b"\x07"))
    expected = map_of(
        (PROBABILITIES, bin_form(data)), (DTYPE, packed(answer)), (SHAPE, packed([1, 2])), (b"\xa2id", b"\x07")
    )
    assert answer_of(message, Profile(dtype=dtype)) == expected


@forced
@spellings
@pytest.mark.parametrize("key", [str_form, bin_form])
@pytest.mark.parametrize("value", [str_form, bin_form])
def test_an_array_map_of_every_spelling_leaves_in_it(
    spelling: Spelling, dtype: str | None, key: Callable[[bytes], bytes], value: Callable[[bytes], bytes]
) -> None:
    """T4 and T5, in a message, as a head and bare; str stays str and bin stays bin."""
    answer, data = leaves(spelling, dtype)
    payload = stored(np.array([1, 1]), spelling.stored)

    def tensor(encoding: str, name: str, numbers: bytes) -> bytes:
        flag, type_ = (b"nd", b"type") if encoding == "T4" else (b"__ndarray__", b"dtype")
        entries = {flag: b"\xc3", type_: value(name.encode()), b"shape": b"\x91\x02", b"data": bin_form(numbers)}
        return map_of(*((key(words), entry) for words, entry in entries.items()))

    for encoding in ("T4", "T5"):
        asked, told = tensor(encoding, spelling.name, payload), tensor(encoding, answer, data)
        profile = Profile(dtype=dtype)
        assert answer_of(asked, profile) == told
        assert answer_of(map_of((LOGITS, asked)), profile) == map_of((PROBABILITIES, told))
        by_head, answers = map_of((b"\xc0", asked), (b"\x01", asked)), map_of((b"\xc0", told), (b"\x01", told))
        assert answer_of(map_of((LOGITS, by_head)), profile) == map_of((PROBABILITIES, answers))


NUMBERS: Final = {
    "float32": (float32(1), "float32"), "float64": (float64(1), "float64"), "fixint": (b"\x01", "float32"),
    "negative fixint": (b"\xff", "float32"),
    **{
        f"tag {tag:x}": (bytes([tag]) + bytes((1 << tag % 4) - 1) + b"\x01", "float32") for tag in range(0xCC, 0xD4)
    },
}  # fmt: skip
LISTED: Final = {"float32": float_list([0.5, 0.5]), "float64": float_list([0.5, 0.5], ">f8")}


@forced
@pytest.mark.parametrize("form", [0, 1, 2])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_list_of_every_number_leaves_in_its_width(name: str, form: int, dtype: str | None) -> None:
    """T1, T2 and T6, and bare, of headers in any form."""
    number, width = NUMBERS[name]
    row, answer = container_form("array", 2, form) + number * 2, LISTED[dtype or width]
    rows, answers = container_form("array", 2, form) + row * 2, array_of(answer, answer)
    named = map_of((b"\xc0", row), (b"\x80", rows), form=form)
    answers_named = map_of((b"\xc0", answer), (b"\x80", answers))
    profile = Profile(dtype=dtype)
    assert answer_of(row, profile) == answer
    assert answer_of(rows, profile) == answers
    for tensor, told in ((row, answer), (rows, answers), (named, answers_named)):
        assert answer_of(map_of((LOGITS, tensor), form=form), profile) == map_of((PROBABILITIES, told))


# Refusals, line by line

FLOATS: Final = float_list([1.0, 2.0])
FOUR: Final = bytes(4)
EXT: Final = ext_form(5, b"abcd")
WITH_NAN: Final = np.array([1, NAN], "<f4").tobytes()
DEEP: Final = b"\x91" * 63 + b"\x90"


def t3(payload: bytes = FOUR, dtype: object = "<f4", shape: object = (1,), *extra: tuple[bytes, bytes]) -> bytes:
    return bin_message(payload, dtype, shape, *extra)


def heads(*tensors: bytes) -> bytes:
    """A T6 message whose heads are named 0, 1 and so on."""
    return logits(map_of(*((bytes([name]), tensor) for name, tensor in enumerate(tensors))))


def bin_with(*fields: tuple[bytes, bytes]) -> bytes:
    """A T3 message with these fields before the shape."""
    return map_of((LOGITS, bin_form(FOUR)), *fields, (SHAPE, b"\x91\x01"))


REFUSED: Final[dict[str, list[bytes]]] = {
    "malformed_msgpack": [
        *(b"", b"\xc1", logits(FLOATS)[:-1], logits(b"\xc1"), logits(FLOATS, (b"\xc1", b"\xc0"))),
        *(b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff\xc0", b"\x81" + LOGITS, DEEP[:-1], logits(EXT)[:-1]),
    ],
    "trailing_bytes": [logits(FLOATS) + b"\xc0", FLOATS + FLOATS, b"\x00\xc1", b"\x91" + DEEP + b"\x00", nd() + b"\n"],
    "too_deep": [
        *(b"\x91" + DEEP, logits(b"\x91" + DEEP), logits(FLOATS, (b"\xa1x", DEEP)), logits(FLOATS, (DEEP, b"\xc0"))),
        *(logits(nd(shape=DEEP)), heads(FLOATS, DEEP), map_of((b"\xa1x", b"\x81\xc0" * 63 + b"\x80"))),
        *(logits(EXT, (b"\xa1x", DEEP)), map_of((LOGITS, map_of((DEEP, FLOATS))))),
    ],
    "extension_type": [
        *(EXT, logits(EXT), array_of(FLOATS, EXT), logits(array_of(b"\x01", EXT)), heads(FLOATS, EXT)),
        *(nd(data=EXT), ndarray(extra=EXT), logits(nd(shape=array_of(EXT))), appended(ndarray(), EXT, b"\x01")),
        *(logits(array_of(map_of((b"\x01", EXT)))), heads(map_of((EXT, EXT))), heads(b"\xc0", array_of(EXT))),
        *(map_of((LOGITS, EXT), (LOGITS, EXT)), map_of((LOGITS, FLOATS), (LOGITS, EXT)), heads(nd(nd=b"\xc2", x=EXT))),
    ],
    "duplicate_field": [
        *(map_of((LOGITS, FLOATS), (LOGITS, FLOATS)), map_of((LOGITS, b"\xc0"), (str_form(b"logits", 2), b"\xc0"))),
        *(map_of((PROBABILITIES, b"\xc0")), logits(FLOATS, (str_form(b"probabilities", 1), b"\xc0"))),
        *(t3(FOUR, "<f4", [1], (DTYPE, packed("<f4"))), t3(FOUR, "O", None, (SHAPE, b"\xc0"))),
        *(appended(nd(), b"\xa4type", packed("<f4")), logits(appended(ndarray(), b"\xc4\x04data", b"\xc0"))),
        *(heads(appended(ndarray(), SHAPE, b"\xc0")), appended(nd(), b"\xa2nd", b"\xc3")),
        appended(nd(nd=b"\xc2"), b"\xa4kind", b"\xc0"),
        heads(b"\xc0", appended(nd(x=b"\x01"), b"\xa4data", b"\xc0")),
    ],
    "missing_logits": [
        *(b"\x80", map_of((b"\xa2id", FLOATS)), map_of((bin_form(b"logits"), FLOATS)), map_of((b"\xa6Logits", FLOATS))),
        map_of((b"\xa3age", FLOATS), (b"\xa3sex", FLOATS)),
        *(map_of((b"\xa1x", logits(FLOATS))), map_of((b"\xa1x", EXT))),
        *(map_of((DTYPE, packed("<f4")), (SHAPE, b"\x91\x01")), map_of((b"\x01", nd()))),
    ],
    "unsupported_encoding": [
        *(b"\xc0", b"\xc3", b"\x07", float64(NAN), b"\xa6logits", bin_form(FOUR)),
        *(logits(each) for each in (b"\xc0", b"\xc2", b"\xc3", b"\x07", b"\xd1\0\0", float32(1), packed("[1]"))),
        *(nd(data=None), logits(ndarray(data=None)), nd(data=b"\xa4abcd"), ndarray(data=b"\xc0"), nd(data=FLOATS)),
        *(nd(nd=b"\xc2"), ndarray(__ndarray__=b"\x01"), nd(nd=b"\xc0")),
        *(nd(nd=packed("true")), map_of((b"\xa2nd", b"\xc3"))),
        *(nd(order=b"\xa1C"), ndarray(type=packed("<f4")), nd(__ndarray__=b"\xc3"), appended(nd(), b"\x01", b"\xc0")),
        *(ndarray(id=b"\x07"), ndarray(kind=b"\xa0")),
        *(nd(data=b"\xc0", type=packed("O")), logits(map_of((b"\xa2nd", FLOATS)))),
        *(heads(bin_form(FOUR)), heads(map_of((b"\x01", FLOATS)))),
        *(heads(b"\x80"), heads(FLOATS, b"\x07"), heads(b"\xc0")),
    ],
    "unsupported_dtype": [
        *(map_of((LOGITS, bin_form(FOUR))), map_of((LOGITS, bin_form(FOUR)), (SHAPE, b"\x91\x01")), nd(type=None)),
        *(ndarray(dtype=None), ndarray(dtype=b"\x01"), nd(type=packed("|O"))),
        *(nd(kind=packed(b"O")), nd(kind=packed("V"))),
        *(nd(kind=b"\xc0"), nd(kind=b"\x90")),
        nd(type=array_of(array_of(packed("a"), packed("<f4"))), kind=packed(b"V")),
        *(t3(FOUR, b"<f4"), t3(FOUR, None), t3(FOUR, ["<f4"]), t3(bytes(8), "<c8"), t3(FOUR, "O", [9])),
        *(bin_with((bin_form(b"dtype"), packed("<f4"))), bin_with((DTYPE, EXT)), heads(ndarray(dtype=b"\xa0"))),
        *(t3(FOUR, name) for name in ("f4", "=f4", "|f4", "<i1", "|i2", "float", "double", "FLOAT32", "fp32", "bf16")),
        *(t3(FOUR, name) for name in ("", "BOOL", "?", "|b1", "FP8")),
        *(t3(FOUR, name) for name in ("<f16", "float32\0", " <f4", "<f4,<f4", "<M8", "|S4")),
    ],
    "shape_mismatch": [
        map_of((LOGITS, bin_form(FOUR)), (DTYPE, packed("<f4"))),
        *(nd(shape=None), ndarray(shape=None), nd(shape=b"\xc0")),
        *(t3(FOUR, "<f4", shape) for shape in ([2], [0], [-1], [-1, -1], [], [1] * 5, [2**64 - 1], [2**32, 2**32])),
        *(t3(FOUR, "<f4", shape) for shape in (1, None, "1", b"\x01", [1.0], [None], [True], [[1]], [1, [1]], ["1"])),
        *(t3(FOUR, "<f4", [2**63, 2]), t3(bytes(5), "<f4", [1]), t3(b"", "<f4", [0] * 5), t3(b"", "<f4", [0, -1])),
        *(ndarray(shape=b"\x91\x02"), t3(FOUR, "<f4", {})),
        map_of((LOGITS, bin_form(FOUR)), (DTYPE, packed("<f4")), (SHAPE, EXT)),
        *(b"\x91\x91\x91\x91\x91\x01", logits(b"\x91" * 62 + b"\x90"), array_of(b"\x01", b"\x91\x91\x91\x91\x01")),
        *(heads(FLOATS, nd(shape=b"\x91\x02")), heads(array_of(b"\x01", FLOATS), nd(shape=b"\x80"))),
    ],
    "ragged": [
        *(array_of(FLOATS, b"\x91\x01"), array_of(FLOATS, b"\x01")),
        *(array_of(b"\x01", FLOATS), array_of(b"\x90", FLOATS)),
        *(array_of(FLOATS, each) for each in (b"\xc0", b"\xa1x", b"\x80", b"\xc4\0")),
        *(array_of(array_of(FLOATS), FLOATS), array_of(array_of(FLOATS), array_of(FLOATS, FLOATS))),
        *(array_of(b"\x90", array_of(b"\x90")), heads(array_of(FLOATS, b"\x01")), array_of(b"\x80", FLOATS)),
    ],
    "empty": [
        *(b"\x90", logits(b"\x90"), logits(b"\xdd\0\0\0\0")),
        *(array_of(b"\x90", b"\x90"), logits(b"\x80"), b"\x91\x91\x90"),
        *(t3(b"", "<f4", [0]), t3(b"", "<f4", [3, 0]), t3(b"", "int8", [0, 3]), nd(data=b"\xc4\0", shape=b"\x91\0")),
        *(t3(b"", "<f4", [0, 99]), heads(FLOATS, b"\x90"), heads(float_list([NAN]), b"\x90")),
    ],
    "too_many_classes": [
        *(float_list([1.0] * 17), logits(array_of(*[b"\x80"] * 17))),
        *(t3(bytes(17), "int8", [17]), float_list([NAN] * 17)),
        *(array_of(array_of(*[b"\xc0"] * 17)), heads(float_list([NAN]), float_list([1.0] * 17))),
    ],
    "not_numeric": [
        *(array_of(b"\x01", each) for each in (b"\xc0", b"\xc2", b"\xc3", b"\xa11", b"\xc4\x011", b"\x80", nd())),
        *(array_of(FLOATS, array_of(b"\x01", b"\xc0")), logits(array_of(nd())), array_of(float32(NAN), b"\xc0")),
        *(heads(float_list([NAN]), b"\x91\xc0"), array_of(map_of((b"\x01", b"\x91\x91\x91\x91\x91\x01")))),
    ],
    "nan": [
        *(float_list([1, NAN]), float_list([1, NAN], ">f8"), array_of(b"\x01", float32(NAN)), float_list([INF, NAN])),
        array_of(b"\xca\x7f\x80\0\x01"),
        *(array_of(b"\xcb\xff\xf0" + bytes(5) + b"\1", b"\x01"), t3(WITH_NAN, "<f4", [2])),
        *(t3(WITH_NAN, "FP32", [2, 1]), t3(b"\xc1\x7f", "BF16"), t3(b"\x7c\x01", ">f2"), float_list([-INF, NAN])),
        *(logits(nd(data=bin_form(WITH_NAN), shape=b"\x91\x02")), heads(float_list([INF]), float_list([NAN]))),
    ],
    "positive_infinity": [
        *(float_list([1, INF]), float_list([INF], ">f8"), array_of(b"\x01", float32(INF)), float_list([-INF, INF])),
        *(t3(b"\x80\x7f", "bfloat16"), t3(b"\x7c\x00", ">f2"), array_of(float_list([-INF]), float_list([INF]))),
    ],
    "all_masked": [
        *(float_list([-INF]), logits(float_list([-INF] * 3, ">f8")), array_of(float_list([1.0]), float_list([-INF]))),
        *(t3(b"\x80\xff", "BF16"), array_of(float32(-INF), float64(-INF)), heads(FLOATS, float_list([-INF]))),
    ],
}  # fmt: skip
LINES: Final = [(reason, message) for reason, messages in REFUSED.items() for message in messages]


@pytest.mark.parametrize(("reason", "message"), LINES, ids=[f"{at}, {reason}" for at, (reason, _) in enumerate(LINES)])
def test_a_faulty_message_is_refused_for_its_first_reason(reason: str, message: bytes) -> None:
    assert reason_of(message, Profiles()) == reason


def test_the_reasons_are_the_specification_s_in_its_order() -> None:
    from_settings = {"null_value", "too_large", "unexpected_classes", "unknown_model"}
    assert [*REFUSED] == [reason for reason in REASONS if reason not in from_settings]


def test_what_is_refused_before_it_is_read() -> None:
    message = logits(FLOATS)
    assert reason_of(None, Profiles()) == "null_value"
    assert reason_of(message, Profiles(), limits=Limits(len(message) - 1, 16)) == "too_large"
    assert reason_of(message[:-1] + b"\xc1\xc1", Profiles(), limits=Limits(len(message), 16)) == "too_large"


@pytest.mark.parametrize("profile", [Profile(classes=3), Profile(labels=("a",)), Profile(labels=("a", "b", "c"))])
def test_the_profile_s_number_of_classes_is_demanded(profile: Profile) -> None:
    """Before the values are looked at; of each head; after the limit of classes."""
    asked = Profiles(default=profile)
    one, seventeen = float_list([1.0]), float_list([1.0] * 17)
    wrong = [FLOATS, logits(b"\x92\x01\xc0"), t3(bytes(2), "int8", [2]), float_list([NAN, 1]), heads(one, FLOATS)]
    for message in wrong:
        assert reason_of(message, asked) == "unexpected_classes"
    for message in (seventeen, heads(FLOATS, seventeen)):
        assert reason_of(message, asked) == "too_many_classes"


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_field_named_like_an_output_of_the_profile_is_a_duplicate(name: str) -> None:
    """And only then: of another profile's outputs it is a field like any other."""
    has = Profile(labels=("a", "b"), top_k=1 if name == "top_k" else None, outputs=(name,))
    lacks = Profile(outputs=("predicted" if name != "predicted" else "margin",))
    message = logits(FLOATS, (packed(name), b"\x07"))
    assert reason_of(message, Profiles(default=has)) == "duplicate_field"
    assert packed(name) + b"\x07" in answer_of(message, lacks)
    assert bin_form(name.encode()) in answer_of(logits(FLOATS, (bin_form(name.encode()), b"\x07")), has)
    assert reason_of(nd(**{name: b"\x07"}), Profiles(default=has)) == "unsupported_encoding"


def test_models_without_a_profile_are_refused_last_of_all() -> None:
    strict = Profiles({"known": Profile(classes=2)}, strict=True)
    who, known = (b"\xa5model", packed("who")), (b"\xa5model", packed("known"))
    assert reason_of(logits(FLOATS, who), strict) == "unknown_model"
    assert reason_of(logits(FLOATS, who), strict, b"known") == "unknown_model"
    assert reason_of(FLOATS, strict, b"who") == "unknown_model"
    assert reason_of(logits(float_list([-INF]), who), strict) == "all_masked"
    assert reason_of(logits(float_list([1.0]), known), strict) == "unexpected_classes"
    accepted: list[tuple[bytes, bytes | None]] = [
        *((logits(FLOATS, known), b"who"), (logits(FLOATS), b"known"), (logits(FLOATS), None), (FLOATS, None)),
        *((FLOATS, b"default"), (FLOATS, b"\xff"), (logits(FLOATS, (b"\xa5model", packed("default"))), None)),
        *((logits(FLOATS, who, who), None), (logits(FLOATS, who, known), b"known"), (nd(), None)),
        *((logits(FLOATS, (b"\xa5model", b"\x01")), None), (logits(FLOATS, (bin_form(b"model"), packed("who"))), None)),
        (logits(FLOATS, (b"\xa5model", bin_form(b"who"))), None),
    ]
    for record in accepted:
        assert isinstance(verdict_on(record, strict), bytes)


# Corners, settled

PAIR: Final = float_list([1.0, 1.0])
EVEN: Final = float_list([0.5, 0.5])
BY_MODEL: Final = Profiles({"two": Profile(masked=(1,))}, Profile())


@pytest.mark.parametrize(
    ("extra", "model", "masked"),
    [
        ([], b"two", True),
        ([(b"\xa5model", packed("two"))], None, True),
        ([(b"\xa5model", str_form(b"two", 3))], b"one", True),
        ([(b"\xa5model", packed("one"))], b"two", False),
        ([(b"\xa5model", b"\xc0")], b"two", True),
        ([(b"\xa5model", bin_form(b"two"))], None, False),
        ([(b"\xa5model", b"\xa2\xff\xfe")], b"two", True),
        ([(b"\xa5model", packed("two")), (b"\xa5model", packed("two"))], None, False),
        ([(b"\xa5model", packed("one")), (b"\xa5model", packed("one"))], b"two", True),
        ([(bin_form(b"model"), packed("two"))], None, False),
        ([], b"\xfftwo", False),
        ([], None, False),
    ],
)
def test_the_field_selects_the_model_and_else_the_header(
    extra: list[tuple[bytes, bytes]], model: bytes | None, *, masked: bool
) -> None:
    answer = float_list([1.0, 0.0]) if masked else EVEN
    record = (map_of((LOGITS, PAIR), *extra), model)
    assert verdict_on(record, BY_MODEL) == map_of((PROBABILITIES, answer), *extra)


WIDE_PAIR: Final = float_list([1.0, 1.0], ">f8")
# A message, a profile, the answer.
SETTLED: Final[dict[str, tuple[bytes, Profile, bytes]]] = {
    "64 levels": (
        map_of((b"\xa1x", b"\x91" * 62 + b"\x90"), (LOGITS, PAIR)), Profile(),
        map_of((b"\xa1x", b"\x91" * 62 + b"\x90"), (PROBABILITIES, EVEN)),
    ),
    "text that is not UTF-8": (
        map_of((b"\xa2\xff\xfe", b"\xa1\xff"), (LOGITS, PAIR)), Profile(),
        map_of((b"\xa2\xff\xfe", b"\xa1\xff"), (PROBABILITIES, EVEN)),
    ),
    "float32 with integers": (array_of(float32(1), b"\x01"), Profile(), EVEN),
    "any float64": (array_of(float32(1), float64(1)), Profile(), float_list([0.5, 0.5], ">f8")),
    "heads of any name": (
        map_of((LOGITS, map_of(
            (b"\xc0", PAIR), (EXT, PAIR), (b"\xa1\xff", WIDE_PAIR), (b"\x90", PAIR), (b"\xc0", PAIR)
        ))),
        Profile(),
        map_of((PROBABILITIES, map_of(
            (b"\xc0", EVEN), (EXT, EVEN), (b"\xa1\xff", float_list([0.5, 0.5], ">f8")), (b"\x90", EVEN), (b"\xc0", EVEN)
        ))),
    ),
    "a bin without probabilities": (
        t3(bytes(2), "int8", [2], (b"\xa2id", b"\x07")), Profile(outputs=("predicted",)),
        map_of((b"\xa2id", b"\x07"), (b"\xa9predicted", b"\0")),
    ),
    "a list without probabilities keeps its dtype and shape": (
        map_of((DTYPE, b"\xc0"), (DTYPE, b"\xc0"), (SHAPE, EXT), (LOGITS, PAIR)), Profile(outputs=("predicted",)),
        map_of((DTYPE, b"\xc0"), (DTYPE, b"\xc0"), (SHAPE, EXT), (b"\xa9predicted", b"\0")),
    ),
    "a bare tensor whatever the outputs": (PAIR, Profile(outputs=("predicted", "entropy")), EVEN),
    "the margin of one class": (
        map_of((LOGITS, float_list([3.0]))), Profile(outputs=("margin", "confidence")),
        map_of((b"\xa6margin", float32(1)), (b"\xaaconfidence", float32(1))),
    ),
    "numbers as wide as the tensor": (
        map_of((LOGITS, WIDE_PAIR)), Profile(outputs=("confidence", "margin", "top_k"), top_k=1),
        map_of(
            (b"\xaaconfidence", float64(0.5)), (b"\xa6margin", float64(0)),
            (b"\xa5top_k", map_of((b"\xa7indices", b"\x91\0"), (PROBABILITIES, float_list([0.5], ">f8")))),
        ),
    ),
    "numbers of a forced width": (
        map_of((LOGITS, PAIR)), Profile(outputs=("confidence", "probabilities"), dtype="float64"),
        map_of((PROBABILITIES, float_list([0.5, 0.5], ">f8")), (b"\xaaconfidence", float64(0.5))),
    ),
    "ties": (
        map_of((LOGITS, float_list([0, 1, 1, 0]))), Profile(masked=(0, 3), outputs=("predicted", "top_k"), top_k=9),
        map_of(
            (b"\xa9predicted", b"\x01"),
            (b"\xa5top_k", map_of(
                (b"\xa7indices", b"\x94\x01\x02\0\x03"), (PROBABILITIES, float_list([0.5, 0.5, 0, 0]))
            )),
        ),
    ),
    "masks beyond the classes": (PAIR, Profile(masked=(2, 3, 2**40)), EVEN),
    "a mask": (float_list([1, 1, 1]), Profile(masked=(1,)), float_list([0.5, 0, 0.5])),
    "logarithms of a mask": (
        map_of((LOGITS, float_list([1, -INF]))), Profile(outputs=("log_probabilities",)),
        map_of((b"\xb1log_probabilities", float_list([0, -INF]))),
    ),
    "labels of rows": (
        map_of((LOGITS, array_of(float_list([0, 1]), float_list([1, 0])))),
        Profile(labels=("a", "b"), outputs=("label",)),
        map_of((b"\xa5label", array_of(b"\xa1b", b"\xa1a"))),
    ),
    "labels of the best": (
        map_of((LOGITS, map_of((b"\xc0", PAIR)))), Profile(labels=("a", "b"), top_k=1, outputs=("top_k",)),
        map_of((b"\xa5top_k", map_of((b"\xc0", map_of(
            (b"\xa7indices", b"\x91\0"), (b"\xa6labels", b"\x91\xa1a"), (PROBABILITIES, float_list([0.5]))
        ))))),
    ),
    "long forms around the tensor": (
        map_of((str_form(b"logits", 3), container_form("array", 2, 2) + float32(1) * 2), (b"\xa1x", b"\xd9\0"), form=2),
        Profile(), map_of((PROBABILITIES, EVEN), (b"\xa1x", b"\xd9\0")),
    ),
    "a dtype and a shape that do not change": (
        map_of(
            (str_form(b"dtype", 2), str_form(b"FP32", 3)),
            (LOGITS, bin_form(bytes(8), 3)),
            (SHAPE, b"\xdc\0\x01\xd1\0\x02"),
        ),
        Profile(),
        map_of(
            (str_form(b"dtype", 2), str_form(b"FP32", 3)),
            (PROBABILITIES, bin_form(HALVES["float32"])),
            (SHAPE, b"\xdc\0\x01\xd1\0\x02"),
        ),
    ),
    "a dtype that changes": (
        map_of((LOGITS, bin_form(bytes(8))), (DTYPE, str_form(b">f4", 3)), (SHAPE, b"\x91\x02")), Profile(),
        map_of((PROBABILITIES, bin_form(HALVES["float32"])), (DTYPE, packed("<f4")), (SHAPE, b"\x91\x02")),
    ),
    "logarithms of a bin keep what describes them": (
        map_of((LOGITS, bin_form(bytes(2))), (DTYPE, packed("INT16")), (SHAPE, b"\x91\x01")),
        Profile(outputs=("log_probabilities",), dtype="float64"),
        map_of((DTYPE, packed("FP64")), (SHAPE, b"\x91\x01"), (b"\xb1log_probabilities", bin_form(bytes(8)))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTLED)
def test_a_settled_corner_is_answered_byte_for_byte(name: str) -> None:
    message, profile, answer = SETTLED[name]
    assert answer_of(message, profile).hex() == answer.hex()


@pytest.mark.parametrize(("value", "reason"), [(NAN, "nan"), (INF, "positive_infinity")])
def test_a_masked_class_must_be_a_number_all_the_same(value: float, reason: str) -> None:
    asked = Profiles(default=Profile(masked=(1,)))
    for message in (float_list([1.0, value]), logits(float_list([1.0, value], ">f8"))):
        assert reason_of(message, asked) == reason


def test_a_row_of_which_all_classes_are_masked_has_no_distribution() -> None:
    asked = Profiles(default=Profile(masked=(0, 1)))
    assert reason_of(FLOATS, asked) == "all_masked"
    assert reason_of(float_list([1.0, 2.0, -INF]), asked) == "all_masked"


@pytest.mark.parametrize("pair", [(1.0, 1.0000001), (0.0, 1e-30), (5e-324, 1e-323), (-1e-320, 0.0)])
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_the_highest_logit_is_predicted_though_the_probabilities_tie(
    pair: tuple[float, float], dtype: str | None
) -> None:
    profile = Profile(outputs=("predicted", "top_k", "probabilities"), top_k=2, dtype=dtype)
    answer = answer_of(map_of((LOGITS, float_list(pair, ">f8"))), profile)
    assert b"\xa9predicted\x01" in answer
    assert b"\xa7indices\x92\x01\x00" in answer
