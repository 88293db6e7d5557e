"""When refusals end the service: by runs on a partition and by their share, whatever the cuts between batches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import pytest
from aiokafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from service.errors import DeadLetterLimitError, ExitCode
from service.settings import Settings
from service.streaming.records import Part
from service.streaming.refusal_limits import WINDOW, RefusalLimits
from service.transform.refusals import InvalidMessage, Reason

A, B = TopicPartition("logits", 0), TopicPartition("logits", 1)
RUN: Final = 10


def part(where: TopicPartition, first: int, refused: list[bool], reason: Reason = Reason.NAN) -> Part:
    frames: Any = SimpleNamespace(offsets=np.arange(first, first + len(refused)))
    made = Part(where, frames, 0, len(refused), first + len(refused), stamp=0)
    made.refusals = {position: InvalidMessage(reason, "a word") for position, is_so in enumerate(refused) if is_so}
    return made


def limits(run: int = RUN, ratio: float = 1.0, tombstones: str = "dead_letter") -> RefusalLimits:
    return RefusalLimits(
        Settings.model_validate(
            {
                "limits": {"dead_letter_max_run": run, "dead_letter_max_ratio": ratio},
                "topics": {"tombstones": tombstones},
            }
        )
    )


@given(st.lists(st.booleans(), max_size=60), st.lists(st.integers(1, 8), min_size=60, max_size=60))
def test_a_run_ends_it_wherever_batches_are_cut(refused: list[bool], sizes: list[int]) -> None:
    """The same as a search for so many in a row, up to the end of the batch that completes them."""
    limit, at, ended = limits(run=5), 0, False
    for size in sizes:
        some = refused[at : at + size]
        if not some:
            break
        try:
            limit.check([part(A, at, some)])
        except DeadLetterLimitError:
            ended = True
            break
        at += size
    seen = refused[: at + (size if ended else 0)]
    longest = max((len(run) for run in "".join("x" if is_so else " " for is_so in seen).split()), default=0)
    assert ended == (longest >= 5)


def test_runs_are_of_one_partition() -> None:
    limit = limits()
    for first in range(0, RUN - 1, 3):
        limit.check([part(A, first, [True] * 3), part(B, first, [False] * 3)])
    with pytest.raises(DeadLetterLimitError):
        limit.check([part(B, RUN, [False]), part(A, RUN, [True] * 3)])


def test_records_that_are_read_again_count_once() -> None:
    limit = limits()
    for _ in range(5):
        limit.check([part(A, 0, [True] * (RUN - 1))])


def test_the_message_names_the_commonest_reason_an_example_and_the_setting() -> None:
    limit = limits()
    limit.check([part(A, 0, [True], Reason.EMPTY)])
    with pytest.raises(DeadLetterLimitError) as caught:
        limit.check([part(A, 1, [True] * RUN)])
    assert caught.value.code is ExitCode.DEAD_LETTER_LIMIT
    assert str(caught.value) == (
        f"{RUN + 1} records in a row of logits-0 are refused, most for nan ({RUN}); for example logits-0 @1 for nan:"
        " a word. See what writes the input; limits.dead_letter_max_run is the limit."
    )


def test_a_share_ends_it_once_the_window_is_full() -> None:
    limit = limits(run=0, ratio=0.5)
    for first in range(0, WINDOW - 100, 100):
        limit.check([part(A, first, [True] * 60 + [False] * 40)])
    with pytest.raises(DeadLetterLimitError, match="of the last 10000 records"):
        limit.check([part(A, WINDOW - 100, [True] * 60 + [False] * 40)])


def test_what_is_long_past_counts_no_more() -> None:
    limit = limits(run=0, ratio=0.5)
    limit.check([part(A, 0, [True] * (WINDOW - 1))])
    limit.check([part(A, WINDOW, [False] * WINDOW)])
    limit.check([part(A, 2 * WINDOW, [True] * 5000 + [False] * 5000)])


def test_tombstones_that_are_no_dead_letters_do_not_count() -> None:
    for tombstones in ("forward", "drop"):
        limits(tombstones=tombstones).check([part(A, 0, [True] * (2 * RUN), Reason.NULL_VALUE)])
    with pytest.raises(DeadLetterLimitError):
        limits().check([part(A, 0, [True] * (2 * RUN), Reason.NULL_VALUE)])


@given(st.lists(st.tuples(st.integers(1, WINDOW), st.floats(0, 1)), min_size=1, max_size=12), st.floats(0.05, 0.95))
def test_the_share_is_that_of_the_last_parts_that_fill_the_window(shape: list[tuple[int, float]], ratio: float) -> None:
    """The same as sums, made anew each time, over the last parts without which the window is not full."""
    limit, at, window = limits(run=0, ratio=ratio), 0, list[tuple[int, int]]()
    for size, share in shape:
        bad = round(size * share)
        window.append((size, bad))
        total, refused = (sum(column) for column in zip(*window, strict=True))
        ends = total >= WINDOW and refused > ratio * total
        try:
            limit.check([part(A, at, [True] * bad + [False] * (size - bad))])
        except DeadLetterLimitError:
            assert ends
            return
        assert not ends
        at += size
        while sum(records for records, _ in window[1:]) >= WINDOW:
            del window[0]


def test_a_good_part_may_be_the_one_that_fills_the_window() -> None:
    limit = limits(run=0, ratio=0.5)
    limit.check([part(A, 0, [True] * (WINDOW - 1))])
    with pytest.raises(DeadLetterLimitError, match=r"9999 of the last 10000 .* @0 for nan: a word"):
        limit.check([part(A, WINDOW, [False])])
