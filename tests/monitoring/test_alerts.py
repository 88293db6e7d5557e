"""Every alert's cause is provoked in services that run, on a real Kafka, and a real Prometheus fires it."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Final

import pytest
from hastened_rules import FILES, rules, write_hastened
from prometheus_server import DEPLOYED, program_or_skip
from provoked_alerts import AT_LAST, AT_ONCE, JOBS, Stage, play

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


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """What was seen of services that ran well and then met every cause."""
    program_or_skip()
    return asyncio.run(play(tmp_path_factory.mktemp("alerts")))


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


def test_services_that_run_well_under_load_fire_nothing(stage: Stage) -> None:
    assert stage.spoiled == set()
    assert set(stage.outputs) == set(JOBS)
    assert min(stage.outputs.values()) > 0


@pytest.mark.parametrize("alert", PROVOKED)
def test_an_alert_fires_when_its_cause_is_there(stage: Stage, alert: str) -> None:
    assert (alert, PROVOKED[alert]) in stage.fired


@pytest.mark.parametrize("job", LOGGED)
def test_the_log_of_a_service_tells_of_the_cause(stage: Stage, job: str) -> None:
    assert LOGGED[job] in stage.logged[job]
