"""A short storm on three brokers: nothing is lost, reordered or corrupted. `scripts/chaos` makes longer ones."""

from __future__ import annotations

import shutil

import pytest

from chaos import report
from chaos.storm import Options, storm

SECONDS = 22


@pytest.mark.timeout(400)
@pytest.mark.parametrize("guarantee", ["at_least_once", "exactly_once"])
async def test_nothing_is_lost_in_a_storm(guarantee: str) -> None:
    """Instances and brokers die and freeze, connections are cut and slow: every message is answered, in order.

    And with exactly-once none of them twice.
    """
    outcome = await storm(Options(guarantee, minutes=SECONDS / 60, seed=7, rate=500), print)
    assert outcome.is_sound, report.table(outcome)
    assert len(outcome.strikes) > 2
    shutil.rmtree(outcome.logs)


@pytest.mark.timeout(400)
async def test_a_safeguard_that_is_switched_off_is_found_out() -> None:
    """The control: where offsets are committed before their outputs are acknowledged, the storm sees losses."""
    options = Options(
        minutes=0.35,
        seed=7,
        rate=500,
        faults=("kill_all", "delay"),
        control="commit_after_acknowledgement",
        settle_seconds=15,
    )
    outcome = await storm(options, print)
    assert [tally.lost > 0 for tally in outcome.verdict.readers.values()] == [True, True], report.table(outcome)
    shutil.rmtree(outcome.logs)
