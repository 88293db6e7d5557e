"""The verdict of the storm finds each kind of anomaly, and nothing where there is none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from chaos.ledger import Ledger, LedgerError
from chaos.verdict import Expected, Reading, Seen, Strike, compare, decide


def _numbers(*numbers: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(numbers, np.int64)


EXPECTED = _numbers(1, 4, 7, 10, 13)


@pytest.mark.parametrize(
    ("seen", "anomalies"),
    [
        ((1, 4, 7, 10, 13), {}),
        ((1, 4, 10, 13), {"lost": 1}),
        ((), {"lost": 5}),
        ((1, 4, 7, 4, 7, 10, 13), {"duplicated": 2, "rewinds": 1}),
        ((1, 4, 4, 7, 7, 10, 13), {"duplicated": 2, "rewinds": 2}),
        ((1, 7, 4, 10, 13), {"reordered": 1, "rewinds": 1}),
        ((13, 1, 4, 7, 10), {"reordered": 4, "rewinds": 1}),
        ((1, 4, 5, 7, 10, 13, 99), {"corrupted": 2}),
        # A repeat between two firsts does not make the second one late.
        ((1, 4, 7, 1, 4, 7, 10, 4, 13), {"duplicated": 4, "rewinds": 2}),
    ],
)
def test_what_a_partition_holds_is_compared_with_what_it_should(
    seen: tuple[int, ...], anomalies: dict[str, int]
) -> None:
    """Each kind of anomaly is counted as what it is."""
    tally = dataclasses.asdict(compare(EXPECTED, _numbers(*seen)))
    found = {name: count for name, count in tally.items() if count and name not in {"messages", "examples"}}
    assert found == anomalies
    assert bool(tally["examples"]) == bool(anomalies.keys() & {"lost", "reordered", "corrupted"})


def _seen(*records: tuple[int, float]) -> Seen:
    return Seen(
        _numbers(*(number for number, _ in records)),
        np.arange(len(records), dtype=np.int64),
        np.array([at for _, at in records], np.float64),
    )


SENT = [Expected(_numbers(0, 1, 2, 3), np.array([10.0, 11.0, 12.0, 13.0]), np.array([False, True, False, False]))]
OUTPUTS = _seen((0, 10.5), (2, 16.0), (3, 16.5))
LETTERS = _seen((1, 11.25))


def _reading(name: str, outputs: Seen = OUTPUTS, letters: Seen = LETTERS, *corrupted: str) -> Reading:
    return Reading(name, [outputs], [letters], corrupted)


def test_a_sound_run_has_no_anomaly() -> None:
    """Outputs and dead letters together answer everything."""
    verdict = decide(SENT, _reading("one"), _reading("two"), [], repeats_allowed=False)
    assert verdict.anomalies == 0
    assert [tally.messages for tally in verdict.readers.values()] == [4, 4]


def test_an_output_in_place_of_a_dead_letter_is_an_anomaly() -> None:
    """What must be refused may not be answered, and the other way round."""
    wrong = _reading("one", _seen((0, 0), (1, 0), (2, 0), (3, 0)), _seen())
    verdict = decide(SENT, wrong, wrong, [], repeats_allowed=True)
    assert (verdict.readers["one"].lost, verdict.readers["one"].corrupted) == (1, 1)


def test_repeats_count_only_where_they_are_not_allowed() -> None:
    """At least once may repeat after a crash; exactly once may not."""
    both = [_reading(name, _seen((0, 0), (0, 1), (2, 2), (3, 3))) for name in ("one", "two")]
    assert decide(SENT, both[0], both[1], [], repeats_allowed=True).anomalies == 0
    assert decide(SENT, both[0], both[1], [], repeats_allowed=False).anomalies == 2


def test_readers_must_agree() -> None:
    """A record that one reader has seen and the other finds changed or gone is an anomaly."""
    verdict = decide(
        SENT, _reading("one", _seen((0, 0), (2, 1), (2, 2), (3, 3))), _reading("two"), [], repeats_allowed=True
    )
    assert verdict.disagreements == 3
    assert verdict.anomalies == 3


def test_corruption_that_a_reader_has_noticed_is_counted() -> None:
    """What is wrong with a single record makes the run unsound."""
    verdict = decide(SENT, _reading("one", OUTPUTS, LETTERS, "0 is wrong"), _reading("two"), [], repeats_allowed=True)
    assert verdict.anomalies == 1
    assert verdict.readers["one"].examples == ["0 is wrong"]


def test_stalls_and_recoveries_are_measured() -> None:
    """A stall is the wait of the next message; a recovery lasts until all from before a fault's end is answered."""
    strikes = [Strike("kill", "", 11.5, 12.5), Strike("kill", "", 10.1, 10.9), Strike("cut", "", 16.0, 17.0)]
    verdict = decide(SENT, _reading("one"), _reading("two"), strikes, repeats_allowed=False)
    assert verdict.longest_stall_s == pytest.approx(4)
    assert verdict.recovery_s == {"kill": [3.5, 0.0], "cut": [0.0]}


def test_what_is_never_answered_stalls_nothing_but_the_verdict() -> None:
    """A lost message is counted as lost; the times are those of the others."""
    verdict = decide(SENT, _reading("one", _seen((0, 10.5), (3, 16.5))), _reading("two"), [], repeats_allowed=False)
    assert verdict.readers["one"].lost == 1
    assert verdict.longest_stall_s == pytest.approx(3.5)


def test_the_ledger_holds_what_was_stored() -> None:
    """Numbers by partition in order, and where each of them lies."""
    ledger = Ledger(2)
    ledger.stored(0, 0, 0, 1.0)
    ledger.stored(1, 0, 1, 1.5)
    ledger.stored(0, 1, 2, 2.0)
    first, second = ledger.expected()
    assert (first.numbers.tolist(), second.numbers.tolist()) == ([0, 2], [1])
    assert first.refused.tolist() == [True, False]
    assert first.stored_at.tolist() == [1.0, 2.0]
    assert ledger.coordinates(0, 2) == (0, 1)
    assert ledger.coordinates(0, 3) is None
    assert (len(ledger), ledger.refused()) == (3, 1)


def test_a_place_unknown_to_the_broker_is_the_next_one() -> None:
    """A request repeated long after it was stored is acknowledged without an offset: the one after it tells."""
    ledger = Ledger(1)
    ledger.stored(0, None, 5, 1.0)
    ledger.stored(0, 1, 6, 1.5)
    assert ledger.coordinates(0, 5) == (0, 0)
    ledger.stored(0, None, 7, 2.0)
    with pytest.raises(LedgerError, match="expected @3"):
        ledger.stored(0, 2, 8, 2.5)


def test_a_disorderly_input_proves_nothing() -> None:
    """A gap or a repeat in the input itself is told at once."""
    ledger = Ledger(1)
    ledger.stored(0, 0, 5, 1.0)
    with pytest.raises(LedgerError, match="expected @1"):
        ledger.stored(0, 2, 6, 1.0)
    with pytest.raises(LedgerError):
        ledger.stored(0, 1, 5, 1.0)
