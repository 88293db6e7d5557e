"""When a micro-batch closes: by records, bytes or delay, or at once where no delay is asked for."""

from __future__ import annotations

from typing import Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.streaming.batching import BatchPolicy, Window

POLICY: Final = BatchPolicy(max_records=10, max_bytes=100, max_delay=2.0)

policies = st.builds(
    BatchPolicy, st.integers(1, 20), st.integers(1, 200), st.just(0.0) | st.floats(0.001, 60, allow_subnormal=False)
)
# Seconds that pass, then what arrives: records and their bytes. A poll may return nothing.
steps = st.lists(
    st.tuples(st.floats(0, 5), st.just((0, 0)) | st.tuples(st.integers(1, 8), st.integers(0, 80))),
    max_size=12,
)


@given(policies, steps)
def test_whatever_arrives_whenever_the_window_closes_by_the_first_reason_that_holds(
    policy: BatchPolicy, arrivals: list[tuple[float, tuple[int, int]]]
) -> None:
    window = Window(policy)
    now, opened_at, records, size = 1000.0, None, 0, 0
    for passed, (more, bytes_more) in arrivals:
        now += passed
        window.add(more, bytes_more, now)
        records, size = records + more, size + bytes_more
        if opened_at is None and more:
            opened_at = now
        waited = 0.0 if opened_at is None else now - opened_at
        assert (window.records, window.size) == (records, size)
        assert window.waited(now) == waited
        if records >= policy.max_records:
            expected: str | None = "records"
        elif size >= policy.max_bytes:
            expected = "bytes"
        elif opened_at is None:
            expected = None
        elif not policy.max_delay:
            expected = "idle"
        else:
            expected = "delay" if waited >= policy.max_delay else None
        assert window.closed_by(now) == expected


@given(policies, steps, st.floats(0, 100))
def test_the_time_left_is_never_negative_never_more_than_the_delay_and_unknown_only_while_empty(
    policy: BatchPolicy, arrivals: list[tuple[float, tuple[int, int]]], later: float
) -> None:
    window, now = Window(policy), 0.0
    for passed, (more, size) in arrivals:
        now += passed
        window.add(more, size, now)
    remaining = window.remaining(now + later)
    if window.records == 0:
        assert remaining is None
    else:
        assert remaining is not None
        assert 0 <= remaining <= policy.max_delay
        # Waiting for just that long closes the window, up to the rounding of one addition.
        assert window.closed_by(now + later + remaining + 1e-6) is not None


def test_an_empty_window_is_open_for_ever() -> None:
    window = Window(POLICY)
    assert (window.closed_by(1e9), window.remaining(1e9), window.waited(1e9)) == (None, None, 0.0)


def test_the_delay_counts_from_the_first_record_not_from_the_window_s_making_nor_from_empty_polls() -> None:
    window = Window(POLICY)
    window.add(0, 0, now=1.0)
    window.add(1, 1, now=10.0)
    window.add(1, 1, now=11.5)
    assert window.waited(11.5) == 1.5
    assert window.remaining(11.5) == 0.5
    assert window.closed_by(11.9) is None
    assert window.closed_by(12.0) == "delay"


def test_a_first_record_at_time_zero_opens_the_window_too() -> None:
    window = Window(POLICY)
    window.add(1, 1, now=0.0)
    window.add(1, 1, now=1.0)
    assert window.closed_by(2.0) == "delay"


@pytest.mark.parametrize(
    ("records", "size", "closed_by"),
    [(9, 99, None), (10, 0, "records"), (10, 100, "records"), (11, 0, "records"), (9, 100, "bytes"), (1, 101, "bytes")],
)
def test_a_cap_is_reached_exactly_and_records_come_before_bytes(records: int, size: int, closed_by: str | None) -> None:
    window = Window(POLICY)
    window.add(records, size, now=5.0)
    assert window.closed_by(5.0) == closed_by


def test_caps_come_before_the_delay() -> None:
    window = Window(POLICY)
    window.add(10, 0, now=5.0)
    assert window.closed_by(100.0) == "records"


def test_without_a_delay_what_has_arrived_is_taken_at_once() -> None:
    window = Window(BatchPolicy(10, 100, 0))
    window.add(1, 1, now=5.0)
    assert window.closed_by(5.0) == "idle"
    assert window.remaining(5.0) == 0.0


# Cutting what came at once


@given(policies, st.lists(st.integers(0, 250), max_size=60))
def test_cuts_cover_everything_once_and_no_piece_could_have_been_longer(policy: BatchPolicy, sizes: list[int]) -> None:
    """A piece exceeds the bytes only if it is a single record."""
    pieces = list(policy.cuts(np.array(sizes, np.int64)))
    assert [start for start, _, _ in pieces] == [0, *(stop for _, stop, _ in pieces[:-1])]
    assert pieces[-1][1] == len(sizes)
    for start, stop, why in pieces:
        piece = sizes[start:stop]
        assert len(piece) <= policy.max_records
        assert sum(piece) <= policy.max_bytes or len(piece) == 1
        if stop < len(sizes):
            full = len(piece) == policy.max_records
            assert why == ("records" if full else "bytes")
            assert full or sum(sizes[start : stop + 1]) > policy.max_bytes


def test_of_nothing_there_is_one_empty_piece() -> None:
    assert [(start, stop) for start, stop, _ in POLICY.cuts(np.array([], np.int64))] == [(0, 0)]
