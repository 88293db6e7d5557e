"""What was aimed at and what was measured, as a table: the section "goals" of docs/performance.md.

    .venv/bin/python benchmarks/goals.py throughput.json small.json latency.json soak.json startup.json transform.json

A goal whose figures are not among the files is not in the table.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import report
from benchmarks.programs import EXACTLY_ONCE, SERVICE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MIB: Final = 1 << 20
K: Final = (10, 100, 1000)


@dataclass(frozen=True, slots=True)
class Line:
    """A goal and what was measured.

    Attributes:
        what: is measured.
        goal: in words.
        measured: in figures.
        reached: whether each figure is as aimed at.
    """

    what: str
    goal: str
    measured: str
    reached: bool


def throughput(results: Mapping[str, Any]) -> Iterator[Line]:
    """Rates and costs beside other programs'."""
    rows = {(row["program"], row["classes"]): row for row in results["summary"]}

    def faster(what: str, programs: tuple[str, ...], goals: Mapping[int, float]) -> Iterator[Line]:
        """The service's rate, divided by that of the fastest of some programs."""
        found = {}
        for classes in goals:
            others = [rows[name, classes]["rate"] for name in programs if (name, classes) in rows]
            if others and (SERVICE, classes) in rows:
                found[classes] = rows[SERVICE, classes]["rate"] / max(others)
        if found:
            yield Line(what, _goals("≥", goals), _figures(found), all(found[k] >= goals[k] for k in found))

    yield from faster("throughput ÷ forwarding", ("forwarding",), {10: 1.3, 100: 1.2, 1000: 1.1})
    yield from faster("÷ Go with a library", ("go-library",), dict.fromkeys(K, 1.3))
    yield from faster("÷ Rust with a library", ("rust-library",), dict.fromkeys(K, 1.0))
    yield from faster("÷ the faster of Go by hand and Rust raw", ("go-by-hand", "rust-raw"), dict.fromkeys(K, 0.6))
    for program, goal in (
        ("confluent-loop", 6.0),
        ("kafka-streams", 5.0),
        ("faststream", 12.0),
        ("quix", 15.0),
        ("faust", 80.0),
    ):
        yield from faster(f"÷ {program}", (program,), {100: goal})
    for what, program, goal in (
        ("exactly-once ÷ at-least-once", SERVICE, 0.7),
        ("exactly-once ÷ Kafka Streams' `exactly_once_v2`", "kafka-streams-exactly-once", 4.0),
    ):
        if (EXACTLY_ONCE, 100) in rows and (program, 100) in rows:
            ratio = rows[EXACTLY_ONCE, 100]["rate"] / rows[program, 100]["rate"]
            yield Line(what, f"≥ {goal:g} (K = 100)", f"{ratio:.2f}", ratio >= goal)
    cost = {
        k: rows[SERVICE, k]["cpu_seconds"] / rows["forwarding", k]["cpu_seconds"] for k in K if (SERVICE, k) in rows
    }
    goals = {10: 0.6, 100: 0.85, 1000: 1.0}
    reached = all(cost[k] <= goals[k] for k in cost)
    yield Line("CPU a message ÷ forwarding's", _goals("≤", goals), _figures(cost), reached)
    if ("kafka-streams", 100) in rows:
        ratio = rows[SERVICE, 100]["cpu_seconds"] / rows["kafka-streams", 100]["cpu_seconds"]
        yield Line("CPU a message ÷ Kafka Streams'", "≤ 0.1 (K = 100)", f"{ratio:.3f}", ratio <= 0.1)
    memory = rows[SERVICE, 1000]["peak_rss"] / MIB
    yield Line("peak memory, K = 1000, saturated", "≤ 160 MiB", f"{memory:.0f} MiB", memory <= 160)


def small_batches(results: Mapping[str, Any]) -> Iterator[Line]:
    """Inputs of producers without linger."""
    rates = {row["program"]: row["rate"] for row in results["summary"]}
    ratio = rates[SERVICE] / rates["forwarding"]
    yield Line("small input batches ÷ forwarding", "≥ 1.0", f"{ratio:.2f}", ratio >= 1)


def latency(results: Mapping[str, Any]) -> Iterator[Line]:
    """Ages of outputs, and what they cost, beside forwarding's and FastStream's."""
    rows = {(row["program"], row["rate"]): row for row in results["latency"]}
    for rate in sorted({row["rate"] for row in results["latency"]}):
        ours, theirs = rows[SERVICE, rate], rows["forwarding", rate]
        for name, text in (("p50", "p50"), ("p99", "p99")):
            measured = f"{ours[name]:,.2f} against {theirs[name]:,.2f} ms"
            reached = ours[name] <= theirs[name]
            yield Line(f"{text} at {rate:,} a second", "≤ forwarding's", measured, reached)
        if ("faststream", rate) in rows:
            slow = rows["faststream", rate]
            measured = ", ".join(f"{name} {ours[name] / slow[name]:.2f}" for name in ("p50", "p99"))
            reached = all(ours[name] <= slow[name] / 5 for name in ("p50", "p99"))
            yield Line(f"÷ FastStream's at {rate:,} a second", "≤ 0.2", measured, reached)
        ratio = ours["cpu_share"] / theirs["cpu_share"]
        yield Line(f"CPU ÷ forwarding's at {rate:,} a second", "≤ 0.8", f"{ratio:.2f}", ratio <= 0.8)


def soak(results: Mapping[str, Any]) -> Iterator[Line]:
    """Growth of the memory."""
    hours = results["seconds"] / 3600
    grown, scatter = results["rss_slope_mib_per_hour"] * hours, results["rss_scatter_mib"]
    measured = f"{results['rss_slope_mib_per_hour']:+.2f} MiB an hour, scatter {scatter:.2f} MiB"
    yield Line("growth of memory in a soak", "not above noise", measured, grown <= 3 * scatter)


def startup(results: Mapping[str, Any]) -> Iterator[Line]:
    """Starts."""
    for name, what, goal in (("help", "`--help`", 0.4), ("ready", "start until ready", 1.5)):
        seconds = results[f"{name}_seconds"]
        yield Line(what, f"≤ {goal} s", f"{seconds:.2f} s", seconds <= goal)


def transform(results: Mapping[str, Any]) -> Iterator[Line]:
    """Softmax alone."""
    worst = {
        "every K from 2": (3.0, [row["float32"] for row in results["softmax"]]),
        "K from 100": (2.5, [row["float32"] for row in results["softmax"] if row["classes"] >= 100]),
    }
    for which, (goal, ratios) in worst.items():
        what = f"softmax ÷ `np.exp`, {which}"
        measured = f"{min(ratios):.2f} to {max(ratios):.2f}"
        yield Line(what, f"≤ {goal}", measured, max(ratios) <= goal)


def lines(results: Mapping[str, Any]) -> Iterator[Line]:
    """The goals that a file of figures tells of."""
    if "latency" in results:
        yield from latency(results)
    elif "minutes" in results:
        yield from soak(results)
    elif "help_seconds" in results:
        yield from startup(results)
    elif "softmax" in results:
        yield from transform(results)
    elif results.get("input_batch_records"):
        yield from small_batches(results)
    else:
        yield from throughput(results)


def _goals(sign: str, goals: Mapping[int, float]) -> str:
    values = list(goals.values())
    if len(goals) == 1:
        return f"{sign} {values[0]:g} (K = {next(iter(goals))})"
    if len(set(values)) == 1:
        return f"{sign} {values[0]:g}"
    return ", ".join(f"{sign} {value:g}" for value in values)


def _figures(found: Mapping[int, float]) -> str:
    return ", ".join(f"{value:.2f}" for _, value in sorted(found.items()))


def main() -> None:
    """Write the section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("figures", type=Path, nargs="+")
    all_results = [json.loads(file.read_text(encoding="utf-8")) for file in parser.parse_args().figures]
    rows = [
        f"| {line.what} | {line.goal} | {line.measured} | {'yes' if line.reached else '**no**'} |"
        for results in all_results
        for line in lines(results)
    ]
    commands = [f"- `{results['command']}`" for results in all_results]
    table = ["| what | goal | measured | reached |", "| --- | --- | ---: | --- |", *rows]
    report.write_docs("goals", "\n".join(["K = 10, 100, 1000 in this order. From:", "", *commands, "", *table]))


if __name__ == "__main__":
    main()
