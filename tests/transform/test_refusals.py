"""Refusals: every reason, the earliest of several, and words that are precise and quote no payload."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final

import numpy as np
import pytest
from transform_messages import (
    DTYPE,
    LINKS,
    LOGITS,
    MIB,
    PROBABILITIES,
    PROFILELESS,
    SHAPE,
    array_of,
    bin_form,
    bin_message,
    container_form,
    ext_form,
    float32,
    float64,
    float_list,
    map_of,
    nested,
    packed,
    str_form,
    transformed,
    verdict,
)

from service.transform.message import MAX_HEADS
from service.transform.pipeline import Limits, Pipeline
from service.transform.profiles import Profile, Profiles
from service.transform.refusals import InvalidMessage, Reason

MAX_CLASSES: Final = 10
ONE: Final = float_list([1.0])
NAN, INF = float("nan"), float("inf")


def refusal(
    message: bytes | None, max_bytes: int = MIB, profiles: Profiles = PROFILELESS, model: bytes | None = None
) -> InvalidMessage:
    """Why a message is refused, which must be the same reason alone, in a pipeline and among others of its kind."""
    found: list[InvalidMessage] = []
    for batch in ([message], [message] * 3):
        outcome = Pipeline(Limits(max_bytes, MAX_CLASSES), profiles).transform(batch, [model] * len(batch))
        assert list(outcome.refusals) == list(range(len(batch)))
        found += outcome.refusals.values()
    if message is not None and len(message) <= max_bytes:
        with pytest.raises(InvalidMessage) as caught:
            transformed(message, MAX_CLASSES, profiles, model)
        found.append(caught.value)
    for one, other in pairwise(found):
        assert (one.reason, one.detail, one.at) == (other.reason, other.detail, other.at)
    assert len(found[0].detail) > 10
    assert str(found[0]) == f"{found[0].reason}: {found[0].detail}"
    assert found[0].at is None or 0 <= found[0].at <= len(message or b"")
    return found[0]


def logits(tensor: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    return map_of((b"\xa2id", b"\x01"), (LOGITS, tensor), *extra)


T4: Final = map_of(
    (bin_form(b"nd"), b"\xc3"), (bin_form(b"type"), packed("<f4")), (bin_form(b"kind"), packed(b"")),
    (bin_form(b"shape"), array_of(b"\x01")), (bin_form(b"data"), bin_form(bytes(4))),
)  # fmt: skip
DTYPES: Final[list[object]] = [
    *("f4", "=f4", "|O", "O", "V4", "<c8", "complex64", "bool", "BOOL", "BYTES", "float128", ""),
    *(None, 4, b"<f4", ["<f4"], {}),
]
SHAPES: Final[list[object]] = [
    *([2], [0], [1, 2], [-1], [-1, -1], [1, -1], [], [1] * 5, [2**64 - 1], [2**32, 2**32], [2**64 - 1] * 4, [2**63, 2]),
    *(1, None, "1", b"\x01", {}, {1: 1}, [1.0], [None], ["1"], [True], [[]], [1, [1]], [{}]),
]
NO_TENSORS: Final = {
    "nil": b"\xc0", "bool": b"\xc2", "fixint": b"\x01", "negative": b"\xff", "float": float64(1),
    "uint64": b"\xcf" + bytes(8), "str": b"\xa6logits", "long str": str_form(bytes(300)),
    "bin": bin_form(bytes(4)), "empty bin": bin_form(b""),
}  # fmt: skip
NO_NUMBERS: Final = {
    "true": b"\xc3", "false": b"\xc2", "nil": b"\xc0", "text": b"\xa31.0", "long text": str_form(bytes(40)),
    "empty text": b"\xa0", "bin": bin_form(bytes(4)), "an empty bin": bin_form(b""), "an empty map": b"\x80",
    "a map": map_of((b"\x01", b"\x02")),
}  # fmt: skip

# By name: the reason and the message.
REFUSED: Final = {
    "an empty value": ("malformed_msgpack", b""),
    "the byte msgpack never uses": ("malformed_msgpack", b"\xc1"),
    "that byte as a key": ("malformed_msgpack", map_of((b"\xc1", b"\x01"), (LOGITS, ONE))),
    "that byte as a value": ("malformed_msgpack", map_of((b"\x01", b"\xc1"), (LOGITS, ONE))),
    "that byte in a list": ("malformed_msgpack", logits(array_of(float32(1), b"\xc1"))),
    "that byte deep inside": ("malformed_msgpack", logits(ONE, (b"\x01", array_of(map_of((b"\x01", b"\xc1")))))),
    "a map of too few entries": ("malformed_msgpack", b"\x82" + LOGITS + ONE),
    "a key without a value": ("malformed_msgpack", b"\x81" + LOGITS),
    "bytes after a map": ("trailing_bytes", logits(ONE) + b"\xc0"),
    "bytes after a list": ("trailing_bytes", ONE + ONE),
    "bytes after a scalar": ("trailing_bytes", b"\x01\x02"),
    "garbage after a map": ("trailing_bytes", logits(ONE) + b"\xc1"),
    "65 levels in another field": ("too_deep", logits(ONE, (b"\x01", nested(64)))),
    "65 levels of maps": ("too_deep", logits(ONE, (b"\x01", nested(64, "map")))),
    "65 levels of keys": ("too_deep", logits(ONE, (nested(64, "key"), b"\x01"))),
    "65 levels in the tensor": ("too_deep", logits(nested(64))),
    "65 levels and no map": ("too_deep", nested(65)),
    "an extension as message": ("extension_type", ext_form(1, b"abcd")),
    "an extension as tensor": ("extension_type", logits(ext_form(-1, b"abcd"))),
    "a long extension as tensor": ("extension_type", logits(ext_form(5, bytes(300)))),
    "an extension in the list": ("extension_type", logits(array_of(float32(1), ext_form(5, b"abcd")))),
    "an extension in a bare list": ("extension_type", array_of(float32(1), ext_form(5, b"a"))),
    "an extension in a tensor map": ("extension_type", logits(b"\x86" + T4[1:] + b"\xa1x" + ext_form(5, b"a"))),
    "an extension in a bare tensor map": ("extension_type", b"\x86" + T4[1:] + ext_form(5, b"a") + b"\xc0"),
    "an extension in a nested list": ("extension_type", logits(array_of(array_of(ext_form(5, b"a"))))),
    "an extension in a head": ("extension_type", logits(map_of((b"\xa1h", ext_form(5, b"a"))))),
    "logits twice": ("duplicate_field", map_of((LOGITS, ONE), (LOGITS, ONE))),
    "logits twice, in two forms of key": ("duplicate_field", map_of((LOGITS, ONE), (str_form(b"logits", 3), ONE))),
    "logits three times": ("duplicate_field", map_of(*[(LOGITS, ONE)] * 3)),
    "probabilities before": ("duplicate_field", map_of((PROBABILITIES, b"\xc0"), (LOGITS, ONE))),
    "probabilities after": ("duplicate_field", map_of((LOGITS, ONE), (str_form(b"probabilities", 2), b"\xc0"))),
    "dtype twice": ("duplicate_field", bin_message(bytes(4), "<f4", [1], (DTYPE, packed("<f4")))),
    "shape twice": ("duplicate_field", bin_message(bytes(4), "<f4", [1], (SHAPE, array_of(b"\x01")))),
    "a key of a tensor map twice": ("duplicate_field", logits(b"\x86" + T4[1:] + b"\xa4type\xc0")),
    "an empty map": ("missing_logits", b"\x80"),
    "other fields only": ("missing_logits", map_of((b"\xa2id", b"\x01"))),
    "logits as bin key": ("missing_logits", map_of((bin_form(b"logits"), ONE))),
    "logits in another case": ("missing_logits", map_of((b"\xa6LOGITS", ONE))),
    "logits inside another field": ("missing_logits", map_of((b"\xa1x", map_of((LOGITS, ONE))))),
    "a flag alone": ("unsupported_encoding", map_of((packed("nd"), b"\xc3"))),
    "a flag alone, in a field": ("unsupported_encoding", logits(map_of((packed("__ndarray__"), b"\xc3")))),
    "a tensor map with another key": ("unsupported_encoding", logits(b"\x86" + T4[1:] + b"\xa1x\x01")),
    "a head that is none": ("unsupported_encoding", logits(map_of((b"\xa3age", b"\xc0"), (b"\xa3sex", ONE)))),
    "a head that is a bin": ("unsupported_encoding", logits(map_of((b"\xa3age", bin_form(bytes(4)))))),
    "heads in a head": ("unsupported_encoding", logits(map_of((b"\xa3age", map_of((b"\xa3sex", ONE)))))),
    "nil": ("unsupported_encoding", logits(b"\xc0")),
    "true": ("unsupported_encoding", logits(b"\xc3")),
    "a number": ("unsupported_encoding", logits(b"\x05")),
    "a float": ("unsupported_encoding", logits(float32(1))),
    "text": ("unsupported_encoding", logits(packed("1.0"))),
    **{f"a bare {name}": ("unsupported_encoding", value) for name, value in NO_TENSORS.items()},
    "no dtype": ("unsupported_dtype", map_of((LOGITS, bin_form(bytes(4))), (SHAPE, array_of(b"\x01")))),
    "neither dtype nor shape": ("unsupported_dtype", map_of((LOGITS, bin_form(bytes(4))))),
    "dtype as bin key": (
        "unsupported_dtype",
        map_of((LOGITS, bin_form(bytes(4))), (bin_form(b"dtype"), packed("<f4")), (SHAPE, array_of(b"\x01"))),
    ),
    **{f"dtype {dtype!r}": ("unsupported_dtype", bin_message(bytes(4), dtype, [1])) for dtype in DTYPES},
    "no shape": ("shape_mismatch", map_of((LOGITS, bin_form(bytes(4))), (DTYPE, packed("<f4")))),
    **{f"4 bytes as shape {shape!r}": ("shape_mismatch", bin_message(bytes(4), "<f4", shape)) for shape in SHAPES},
    "a tensor map without shape": ("shape_mismatch", logits(b"\x84" + T4.replace(b"\xc4\5shape\x91\x01", b"")[1:])),
    "arrays five deep": ("shape_mismatch", logits(nested(5, innermost=ONE))),
    "arrays five deep, bare": ("shape_mismatch", nested(5)),
    "64 levels in the tensor": ("shape_mismatch", logits(nested(63))),
    "64 levels and no map": ("shape_mismatch", nested(64)),
    "too many heads": ("shape_mismatch", logits(map_of(*[(b"\x01", ONE)] * (MAX_HEADS + 1)))),
    "no multiple of the width": ("shape_mismatch", bin_message(bytes(5), "<f4", [1])),
    "lists of unequal length": ("ragged", logits(array_of(ONE, float_list([1.0, 2.0])))),
    "lists of unequal depth": ("ragged", logits(array_of(array_of(ONE), ONE))),
    "lists and numbers": ("ragged", logits(array_of(ONE, float32(1)))),
    "numbers and lists": ("ragged", logits(array_of(b"\x01", ONE))),
    "lists and text": ("ragged", logits(array_of(ONE, b"\xa1x"))),
    "lists and maps": ("ragged", logits(array_of(b"\x80", ONE))),
    "lists and nil, bare": ("ragged", array_of(ONE, b"\xc0")),
    "an empty list": ("empty", logits(b"\x90")),
    "an empty list in a long form": ("empty", logits(b"\xdd\0\0\0\0")),
    "an empty list in a list": ("empty", logits(array_of(b"\x90"))),
    "empty lists in a bare list": ("empty", array_of(b"\x90", b"\x90")),
    "no heads": ("empty", logits(b"\x80")),
    "an empty head": ("empty", logits(map_of((b"\x01", ONE), (b"\x02", b"\x90")))),
    "an empty bare list": ("empty", b"\x90"),
    "no classes": ("empty", bin_message(b"", "<f4", [0])),
    "rows of no classes": ("empty", bin_message(b"", "<f4", [3, 0])),
    "no rows": ("empty", bin_message(b"", "<f4", [0, 3])),
    "no rows of many classes": ("empty", bin_message(b"", "<f4", [0, 11])),
    "eleven classes in a list": ("too_many_classes", logits(float_list([1.0] * 11))),
    "eleven classes in a bare list": ("too_many_classes", float_list([1.0] * 11)),
    "eleven classes in a bin": ("too_many_classes", bin_message(bytes(11), "int8", [1, 11])),
    "eleven classes in nested lists": ("too_many_classes", logits(array_of(float_list([1.0] * 11)))),
    "eleven classes in a head": ("too_many_classes", logits(map_of((b"\x01", float_list([1.0] * 11))))),
    "eleven integers": ("too_many_classes", logits(array_of(*[b"\x01"] * 11))),
    **{f"{name} in a list": ("not_numeric", logits(array_of(float32(1), value))) for name, value in NO_NUMBERS.items()},
    **{f"{name} in a bare list": ("not_numeric", array_of(value, float32(1))) for name, value in NO_NUMBERS.items()},
    **{f"{name} in a row": ("not_numeric", logits(array_of(ONE, array_of(no)))) for name, no in NO_NUMBERS.items()},
    "a map of lists in a list": ("not_numeric", logits(array_of(map_of((b"\x01", ONE))))),
    "NaN as float32": ("nan", logits(float_list([1, NAN]))),
    "NaN as float64": ("nan", logits(float_list([1, NAN], ">f8"))),
    "NaN among integers": ("nan", logits(array_of(b"\x01", float32(NAN)))),
    "a signalling NaN": ("nan", logits(array_of(float32(1), b"\xca\x7f\x80\0\x01"))),
    "a signalling NaN among integers": ("nan", logits(array_of(b"\x01", b"\xca\xff\x80\0\x01"))),
    "NaN in a bin": ("nan", bin_message(np.array([[1, 2], [NAN, 1]], "<f4").tobytes(), "<f4", [2, 2])),
    "NaN in nested lists": ("nan", logits(array_of(float_list([1, 2]), float_list([1, NAN])))),
    "NaN in loose nested lists": ("nan", logits(array_of(float_list([1, 2]), array_of(float32(NAN), b"\x01")))),
    "NaN in a head": ("nan", logits(map_of((b"\x01", ONE), (b"\x02", float_list([1, NAN]))))),
    "NaN in half a bin": ("nan", bin_message(np.array([1, NAN], ">f2").tobytes(), ">f2", [2])),
    "NaN in bfloat16": ("nan", bin_message(b"\xc0\x7f\x80\x3f", "BF16", [2])),
    "NaN beside a mask": ("nan", logits(float_list([-INF, NAN]))),
    "+infinity as float32": ("positive_infinity", logits(float_list([1, INF]))),
    "+infinity as float64": ("positive_infinity", logits(float_list([INF], ">f8"))),
    "+infinity among integers": ("positive_infinity", logits(array_of(b"\x01", float64(INF)))),
    "+infinity in bfloat16": ("positive_infinity", bin_message(b"\x80\x7f", "bfloat16", [1])),
    "+infinity in a later row": ("positive_infinity", bin_message(np.array([0, INF], "<f4").tobytes(), "<f4", [2, 1])),
    "one class, masked": ("all_masked", logits(float_list([-INF]))),
    "a list of masks": ("all_masked", logits(float_list([-INF] * 3, ">f8"))),
    "masks of both widths": ("all_masked", logits(array_of(float32(-INF), float64(-INF)))),
    "one row of masks": ("all_masked", bin_message(np.array([0, 0, -INF, -INF], "<f4").tobytes(), "<f4", [2, 2])),
}  # fmt: skip


TWO_CLASSES: Final = Profiles({"other": Profile(classes=1)}, default=Profile(classes=2), strict=True)
# What needs a profile, and the header `model`.
PROFILED: Final = {
    "one class instead of two": ("unexpected_classes", logits(ONE), None),
    "one class instead of two in a head": ("unexpected_classes", logits(map_of((b"\x01", ONE))), None),
    "two classes instead of one": ("unexpected_classes", logits(float_list([1.0, 2.0])), b"other"),
    "a model without a profile": ("unknown_model", logits(float_list([1.0, 2.0])), b"third"),
    "such a model in a field": ("unknown_model", logits(float_list([1.0, 2.0]), (b"\xa5model", b"\xa1x")), b"other"),
    "such a model of a bare list": ("unknown_model", float_list([1.0, 2.0]), b""),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_message_with_one_fault_is_refused_for_it(name: str) -> None:
    """With the same words and place alone and in a batch."""
    reason, message = REFUSED[name]
    assert str(refusal(message).reason) == reason


@pytest.mark.parametrize("name", PROFILED)
def test_a_message_that_does_not_suit_its_profile_is_refused_for_it(name: str) -> None:
    """By the number of classes, or for the model that there is no profile for."""
    reason, message, model = PROFILED[name]
    assert str(refusal(message, profiles=TWO_CLASSES, model=model).reason) == reason


def test_every_reason_of_the_core_is_reached() -> None:
    """Those that are not are the broker's."""
    reached = {reason for reason, *_ in [*REFUSED.values(), *PROFILED.values()]}
    reached |= {str(refusal(None).reason), str(refusal(ONE, 3).reason)}
    assert reached == set(Reason) - {Reason.REJECTED_BY_BROKER, Reason.OUTPUT_TOO_LARGE}


def test_the_order_of_reasons_is_the_specification_s() -> None:
    """And closed."""
    assert [str(reason) for reason in Reason] == [
        "null_value", "too_large", "malformed_msgpack", "trailing_bytes", "too_deep", "extension_type",
        "duplicate_field", "missing_logits", "unsupported_encoding", "unsupported_dtype", "shape_mismatch",
        "ragged", "empty", "too_many_classes", "unexpected_classes", "not_numeric", "nan", "positive_infinity",
        "all_masked", "unknown_model", "rejected_by_broker", "output_too_large",
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [[[1]], [[[1]]], [[1, 1], [1, 1]]], ids=str)
def test_a_shape_that_nests_like_its_own_header_is_refused(shape: object) -> None:
    """Sizes are numbers, not arrays."""
    assert refusal(bin_message(bytes(4), "<f4", shape)).reason is Reason.SHAPE_MISMATCH


# Several faults


def bad_bin(dtype: object, shape: object, *extra: tuple[bytes, bytes], payload: bytes = bytes(4)) -> bytes:
    return bin_message(payload, dtype, shape, *extra)


def heads(*tensors: bytes) -> bytes:
    return logits(map_of(*((bytes([at]), tensor) for at, tensor in enumerate(tensors))))


SPOILT: Final = ext_form(1, b"a")
DEEP: Final = (b"\x01", nested(64))
AGAIN: Final = (LOGITS, ONE)
WIDE_NAN: Final = np.full(11, NAN, "<f4").tobytes()

# name: (the earliest reason, message); each name lists the faults in the order of the list.
SEVERAL: Final = {
    "malformed, deep": ("malformed_msgpack", nested(100)[:-1]),
    "malformed, extension, duplicate": ("malformed_msgpack", map_of((LOGITS, SPOILT), AGAIN)[:-1]),
    "malformed, encoding": ("malformed_msgpack", logits(b"\xc0", (b"\x01", b"\xc1"))),
    "malformed, not numeric": ("malformed_msgpack", array_of(b"\xc0", b"\xca\0")),
    "malformed after NaN": ("malformed_msgpack", logits(float_list([NAN]), (b"\x01", b"\xc1"))),
    "malformed, missing": ("malformed_msgpack", b"\x82\xa1x\x01"),
    "trailing, deep": ("trailing_bytes", nested(100) + b"\x01"),
    "trailing, extension": ("trailing_bytes", logits(SPOILT) + b"\x01"),
    "trailing, duplicate": ("trailing_bytes", map_of(AGAIN, AGAIN) + b"\x01"),
    "trailing, missing": ("trailing_bytes", b"\x80\x80"),
    "trailing, encoding": ("trailing_bytes", b"\xc0\xc1"),
    "trailing, NaN": ("trailing_bytes", float_list([NAN]) + b"\x01"),
    "deep, extension": ("too_deep", logits(SPOILT, DEEP)),
    "deep, duplicate": ("too_deep", map_of(AGAIN, AGAIN, DEEP)),
    "deep, missing": ("too_deep", map_of(DEEP)),
    "deep, encoding": ("too_deep", logits(b"\xc0", DEEP)),
    "deep, all masked": ("too_deep", logits(float_list([-INF]), DEEP)),
    "extension, duplicate": ("extension_type", map_of(AGAIN, (LOGITS, SPOILT))),
    "extension, output's name": ("extension_type", logits(SPOILT, (PROBABILITIES, b"\x01"))),
    "extension, encoding": ("extension_type", logits(map_of((b"\x01", b"\xc0"), (b"\x02", SPOILT)))),
    "extension, rank": ("extension_type", logits(nested(5, innermost=array_of(SPOILT)))),
    "extension, ragged": ("extension_type", array_of(ONE, b"\x01", SPOILT)),
    "extension, classes, not numeric": ("extension_type", array_of(*[b"\xc0"] * 11, SPOILT)),
    "extension, NaN": ("extension_type", logits(array_of(float32(NAN), SPOILT))),
    "duplicate, missing": ("duplicate_field", map_of((PROBABILITIES, b"\x01"))),
    "duplicate, encoding": ("duplicate_field", map_of((LOGITS, b"\xc0"), (LOGITS, b"\xc0"))),
    "duplicate, dtype": ("duplicate_field", bad_bin("O", [1], (DTYPE, b"\xc0"))),
    "duplicate, shape": ("duplicate_field", bad_bin("<f4", [9], (SHAPE, b"\xc0"))),
    "duplicate, empty": ("duplicate_field", map_of((LOGITS, b"\x90"), AGAIN)),
    "duplicate, NaN": ("duplicate_field", logits(float_list([NAN]), (PROBABILITIES, b"\x01"))),
    "dtype, shape": ("unsupported_dtype", bad_bin("O", [9])),
    "dtype, no shape": ("unsupported_dtype", map_of((LOGITS, bin_form(b"")), (DTYPE, b"\xc0"))),
    "dtype, empty": ("unsupported_dtype", bad_bin("O", [0], payload=b"")),
    "dtype, classes": ("unsupported_dtype", bad_bin("|O", [11], payload=bytes(88))),
    "shape, empty": ("shape_mismatch", bad_bin("<f4", [0])),
    "shape, empty, rank": ("shape_mismatch", bad_bin("<f4", [0] * 5, payload=b"")),
    "shape, negative and empty": ("shape_mismatch", bad_bin("<f4", [0, -1], payload=b"")),
    "shape, classes": ("shape_mismatch", bad_bin("<f4", [11])),
    "rank, ragged": ("shape_mismatch", array_of(nested(4), ONE)),
    "rank, empty": ("shape_mismatch", array_of(b"\x90", nested(4))),
    "rank, not numeric": ("shape_mismatch", array_of(b"\xc0", nested(4, innermost=array_of(b"\xc0")))),
    "shape, NaN": ("shape_mismatch", bad_bin("<f4", [2], payload=np.array([NAN], "<f4").tobytes())),
    "ragged, classes": ("ragged", array_of(*[ONE, b"\x01"] * 11)),
    "ragged, not numeric": ("ragged", array_of(b"\xc0", ONE, b"\x80")),
    "ragged, empty": ("ragged", array_of(b"\x90", ONE)),
    "ragged, NaN": ("ragged", array_of(float_list([NAN]), float32(1))),
    "encoding, dtype": ("unsupported_encoding", map_of((packed("nd"), b"\xc2"), (packed("type"), b"\xc0"))),
    "encoding, ragged": ("unsupported_encoding", heads(array_of(ONE, b"\x01"), b"\xc0")),
    "encoding, empty": ("unsupported_encoding", heads(b"\x90", b"\xc0")),
    "encoding, classes": ("unsupported_encoding", heads(float_list([1.0] * 11), b"\xc0")),
    "encoding, not numeric": ("unsupported_encoding", heads(array_of(b"\xc0"), b"\xc0")),
    "encoding, NaN": ("unsupported_encoding", heads(float_list([NAN]), b"\xc0")),
    "empty, classes": ("empty", heads(float_list([1.0] * 11), b"\x90")),
    "empty, not numeric": ("empty", heads(array_of(b"\xc0"), b"\x90")),
    "classes, not numeric": ("too_many_classes", array_of(*[b"\xc0"] * 11)),
    "classes, NaN": ("too_many_classes", float_list([NAN] * 11)),
    "classes, NaN in a bin": ("too_many_classes", bad_bin("<f4", [11], payload=WIDE_NAN)),
    "classes, masked": ("too_many_classes", float_list([-INF] * 11)),
    "not numeric, NaN": ("not_numeric", array_of(float32(NAN), b"\xc0")),
    "not numeric, +infinity": ("not_numeric", array_of(float32(INF), b"\xa1x")),
    "NaN, +infinity": ("nan", float_list([INF, NAN])),
    "NaN, +infinity among integers": ("nan", array_of(float32(INF), b"\x01", float64(NAN))),
    "NaN, masked": ("nan", bad_bin("<f4", [2, 1], payload=np.array([-INF, NAN], "<f4").tobytes())),
    "+infinity, masked": ("positive_infinity", bad_bin("<f4", [2, 1], payload=np.array([-INF, INF], "<f4").tobytes())),
}  # fmt: skip


@pytest.mark.parametrize("name", SEVERAL)
def test_of_several_faults_the_earliest_of_the_list_is_told(name: str) -> None:
    """Whichever of them would be met first."""
    reason, message = SEVERAL[name]
    assert str(refusal(message).reason) == reason


@pytest.mark.parametrize("name", [*REFUSED, *SEVERAL])
def test_every_fault_comes_before_an_unknown_model(name: str) -> None:
    """With the same words: the values are judged by the default profile first."""
    _, message = {**REFUSED, **SEVERAL}[name]
    found, strict = refusal(message), Profiles(strict=True)
    other = refusal(message, profiles=strict, model=b"unknown")
    assert (other.reason, other.detail, other.at) == (found.reason, found.detail, found.at)


@pytest.mark.parametrize("reason", sorted({reason for reason, _ in SEVERAL.values()}))
def test_too_large_comes_before_every_fault_of_the_content(reason: str) -> None:
    """The content is not looked at."""
    (message, *_) = (message for found, message in SEVERAL.values() if found == reason)
    assert refusal(message, len(message) - 1).reason is Reason.TOO_LARGE


def test_an_extension_in_a_third_logits_comes_before_the_duplicate() -> None:
    """All of them are looked into."""
    assert refusal(map_of(AGAIN, AGAIN, (LOGITS, SPOILT))).reason is Reason.EXTENSION_TYPE


def test_too_many_classes_comes_before_a_map_in_the_list() -> None:
    """How many there are is known before what they are."""
    assert refusal(array_of(*[b"\x80"] * 11)).reason is Reason.TOO_MANY_CLASSES


# Damage


WHOLE: Final = {
    "list": map_of((b"\xa2id", packed("a1")), (LOGITS, float_list([1.0, 2.0])), (b"\xa1m", packed({1: [None, 2**40]}))),
    "long forms": map_of(
        (str_form(b"logits", 3), float_list([1.0], form=2)), (b"\xa1e", ext_form(9, b"xyz", 3)), form=2
    ),
    "bin": bin_message(bytes(8), "<f4", [1, 2], (b"\xa2id", ext_form(1, b"1234"))),
    "nested": map_of((LOGITS, array_of(float_list([1.0, 2.0]), array_of(b"\x01", b"\xcc\x01")))),
    "heads": map_of((LOGITS, map_of((b"\x01", float_list([1.0])), (b"\xa1x", T4)))),
    "tensor map": T4,
    "integers": map_of((LOGITS, packed([1, -1, 200, -200, 2**17, -(2**17), 2**40, -(2**40), 2**63]))),
    "bare": float_list([1.0, 2.0, 3.0]),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_a_message_cut_at_any_byte_is_malformed(name: str) -> None:
    """Of every encoding."""
    whole = WHOLE[name]
    assert isinstance(verdict(whole), bytes)
    for length in range(len(whole)):
        assert refusal(whole[:length]).reason is Reason.MALFORMED_MSGPACK


@pytest.mark.parametrize(
    "header", [b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9"], ids=["array", "map", "str", "bin", "ext"]
)
@pytest.mark.parametrize("place", [bytes, logits, array_of, lambda claim: logits(ONE, (b"\xa1x", claim))])
@pytest.mark.parametrize("body", [b"", b"\x01", b"\xca\0\0\0\0" * 100])
def test_a_claim_of_four_thousand_million_entries_is_malformed(header: bytes, place: object, body: bytes) -> None:
    """Wherever it stands; nothing waits or makes room for them."""
    assert callable(place)
    assert refusal(place(header + b"\xff" * 4 + body)).reason is Reason.MALFORMED_MSGPACK


# Nesting


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("innermost", [b"\x90", b"\x80", b"\x91\xc0"], ids=bytes.hex)
def test_sixty_four_levels_are_echoed(kind: str, innermost: bytes) -> None:
    """The message itself is one of them."""
    deep = nested(63, kind, innermost)
    for key, value in ((b"\x01", deep), (deep, b"\x01")):
        message = map_of((LOGITS, float_list([0.0])), (key, value))
        assert verdict(message) == map_of((PROBABILITIES, float_list([1.0])), (key, value))


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize(
    "place", [bytes, logits, lambda value: logits(ONE, (b"\xa1x", value)), lambda value: map_of((value, ONE))]
)
def test_a_hundred_thousand_levels_are_refused(kind: str, place: object) -> None:
    """Nothing here recurses with the message."""
    assert callable(place)
    message = place(nested(100_000, kind))
    assert verdict(message)[0] == "too_deep"
    assert verdict(message[: len(message) // 2])[0] == "malformed_msgpack"


# Words


@pytest.mark.parametrize(
    ("message", "words", "at"),
    [
        (b"\x81\xc1\x01", "byte 1 is 0xc1", 1),
        (logits(ONE)[:-2], "ends after 16 bytes", 16),
        (b"", "empty", 0),
        (logits(ONE) + b"abc", "3 bytes follow the message's end at byte 18", 18),
        (nested(70), "more than 64 deep", None),
        (logits(SPOILT), "extension type at byte 12", 12),
        (map_of(AGAIN, AGAIN), "logits stands at bytes 1 and 14", 14),
        (map_of(AGAIN, (PROBABILITIES, b"\x01")), "probabilities at byte 14", 14),
        (map_of((b"\xa1x", b"\x01"), (b"\xa1y", b"\x01")), "none of the map's 2 fields", 0),
        (logits(b"\xc0"), "(byte 12)", 12),
        (logits(map_of((b"\x01", ONE), (b"\x02", b"\xc0"))), "(byte 21)", 21),
        (b"\xc0", "neither a map nor an array", 0),
        (logits(b"\x86" + T4[1:] + b"\xa1x\x01"), "key at byte 57 is none of data, kind, nd, shape, type", 57),
        (logits(b"\x86" + T4[1:] + b"\xa4type\x01"), "type stands at bytes 18 and 57", 57),
        (bad_bin("O", [1]), "dtype at byte 20", 20),
        (bad_bin("<f4", [-1]), "shape at byte 30", 30),
        (bad_bin("<f4", [2, 3]), "4 bytes are not the 2 x 3 numbers of 4 bytes", 8),
        (logits(nested(5)), "arrays at byte 12 nest more than 4 deep", 12),
        (logits(array_of(ONE, b"\x01")), "the array at byte 12 mixes arrays", 12),
        (logits(array_of(ONE, float_list([1, 2]))), "the array at byte 19 has 2 elements where others have 1", 19),
        (logits(b"\x90"), "tensor at byte 12", 12),
        (float_list([1.0] * 11), "11 classes are more than limits.max_classes = 10", 0),
        (array_of(float32(1), float32(2), b"\x05", b"\xc0", b"\x05"), "element 3 at byte 12 ", 12),
        (array_of(b"\x05", str_form(bytes(40)), b"\x05"), "element 1 at byte 2 ", 2),
        (float_list([1, 2, NAN, NAN]), "logit 2 of 4 is NaN", 11),
        (float_list([1, 2, 3, INF]), "logit 3 of 4 is +infinity", 16),
        (array_of(float_list([1, 2]), float_list([3, NAN])), "logit [1, 1] of [2, 2] is NaN", 18),
        (array_of(b"\x01", float32(NAN)), "logit 1 of 2 is NaN", None),
        (bad_bin("<f4", [2, 1], payload=np.array([0, -INF], "<f4").tobytes()), "row 1: all 1 logits are masked", 14),
        (float_list([-INF, -INF]), "all 2 logits are masked", 1),
        (None, "no value", None),
    ],
)
def test_the_words_say_what_and_where(message: bytes | None, words: str, at: int | None) -> None:
    """The place is the byte that shows it, if one does."""
    found = refusal(message)
    assert words in found.detail
    assert found.at == at


def test_the_words_tell_of_profiles_too() -> None:
    """How many classes there should have been."""
    found = refusal(logits(ONE), profiles=TWO_CLASSES)
    assert "1 classes where the model's profile has 2" in found.detail
    assert found.at == 12


def test_too_large_tells_both_numbers() -> None:
    """The message's length and the limit."""
    assert refusal(bytes(101), 100).detail == "101 bytes are more than limits.max_message_bytes = 100"


@pytest.mark.parametrize("name", [*REFUSED, *SEVERAL])
def test_the_words_quote_no_payload(name: str) -> None:
    """A secret beside the fault never shows, and the detail is one short printable line."""
    _, message = {**REFUSED, **SEVERAL}[name]
    secret = (b"\xafpassword=hunter", b"\xa8s3cr3t!!")
    spoilt = b"\x83" + message[1:] + secret[0] + secret[1] if message[:1] == b"\x82" else message
    found = verdict(spoilt, MAX_CLASSES)
    assert isinstance(found, tuple)
    assert "s3cr3t" not in found[1]
    assert "hunter" not in found[1]
    assert re.fullmatch(r"[ -~]{1,400}", found[1])


@pytest.mark.parametrize(
    "message",
    [
        *(
            logits(packed("s3cr3t")),
            packed("s3cr3t"),
            logits(array_of(packed("s3cr3t"))),
            logits(map_of((packed("s3cr3t"), b"\xc0"))),
            logits(b"\x86" + T4[1:] + packed("s3cr3t") + b"\x01"),
        ),
        *(
            bad_bin("s3cr3t", [1]),
            bad_bin("<f4", "s3cr3t"),
            bad_bin("<f4", ["s3cr3t"]),
            map_of((packed("s3cr3t"), ONE)),
        ),
        *(
            logits(array_of(ONE, packed("s3cr3t"))),
            logits(ext_form(1, b"s3cr3t")),
            ONE + packed("s3cr3t"),
            packed("s3cr3t")[:-1],
        ),
    ],
)
def test_a_faulty_payload_is_not_quoted(message: bytes) -> None:
    """Nor any part of it."""
    assert "s3cr" not in str(refusal(message))


def test_shapes_of_absurd_sizes_stay_printable() -> None:
    """Sizes have twenty digits at most."""
    assert len(refusal(bad_bin("<f4", [2**64 - 1] * 4)).detail) < 300


def test_headers_longer_than_needed_change_no_reason() -> None:
    """Only their meaning counts."""
    for form in range(3):
        assert refusal(container_form("array", 0, form)).reason is Reason.EMPTY
        assert refusal(container_form("map", 0, form)).reason is Reason.MISSING_LOGITS
