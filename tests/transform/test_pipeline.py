"""Same bytes in, same bytes out: a record's result depends on nothing but the record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transform_messages import (
    LOGITS,
    MANY_CLASSES,
    PROFILELESS,
    SHAPE,
    SPELLINGS,
    array_of,
    bin_form,
    bin_message,
    ext_form,
    float32,
    float64,
    float_list,
    map_of,
    packed,
    stored,
    str_form,
    verdict,
    verdicts,
)

from service.transform.pipeline import CHUNK_BYTES, MAX_LESSONS, Limits, Pipeline
from service.transform.profiles import DEFAULT, Profile, Profiles
from service.transform.softmax import BLOCK_ELEMENTS, CLASS_MAJOR_BELOW

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import SearchStrategy
    from numpy.typing import NDArray
    from transform_messages import Verdict

MAX_BYTES: Final = 1 << 20
BY_NAME: Final = {spelling.name: spelling for spelling in SPELLINGS}
LISTS: Final = {"float32 list": ">f4", "float64 list": ">f8"}
BINS: Final = ["<f2", ">f4", "float64", "BF16", "int8", "UINT64", ">i2"]
NESTED: Final = ["rows", "tensor map", "heads", "mixed heads"]
KINDS: Final = [*LISTS, "integers", "fixints", "mixed", "bare", *BINS, "two rows", *NESTED]
TWO: Final = float_list([1.0, 2.0])
DEFECTS: Final = ["nan", "+inf", "all masked", "truncated", "trailing", "text", "extension", "no logits"]


@dataclass(frozen=True)
class Recipe:
    """A family of messages of one layout; the seed chooses the member."""

    kind: str
    classes: int
    id_width: int
    defect: str | None = None

    def make(self, seed: int) -> bytes:
        """One message of the family."""
        rng = np.random.default_rng(seed)
        values = (rng.normal(size=self.classes) * 6).astype(np.float32).astype(np.float64)
        values[rng.random(self.classes) < 0.1] = -np.inf
        values[int(rng.integers(self.classes))] = 1
        if self.defect in {"nan", "+inf"}:
            values[int(rng.integers(self.classes))] = np.nan if self.defect == "nan" else np.inf
        elif self.defect == "all masked":
            values[:] = -np.inf
        name = rng.integers(0, 256, self.id_width).astype(np.uint8).tobytes()
        extra = [(b"\xa2id", str_form(name)), (b"\xa2at", packed(int(rng.integers(2**40, 2**62))))]
        message = self._around(values, extra)
        if self.defect == "truncated":
            return message[: len(message) - int(rng.integers(1, 5))]
        return message + b"\xc0" if self.defect == "trailing" else message

    @staticmethod
    def _whole(value: float) -> bytes:
        return packed(round(value) if math.isfinite(value) else 0)

    def _around(self, values: NDArray[Any], extra: list[tuple[bytes, bytes]]) -> bytes:
        if self.defect in {"text", "extension"}:
            wrong = b"\xa4five" if self.defect == "text" else ext_form(1, b"5555")[:-1]
            return map_of((LOGITS, float_list(values)[:-5] + wrong), *extra)
        if self.kind in BY_NAME or self.kind == "two rows":
            spelling = BY_NAME.get(self.kind, BY_NAME["float32"])
            if spelling.stored[1] in "iu":
                values = np.clip(np.nan_to_num(values), 0, 100)
            shape = [2, self.classes] if self.kind == "two rows" else [self.classes]
            payload = stored(values, spelling.stored) * (len(shape))
            return bin_message(payload, spelling.name, shape, *extra)
        if self.kind == "bare":
            return float_list(values)
        if self.kind in NESTED:
            return map_of(extra[0], (LOGITS, self._nested(values)), extra[1])
        if self.kind == "fixints":
            whole = np.clip(np.nan_to_num(values), -32, 127).astype(np.int8)
            tensor = float_list([0.0] * self.classes)[: -5 * self.classes] + whole.tobytes()
        elif self.kind == "integers":
            whole = np.clip(np.nan_to_num(values), -100, 100).astype(int)
            tensor = array_of(*(b"\xd2" + int(value).to_bytes(4, "big", signed=True) for value in whole))
        elif self.kind == "mixed":
            makers = [float32, float64, self._whole]
            tensor = array_of(*(makers[at % 3](float(value)) for at, value in enumerate(values)))
        else:
            tensor = float_list(values, LISTS[self.kind])
        key = b"\xa6logitz" if self.defect == "no logits" else LOGITS
        return map_of(extra[0], (key, tensor), extra[1])

    def _nested(self, values: NDArray[Any]) -> bytes:
        if self.kind == "rows":
            return array_of(float_list(values), float_list(values[::-1]), float_list(values))
        data = (b"\xa4data", bin_form(values.astype("<f4").tobytes()))
        tensor = map_of(data, (b"\xa2nd", b"\xc3"), (b"\xa4type", b"\xa3<f4"), (SHAPE, packed([self.classes])))
        if self.kind == "tensor map":
            return tensor
        mixed = array_of(b"\x01", float32(float(values[0])))
        last = mixed if self.kind == "mixed heads" else float_list(values, ">f8")
        return map_of((b"\xa1a", tensor), (b"\xa1b", float_list(values)), (b"\x03", last))


def recipes() -> SearchStrategy[Recipe]:
    return st.builds(
        Recipe,
        st.sampled_from(KINDS),
        st.sampled_from([1, 2, 3, 9, 127, 128, 129, CLASS_MAJOR_BELOW - 1, CLASS_MAJOR_BELOW, 520]),
        st.sampled_from([1, 2, 16]),
        st.none() | st.none() | st.sampled_from(DEFECTS),
    )


EVERYTHING: Final = Profile(
    outputs=("top_k", "probabilities", "log_probabilities", "predicted", "confidence", "entropy", "margin"), top_k=3
)
PROFILES: Final = {
    "alpha": EVERYTHING,
    "beta": Profile(temperature=0.5, masked=(0, 200), outputs=("predicted", "confidence")),
    "gamma": Profile(classes=3, labels=("a", "b" * 40, "c" * 300), outputs=("label", "probabilities"), dtype="float64"),
}


def fresh(profiles: Profiles = PROFILELESS) -> Pipeline:
    return Pipeline(Limits(MAX_BYTES, MANY_CLASSES), profiles)


def in_batches(
    pipeline: Pipeline, messages: Sequence[bytes], cuts: Sequence[int], models: Sequence[bytes | None] | None = None
) -> list[Verdict]:
    """Results of messages that pass in batches which end at `cuts`."""
    edges = sorted({0, len(messages), *(cut % (len(messages) + 1) for cut in cuts)})
    return [
        found
        for start, stop in pairwise(edges)
        for found in verdicts(pipeline, messages[start:stop], models[start:stop] if models else None)
    ]


@st.composite
def message_lists(draw: st.DrawFn) -> list[bytes]:
    """Several families with several members each, in any order, some of them more than once."""
    families = draw(st.lists(st.tuples(recipes(), st.integers(1, 6), st.integers(0, 2**31)), min_size=1, max_size=6))
    messages = [recipe.make(seed + number) for recipe, count, seed in families for number in range(count)]
    repeated = draw(st.lists(st.sampled_from(messages), max_size=4))
    return draw(st.permutations(messages + repeated))


@given(messages=message_lists(), data=st.data())
def test_batching_and_order_do_not_matter(messages: list[bytes], data: st.DataObject) -> None:
    """Alone, in one batch, in batches cut anywhere, in another order, through a cold or a warm pipeline."""
    expected = [verdict(message) for message in messages]
    warm = fresh()
    assert verdicts(warm, messages) == expected
    assert [verdicts(fresh(), [message])[0] for message in messages] == expected
    cuts = data.draw(st.lists(st.integers(0, 1000), max_size=6))
    assert in_batches(fresh(), messages, cuts) == expected
    order = data.draw(st.permutations(range(len(messages))))
    shuffled = [messages[at] for at in order]
    for pipeline in (warm, fresh()):
        assert in_batches(pipeline, shuffled, cuts) == [expected[at] for at in order]


@given(messages=message_lists(), data=st.data(), strict=st.booleans())
def test_batching_and_order_do_not_matter_under_any_profiles(
    messages: list[bytes], data: st.DataObject, *, strict: bool
) -> None:
    """Which apply by the records' headers: alone or together, in this order or another."""
    profiles = Profiles(PROFILES, default=data.draw(st.sampled_from([Profile(), EVERYTHING])), strict=strict)
    headers = st.sampled_from([None, b"alpha", b"alpha", b"beta", b"gamma", b"delta", b"\xff", b"default"])
    models = [data.draw(headers) for _ in messages]
    expected = [
        verdict(message, MANY_CLASSES, profiles, model) for message, model in zip(messages, models, strict=True)
    ]
    warm = fresh(profiles)
    assert verdicts(warm, messages, models) == expected
    cuts = data.draw(st.lists(st.integers(0, 1000), max_size=4))
    order = data.draw(st.permutations(range(len(messages))))
    for pipeline in (warm, fresh(profiles)):
        found = in_batches(pipeline, [messages[at] for at in order], cuts, [models[at] for at in order])
        assert found == [expected[at] for at in order]


def test_each_record_is_told_with_the_profile_that_applied() -> None:
    """By its field, else by its header; alone or among others."""
    profiles = Profiles({"alpha": Profile(temperature=2), "beta": Profile()})
    by_field, by_header = map_of((b"\xa5model", packed("beta")), (LOGITS, TWO)), map_of((LOGITS, TWO))
    batch = [
        (by_field, b"alpha"),
        (by_header, b"alpha"),
        (by_header, b"beta"),
        (by_header, b"gamma"),
        (by_header, None),
    ]
    names = ["beta", "alpha", "beta", DEFAULT, DEFAULT]
    for times in (1, 3):
        outcome = fresh(profiles).transform(
            [message for message, _ in batch] * times, [header for _, header in batch] * times
        )
        assert outcome.models == names * times


def test_headers_matter_only_where_there_are_profiles_to_select() -> None:
    """A caller need not look for them otherwise."""
    assert not fresh().needs_models
    assert not fresh(Profiles(default=EVERYTHING)).needs_models
    assert fresh(Profiles(PROFILES)).needs_models
    assert fresh(Profiles(strict=True)).needs_models
    assert fresh().transform([TWO, TWO], [b"alpha", b"beta"]).columnar == 2


def test_headers_that_select_the_same_profile_are_one_kind() -> None:
    """Whatever they say; another profile's records of the same length are another."""
    message = Recipe("float32 list", 5, 4).make(1)
    outcome = fresh(Profiles(PROFILES)).transform([message] * 6, [None, b"x", b"\xff", b"default", b"alpha", b"alpha"])
    assert (outcome.columnar, outcome.general) == (6, 0)
    outcome = fresh(Profiles(PROFILES, strict=True)).transform([message] * 4, [b"x", b"y", b"alpha", b"alpha"])
    assert (outcome.columnar, outcome.general) == (2, 0)
    assert [str(refusal.reason) for refusal in outcome.refusals.values()] == ["unknown_model"] * 2


@given(messages=message_lists(), data=st.data())
def test_tombstones_and_giants_between_records_change_nothing(messages: list[bytes], data: st.DataObject) -> None:
    """They are refused by themselves."""
    limit = max(map(len, messages))
    pipeline = Pipeline(Limits(limit, MANY_CLASSES))
    batch: list[bytes | None] = list(messages)
    for intruder in (None, bytes(limit + 1), None):
        batch.insert(data.draw(st.integers(0, len(batch))), intruder)
    expected = {message: verdict(message) for message in messages}
    for value, found in zip(batch, verdicts(pipeline, batch), strict=True):
        if value is None:
            assert found[0] == "null_value"
        elif len(value) > limit:
            assert found[0] == "too_large"
        else:
            assert found == expected[value]


@pytest.mark.parametrize("kind", [*LISTS, "fixints", "float16", "int8", "two rows", "rows", "tensor map", "heads"])
@pytest.mark.parametrize("classes", [1, 2, 3, 128, 129, CLASS_MAJOR_BELOW - 1, CLASS_MAJOR_BELOW, 1000, 20_000])
def test_every_number_of_records_gives_the_same_bits(kind: str, classes: int) -> None:
    """Around the threshold of the memory layout and the block, for counts that leave every remainder of a lane."""
    counts = [1, 2, 3, 5, 8, 9, 33, 64, 65, 130] if classes <= 1000 else [1, 2, 3, 4]
    messages = [Recipe(kind, classes, 8).make(seed) for seed in range(max(counts))]
    expected = [verdict(message) for message in messages]
    assert all(isinstance(result, bytes) for result in expected)
    pipeline = fresh()
    for count in counts:
        assert verdicts(pipeline, messages[-count:]) == expected[-count:]


@pytest.mark.parametrize("kind", ["float32 list", "int8"])
@pytest.mark.parametrize("classes", [40, CLASS_MAJOR_BELOW - 1, CLASS_MAJOR_BELOW])
def test_the_boundaries_of_blocks_and_chunks_change_nothing(kind: str, classes: int) -> None:
    """More numbers than a block and more bytes than a chunk hold, invalid records on either side of a boundary."""
    good, bad = (Recipe("float32 list", classes, 4, defect) for defect in (None, "nan"))
    few = [Recipe(kind, classes, 4).make(seed) for seed in range(7)]
    edges = [BLOCK_ELEMENTS // classes, CHUNK_BYTES // len(few[0])]
    messages = [few[at % 7] for at in range(2 * max(edges) + 3)]
    for edge in edges:
        for at in (0, edge - 1, edge + 1, 2 * edge):
            messages[at] = (bad if at % 2 else good).make(at)
    expected = {message: verdict(message) for message in set(messages)}
    assert verdicts(fresh(), messages) == [expected[message] for message in messages]


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("classes", [4, 300])
def test_an_invalid_neighbour_of_any_kind_is_refused_alone(defect: str, classes: int) -> None:
    """Wherever it stands."""
    good = [Recipe("float32 list", classes, 4).make(seed) for seed in range(5)]
    bad = Recipe("float32 list", classes, 4, defect).make(99)
    expected = [verdict(message) for message in good]
    for at in range(6):
        found = verdicts(fresh(), [*good[:at], bad, *good[at:]])
        assert found[:at] + found[at + 1 :] == expected
        assert found[at] == verdict(bad)
        assert isinstance(found[at], tuple)


def test_more_layouts_of_one_length_than_lessons_are_all_answered() -> None:
    """A mixture that would take too long to learn goes the general way, with the same results."""
    messages = [
        map_of((bytes([0xA2, 97 + at, 98]), b"\x01"), (LOGITS, float_list([1.0, 2.0])))
        for at in range(5 * MAX_LESSONS)
        for _ in "ab"
    ]
    expected = [verdict(message) for message in messages]
    pipeline = fresh()
    for _ in range(5):
        assert verdicts(pipeline, messages) == expected


def test_a_lone_record_takes_the_general_path_and_a_pair_the_columnar() -> None:
    """With the same bytes."""
    message = Recipe("float32 list", 5, 4).make(1)
    alone, pair = fresh().transform([message]), fresh().transform([message, message])
    assert (alone.columnar, alone.general) == (0, 1)
    assert (pair.columnar, pair.general) == (2, 0)
    assert [*alone.outputs, *alone.outputs] == pair.outputs


def test_an_empty_batch_and_a_batch_of_tombstones_are_nothing_special() -> None:
    """Neither is transformed."""
    assert fresh().transform([]).outputs == []
    outcome = fresh().transform([None, None])
    assert outcome.outputs == [None, None]
    assert [str(outcome.refusals[at].reason) for at in (0, 1)] == ["null_value"] * 2


def test_a_known_layout_serves_a_lone_record_too() -> None:
    """It need not be met by many."""
    message = Recipe("float32 list", 5, 4).make(1)
    pipeline = fresh()
    pipeline.transform([message, message])
    outcome = pipeline.transform([message])
    assert (outcome.columnar, outcome.general) == (1, 0)
    assert outcome.outputs == [verdict(message)]


def test_a_refusal_keeps_nothing_alive_of_what_was_worked_on() -> None:
    """It waits in a queue for its delivery; frames of the transform would wait with it."""
    nan = Recipe("float32 list", 5, 4, "nan").make(1)
    outcome = fresh().transform([nan, nan, b"\xc1", map_of((LOGITS, b"\xc0")), None])
    assert len(outcome.refusals) == 5
    for refusal in outcome.refusals.values():
        assert (refusal.__traceback__, refusal.__cause__, refusal.__context__) == (None, None, None)


def test_empty_values_are_refused_singly_and_in_groups() -> None:
    """They are no msgpack."""
    assert [found[0] for found in verdicts(fresh(), [b"", b"", b""])] == ["malformed_msgpack"] * 3


def test_the_limit_of_bytes_is_inclusive() -> None:
    """Alone and among others."""
    message = Recipe("bare", 5, 1).make(1)
    at_limit, below = (Pipeline(Limits(len(message) - less, MANY_CLASSES)) for less in (0, 1))
    for batch in ([message], [message, message], [message, None]):
        assert verdicts(at_limit, batch)[0] == verdict(message)
        assert verdicts(below, batch)[0][0] == "too_large"


def test_the_limit_of_classes_is_inclusive() -> None:
    """Alone and among others."""
    message = Recipe("bare", 5, 1).make(1)
    for batch in ([message], [message, message]):
        assert verdicts(Pipeline(Limits(MAX_BYTES, 5)), batch)[0] == verdict(message)
        assert verdicts(Pipeline(Limits(MAX_BYTES, 4)), batch)[0][0] == "too_many_classes"


def test_stages_are_marked_when_they_end() -> None:
    """A caller with a clock learns of the grouping first, then of each stretch of either path."""
    good, bad = Recipe("float32 list", 5, 4).make(1), Recipe("float32 list", 5, 4, "nan").make(2)
    stages: list[str] = []
    fresh().transform([good, good, bad, good + b"\xc0"], mark=stages.append)
    assert set(stages) == {"layout", "decode", "softmax", "encode", "general"}
    assert stages[0] == "layout"
    assert stages[-1] == "general"
    assert stages.index("decode") < stages.index("softmax") < stages.index("encode")
