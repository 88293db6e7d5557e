"""Many records at once, in memory that is used again and again: nothing of one batch shows in another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transform_messages import (
    LOGITS,
    MANY_CLASSES,
    MIB,
    PROFILELESS,
    array_of,
    bin_message,
    float32,
    float_list,
    map_of,
    packed,
    verdict,
    verdicts,
)

from service.transform.columnar import Workspace, transform_columns
from service.transform.layout import Layout, learn
from service.transform.message import parse
from service.transform.pipeline import Limits, Pipeline
from service.transform.profiles import Profile, Profiles
from service.transform.softmax import BLOCK_ELEMENTS, arithmetic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from service.transform.columnar import Outputs

NAN: Final = float("nan")
PROFILES: Final = Profiles(
    {
        "told": Profile(outputs=("top_k", "log_probabilities", "entropy", "margin"), top_k=2),
        "wide": Profile(dtype="float64", temperature=3, masked=(1,)),
    }
)


def values(seed: int, count: int, *, spoilt: bool) -> list[float]:
    """Logits that are a record's own."""
    numbers = (np.random.default_rng(seed).normal(size=count) * 5).astype(np.float32)
    if spoilt:
        numbers[seed % count] = NAN
    return [float(number) for number in numbers]


def _list(count: int) -> Callable[..., bytes]:
    def make(seed: int, *, spoilt: bool = False) -> bytes:
        return map_of(
            (b"\xa2id", b"\xce" + seed.to_bytes(4, "big")), (LOGITS, float_list(values(seed, count, spoilt=spoilt)))
        )

    return make


def _bin(seed: int, *, spoilt: bool = False) -> bytes:
    numbers = np.array(values(seed, 12, spoilt=spoilt), ">f4")
    return bin_message(numbers.tobytes(), ">f4", [2, 2, 3], (b"\xa2id", b"\xce" + seed.to_bytes(4, "big")))


def _heads(seed: int, *, spoilt: bool = False) -> bytes:
    first, second = float_list(values(seed, 3, spoilt=False)), float_list(values(seed + 1, 500, spoilt=spoilt), ">f8")
    return map_of((LOGITS, map_of((b"\x01", array_of(first, first)), (b"\x02", second))))


def _loose(seed: int, *, spoilt: bool = False) -> bytes:
    return array_of(b"\x01", *map(float32, values(seed, 30, spoilt=spoilt)))


def _integers(seed: int, *, spoilt: bool = False) -> bytes:
    del spoilt  # no integer is
    return array_of(*(bytes([number]) for number in np.random.default_rng(seed).integers(0, 127, 9).tolist()))


# Messages of one layout each: of a seed, and spoilt or not.
KINDS: Final[list[Callable[..., bytes]]] = [_list(4), _list(2000), _bin, _heads, _loose, _integers]
stretches = st.tuples(
    st.integers(0, len(KINDS) - 1),
    st.sampled_from([1, 2, 3, 5, 40]),
    st.sets(st.integers(0, 39), max_size=4),
    st.sampled_from([None, b"told", b"wide"]),
)


@given(batches=st.lists(st.lists(stretches, min_size=1, max_size=3), min_size=2, max_size=6))
def test_a_pipeline_that_has_worked_gives_the_bytes_of_a_fresh_one(
    batches: list[list[tuple[int, int, set[int], bytes | None]]],
) -> None:
    """Layouts in turns, larger batches after smaller ones and before, spoilt records before good ones."""
    worn = Pipeline(Limits(MIB, MANY_CLASSES), PROFILES)
    seed = 0
    for batch in batches:
        messages: list[bytes] = []
        models: list[bytes | None] = []
        for kind, count, spoilt, model in batch:
            for at in range(count):
                seed += 1
                messages.append(KINDS[kind](seed, spoilt=at in spoilt))
                models.append(model)
        expected = verdicts(Pipeline(Limits(MIB, MANY_CLASSES), PROFILES), messages, models)
        assert verdicts(worn, messages, models) == expected
        for at in {0, len(messages) // 2, len(messages) - 1}:
            assert expected[at] == verdict(messages[at], MANY_CLASSES, PROFILES, models[at])


def layout_of(message: bytes) -> Layout:
    layout = learn(parse(message, None, PROFILELESS, MANY_CLASSES))
    assert layout is not None
    return layout


def columns(messages: list[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(messages), np.uint8).reshape(len(messages), -1)


def outputs_of(messages: list[bytes], layout: Layout, workspace: Workspace) -> list[bytes]:
    with arithmetic():
        blocks: Iterator[Outputs] = transform_columns(columns(messages), layout, workspace)
        return [row.tobytes() for outputs in blocks for row in outputs.content]


def test_a_canvas_is_painted_anew_for_every_other_layout() -> None:
    """What another layout's records left there is gone; what the same layout's left is written over."""
    short, long = [_list(4)(seed) for seed in range(9)], [_list(7)(seed) for seed in range(9)]
    layouts = {id(short): layout_of(short[0]), id(long): layout_of(long[0])}
    workspace = Workspace()
    for messages, count in (
        (short, 2),
        (short, 9),
        (long, 3),
        (short, 9),
        (long, 9),
        (short, 1),
        (short, 9),
        (long, 1),
    ):
        found = outputs_of(messages[-count:], layouts[id(messages)], workspace)
        assert found == [verdict(message) for message in messages[-count:]]


def test_a_spoilt_record_leaves_nothing_behind() -> None:
    """Neither in its own row, for the next record there, nor in others."""
    good, spoilt = ([_bin(seed, spoilt=bad) for seed in range(6)] for bad in (False, True))
    layout, workspace = layout_of(good[0]), Workspace()
    expected = [verdict(message) for message in good]
    for batch in (good, spoilt, good, [spoilt[0], *good[1:]], good[:1], spoilt, good[3:]):
        found = outputs_of(batch, layout, workspace)
        for message, output in zip(batch, found, strict=True):
            if message in good:
                assert output == expected[good.index(message)]


@pytest.mark.parametrize("classes", [3, 500])
def test_more_numbers_than_a_block_holds_leave_block_by_block(classes: int) -> None:
    """All records, in order, each once."""
    count = 2 * BLOCK_ELEMENTS // classes + 5
    some = [float_list(values(seed, classes, spoilt=False)) for seed in range(5)]
    messages = [some[at % 5] for at in range(count)]
    layout = layout_of(some[0])
    with arithmetic():
        sizes = [len(outputs.content) for outputs in transform_columns(columns(messages), layout, Workspace())]
    assert sum(sizes) == count
    assert len(sizes) > 2
    expected = [verdict(message) for message in some]
    assert outputs_of(messages, layout, Workspace()) == [expected[at % 5] for at in range(count)]


def test_stages_are_marked_block_by_block() -> None:
    """As each of their stretches ends, for every tensor."""
    message = map_of((LOGITS, map_of((b"\x01", float_list([1.0])), (b"\x02", float_list([1.0, 2.0])))))
    stages: list[str] = []
    with arithmetic():
        list(transform_columns(columns([message] * 3), layout_of(message), Workspace(), stages.append))
    assert stages == ["decode", "softmax", "encode"] * 2


def test_outputs_of_differing_length_are_told_with_their_lengths() -> None:
    """What follows them in a row is none of theirs."""
    profiles = Profiles(default=Profile(outputs=("predicted",)))
    messages = [bin_message(bytes(at) + b"\x05" + bytes(299 - at), "int8", [300]) for at in (5, 127, 128, 255, 256)]
    layout = learn(parse(messages[0], None, profiles, MANY_CLASSES))
    assert layout is not None
    with arithmetic():
        (outputs,) = transform_columns(columns(messages), layout, Workspace())
    assert outputs.lengths is not None
    found = [row[:length].tobytes() for row, length in zip(outputs.content, outputs.lengths.tolist(), strict=True)]
    assert found == [map_of((packed("predicted"), packed(at))) for at in (5, 127, 128, 255, 256)]
