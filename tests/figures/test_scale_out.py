"""The benchmark of several instances: how turns become rows, rows a section, and a section costs again."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks import report
from benchmarks.capacity import Costs, capacity
from benchmarks.groups import assignments
from benchmarks.scale_out import BacklogRun, Plan, SteadyRun, costs, summarise
from benchmarks.scaled_storms import storm_options, storm_row
from chaos.storm import Outcome
from chaos.verdict import Expected, Reading, Seen, decide

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 1 << 20
COSTS = Costs(service=0.433, write=0.2, serve=0.3, input_bytes=534, output_bytes=541)
DOCUMENT = "before\n<!-- begin {0} -->\nold\n<!-- end {0} -->\nafter\n"


def _backlog_run(instances: int, turn: int, rate: float, cpu_seconds: float) -> BacklogRun:
    return BacklogRun(
        guarantee="at_least_once",
        instances=instances,
        round=turn,
        rate=rate,
        cpu_seconds=cpu_seconds,
        broker_cpu_seconds=cpu_seconds / 2,
        peak_rss=int(rate) * MIB,
        consumed_seconds=2.0 * turn,
        rebalances=1,
        verified=10,
    )


BACKLOG = [
    _backlog_run(1, 1, 100, 0.4),
    _backlog_run(2, 1, 200, 0.6),
    _backlog_run(1, 2, 110, 0.5),
    _backlog_run(2, 2, 240, 0.7),
    _backlog_run(1, 3, 90, 0.45),
]
STEADY = [SteadyRun("at_least_once", 1, 1, 0.5, 0.25, 2000), SteadyRun("exactly_once", 4, 1, 0.75, 1.0, 2000)]


def _results(**changes: Any) -> dict[str, Any]:
    storm = {
        "guarantee": "exactly_once",
        "messages": 40_000,
        "scaled": 2,
        "lost": 0,
        "duplicated": 0,
        "reordered": 0,
        "corrupted": 0,
        "longest_stall_seconds": 2.61,
        "sound": True,
    }
    results: dict[str, Any] = {
        "command": "scripts/bench scale-out --rounds 3",
        "quick": False,
        "machine": {
            "date": "2026-01-02",
            "cores": 2,
            "processor": "a processor",
            "memory_gib": 4.0,
            "system": "Linux x86_64",
            "kafka": "4",
            "java": "25",
            "logs_on": "tmpfs",
            "load_before": 0.1,
        },
        "classes": 100,
        "partitions": 12,
        "messages": 1_000_000,
        "planned_rounds": 3,
        "steady_rate": 2000,
        "scale_out": summarise(BACKLOG, STEADY),
        "costs_guarantee": "at_least_once",
        "costs": asdict(COSTS),
        "storms": [storm],
        "storm_rate": 1000,
        "failures": [],
    }
    # As they come from a file.
    kept: dict[str, Any] = json.loads(json.dumps({**results, **changes}))
    return kept


@pytest.fixture
def documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Both documents, with nothing in them but the markers and something old."""
    files = tmp_path / "performance.md", tmp_path / "sizing.md"
    for file, section in zip(files, ("scale-out", "cluster"), strict=True):
        file.write_text(DOCUMENT.format(section), encoding="utf-8")
    monkeypatch.setattr(report, "DOCS", files[0])
    monkeypatch.setattr(report, "SIZING", files[1])
    return files


def test_rounds_become_medians() -> None:
    """The most memory of all rounds, and nothing where a kind of turn has no figures."""
    one, two, four = summarise(BACKLOG, STEADY)
    assert one == {
        "guarantee": "at_least_once",
        "instances": 1,
        "rate": 100,
        "lowest_rate": 90,
        "highest_rate": 110,
        "cpu_seconds": 0.45,
        "broker_cpu_seconds": 0.225,
        "consumed_seconds": 4.0,
        "peak_rss": 110 * MIB,
        "cpu_share": 0.5,
        "broker_cpu_share": 0.25,
    }
    assert (two["instances"], two["rate"], two["cpu_share"]) == (2, 220, None)
    assert (four["guarantee"], four["instances"], four["rate"], four["cpu_share"]) == ("exactly_once", 4, None, 0.75)


def test_a_message_costs_what_it_costs_the_dearest_number_of_instances() -> None:
    rows = summarise(BACKLOG, STEADY)
    expected = Costs(service=0.65, write=0.123, serve=0.325, input_bytes=534, output_bytes=541)
    assert costs(rows, "at_least_once", 0.12345, (533.6, 541.4)) == expected
    assert costs(rows, "exactly_once", 0.12345, (533.6, 541.4)) is None


def test_the_section_has_the_figures() -> None:
    section = report.scale_out(_results())
    lines = section.splitlines()
    assert lines[0] == "## Scaling out"
    assert "| at_least_once | 1 | 100 | 90 to 110 | 0.450 | 0.225 | 110 | 4.0 | 50 % | 25 % |" in lines
    assert "| exactly_once | 4 |  |  |  |  |  |  | 75 % | 100 % |" in lines
    assert "| exactly_once | 40,000 | 2 | 0 | 0 | 0 | 0 | 2.6 | sound |" in lines
    assert "`scripts/bench scale-out --rounds 3`" in section
    assert "quick try" not in section
    assert "Turns without figures" not in section


def test_the_section_hides_nothing() -> None:
    """A turn that failed, a storm that found something, a run that was only a try."""
    wrong = {**_results()["storms"][0], "lost": 3, "sound": False}
    section = report.scale_out(_results(failures=["one, round 2: why\nmore"], storms=[wrong], quick=True))
    assert "- one, round 2: why\n" in section
    assert "| exactly_once | 40,000 | 2 | 3 | 0 | 0 | 0 | 2.6 | **not sound** |" in section
    assert "**A quick try, not a measurement.**" in section
    nothing = report.scale_out(_results(storms=[], costs=None))
    assert "repeated |" not in nothing
    assert "core seconds" not in nothing


def test_what_is_written_is_read_again_and_the_example_computed_from_it(documents: tuple[Path, Path]) -> None:
    performance, sizing = documents
    for _ in range(2):  # the second time in place of the first
        report.publish(_results())
        text = performance.read_text(encoding="utf-8")
        assert text.startswith("before\n<!-- begin scale-out -->\n## Scaling out\n")
        assert text.endswith("|\n<!-- end scale-out -->\nafter\n")
        assert text.count("## Scaling out") == 1
        assert report.costs_in(text) == COSTS
    example = report.cluster(COSTS)
    assert sizing.read_text(encoding="utf-8") == DOCUMENT.format("cluster").replace("old", example)


def test_without_costs_there_is_no_example(documents: tuple[Path, Path]) -> None:
    report.publish(_results(costs=None))
    assert report.costs_in(documents[0].read_text(encoding="utf-8")) is None
    assert documents[1].read_text(encoding="utf-8") == DOCUMENT.format("cluster").replace("old\n", "")


def test_the_example_says_what_the_cluster_carries() -> None:
    text = report.cluster(COSTS)
    found = capacity(COSTS, report.EXAMPLE)
    assert f"| {found.bound} | {round(found.rate, -3):,.0f} | " in text
    assert f"\n| **so it carries** | **{round(found.rate, -3):,.0f}** | " in text
    assert text.endswith(f"bound by its {found.bound}.")
    assert "c = 0.433, w = 0.200, s = 0.300, i = 534, o = 541." in text
    dearer = report.cluster(replace(COSTS, service=40.0))
    assert dearer.endswith("bound by its instances' cores.")


def test_assignments_are_counted_in_a_log() -> None:
    """Whatever else is in it, and a line that the end of the file has cut."""
    lines = [
        json.dumps({"event": "assigned", "partitions": ["logits-0", "logits-1", "logits-2"]}),
        "a warning {",
        json.dumps({"event": "revoked", "partitions": ["logits-0"]}),
        json.dumps({"event": "assigned", "partitions": ["logits-0"]}),
        '{"event": "assigned", "partit',
    ]
    assert assignments("\n".join(lines)) == [3, 1]
    assert assignments("") == []


def test_the_command_is_the_same_again() -> None:
    plan = Plan(["exactly_once"], 1000, 2, 500, 4.5, 0, quick=False)
    assert plan.command() == (
        "scripts/bench scale-out --guarantee exactly_once --messages 1000 --rounds 2 --rate 500 --seconds 4.5"
        " --storm-seconds 0"
    )


def _reading(name: str, numbers: Sequence[int]) -> Reading:
    offsets = np.arange(len(numbers), dtype=np.int64)
    nothing = Seen(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Reading(name, [Seen(np.array(numbers, np.int64), offsets, np.full(len(numbers), 2.5))], [nothing])


@pytest.mark.parametrize("guarantee", ["at_least_once", "exactly_once"])
def test_a_storm_of_nothing_but_scaling_may_repeat_nothing(guarantee: str) -> None:
    """By either guarantee, as all stops are clean; of two readers the one that found more counts."""
    options = storm_options(guarantee, 30)
    assert options.faults == ("scale",)
    assert not options.repeats_allowed
    expected = [Expected(np.array([1, 2, 3], np.int64), np.array([1.0, 1.0, 2.0]), np.zeros(3, bool))]
    verdict = decide(
        expected,
        _reading("concurrent", [1, 2, 2, 3]),
        _reading("final", [1, 3]),
        [],
        repeats_allowed=options.repeats_allowed,
    )
    row = storm_row(Outcome(options, 30.0, 3, 0, [], [], verdict, Path("logs")))
    assert (row["guarantee"], row["messages"], row["scaled"]) == (guarantee, 3, 0)
    assert (row["lost"], row["duplicated"], row["reordered"], row["corrupted"]) == (1, 1, 0, 0)
    assert row["longest_stall_seconds"] == pytest.approx(1.5)
    assert not row["sound"]
