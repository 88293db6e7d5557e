"""Recording rules and alerts: they hold together, and every alert fires when it should and not otherwise."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from metric_names import exposed, named_in

from generate import dashboard

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT / "deploy" / "prometheus"
CASES: Final = sorted((FOLDER / "tests").glob("*.yml"))
RUNBOOK: Final = ROOT / "docs" / "runbook.md"


def rules(file: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / file).read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


ALERTS: Final = {rule["alert"]: rule for rule in rules("alerts.yml")}
RECORDED: Final = {rule["record"]: rule for rule in rules("recording.yml")}


def cases(kind: str) -> list[dict[str, Any]]:
    files = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in CASES]
    return [case for file in files for test in file["tests"] for case in test.get(kind, ())]


def promtool(*arguments: str | Path) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is missing: apt-get install prometheus")
    ran = subprocess.run(  # noqa: S603 - found on the path
        [program, *arguments], capture_output=True, text=True, timeout=280, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_promtool_accepts_the_configuration_and_its_rules() -> None:
    promtool("check", "config", FOLDER / "prometheus.yml")
    promtool("check", "rules", FOLDER / "recording.yml", FOLDER / "alerts.yml")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_rules_do_what_their_cases_say(file: Path) -> None:
    promtool("test", "rules", file)


def test_every_group_of_rules_has_a_name_of_its_own() -> None:
    """Cases give the groups' order by name."""
    files = [yaml.safe_load((FOLDER / name).read_text(encoding="utf-8")) for name in ("recording.yml", "alerts.yml")]
    names = [group["name"] for file in files for group in file["groups"]]
    assert len(names) == len(set(names))
    for case in CASES:
        order = yaml.safe_load(case.read_text(encoding="utf-8"))["group_eval_order"]
        assert order == names[: len(order)]
        assert len(order) in {len(names), len(files[0]["groups"])}


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_silent(name: str) -> None:
    mine = [case for case in cases("alert_rule_test") if case["alertname"] == name]
    assert any(case.get("exp_alerts") for case in mine)
    assert any(not case.get("exp_alerts") for case in mine)


def test_no_case_is_about_an_alert_that_is_not_there() -> None:
    assert {case["alertname"] for case in cases("alert_rule_test")} == set(ALERTS)


@pytest.mark.parametrize("name", RECORDED)
def test_every_recorded_series_has_a_case_with_values(name: str) -> None:
    mine = [case for case in cases("promql_expr_test") if name in named_in(case["expr"])]
    assert any(case["exp_samples"] for case in mine)


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_series_are_named_level_metric_operations(name: str) -> None:
    assert re.fullmatch(r"[a-z_]+:[a-z_0-9]+:[a-z_0-9]+", name)
    by = re.search(r"by \(([^)]*)\)", RECORDED[name]["expr"])
    if by:
        assert name.split(":", maxsplit=1)[0] == by[1].replace(", ", "_")


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_says_how_urgent_it_is_what_it_means_and_where_to_look(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in {"page", "ticket"}
    assert "for" in alert
    notes = alert["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url", "dashboard"}
    assert len(notes["summary"]) > 10
    assert len(notes["description"]) > 10
    for value in re.findall(r"\{\{ *\$value[^}]*\}\}", notes["description"]):
        assert "| humanize" in value


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_has_its_part_of_the_runbook(name: str) -> None:
    address, _, anchor = ALERTS[name]["annotations"]["runbook_url"].partition("#")
    assert address == dashboard.RUNBOOK
    assert anchor == name.lower()
    parts = re.split(r"^## ", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (mine,) = [part for part in parts if part.partition("\n")[0].lower() == anchor]
    assert mine.partition("\n\n")[2].startswith(ALERTS[name]["labels"]["severity"].title())
    assert "**Look at**" in mine
    assert "**Do**" in mine


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_names_a_panel_of_the_dashboard(name: str) -> None:
    title, row, panel = ALERTS[name]["annotations"]["dashboard"].split(" / ")
    assert title == "Softmax Service"
    assert panel in {each["title"] for each in dashboard.panels_of(row)}


@pytest.mark.parametrize("name", [*RECORDED, *ALERTS])
def test_every_rule_stands_on_metrics_that_there_are(name: str) -> None:
    rule = RECORDED.get(name) or ALERTS[name]
    assert named_in(rule["expr"])
    assert named_in(rule["expr"]) - exposed() - set(RECORDED) == {"up"} & named_in(rule["expr"])


def test_names_are_found_in_expressions_however_they_are_written() -> None:
    expression = """
      # a comment
      sum by (job, le) (rate(a_total{b="c", d=~"e}"}[5m])) / ignoring (x) group_left () f:g:h > 0.5e3
        and on (job) time() - i_seconds < 3 or absent(up{j="k"}) offset 5m
    """
    assert named_in(expression) == {"a_total", "f:g:h", "i_seconds", "up"}
