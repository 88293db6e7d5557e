"""Records between the consumer and the producer: what is remembered of their timestamps."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from service.streaming.records import FEW, count_timestamps

NOW = 1_800_000_000_000


@example([NOW] * (FEW + 1))
@example([NOW, NOW + FEW] * FEW)
@example([-1] * (FEW + 1))
@example([NOW + number for number in range(FEW + 1)])
@given(st.lists(st.just(-1) | st.integers(NOW, NOW + 100) | st.integers(0, 1 << 62), max_size=100))
def test_timestamps_are_counted_without_those_that_are_none(stamps: list[int]) -> None:
    distinct, counts = count_timestamps(np.array(stamps, np.int64))
    often = [1] * len(distinct) if counts is None else counts.tolist()
    found: Counter[int] = Counter()
    for stamp, count in zip(distinct.tolist(), often, strict=True):
        found[stamp] += count
    assert found == Counter(stamp for stamp in stamps if stamp >= 0)


def test_many_records_of_few_milliseconds_are_told_by_few_numbers() -> None:
    stamps = np.repeat(np.arange(NOW, NOW + 40), 400)[::-1]
    distinct, counts = count_timestamps(stamps)
    assert distinct.tolist() == list(range(NOW, NOW + 40))
    assert counts is not None
    assert counts.tolist() == [400] * 40
