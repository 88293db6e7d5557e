"""What a message is understood to be: its tensors, its model, and what its fields must not be named."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pytest
from transform_messages import (
    DTYPE,
    LOGITS,
    MANY_CLASSES,
    PROBABILITIES,
    PROFILELESS,
    SHAPE,
    array_of,
    bin_form,
    bin_message,
    ext_form,
    float32,
    float_list,
    map_of,
    packed,
    str_form,
    transformed,
    verdict,
)

from service.transform.message import parse
from service.transform.profiles import DEFAULT, Output, Profile, Profiles
from service.transform.refusals import InvalidMessage

MODEL: Final = b"\xa5model"
TWO: Final = float_list([1.0, 1.0])
HALVES: Final = float_list([0.5, 0.5])
T4: Final = packed({"nd": True, "type": "<f4", "shape": [2], "data": bytes(8)})
T5: Final = packed({"__ndarray__": True, "dtype": "<f4", "shape": [2], "data": bytes(8)})


def refusal(message: bytes, profiles: Profiles = PROFILELESS, model: bytes | None = None) -> InvalidMessage:
    with pytest.raises(InvalidMessage) as caught:
        transformed(message, MANY_CLASSES, profiles, model)
    return caught.value


def reason(message: bytes, profiles: Profiles = PROFILELESS, model: bytes | None = None) -> str:
    return str(refusal(message, profiles, model).reason)


# What is a message, what a tensor

TENSORS: Final = {
    "a list": (TWO, (2,)),
    "nested lists": (array_of(TWO, TWO, TWO), (3, 2)),
    "loose numbers": (array_of(b"\x01", float32(1), b"\xcc\x01"), (3,)),
    "msgpack-numpy": (T4, (2,)),
    "__ndarray__": (T5, (2,)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_is_understood_bare_in_a_field_and_as_a_head(name: str) -> None:
    """With its shape and the place where it begins."""
    tensor, shape = TENSORS[name]
    before = (b"\xa2id", b"\x05")
    for message, at, key in (
        (tensor, 0, b""),
        (map_of(before, (LOGITS, tensor)), 1 + 4 + 7, b""),
        (map_of(before, (LOGITS, map_of((b"\xa1h", tensor)))), 1 + 4 + 7 + 1 + 2, b"\xa1h"),
    ):
        found = parse(message, None, Profiles(), MANY_CLASSES)
        (head,) = found.heads
        assert (head.key, head.tensor.at, head.tensor.shape, head.tensor.fault) == (key, at, shape, None)
        assert found.data == message
        assert (found.outer is None) is (message is tensor)
        assert found.selected.name == DEFAULT


def test_a_bin_is_understood_with_the_fields_beside_it() -> None:
    """Wherever they stand."""
    message = bin_message(bytes(8), ">f4", [1, 2])
    found = parse(message, None, Profiles(), MANY_CLASSES)
    assert found.outer is not None
    assert found.outer.binary is not None
    assert (found.outer.count, found.outer.body) == (3, 1)
    dtype, shape, spelling = found.outer.binary
    assert message[dtype.key : dtype.value] == DTYPE
    assert message[shape.key : shape.value] == SHAPE
    assert (spelling.word, spelling.is_bin) == (b">f4", False)
    assert message[spelling.start : spelling.end] == packed(">f4")


@pytest.mark.parametrize(
    "flag", [b"\xa2nd", b"\xd9\2nd", b"\xc4\2nd", str_form(b"__ndarray__"), bin_form(b"__ndarray__")]
)
def test_a_map_with_a_flag_is_a_tensor_unless_it_has_logits(flag: bytes) -> None:
    """Beside logits it is a field like any other; without either, the logits are missing."""
    assert reason(map_of((flag, b"\xc3"))) == "unsupported_encoding"
    assert transformed(map_of((flag, b"\xc3"), (LOGITS, TWO))) == map_of((flag, b"\xc3"), (PROBABILITIES, HALVES))
    assert reason(map_of((b"\xa1x", map_of((flag, b"\xc3"))))) == "missing_logits"
    assert reason(map_of((flag[:-1] + b"!", b"\xc3"))) == "missing_logits"


@pytest.mark.parametrize("tensor", [T4, T5])
def test_a_bare_tensor_map_has_no_fields(tensor: bytes) -> None:
    """What is no key of its own is refused, though it might be a field elsewhere."""
    for key in (b"\xa2id", MODEL, PROBABILITIES):
        extended = bytes([tensor[0] + 1]) + tensor[1:] + key + packed("alpha")
        assert reason(extended) == "unsupported_encoding"


def test_an_extension_in_any_of_several_logits_comes_first() -> None:
    """In the third and the tenth as in the first."""
    spoilt = ext_form(1, b"abcd")
    for before in range(10):
        for extension in (spoilt, array_of(spoilt), map_of((b"\x01", spoilt))):
            fields = [(LOGITS, TWO)] * before + [(LOGITS, extension)] + [(LOGITS, TWO)]
            assert reason(map_of(*fields)) == "extension_type", before


# Models

ALPHA: Final = Profile(outputs=("predicted",))
MODELS: Final = {"alpha": ALPHA, "bêta": Profile(outputs=("probabilities", "predicted"))}
PROFILES: Final = Profiles(MODELS)
STRICT: Final = Profiles(MODELS, strict=True)
PREDICTED: Final = (packed("predicted"), b"\x00")
ANSWERS: Final = {
    DEFAULT: [(PROBABILITIES, HALVES)],
    "alpha": [PREDICTED],
    "bêta": [(PROBABILITIES, HALVES), PREDICTED],
}


@pytest.mark.parametrize("form", [0, 1, 2, 3])
@pytest.mark.parametrize("name", [*MODELS, DEFAULT])
def test_the_field_model_selects_the_profile_and_is_echoed(name: str, form: int) -> None:
    """In any form, before or after the logits, whatever the header says."""
    field = (str_form(b"model", form), str_form(name.encode(), form))
    probabilities = [entry for entry in ANSWERS[name] if entry[0] == PROBABILITIES]
    added = [entry for entry in ANSWERS[name] if entry[0] != PROBABILITIES]
    for header in (None, b"alpha", b"gamma", b"\xff"):
        for profiles in (PROFILES, STRICT):
            before, after = map_of(field, (LOGITS, TWO)), map_of((LOGITS, TWO), field)
            found = transformed(before, profiles=profiles, model=header)
            assert found == map_of(field, *probabilities, *added)
            found = transformed(after, profiles=profiles, model=header)
            assert found == map_of(*probabilities, field, *added)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(MODEL, b"\xc0")],
        [(MODEL, b"\x05")],
        [(MODEL, bin_form(b"beta"))],
        [(MODEL, array_of(packed("bêta")))],
        [(MODEL, packed("bêta")), (MODEL, packed("bêta"))],
        [(MODEL, packed("bêta")), (MODEL, b"\xc0")],
        [(MODEL, b"\x01"), (MODEL, b"\x01"), (MODEL, packed("bêta"))],
        [(bin_form(b"model"), packed("bêta"))],
        [(b"\xa5Model", packed("bêta"))],
        [(b"\xa1x", map_of((MODEL, packed("bêta"))))],
        [(MODEL, b"\xa2\xff\xfe")],
    ],
    ids=lambda fields: " ".join(value.hex() for _, value in fields) or "none",
)
@pytest.mark.parametrize(("header", "name"), [(None, DEFAULT), (b"alpha", "alpha"), (b"\xff", DEFAULT)])
def test_a_field_model_that_is_no_single_text_is_as_if_absent(
    fields: list[tuple[bytes, bytes]], header: bytes | None, name: str
) -> None:
    """The header decides, and the field is echoed."""
    answer = [entry for entry in ANSWERS[name] if entry[0] == PROBABILITIES]
    added = [entry for entry in ANSWERS[name] if entry[0] != PROBABILITIES]
    for profiles in (PROFILES, STRICT):
        found = transformed(map_of(*fields, (LOGITS, TWO)), profiles=profiles, model=header)
        assert found == map_of(*fields, *answer, *added)


@pytest.mark.parametrize("name", TENSORS)
def test_the_header_selects_the_profile_of_a_bare_tensor(name: str) -> None:
    """Which leaves as bare probabilities, whatever else the profile asks for."""
    tensor, shape = TENSORS[name]
    cold = Profile(temperature=0.5, outputs=("predicted", "label"), labels=("a", "b", "c")[: shape[-1]])
    wide = Profile(dtype="float64")
    profiles = Profiles({"cold": cold, "wide": wide, "other": Profile(classes=9)})
    assert transformed(tensor, profiles=profiles, model=b"cold") == transformed(tensor)
    assert transformed(tensor, profiles=profiles, model=b"wide") == transformed(tensor, profiles=Profiles(default=wide))
    assert reason(tensor, profiles, b"other") == "unexpected_classes"


@pytest.mark.parametrize(
    ("field", "header"),
    [(b"gamma", None), (None, b"gamma"), (b"gamma", b"alpha"), (b"", b"alpha"), (b"alpha ", None)],
)
def test_an_unknown_model_gets_the_default_unless_models_are_strict(field: bytes | None, header: bytes | None) -> None:
    """Then it is refused, once nothing else is wrong by the default profile."""
    fields = [] if field is None else [(MODEL, str_form(field))]
    good, faulty = (map_of(*fields, (LOGITS, tensor)) for tensor in (TWO, float_list([1.0, float("nan")])))
    assert transformed(good, profiles=PROFILES, model=header) == map_of(*fields, (PROBABILITIES, HALVES))
    assert reason(good, STRICT, header) == "unknown_model"
    assert reason(faulty, STRICT, header) == "nan"
    few = Profiles(MODELS, default=Profile(classes=7), strict=True)
    assert reason(good, few, header) == "unexpected_classes"


# Names of outputs


def asking(*outputs: str, **settings: Any) -> Profiles:
    if "top_k" in outputs:
        settings.setdefault("top_k", 1)
    if "label" in outputs:
        settings.setdefault("labels", ("a", "b"))
    return Profiles(default=Profile(outputs=outputs, **settings))


@pytest.mark.parametrize("form", [0, 2])
@pytest.mark.parametrize("output", [output.value for output in Output])
def test_a_field_may_not_have_the_name_of_an_output_that_is_added(output: str, form: int) -> None:
    """It would stand there twice; where the output is not asked for, the field is one like any other."""
    field = (str_form(output.encode(), form), b"\xc0")
    other = "confidence" if output == "entropy" else "entropy"
    for message in (map_of(field, (LOGITS, TWO)), map_of((LOGITS, TWO), field), map_of(field)):
        assert reason(message, asking(output)) == "duplicate_field"
        assert reason(message, asking(other, output)) == "duplicate_field"
    assert transformed(map_of(field, (LOGITS, TWO)), profiles=asking(other)).startswith(b"\x82" + field[0] + b"\xc0")
    as_bin = map_of((bin_form(output.encode()), b"\xc0"), (LOGITS, TWO))
    assert isinstance(verdict(as_bin, MANY_CLASSES, asking(output)), bytes)
    heads = map_of((LOGITS, map_of((field[0], TWO))))
    assert isinstance(verdict(heads, MANY_CLASSES, asking(output)), bytes)


def test_a_name_is_judged_by_the_profile_of_its_own_message() -> None:
    """One model's outputs do not forbid another's fields."""
    message = map_of((packed("predicted"), b"\xc0"), (LOGITS, TWO))
    assert reason(message, PROFILES, b"alpha") == "duplicate_field"
    assert transformed(message, profiles=PROFILES) == map_of((packed("predicted"), b"\xc0"), (PROBABILITIES, HALVES))


# Classes

AS_MESSAGES: Final = {
    "a bare list": TWO,
    "a list": map_of((LOGITS, TWO)),
    "nested lists": map_of((LOGITS, array_of(TWO, TWO, TWO))),
    "a bin": bin_message(bytes(24), "<f4", [3, 2]),
    "a tensor map": map_of((LOGITS, T4)),
    "the second head": map_of((LOGITS, map_of((b"\x01", float_list([1.0] * 3)), (b"\x02", TWO)))),
}


@pytest.mark.parametrize("name", [name for name in AS_MESSAGES if name != "the second head"])
def test_the_classes_must_be_as_many_as_the_profile_says(name: str) -> None:
    """By number or by labels, for every encoding."""
    for matching in (Profile(classes=2), Profile(labels=("a", "b"))):
        assert isinstance(verdict(AS_MESSAGES[name], MANY_CLASSES, Profiles(default=matching)), bytes)
    for other in (Profile(classes=3), Profile(labels=("a",)), Profile(classes=1)):
        assert reason(AS_MESSAGES[name], Profiles(default=other)) == "unexpected_classes"


@pytest.mark.parametrize("classes", [2, 3])
def test_every_head_must_have_as_many_classes(classes: int) -> None:
    """Whichever head it is that has others."""
    assert reason(AS_MESSAGES["the second head"], Profiles(default=Profile(classes=classes))) == "unexpected_classes"


def test_the_number_of_classes_is_judged_between_its_neighbours_in_the_list() -> None:
    """After what is empty and too much, before what is no number or none that has a distribution."""
    profiles = Profiles(default=Profile(classes=2))
    for expected, tensor in (
        ("empty", b"\x90"),
        ("empty", array_of(b"\x90", b"\x90")),
        ("too_many_classes", float_list([1.0] * 5)),
        ("unexpected_classes", float_list([1.0] * 4)),
        ("unexpected_classes", array_of(b"\xc0", b"\x01", b"\x01")),
        ("unexpected_classes", float_list([float("nan")] * 3)),
        ("not_numeric", array_of(b"\xc0", float32(float("nan")))),
    ):
        assert verdict(map_of((LOGITS, tensor)), 4, profiles)[0] == expected


# Masks


def test_a_profile_s_masks_may_mask_all() -> None:
    """With the logits' own, or alone; a fault beneath a mask is one all the same."""
    profiles = Profiles(default=Profile(masked=(0, 2)))
    assert transformed(map_of((LOGITS, float_list([5.0, 1.0, 9.0]))), profiles=profiles) == map_of(
        (PROBABILITIES, float_list([0, 1, 0]))
    )
    for values, expected in (
        ([1.0, -np.inf, 1.0], "all_masked"),
        ([1.0], "all_masked"),
        ([np.nan, 1.0], "nan"),
        ([1.0, 1.0, np.inf], "positive_infinity"),
        ([np.nan], "nan"),
    ):
        assert reason(map_of((LOGITS, float_list(values))), profiles) == expected


# Heads


@pytest.mark.parametrize("reverse", [False, True])
def test_of_the_faults_of_all_heads_the_earliest_in_the_list_is_told(*, reverse: bool) -> None:
    """Wherever it stands; of equals, that of the first head."""
    faults = [
        ("duplicate_field", bytes([T4[0] + 1]) + T4[1:] + b"\xa2nd\xc3"),
        ("unsupported_encoding", b"\xc0"),
        ("unsupported_dtype", packed({"nd": True, "type": "O", "shape": [2], "data": bytes(8)})),
        ("shape_mismatch", packed({"nd": True, "type": "<f4", "shape": [3], "data": bytes(8)})),
        ("ragged", array_of(TWO, float32(1))),
        ("empty", b"\x90"),
        ("too_many_classes", float_list([1.0] * 11)),
        ("unexpected_classes", float_list([1.0] * 3)),
        ("not_numeric", array_of(b"\xc0", b"\xc0")),
        ("nan", float_list([1.0, float("nan")])),
        ("positive_infinity", array_of(b"\x01", float32(float("inf")))),
        ("all_masked", float_list([-np.inf, -np.inf])),
    ]
    profiles = Profiles(default=Profile(classes=2))
    for earliest, (expected, _) in enumerate(faults):
        heads = [(bytes([at]), tensor) for at, (_, tensor) in enumerate(faults[earliest:])]
        message = map_of((LOGITS, map_of(*(heads[::-1] if reverse else heads), (b"\x7f", TWO))))
        assert verdict(message, 10, profiles)[0] == expected


def test_of_equal_faults_that_of_the_first_head_is_told() -> None:
    """By its place."""
    nan = float_list([1.0, float("nan")])
    for bad in (nan, b"\xc0", array_of(b"\xc0"), b"\x90"):
        message = map_of((LOGITS, map_of((b"\x01", TWO), (b"\x02", bad), (b"\x03", bad))))
        at = refusal(message).at
        assert at is not None
        first = len(message) - 1 - 2 * len(bad)
        assert first <= at < first + len(bad)


@pytest.mark.parametrize("head", [b"\xc0", b"\xc3", b"\x05", float32(1), packed("x"), bin_form(bytes(8)), b"\x80"])
def test_a_head_is_an_array_or_a_tensor_map(head: bytes) -> None:
    """No bin, since there is nothing beside it, and no further map of heads."""
    assert reason(map_of((LOGITS, map_of((b"\x01", head))))) == "unsupported_encoding"
    assert reason(map_of((LOGITS, map_of((b"\x01", map_of((b"\x01", TWO))))))) == "unsupported_encoding"
    beside = map_of((LOGITS, map_of((b"\x01", head))), (DTYPE, packed("<f4")), (SHAPE, array_of(b"\x02")))
    assert reason(beside) == "unsupported_encoding"
