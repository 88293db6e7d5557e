"""The pages about metrics and events: complete, true to the code, and with queries that Prometheus understands."""

from __future__ import annotations

import ast
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from metric_names import exposed, named_in

from generate import configuration_page, events_page, metrics_page
from generate.__main__ import stale
from service.observability.metrics import Metrics
from service.settings import ModelSettings, Settings, _leaves, environment_name

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[2]
LEVELS: Final = {"info", "warning", "error"}


def test_what_is_generated_is_what_lies_there() -> None:
    assert [file.name for file in stale()] == []


def test_every_metric_has_a_use_and_nothing_else_has() -> None:
    names = {metrics_page.exposed(each).removeprefix("softmax_") for each in Metrics({}, 2, 2).instruments()}
    assert set(metrics_page.USES) == names | {"build_info"}


@pytest.mark.parametrize("name", metrics_page.USES)
def test_an_example_asks_for_its_metric_and_is_understood(name: str) -> None:
    query = metrics_page.USES[name].query
    assert any(named.startswith(f"softmax_{name}") for named in named_in(query))
    assert named_in(query) <= exposed()


def test_the_examples_are_promql(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("Prometheus is missing: apt-get install prometheus")
    rules = "".join(
        f"      - record: example:{number}\n        expr: '{use.query}'\n"
        for number, use in enumerate(metrics_page.USES.values())
    )
    file = tmp_path / "examples.yml"
    file.write_text(f"groups:\n  - name: examples\n    rules:\n{rules}", encoding="utf-8")
    checked = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True, check=False)  # noqa: S603 - Prometheus's own
    assert checked.returncode == 0, checked.stdout + checked.stderr


def calls(source: str) -> Iterator[tuple[str, set[str]]]:
    """The events that code logs, and at which levels."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
            continue
        event = str(node.args[0].value)
        if isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
            yield event, {node.func.attr}
        elif isinstance(node.func, ast.Name) and node.func.id == "tell":
            yield event, {"info", "warning"}


def test_every_event_is_on_the_page_with_its_levels_and_nothing_else_is() -> None:
    found: dict[str, set[str]] = {}
    for name in ("app.py", "observability/logs.py"):
        for event, levels in calls((ROOT / "service" / name).read_text(encoding="utf-8")):
            found.setdefault(event, set()).update(levels)
    assert found == {name: set(event.levels) for name, event in events_page.EVENTS.items()}


def test_every_setting_is_on_the_page_with_its_name_in_the_environment() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    tree = {".".join(path) for path, _ in _leaves(Settings)} - {"models"}
    every = tree | {f"models.<name>.{name}" for name in ModelSettings.model_fields}
    assert {path for path, _, _ in configuration_page.settings()} == every
    assert [path for path in every if f"| `{path}`<br>`{environment_name(path)}` |" not in page] == []
    assert [path for path, field, _ in configuration_page.settings() if not field.description] == []
