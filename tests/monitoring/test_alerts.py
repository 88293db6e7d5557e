"""Every alert's cause is provoked in services that run, on a real Kafka, and a real Prometheus fires it."""

from __future__ import annotations

import asyncio
import fcntl
import pickle
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from hastened_rules import FILES, rules, write_hastened
from prometheus_server import DEPLOYED, program_or_skip
from provoked_alerts import AT_LAST, AT_ONCE, JOBS, play

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(600)

PROVOKED: Final = {alert: job for cause in (*AT_ONCE, *AT_LAST) for alert, job in cause.alerts.items()}
# What the runbook says that the log tells.
LOGGED: Final = {
    "refusing": "dead letters",
    "lost": "offset lost",
    "unsettled": "revoked",
    "stuck": "waiting for the broker",
    "unready": "waiting for the broker",
}


class Seen(NamedTuple):
    """What was seen of the stage; see there."""

    spoiled: set[tuple[str, str]]
    outputs: dict[str, float]
    fired: dict[tuple[str, str], float]
    logged: dict[str, set[str]]


def performance(folder: Path) -> Seen:
    """Services run well, and then meet every cause."""
    stage = asyncio.run(play(folder))
    return Seen(stage.spoiled, stage.outputs, stage.fired, stage.logged)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Seen:
    """What was seen; played once, however many processes run tests."""
    program_or_skip()
    if worker_id == "master":
        return performance(tmp_path_factory.mktemp("alerts"))
    kept = tmp_path_factory.getbasetemp().parent / "alerts.pickle"
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            kept.write_bytes(pickle.dumps(performance(tmp_path_factory.mktemp("alerts"))))
        seen: Seen = pickle.loads(kept.read_bytes())  # noqa: S301 - written by the other process of this run
        return seen


def test_there_is_a_cause_for_every_alert() -> None:
    assert set(PROVOKED) == {rule["alert"] for rule in rules(DEPLOYED / "alerts.yml")}


@pytest.mark.parametrize("name", FILES)
def test_hastened_rules_differ_from_the_deployed_ones_in_times_alone(name: str, tmp_path: Path) -> None:
    write_hastened(tmp_path)
    deployed, hastened = rules(DEPLOYED / name), rules(tmp_path / name)
    assert deployed != hastened
    assert [without_times(rule) for rule in deployed] == [without_times(rule) for rule in hastened]


def without_times(rule: dict[str, Any]) -> dict[str, Any]:
    """A rule with no more than the places of its windows, waits, and of whole numbers that it compares with."""
    expression = re.sub(r"\[\d+[smh]\]|(?<=[<>] )\d+\b(?!\.)", "…", rule["expr"])
    return {**rule, "expr": expression, "for": "for" in rule}


def test_services_that_run_well_under_load_fire_nothing(stage: Seen) -> None:
    assert stage.spoiled == set()
    assert set(stage.outputs) == set(JOBS)
    assert min(stage.outputs.values()) > 0


@pytest.mark.parametrize("alert", PROVOKED)
def test_an_alert_fires_when_its_cause_is_there(stage: Seen, alert: str) -> None:
    assert (alert, PROVOKED[alert]) in stage.fired


@pytest.mark.parametrize("job", LOGGED)
def test_the_log_of_a_service_tells_of_the_cause(stage: Seen, job: str) -> None:
    assert LOGGED[job] in stage.logged[job]
