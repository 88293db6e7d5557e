"""What leaves: the fields that a profile asks for, around tensors of every encoding, byte for byte."""

from __future__ import annotations

from itertools import permutations
from typing import Any, Final

import msgpack
import numpy as np
import pytest
from transform_messages import (
    DTYPE,
    LOGITS,
    MANY_CLASSES,
    PROBABILITIES,
    SHAPE,
    array_of,
    bin_form,
    bin_message,
    float32,
    float64,
    float_list,
    listed,
    map_of,
    packed,
    stored,
    transformed,
    verdicts,
)

from service.transform.pipeline import Limits, Pipeline
from service.transform.profiles import Output, Profile, Profiles


def asking(*outputs: str, **settings: Any) -> Profiles:
    """Profiles that all ask for this."""
    return Profiles(default=Profile(outputs=outputs, **settings))


def answered(message: bytes, profiles: Profiles) -> bytes:
    """The output of a message, which must be the same alone and among its like."""
    (first, *others) = verdicts(Pipeline(Limits(1 << 20, MANY_CLASSES), profiles), [message] * 3)
    assert isinstance(first, bytes)
    assert others == [first, first]
    assert transformed(message, profiles=profiles) == first
    return first


# Equal logits: everything about them is known exactly.
EQUAL: Final = float_list([3.0] * 4)
QUARTER: Final = float32(0.25)
FOUR_LABELS: Final = ("a", "b", "x" * 40, "\N{SNOWMAN}")
EXPECTED: Final = {
    "probabilities": (PROBABILITIES, float_list([0.25] * 4)),
    "log_probabilities": (packed("log_probabilities"), float_list(np.full(4, -np.log(np.float32(4)), np.float32))),
    "predicted": (packed("predicted"), b"\x00"),
    "label": (packed("label"), packed("a")),
    "confidence": (packed("confidence"), QUARTER),
    "entropy": (packed("entropy"), float32(np.log(np.float32(4)))),
    "margin": (packed("margin"), float32(0)),
    "top_k": (
        packed("top_k"),
        map_of(
            (packed("indices"), array_of(b"\0", b"\1", b"\2")),
            (packed("labels"), array_of(*map(packed, FOUR_LABELS[:3]))),
            (packed("probabilities"), array_of(*[QUARTER] * 3)),
        ),
    ),
}


@pytest.mark.parametrize("output", EXPECTED)
def test_a_field_is_added_behind_those_of_the_message(output: str) -> None:
    """Probabilities alone stand in the place of the logits; without them the logits are gone."""
    profiles = asking(output, labels=FOUR_LABELS, top_k=3 if output == "top_k" else None)
    before, after = (b"\xa2id", b"\xd9\1x"), (b"\x05", b"\xc0")
    expected = [before, EXPECTED[output], after] if output == "probabilities" else [before, after, EXPECTED[output]]
    assert answered(map_of(before, (LOGITS, EQUAL), after), profiles) == map_of(*expected)
    assert answered(map_of((LOGITS, EQUAL)), profiles) == map_of(EXPECTED[output])


@pytest.mark.parametrize("order", [list(EXPECTED), list(EXPECTED)[::-1], ["margin", "probabilities", "top_k"]])
def test_fields_are_added_in_the_order_of_the_profile(order: list[str]) -> None:
    """Save probabilities, whose place is that of the logits."""
    profiles = asking(*order, labels=FOUR_LABELS, top_k=3 if "top_k" in order else None)
    expected = [
        EXPECTED["probabilities"],
        (b"\x05", b"\xc0"),
        *(EXPECTED[name] for name in order if name != "probabilities"),
    ]
    assert answered(map_of((LOGITS, EQUAL), (b"\x05", b"\xc0")), profiles) == map_of(*expected)


def test_top_k_has_labels_only_where_they_are_known() -> None:
    """Two lists otherwise; more than there are gives all."""
    expected = map_of(
        (packed("indices"), array_of(b"\0", b"\1", b"\2", b"\3")), (packed("probabilities"), float_list([0.25] * 4))
    )
    assert answered(map_of((LOGITS, EQUAL)), asking("top_k", top_k=9)) == map_of((packed("top_k"), expected))


def test_the_header_of_the_map_grows_with_the_fields() -> None:
    """From one byte to three."""
    others = [(bytes([at]), b"\xc0") for at in range(14)]
    profiles = asking("probabilities", "predicted")
    assert answered(map_of((LOGITS, EQUAL), *others), profiles) == map_of(
        EXPECTED["probabilities"], *others, EXPECTED["predicted"]
    )
    gone = asking("predicted")
    assert answered(map_of((LOGITS, EQUAL), *others, form=2), gone) == map_of(*others, EXPECTED["predicted"])


@pytest.mark.parametrize("shape", [(2, 4), (1, 4), (16, 4), (2, 3, 4), (2, 1, 2, 4)], ids=str)
@pytest.mark.parametrize("encoding", ["T2", "T3"])
def test_fields_of_many_rows_are_nested_as_the_rows_are(shape: tuple[int, ...], encoding: str) -> None:
    """Arrays of the values that each row has alone."""
    rng = np.random.default_rng(5)
    rows = rng.permuted(np.tile(np.array([1, 2, 3, 300], np.float32), (*shape[:-1], 1)), axis=-1)
    profiles = asking(*Output, labels=FOUR_LABELS, top_k=2)

    def nest(values: Any, write: Any) -> bytes:
        return array_of(*(nest(value, write) if value.ndim > 1 else write(value) for value in values))

    def alone(name: str) -> Any:
        def write(row: Any) -> bytes:
            whole = answered(
                map_of((LOGITS, float_list(row))),
                asking(name, labels=FOUR_LABELS, top_k=2 if name == "top_k" else None),
            )
            return whole[1 + len(packed(name)) :]

        return write

    if encoding == "T2":
        found = answered(map_of((LOGITS, nest(rows, float_list))), profiles)
        fields = [(packed(name.value), nest(rows, alone(name.value))) for name in Output]
        assert found == map_of(*fields)
    else:
        found = answered(bin_message(rows.tobytes(), "<f4", list(shape)), profiles)
        probabilities, logarithms = (
            bin_form(b"".join(listed(alone(name)(row)).astype("<f4").tobytes() for row in rows.reshape(-1, 4)))
            for name in ("probabilities", "log_probabilities")
        )
        others = [(packed(name.value), nest(rows, alone(name.value))) for name in list(Output)[2:]]
        assert found == map_of(
            (PROBABILITIES, probabilities), (DTYPE, packed("<f4")), (SHAPE, packed(list(shape))),
            (packed("log_probabilities"), logarithms), *others,
        )  # fmt: skip


def test_fields_of_heads_are_maps_by_head() -> None:
    """Each under its name as it came, in the order of the heads."""
    nested, wide = array_of(EQUAL, EQUAL), float_list([1.0] * 4, ">f8")
    heads = [(b"\xd9\1h", EQUAL), (b"\x05", nested), (b"\xd9\1h", wide)]
    profiles = asking("predicted", "confidence", "probabilities", "log_probabilities", "top_k", top_k=1)
    zeros, quarters = array_of(b"\0", b"\0"), array_of(QUARTER, QUARTER)

    def best(probability: bytes) -> bytes:
        return map_of((packed("indices"), b"\x91\0"), (packed("probabilities"), array_of(probability)))

    def by_head(*values: bytes) -> bytes:
        return map_of(*((name, value) for (name, _), value in zip(heads, values, strict=True)))

    logarithm = EXPECTED["log_probabilities"][1]
    expected = map_of(
        (
            PROBABILITIES,
            by_head(float_list([0.25] * 4), array_of(*[float_list([0.25] * 4)] * 2), float_list([0.25] * 4, ">f8")),
        ),
        (packed("predicted"), by_head(b"\0", zeros, b"\0")),
        (packed("confidence"), by_head(QUARTER, quarters, float64(0.25))),
        (
            packed("log_probabilities"),
            by_head(logarithm, array_of(logarithm, logarithm), float_list([-np.log(4.0)] * 4, ">f8")),
        ),
        (packed("top_k"), by_head(best(QUARTER), array_of(best(QUARTER), best(QUARTER)), best(float64(0.25)))),
    )
    assert answered(map_of((LOGITS, map_of(*heads, form=2))), profiles) == expected
    gone = answered(map_of((b"\x01", b"\x02"), (LOGITS, map_of(*heads))), asking("predicted"))
    assert gone == map_of((b"\x01", b"\x02"), (packed("predicted"), by_head(b"\0", zeros, b"\0")))


@pytest.mark.parametrize("output", EXPECTED)
def test_a_single_head_is_a_map_by_head_too(output: str) -> None:
    """Its name is not lost."""
    name, value = EXPECTED[output]
    profiles = asking(output, labels=FOUR_LABELS, top_k=3 if output == "top_k" else None)
    message = map_of((LOGITS, map_of((b"\xd9\1h", EQUAL))))
    assert answered(message, profiles) == map_of((name, map_of((b"\xd9\1h", value))))


# Bins, whose dtype and shape stand beside them


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
@pytest.mark.parametrize("spelling", ["<f4", ">f8", "INT8", "float32"])
def test_dtype_and_shape_go_with_the_last_bin_that_they_describe(spelling: str, order: tuple[int, ...]) -> None:
    """They stay, corrected, if log-probabilities leave; beside other outputs they would tell of nothing."""
    code = {"INT8": "|i1", "float32": "<f4"}.get(spelling, spelling)
    answer = {"INT8": "FP32", ">f8": "<f8"}.get(spelling, spelling)
    width = "<f8" if spelling == ">f8" else "<f4"
    fields = [(LOGITS, bin_form(stored(np.ones(4), code))), (DTYPE, packed(spelling)), (SHAPE, array_of(b"\xcc\4"))]
    message = map_of((b"\1", b"\2"), *(fields[at] for at in order), (b"\3", b"\4"))
    value = b"\0"
    assert answered(message, asking("predicted")) == map_of(
        (b"\1", b"\2"), (b"\3", b"\4"), (packed("predicted"), value)
    )
    logarithms = bin_form(np.full(4, -np.log(np.ones((), width) * 4), width).tobytes())
    stay = {1: (DTYPE, packed(answer)), 2: fields[2]}
    expected = map_of(
        (b"\1", b"\2"), *(stay[at] for at in order if at), (b"\3", b"\4"), (packed("log_probabilities"), logarithms)
    )
    assert answered(message, asking("log_probabilities")) == expected


# Widths


@pytest.mark.parametrize("forced", [None, "float32", "float64"])
@pytest.mark.parametrize("wide", [False, True])
def test_every_number_has_the_width_of_the_tensor_or_the_one_that_is_forced(forced: str | None, *, wide: bool) -> None:
    """What is computed stays as wide as the logits demand; only the result is rounded or widened."""
    values = [0.1, 1.7, -3.3]
    message = map_of((LOGITS, float_list(values, ">f8" if wide else ">f4")))
    outputs = [output.value for output in Output if output is not Output.LABEL]
    natural = msgpack.unpackb(answered(message, asking(*outputs, top_k=3)))
    found = answered(message, asking(*outputs, top_k=3, dtype=forced))
    leaves_wide = forced == "float64" or (forced is None and wide)
    tag = 0xCB if leaves_wide else 0xCA
    values_of = {
        name: found[found.index(packed(name)) + len(packed(name)) :] for name in ("confidence", "entropy", "margin")
    }
    assert {value[0] for value in values_of.values()} == {tag}
    told = msgpack.unpackb(found)
    for name in ("confidence", "entropy", "margin"):
        assert told[name] == (float(np.float32(natural[name])) if not leaves_wide else natural[name])
    for name in ("probabilities", "log_probabilities"):
        rounded = np.array(natural[name], np.float64 if leaves_wide else np.float32)
        assert told[name] == rounded.tolist()
    assert told["top_k"]["indices"] == [1, 0, 2]
    assert told["top_k"]["probabilities"] == sorted(told["probabilities"], reverse=True)


@pytest.mark.parametrize("index", [127, 128, 255, 256, 65_535, 65_536])
def test_indices_have_their_shortest_form(index: int) -> None:
    """At every boundary of the forms, of records of one batch too, whose outputs then differ in length."""
    classes = 65_540
    profiles = asking("predicted", "top_k", top_k=2)
    messages = []
    for best in (index, 0, index):
        logits = np.zeros(classes, "<f4")
        logits[best] = 5
        messages.append(bin_message(logits.tobytes(), "<f4", [classes]))
    found = verdicts(Pipeline(Limits(1 << 20, MANY_CLASSES), profiles), messages)
    for best, output in zip((index, 0, index), found, strict=True):
        assert isinstance(output, bytes)
        second = 0 if best else 1
        assert output.startswith(b"\x82" + packed("predicted") + packed(best) + packed("top_k"))
        assert packed("indices") + array_of(packed(best), packed(second)) in output
    assert found == [transformed(message, profiles=profiles) for message in messages]


def test_labels_of_differing_length_are_each_record_s_own() -> None:
    """In one batch, as alone."""
    labels = ("x", "y" * 31, "z" * 32, "w" * 300)
    profiles = asking("label", "top_k", labels=labels, top_k=4)
    messages = [map_of((b"\xa2id", b"\x05"), (LOGITS, float_list(np.eye(4)[at % 4] * 9))) for at in range(9)]
    found = verdicts(Pipeline(Limits(1 << 20, MANY_CLASSES), profiles), messages)
    assert found == [transformed(message, profiles=profiles) for message in messages]
    for at, output in enumerate(found):
        assert isinstance(output, bytes)
        told = msgpack.unpackb(output)
        assert told["label"] == labels[at % 4]
        assert told["top_k"]["labels"] == [labels[at % 4], *(label for label in labels if label != labels[at % 4])]
