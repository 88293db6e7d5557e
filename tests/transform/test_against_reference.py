"""The service against a slow reading of the specification: every message, in every company."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged import check, judged, made
from message_strategies import MARKER, OUTPUTS, any_template, members, model_headers, objects, profiles, spoilt
from reference import Limits, Profile, Profiles
from tensor_maps import logits, nd, ndarray
from transform_messages import LOGITS, array_of, bin_form, bin_message, float_list, map_of, packed, stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from judged import Record
    from numpy.typing import NDArray

    Values = NDArray[np.floating[Any]]

# The long profile takes longer than a test usually may.
pytestmark = pytest.mark.timeout(7200)


@dataclass(frozen=True)
class Case:
    """Records and the profiles that they meet."""

    records: list[Record]
    asked: Profiles


@st.composite
def cases(draw: st.DrawFn, *, layouts: int = 1, most: int = 1, damage: bool = False) -> Case:
    """Messages of a few layouts, several of each; damaged copies among them where that is asked for."""
    records: list[Record] = []
    templates = [draw(any_template) for _ in range(draw(st.integers(1, layouts)))]
    for template in templates:
        model = draw(model_headers)
        messages = [draw(members(template)) for _ in range(draw(st.integers(1, most)))]
        if damage:
            messages[-1:] = [draw(spoilt(messages[-1]))]
        records += [(message, model) for message in messages]
    return Case(records, draw(profiles(templates[0].classes)))


# Properties


@given(case=cases())
def test_a_message_alone_is_answered_as_the_reference_has_it(case: Case) -> None:
    (record,) = case.records
    check(record, case.asked, judged(made(case.asked), [record])[0])


@given(case=cases(damage=True))
def test_a_damaged_message_alone_ends_as_the_reference_has_it(case: Case) -> None:
    (record,) = case.records
    check(record, case.asked, judged(made(case.asked), [record])[0])


@given(raw=objects, model=model_headers, asked=profiles(2))
def test_any_object_ends_as_the_reference_has_it(raw: bytes, model: bytes | None, asked: Profiles) -> None:
    """As the whole message, as the tensor, as a head and as a row."""
    shapes = (raw, map_of((LOGITS, raw)), map_of((LOGITS, map_of((b"\x01", raw)))), array_of(raw, raw))
    for message in shapes:
        check((message, model), asked, judged(made(asked), [(message, model)])[0])


@given(case=cases(most=6), data=st.data())
def test_members_of_a_layout_in_one_batch_agree_with_the_reference(case: Case, data: st.DataObject) -> None:
    """Together with a damaged copy of one of them."""
    value, model = case.records[0]
    assert value is not None
    records = [*case.records, *case.records[:1], (data.draw(spoilt(value)), model)]
    records = data.draw(st.permutations(records))
    for record, found in zip(records, judged(made(case.asked), records), strict=True):
        check(record, case.asked, found)


@given(case=cases(layouts=3, most=4, damage=True), data=st.data())
def test_neither_batch_nor_order_nor_history_changes_a_byte(case: Case, data: st.DataObject) -> None:
    """Alone, together, shuffled, cut anywhere, repeated, among others; in a fresh pipeline and in one that lives on."""
    alone = {record: judged(made(case.asked), [record])[0] for record in case.records}
    lasting = made(case.asked)
    strangers: list[Record] = [(None, None), (b"\xc1", b"alpha"), (float_list([1.0, 2.0]), None), (b"\x80", b"beta")]
    for _ in range(3):
        records = data.draw(st.permutations(case.records * data.draw(st.integers(1, 2))))
        if data.draw(st.booleans()):
            records = data.draw(st.permutations([*records, *strangers]))
        cuts = data.draw(st.lists(st.integers(0, len(records)), max_size=3))
        for start, stop in pairwise(sorted({0, *cuts, len(records)})):
            batch = records[start:stop]
            for pipeline in (made(case.asked), lasting):
                for record, found in zip(batch, judged(pipeline, batch), strict=True):
                    assert found == alone.get(record, found)


@given(case=cases(damage=True, most=2))
def test_a_refusal_tells_a_place_but_no_payload(case: Case) -> None:
    """No more than eight characters of what was planted; the place is in the message or right behind it."""
    pieces = [MARKER[at : at + 9].decode() for at in range(len(MARKER) - 8)]
    for (value, _), found in zip(case.records, judged(made(case.asked), case.records), strict=True):
        if not isinstance(found, bytes):
            _, detail, at = found
            assert value is not None
            assert not any(piece in detail for piece in pieces), detail
            assert at is None or 0 <= at <= len(value)


# The columnar path


def samples(count: int, classes: int) -> list[Values]:
    rng = np.random.default_rng(classes)
    return [rng.integers(-6, 6, classes).astype(np.float64) for _ in range(count)]


def _f4(values: Values) -> bytes:
    return values.astype("<f4").tobytes()


def _t4(values: Values) -> bytes:
    return nd(data=bin_form(_f4(values)), shape=packed([len(values)]))


def _t5(values: Values) -> bytes:
    return ndarray(data=bin_form(_f4(values)), shape=packed([len(values)]))


ENCODED: Final[dict[str, Callable[[Values], bytes]]] = {
    "T1, float32": lambda v: logits(float_list(v)),
    "T1, float64": lambda v: logits(float_list(v, ">f8")),
    "T1, bare": float_list,
    "T2": lambda v: logits(array_of(float_list(v), float_list(-v))),
    "T2, bare": lambda v: array_of(float_list(v), float_list(-v)),
    "T3": lambda v: bin_message(_f4(v), "<f4", [len(v)]),
    "T3, int16": lambda v: bin_message(v.astype(">i2").tobytes(), ">i2", [1, len(v)]),
    "T3, bfloat16": lambda v: bin_message(stored(v, "bf16"), "BF16", [len(v)]),
    "T4": lambda v: logits(_t4(v)),
    "T4, bare": _t4,
    "T5": lambda v: logits(_t5(v)),
    "T5, bare": _t5,
    "T6": lambda v: logits(map_of((b"\xa3age", float_list(v)), (b"\xa3sex", _t5(-v)))),
}
EVERYTHING: Final = Profile(temperature=1.5, masked=(1,), top_k=3, outputs=tuple(n for n in OUTPUTS if n != "label"))


@pytest.mark.parametrize("asked", [Profile(), EVERYTHING, Profile(outputs=("log_probabilities",), dtype="float64")])
@pytest.mark.parametrize("name", ENCODED)
def test_two_of_a_layout_take_the_columnar_path_and_agree(name: str, asked: Profile) -> None:
    records: list[Record] = [(ENCODED[name](values), None) for values in samples(4, 5)]
    pipeline = made(Profiles(default=asked))
    assert pipeline.transform([value for value, _ in records]).columnar == len(records)
    for record, found in zip(records, judged(pipeline, records), strict=True):
        check(record, Profiles(default=asked), found)


@pytest.mark.parametrize("classes", [127, 128, 129, 256, 1000, 10_000])
@pytest.mark.parametrize("name", ["T1, float32", "T1, float64", "T2", "T3, int16", "T3, bfloat16", "T6"])
def test_many_classes_agree_alone_and_in_company(name: str, classes: int) -> None:
    limits, asked = Limits(1 << 20, 1 << 20), Profiles(default=EVERYTHING)
    records: list[Record] = [(ENCODED[name](values), None) for values in samples(2, classes)]
    together = judged(made(asked, limits), records)
    assert together == [judged(made(asked, limits), [record])[0] for record in records]
    check(records[0], asked, together[0], limits)
