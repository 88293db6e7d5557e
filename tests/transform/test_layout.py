"""Layouts: messages of one length that differ in structure are never taken for one another."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transform_messages import (
    DTYPE,
    LOGITS,
    MANY_CLASSES,
    MIB,
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
    verdict,
    verdicts,
)

from service.transform.columnar import Workspace, transform_columns
from service.transform.layout import MAX_REMEMBERED, MAX_SIGHTINGS, MAX_STRUCTURE, Layout, Layouts, learn
from service.transform.message import parse
from service.transform.pipeline import Limits, Pipeline
from service.transform.profiles import Profile, Profiles
from service.transform.softmax import arithmetic

if TYPE_CHECKING:
    from numpy.typing import NDArray

TWO: Final = float_list([1.0, 2.0])
DATA: Final = b"\xa4data"


def fresh(profiles: Profiles = PROFILELESS) -> Pipeline:
    return Pipeline(Limits(MIB, MANY_CLASSES), profiles)


def lesson(message: bytes, profiles: Profiles = PROFILELESS, model: bytes | None = None) -> Layout | None:
    return learn(parse(message, model, profiles, MANY_CLASSES))


def layout_of(message: bytes) -> Layout:
    layout = lesson(message)
    assert layout is not None
    return layout


def columns(*messages: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(messages), np.uint8).reshape(len(messages), -1)


def field(value: bytes, key: bytes = b"\xa1x") -> bytes:
    """A message with the tensor between two fields, the first of which varies."""
    return map_of((key, value), (LOGITS, TWO), (b"\xa1y", b"\x01"))


def tensor_map(dtype: str = "<f4", count: int = 1, flag: bytes = b"\xa2nd\xc3", word: bytes = b"\xa4type") -> bytes:
    """A tensor map of a few bytes."""
    return map_of(
        (flag[:-1], flag[-1:]), (word, packed(dtype)), (SHAPE, bytes([0x91, count])), (DATA, bin_form(bytes(4)))
    )


def heads(*pairs: tuple[bytes, bytes]) -> bytes:
    return map_of((LOGITS, map_of(*pairs)), (b"\xa1y", b"\x01"))


# Pairs of one length: the first is learnt, the second must not be read like it.
LOOKALIKES: Final = {
    "the key of the tensor": (map_of((LOGITS, TWO)), map_of((b"\xa6logitz", TWO))),
    "the kind of the tensor's key": (map_of((b"\xd9\x06logits", TWO)), map_of((b"\xc4\x06logits", TWO))),
    "another key": (field(b"\x01", b"\xa2aa"), field(b"\x01", b"\xa2ab")),
    "a key becomes a second logits": (field(b"\x01", b"\xa6logitz"), field(b"\x01", LOGITS)),
    "a key becomes an output's": (field(b"\x01", b"\xadprobabilitie_"), field(b"\x01", PROBABILITIES)),
    "float32 becomes int32": (map_of((LOGITS, TWO)), map_of((LOGITS, TWO[:6] + b"\xd2" + TWO[7:]))),
    "every float32 becomes uint32": (map_of((LOGITS, TWO)), map_of((LOGITS, array_of(*[b"\xce\0\0\0\x05"] * 2)))),
    "the last float32 becomes text": (
        map_of((LOGITS, TWO)),
        map_of((LOGITS, array_of(float32(1), b"\xa4\xca\xca\xca\xca"))),
    ),
    "the dtype": (bin_message(bytes(8), "float32", [2]), bin_message(bytes(8), "float64", [2])),
    "the dtype and the shape": (bin_message(bytes(8), "float32", [2]), bin_message(bytes(8), "float64", [1])),
    "the byte order": (bin_message(bytes(8), "<f4", [2]), bin_message(bytes(8), ">f4", [2])),
    "bfloat16 or float16": (bin_message(bytes(8), "FP16", [4]), bin_message(bytes(8), "BF16", [4])),
    "the shape": (bin_message(bytes(24), "<f4", [2, 3]), bin_message(bytes(24), "<f4", [3, 2])),
    "a shape that disagrees": (bin_message(bytes(24), "<f4", [2, 3]), bin_message(bytes(24), "<f4", [2, 2])),
    "a negative size": (bin_message(bytes(4), "<f4", [1, 1]), bin_message(bytes(4), "<f4", [-1, -1])),
    "dtype becomes another field": (
        map_of((LOGITS, bin_form(bytes(4))), (DTYPE, packed("<f4")), (SHAPE, array_of(b"\x01"))),
        map_of((LOGITS, bin_form(bytes(4))), (b"\xa5dtypo", packed("<f4")), (SHAPE, array_of(b"\x01"))),
    ),
    "the model": (field(packed("resnet"), b"\xa5model"), field(packed("lenet5"), b"\xa5model")),
    "nil or true": (field(b"\xc0"), field(b"\xc3")),
    "true or false": (field(b"\xc3"), field(b"\xc2")),
    "a fixint or nil": (field(b"\x40"), field(b"\xc0")),
    "a fixint or an empty map": (field(b"\x00"), field(b"\x80")),
    "a fixint or an empty array": (field(b"\x10"), field(b"\x90")),
    "a fixint or an empty str": (field(b"\x20"), field(b"\xa0")),
    "a fixint of the other sign": (field(b"\x7f"), field(b"\xff")),
    "a negative fixint or nil": (field(b"\xe0"), field(b"\xc0")),
    "a negative fixint or 0xc1": (field(b"\xe1"), field(b"\xc1")),
    "an empty array eats a field": (field(b"\x90"), field(b"\x91")),
    "an empty map eats a field": (field(b"\x80"), field(b"\x81")),
    "a str or a bin": (field(b"\xd9\x02hi"), field(b"\xc4\x02hi")),
    "a str eats its neighbour": (field(array_of(b"\xa1a", b"\xa1b")), field(array_of(b"\xa2a\xa1", b"\x62"))),
    "the length of a bin": (field(array_of(b"\xc4\x01!", b"\xa1!")), field(array_of(b"\xc4\x02!!", b"\x01"))),
    "the width of integers": (
        field(array_of(b"\xcd\x01\x02", b"\xcc\x03")),
        field(array_of(b"\xcc\x01", b"\xcd\x02\x03")),
    ),
    "an integer or a float": (field(b"\xd2\0\0\0\0"), field(b"\xca\0\0\0\0")),
    "an extension or an integer": (field(ext_form(1, b"\x01")), field(b"\xcd\x01\x01")),
    "fields in another order": (
        map_of((LOGITS, TWO), (b"\xa1x", b"\xa3abc")),
        map_of((b"\xa1x", b"\xa3abc"), (LOGITS, TWO)),
    ),
    "the number of fields": (map_of((LOGITS, TWO), (b"\x01", b"\x02")), b"\x81" + LOGITS + TWO + b"\x01\x02"),
    "fixints or floats": (array_of(b"\x01", b"\x02", b"\x03", b"\x04", b"\x05"), array_of(b"\xca\x02\x03\x04\x05")),
    "a fixint or the tag of an integer": (array_of(b"\x01", b"\x02"), array_of(b"\xcc\x02")),
    "a fixint or nil as logit": (array_of(b"\x01", b"\x02"), array_of(b"\x01", b"\xc0")),
    "a fixint or a map as logit": (array_of(b"\x01", b"\x02"), array_of(b"\x01", b"\x80")),
    "a fixint or a list as logit": (array_of(b"\x01", b"\x02"), array_of(b"\x01", b"\x90")),
    "a fixint or 0xc1 as logit": (array_of(b"\x01", b"\x02"), array_of(b"\x01", b"\xc1")),
    "the rank": (array_of(b"\x91\x01", b"\x91\x02"), array_of(b"\x91\x01", b"\xcc\x02")),
    "the length of a row": (array_of(b"\x92\1\2", b"\x92\1\2"), array_of(b"\x93\1\2\3", b"\x91\2")),
    "a row's header becomes a number": (array_of(b"\x91\1", b"\x91\1"), array_of(b"\x91\1", b"\x01\1")),
    "the dtype of a tensor map": (tensor_map("<f4", 1), tensor_map("<i2", 2)),
    "its byte order": (tensor_map("<i4", 1), tensor_map(">i4", 1)),
    "its spelling": (tensor_map("BF16", 2), tensor_map("FP16", 2)),
    "its flag": (tensor_map(), tensor_map(flag=b"\xa2nd\xc2")),
    "its shape": (tensor_map("|i1", 4), tensor_map("|i1", 3)),
    "the key of its dtype": (tensor_map(), tensor_map(word=b"\xa4dype")),
    "its flag's key": (tensor_map(), tensor_map(flag=b"\xa2mb\xc3")),
    "a bare tensor map or a message": (
        map_of((b"\xa2nd", b"\xc3"), (LOGITS, TWO)),
        map_of((b"\xa2nd", b"\xc3"), (b"\xa6logitz", TWO)),
    ),
    "the name of a head": (heads((b"\xa1a", TWO), (b"\xa1b", TWO)), heads((b"\xa1a", TWO), (b"\xa1c", TWO))),
    "a head's name makes a tensor map": (heads((b"\xa2nb", TWO)), heads((b"\xa2nd", TWO))),
    "a head's number of classes": (
        heads((b"\xa1a", b"\x93\1\2\3"), (b"\xa1b", b"\x91\1")),
        heads((b"\xa1a", b"\x91\1"), (b"\xa1b", b"\x93\1\2\3")),
    ),
    "a head of another kind": (
        heads((b"\xa1a", b"\x91\1"), (b"\xa1b", b"\x91\1")),
        heads((b"\xa1a", b"\x91\1"), (b"\xa1b", b"\xcc\1")),
    ),
    "the number of classes": (TWO, b"\x91" + TWO[1:]),
    "the number of classes, in a long header": (b"\xdc\0\x02" + TWO[1:], b"\xdc\0\x03" + TWO[1:]),
}


@pytest.mark.parametrize("name", LOOKALIKES)
def test_messages_of_one_length_are_not_confused(name: str) -> None:
    """Learnt either way round, alone or mixed, each has the result it has by itself."""
    first, second = LOOKALIKES[name]
    assert len(first) == len(second)
    assert first != second
    expected = {message: verdict(message) for message in (first, second)}
    assert isinstance(expected[first], bytes)
    for learnt, other in ((first, second), (second, first)):
        pipeline = fresh()
        for batch in ([learnt] * 2, [other], [other] * 2, [learnt, other, learnt, other], [other, learnt]):
            assert verdicts(pipeline, batch) == [expected[message] for message in batch]


BASES: Final = {
    "a list between fields": map_of(
        (b"\xa2id", b"\xa4ab\xca\xcb"), (b"\xa1n", b"\x05"), (LOGITS, TWO),
        (b"\xa1m", array_of(b"\xe5", b"\xcd\x01\x02", b"\xc0")),
    ),
    "a bin before its dtype and shape": bin_message(bytes(range(8)), ">f4", [1, 2], (b"\xa2id", b"\xd9\x02hi")),
    "a bin after its dtype and shape": map_of(
        (SHAPE, array_of(b"\x02", b"\x02")), (DTYPE, packed("INT8")),
        (b"\xc4\x01k", b"\xc4\x02\x01\x02"), (LOGITS, bin_form(b"\1\2\3\4")),
    ),
    "a bare list": float_list([0.5, -1.0, 3.0]),
    "fixints": map_of((LOGITS, array_of(b"\x01", b"\xff", b"\x7f")), (b"\xa1y", b"\x01")),
    "nested lists": array_of(b"\xdc\0\1" + float32(1), b"\xdc\0\1" + float32(2)),
    "integers four deep": array_of(array_of(array_of(array_of(b"\xcc\x01", b"\xcc\x02")))),
    "a tensor map": map_of(
        (LOGITS, map_of((b"\xa2nd", b"\xc3"), (DATA, b"\xc4\2\1\2"), (b"\xc4\4type", b"\xa3|i1"), (SHAPE, b"\x91\2")))
    ),
    "a bare tensor map": map_of(
        (DTYPE, packed("BF16")), (SHAPE, b"\x91\2"), (DATA, bin_form(bytes(4))), (packed("__ndarray__"), b"\xc3")
    ),
    "heads": map_of((LOGITS, map_of((b"\x05", b"\x92\1\2"), (b"\xa1h", b"\x91" + float32(1))))),
    "nested payloads": map_of(
        (LOGITS, float_list([1.0], ">f8")),
        (b"\xa1e", map_of((b"\x01", ext_form(3, b"\xa6lo")), (b"\xa1q", array_of(b"\x80", b"\x90")))),
    ),
    "a model": map_of((b"\xa5model", b"\xa2v1"), (LOGITS, float_list([1.0]))),
}  # fmt: skip


def assert_no_neighbour_is_confused(base: bytes) -> None:
    """Compare every message that differs from `base` in one byte, in one batch with it, with itself alone."""
    mutants = [
        base[:at] + bytes([byte]) + base[at + 1 :] for at in range(len(base)) for byte in range(256) if byte != base[at]
    ]
    batch = [base, base, *mutants]
    pipeline = fresh()
    verdicts(pipeline, [base, base])
    assert verdicts(pipeline, batch) == [verdict(message) for message in batch]


@pytest.mark.parametrize("name", BASES)
def test_no_single_byte_is_wrongly_ignored(name: str) -> None:
    """Each of the 255 other values of each byte of a learnt message: 3 000 to 15 000 neighbours."""
    assert_no_neighbour_is_confused(BASES[name])


EMPTY_PAYLOADS: Final = {
    "bin 8": b"\xc4\0",
    "bin 16": b"\xc5\0\0",
    "bin 32": b"\xc6\0\0\0\0",
    "str 8": b"\xd9\0",
    "str 16": b"\xda\0\0",
    "str 32": b"\xdb\0\0\0\0",
}


@pytest.mark.parametrize("name", EMPTY_PAYLOADS)
def test_no_single_byte_is_wrongly_ignored_around_an_empty_payload(name: str) -> None:
    """Where a length of none is followed by what is not its payload."""
    assert_no_neighbour_is_confused(map_of((b"\x01", EMPTY_PAYLOADS[name]), (LOGITS, float_list([0.0]))))


@pytest.mark.parametrize(
    "empty", [b"\xa0", b"\xc7\0\x05", b"\xc8\0\0\xfb", b"\x90", b"\x80", b"\xde\0\0"], ids=lambda value: value.hex()
)
def test_no_single_byte_is_wrongly_ignored_around_other_empty_objects(empty: bytes) -> None:
    """Strings, extensions and containers."""
    assert_no_neighbour_is_confused(map_of((b"\x01", empty), (LOGITS, float_list([0.0]))))


def test_a_length_that_runs_over_the_tensor_is_refused_beside_an_empty_bin() -> None:
    """The least case: the neighbour is no valid message at all, yet would be answered."""
    empty, running_over = (map_of((b"\xa1x", value), (LOGITS, float_list([0.0]))) for value in (b"\xc4\0", b"\xc4\x01"))
    outcome = fresh().transform([empty, empty, running_over])
    assert outcome.outputs[2] is None


varying = st.tuples(
    st.binary(min_size=4, max_size=4),
    st.integers(0, 127),
    st.integers(-32, -1),
    st.binary(min_size=8, max_size=8),
    st.binary(min_size=3, max_size=3),
    st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3),
)


@given(rows=st.lists(varying, min_size=2, max_size=8))
def test_values_that_vary_within_one_layout_are_taken_from_each_record(
    rows: list[tuple[bytes, int, int, bytes, bytes, list[float]]],
) -> None:
    """Ids, counters, time stamps, extension data, even payloads that look like tags: all columnar, all echoed."""
    messages = [
        map_of(
            (b"\xa2id", str_form(name)),
            (b"\xa1a", array_of(bytes([small]), bytes([negative & 0xFF]))),
            (LOGITS, float_list(values)),
            (b"\xa1t", b"\xcf" + stamp),
            (b"\xa1e", b"\xc7\x03\x05" + extension),
        )
        for name, small, negative, stamp, extension, values in rows
    ]
    outcome = fresh().transform(messages)
    assert (outcome.columnar, outcome.general) == (len(messages), 0)
    assert outcome.outputs == [verdict(message) for message in messages]


@pytest.mark.parametrize(
    "template",
    [
        lambda name: map_of((b"\xa2id", str_form(name)), (LOGITS, TWO)),
        lambda name: map_of((LOGITS, TWO), (b"\xa2id", bin_form(name))),
        lambda name: map_of((LOGITS, TWO), (b"\xa2id", b"\xcf" + name)),
        lambda name: bin_message(name, "<f4", [2]),
        lambda name: bin_message(name, "int8", [2, 4]),
        lambda name: map_of((b"\xa1m", array_of(map_of((b"\x01", b"\xd3" + name)))), (LOGITS, TWO)),
    ],
)
def test_varying_payloads_take_the_columnar_path_in_a_later_batch_too(template: object) -> None:
    """The layout is remembered, their values are not."""
    assert callable(template)
    pipeline = fresh()
    for batch in range(3):
        messages = [template(bytes([0, 0, batch, at, 1, 2, 0x3F, 0x40])) for at in range(50)]
        outcome = pipeline.transform(messages)
        assert (outcome.columnar, outcome.general) == (50, 0)
        assert outcome.outputs == [verdict(message) for message in messages]


def test_ids_of_varying_width_are_columnar_by_width() -> None:
    """Each width is a layout."""
    messages = [map_of((b"\xa2id", packed(f"record {10**at}")), (LOGITS, TWO)) for at in range(5) for _ in range(4)]
    outcome = fresh().transform(messages)
    assert (outcome.columnar, outcome.general) == (20, 0)


def test_one_model_is_one_layout_whatever_follows_another() -> None:
    """`model` decides how a message is read, so it is structure; an id of equal length is not."""
    profiles = Profiles({"v2": Profile(outputs=("predicted",))})
    first, second = (map_of((b"\xa5model", name), (LOGITS, TWO)) for name in (b"\xa2v1", b"\xa2v2"))
    assert verdicts(fresh(profiles), [first, first, second, second, first]) == [
        verdict(message, profiles=profiles) for message in (first, first, second, second, first)
    ]
    assert layout_of(first).met_by(columns(first, second)).tolist() == [True, False]
    first, second = (map_of((b"\xa2id", name), (LOGITS, TWO)) for name in (b"\xa2v1", b"\xa2v2"))
    assert layout_of(first).met_by(columns(first, second)).tolist() == [True, True]


@pytest.mark.parametrize("name", BASES)
def test_a_message_meets_its_own_layout_and_columns_equal_the_general_path(name: str) -> None:
    """Byte for byte."""
    base = BASES[name]
    layout = layout_of(base)
    assert layout.met_by(columns(base, base)).all()
    with arithmetic():
        (outputs,) = transform_columns(columns(base, base, base), layout, Workspace())
    assert (outputs.valid, outputs.lengths) == (None, None)
    assert [row.tobytes() for row in outputs.content] == [verdict(base)] * 3


def test_records_without_a_distribution_are_told_apart_in_columns() -> None:
    """By one flag a record, if there is any such record."""
    good, bad, masked = (map_of((LOGITS, float_list(z))) for z in ([1.0, 2.0], [np.nan, 1.0], [-np.inf, -np.inf]))
    with arithmetic():
        (outputs,) = transform_columns(columns(good, bad, masked, good), layout_of(good), Workspace())
    assert outputs.valid is not None
    assert outputs.valid.tolist() == [True, False, False, True]


def test_one_bad_row_of_a_record_refuses_the_record_alone() -> None:
    """Its other rows with it, its neighbours not."""
    rows = np.zeros((3, 2, 2), "<f4")
    rows[1, 1, 0] = np.nan
    messages = [bin_message(row.tobytes(), "<f4", [2, 2]) for row in rows]
    outcome = fresh().transform(messages)
    assert list(outcome.refusals) == [1]
    assert (outcome.columnar, outcome.general) == (2, 0)


@pytest.mark.parametrize(
    "tensor",
    [
        array_of(b"\x01", b"\xcc\x02"),
        array_of(b"\x01", float32(2)),
        array_of(float32(1), b"\xcb" + bytes(8)),
        array_of(b"\x91\x01", b"\xdc\0\1\x01"),
        map_of((b"\x01", TWO), (b"\x02", array_of(b"\x01", b"\xcc\x02"))),
    ],
)
def test_lists_that_mix_encodings_have_no_layout(tensor: bytes) -> None:
    """Nor has a message of which one head does: the numbers of another like it may lie elsewhere."""
    assert lesson(map_of((LOGITS, tensor))) is None
    assert layout_of(map_of((LOGITS, array_of(b"\x01", b"\x02")))) is not None


def test_messages_of_an_unknown_model_have_no_layout_where_models_are_strict() -> None:
    """They are refused one by one, by their header or by their field."""
    strict = Profiles({"known": Profile()}, strict=True)
    message = map_of((b"\xa5model", b"\xa5known"), (LOGITS, TWO))
    assert lesson(message, strict, b"unknown") is not None
    assert lesson(message.replace(b"known", b"other"), strict) is None
    assert lesson(TWO, strict, b"unknown") is None
    assert lesson(TWO, strict) is not None


def test_much_structure_has_no_layout_but_the_same_answer() -> None:
    """What counts is what stands around the tensor."""
    room = MAX_STRUCTURE - (len(map_of((b"\xa1x", bin_form(b"", 2)), (LOGITS, TWO))) - len(TWO))
    at_limit, over = (map_of((b"\xa1x", bin_form(bytes(room + more), 2)), (LOGITS, TWO)) for more in (0, 1))
    assert lesson(at_limit) is not None
    assert lesson(over) is None
    outcome = fresh().transform([over, over])
    assert (outcome.columnar, outcome.general) == (0, 2)
    assert outcome.outputs == [verdict(over)] * 2


# What is remembered


def test_the_least_recently_used_keys_are_forgotten() -> None:
    """As many as the bytes of the others demand."""
    some = layout_of(BASES["a bare list"])
    layouts = Layouts(max_bytes=4 * some.size, per_key=2)
    for key in (1, 2, 3, 4):
        layouts.use(key, some)
    assert layouts.of(1) == [some]  # a look counts as use
    layouts.use(5, some)
    assert [bool(layouts.of(key)) for key in (1, 2, 3, 4, 5)] == [True, False, True, True, True]


def test_the_least_recently_used_layouts_of_a_key_are_forgotten() -> None:
    """So many may one key have."""
    layouts, (one, two, three) = (
        Layouts(per_key=2),
        (layout_of(base) for base in list(BASES.values())[:3]),
    )
    layouts.use(9, one)
    layouts.use(9, two)
    assert layouts.of(9) == [two, one]
    layouts.use(9, one)
    layouts.use(9, three)
    assert layouts.of(9) == [three, one]


def test_a_layout_that_would_push_out_all_others_is_not_kept() -> None:
    """Nor does it push out any."""
    some, large = layout_of(BASES["a bare list"]), layout_of(float_list(np.zeros(3000)))
    layouts = Layouts(max_bytes=4 * large.size - 1)
    layouts.use(1, some)
    layouts.use(2, large)
    assert (layouts.of(1), layouts.of(2)) == ([some], [])
    enough = Layouts(max_bytes=4 * large.size)
    enough.use(2, large)
    assert enough.of(2) == [large]


def test_layouts_of_one_key_do_not_push_out_each_other_all_at_once() -> None:
    """However large they are together, the one just met is kept."""
    some = [layout_of(float_list(np.zeros(1000 + at))) for at in range(8)]
    layouts = Layouts(max_bytes=4 * max(layout.size for layout in some))
    for layout in some:
        layouts.use(9, layout)
        assert layouts.of(9)[:1] == [layout]


def test_keys_are_told_apart_by_all_that_they_hold() -> None:
    """A length may have layouts under one model's name that are none under another's."""
    some = layout_of(BASES["a bare list"])
    layouts = Layouts()
    layouts.use((5, "alpha"), some)
    assert layouts.of((5, "alpha")) == [some]
    assert layouts.of((5, "beta")) == layouts.of(5) == []


def test_a_layout_used_again_is_not_kept_twice() -> None:
    """It moves to the front."""
    layouts, (one, two) = Layouts(), (layout_of(base) for base in list(BASES.values())[:2])
    for layout in (one, one, two, one):
        layouts.use(9, layout)
    assert layouts.of(9) == [one, two]


def test_a_pipeline_remembers_a_bounded_number_of_layouts() -> None:
    """By bytes in all, by number for one key."""
    pipeline = fresh()
    for classes in range(1, 3000):
        message = float_list(np.zeros(classes))
        pipeline.transform([message, message])
    for at in range(40):
        message = map_of((bytes([0xA2, 97, 97 + at]), b"\x01"), (LOGITS, TWO))
        pipeline.transform([message, message])
    known = pipeline._core.layouts._by_key
    assert sum(layout.size for layouts in known.values() for layout in layouts) <= MAX_REMEMBERED
    assert max(map(len, known.values())) == 8


@pytest.mark.parametrize(
    "profile",
    [
        Profile(outputs=("log_probabilities",)),
        Profile(outputs=("log_probabilities",), dtype="float64"),
        Profile(outputs=("log_probabilities", "probabilities"), dtype="float64"),
        Profile(outputs=("predicted",)),
        Profile(outputs=("top_k", "probabilities"), top_k=1000),
    ],
    ids=lambda profile: " ".join(profile.outputs),
)
@pytest.mark.parametrize("encoding", ["bin", "fixints", "tensor map"])
def test_what_is_remembered_of_messages_is_bounded_whatever_leaves(encoding: str, profile: Profile) -> None:
    """Containers that are laid out for an answer count too: an int8 may leave as eight bytes."""
    pipeline = fresh(Profiles(default=profile))
    messages = []
    for at in range(40):
        numbers = bytes(60_000 + at)
        if encoding == "bin":
            messages.append(bin_message(numbers, "int8", [len(numbers)]))
        elif encoding == "fixints":
            messages.append(map_of((LOGITS, b"\xdd" + len(numbers).to_bytes(4, "big") + numbers)))
        else:
            tensor = {"nd": True, "type": "|i1", "shape": [len(numbers)], "data": numbers}
            messages.append(packed({"logits": tensor}))
    tracemalloc.start()
    for message in messages:
        outcome = pipeline.transform([message, message])
        assert not outcome.refusals
    del outcome
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Beside the layouts, the workspace for two records.
    assert kept < MAX_REMEMBERED + 3 * MIB


def test_what_a_pipeline_keeps_of_large_tensors_is_bounded() -> None:
    """Their layouts count like all others, and of the last there is the workspace."""
    pipeline = fresh()
    tensors = [np.zeros(MIB // 20 - at, np.float32) for at in range(16)]
    tracemalloc.start()
    for tensor in tensors:
        message = float_list(tensor)
        pipeline.transform([message, message])
    del message
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < MAX_REMEMBERED + 2 * MIB


def test_a_kind_that_comes_alone_is_learnt_at_its_second_coming() -> None:
    """The first is transformed as a stranger; the bytes are the same."""
    message = map_of((LOGITS, TWO))
    pipeline = fresh()
    found = [pipeline.transform([message]) for _ in range(3)]
    assert [(outcome.general, outcome.columnar) for outcome in found] == [(1, 0), (0, 1), (0, 1)]
    assert found[0].outputs == found[1].outputs == found[2].outputs


def test_what_cannot_be_learnt_is_tried_once() -> None:
    """Numbers of mixed widths have no layout: they go on being strangers."""
    message = map_of((LOGITS, b"\x92\x01" + float32(2.0)))
    pipeline = fresh()
    assert [pipeline.transform([message]).general for _ in range(4)] == [1, 1, 1, 1]


def test_sightings_are_forgotten_before_they_are_too_many() -> None:
    layouts = Layouts()
    assert [layouts.second_sight(0) for _ in range(3)] == [False, True, False]
    assert not layouts.second_sight("again")
    for key in range(1, MAX_SIGHTINGS + 1):
        assert not layouts.second_sight(key)
    assert not layouts.second_sight("again")
