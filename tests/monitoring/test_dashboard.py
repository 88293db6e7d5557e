"""The Grafana dashboard: made from code, complete, and about metrics that there are."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from metric_names import exposed, named_in

from generate.__main__ import FILES, ROOT, main, stale

DASHBOARD: Final[dict[str, Any]] = json.loads(FILES["deploy/grafana/dashboards/softmax-service.json"]())
EVERYTHING: Final[list[dict[str, Any]]] = DASHBOARD["panels"]
PANELS: Final = {panel["title"]: panel for panel in EVERYTHING if panel["type"] != "row"}
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
each_panel = pytest.mark.parametrize("panel", PANELS.values(), ids=list(PANELS))


def provisioning(name: str) -> Any:
    return yaml.safe_load((ROOT / "deploy/grafana/provisioning" / name).read_text(encoding="utf-8"))


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(one[at] < other[at] + other[size] and other[at] < one[at] + one[size] for at, size in ("xw", "yh"))


# --- the file ---------------------------------------------------------------------------------


def test_generated_files_are_what_the_code_makes_of_them() -> None:
    assert sorted(map(str, stale())) == [], "run scripts/generate"


@pytest.mark.parametrize("name", FILES)
def test_the_code_makes_the_same_each_time(name: str) -> None:
    assert FILES[name]() == FILES[name]()


def test_stale_files_are_named_and_written_only_without_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("generate.__main__.ROOT", tmp_path)
    monkeypatch.setattr("generate.__main__.FILES", {"docs/page.md": lambda: "text\n"})
    monkeypatch.setattr("sys.argv", ["generate", "--check"])
    assert main() == 1
    assert not (tmp_path / "docs").exists()
    monkeypatch.setattr("sys.argv", ["generate"])
    assert main() == 0
    assert (tmp_path / "docs" / "page.md").read_text(encoding="utf-8") == "text\n"
    monkeypatch.setattr("sys.argv", ["generate", "--check"])
    assert main() == 0
    assert capsys.readouterr().out == f"stale: {Path('docs/page.md')}\nwritten: {Path('docs/page.md')}\n"


# --- the dashboard ----------------------------------------------------------------------------


def test_it_imports_anywhere() -> None:
    assert DASHBOARD["uid"] == "softmax-service"
    assert "__inputs" not in DASHBOARD
    assert "id" not in DASHBOARD
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance"]
    assert variables["datasource"]["query"] == "prometheus"
    for name in ("job", "instance"):
        assert variables[name]["multi"]
        assert variables[name]["includeAll"]
        assert variables[name]["datasource"] == SOURCE


def test_it_shows_starts_and_leads_to_the_runbook() -> None:
    (starts,) = DASHBOARD["annotations"]["list"]
    assert starts["datasource"] == SOURCE
    (link,) = DASHBOARD["links"]
    assert link["url"].endswith("/docs/runbook.md")


def test_panels_have_titles_and_numbers_of_their_own_and_do_not_overlap() -> None:
    assert len(PANELS) == sum(panel["type"] != "row" for panel in EVERYTHING)
    assert len({panel["id"] for panel in EVERYTHING}) == len(EVERYTHING)
    places = [panel["gridPos"] for panel in EVERYTHING]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert [pair for pair in combinations(places, 2) if overlap(*pair)] == []


@each_panel
def test_every_panel_says_what_it_shows_in_which_unit_from_the_chosen_source(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert len(panel["description"]) > 30
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == SOURCE
    assert panel["targets"]
    assert all(target["datasource"] == SOURCE for target in panel["targets"])
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@each_panel
def test_every_query_is_about_metrics_that_there_are_and_the_chosen_instances(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        names = named_in(target["expr"])
        assert names
        assert names - exposed() == set()
        assert 'job=~"$job", instance=~"$instance"' in target["expr"]


@each_panel
def test_every_window_follows_the_resolution_or_is_what_is_shown(panel: dict[str, Any]) -> None:
    windows = {window for target in panel["targets"] for window in re.findall(r"\[(.*?)\]", target["expr"])}
    assert windows <= {"$__rate_interval", "$__range"}


# --- provisioning -----------------------------------------------------------------------------


def test_the_provisioned_source_is_prometheus_at_the_interval_at_which_it_scrapes() -> None:
    (source,) = provisioning("datasources/prometheus.yml")["datasources"]
    scrapes = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    assert source["type"] == "prometheus"
    assert source["isDefault"]
    assert source["jsonData"]["timeInterval"] == scrapes["global"]["scrape_interval"]


def test_the_dashboard_is_provisioned_from_a_folder() -> None:
    (provider,) = provisioning("dashboards/softmax-service.yml")["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
