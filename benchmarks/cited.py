"""What docs/comparison.md and docs/sizing.md cite of a measured throughput, so that no page tells of another day."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from benchmarks.capacity import PER
from benchmarks.programs import EXACTLY_ONCE, SERVICE
from benchmarks.tables import markdown_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Summary = Mapping[tuple[str, int], Mapping[str, Any]]

MIB: Final = 1 << 20
# The number of classes that all programs are measured with.
CLASSES: Final = 100
STREAMS_EXACTLY_ONCE: Final = "kafka-streams-exactly-once"
YOURS: Final = "yours to write"
MILLION: Final = 1_000_000
TIMES: Final = "\u00d7"
# Of the example in docs/sizing.md: messages a second at the peak, the share of a core that is to be used, minutes of a
# backlog, and by what one message in a hundred on the general path makes each dearer, in core seconds: see "Share on
# the general path" in docs/performance.md.
PEAK: Final = 500_000
SHARE: Final = 0.7
BACKLOG_MINUTES: Final = 10
GENERAL_PATH_SECONDS: Final = 1.7e-6


@dataclass(frozen=True, slots=True)
class Compared:
    """A row of the comparison: a program's name there, and what it has of two things."""

    name: str
    exactly_once: str
    dead_letters: str


COMPARED: Final = {
    SERVICE: Compared("**Softmax Service**", "yes", "with reasons, limits, replay"),
    EXACTLY_ONCE: Compared("the same, exactly-once", "", ""),
    "rust-raw": Compared("Rust, librdkafka, by hand", YOURS, YOURS),
    "go-by-hand": Compared("Go, franz-go, by hand", YOURS, YOURS),
    "rust-library": Compared("Rust with serde", YOURS, YOURS),
    "go-library": Compared("Go with a msgpack library", YOURS, YOURS),
    "kafka-streams": Compared("Kafka Streams, one thread", "", "a topic, since 4.2"),
    "confluent-loop": Compared("confluent-kafka, a plain loop", YOURS, YOURS),
    "faststream": Compared("FastStream, batches", YOURS, YOURS),
    "quix": Compared("Quix Streams", "a setting", YOURS),
    "faust": Compared("Faust (faust-streaming)", "not measured", YOURS),
}


def sections(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The document, the section and the text of all that is cited; nothing unless both guarantees were measured."""
    rows: Summary = {(row["program"], row["classes"]): row for row in results["summary"]}
    if (SERVICE, CLASSES) not in rows or (EXACTLY_ONCE, CLASSES) not in rows:
        return
    yield "comparison.md", "at-a-glance", comparison(rows)
    yield "sizing.md", "one-instance", one_instance(rows)
    yield "sizing.md", "instances", instances(rows)
    yield "sizing.md", "exactly-once", guarantees(rows)


def comparison(rows: Summary) -> str:
    """All programs beside each other."""
    ours = rows[SERVICE, CLASSES]["rate"]
    headings = [
        "",
        "messages a second",
        "this service ÷ it",
        f"core seconds per {PER:,}",
        "exactly-once",
        "dead letters",
    ]
    table = []
    for program, about in COMPARED.items():
        if row := rows.get((program, CLASSES)):
            exactly_once = about.exactly_once
            if program == "kafka-streams" and (transactional := rows.get((STREAMS_EXACTLY_ONCE, CLASSES))):
                exactly_once = f"`exactly_once_v2`: {transactional['rate']:,.0f}"
            figures = [f"{row['rate']:,.0f}", f"{ours / row['rate']:.2f}", f"{row['cpu_seconds']:.3f}"]
            table.append([about.name, *figures, exactly_once, about.dead_letters])
    return "\n".join(markdown_table(headings, table, {"", "exactly-once", "dead letters"}))


def one_instance(rows: Summary) -> str:
    """What a message costs by its classes, and what an instance carries therefore."""
    headings = [
        "K, float32 in lists",
        f"core seconds per {PER:,} messages",
        "so a whole core carries",
        "measured, saturated",
    ]
    table = [
        [str(k), f"{row['cpu_seconds']:.3f}", f"{_rounded(PER / row['cpu_seconds'])} a second", f"{row['rate']:,.0f}"]
        for (program, k), row in sorted(rows.items(), key=lambda item: item[0][1])
        if program == SERVICE
    ]
    return "\n".join(markdown_table(headings, table))


def instances(rows: Summary) -> str:
    """The worked example of how many instances are needed."""
    cost, rate = rows[SERVICE, CLASSES]["cpu_seconds"], rows[SERVICE, CLASSES]["rate"]
    working = _needed(cost)
    together = (working + 1) * rate
    backlog = BACKLOG_MINUTES * 60 * PEAK
    minutes = backlog / (together - PEAK) / 60
    dearer = cost + GENERAL_PATH_SECONDS * PER
    transactional = rows[EXACTLY_ONCE, CLASSES]["cpu_seconds"]
    question = f"**Example.** {PEAK:,} messages a second at the peak, K = {CLASSES}, one instance may be missing:"
    after_an_outage = (
        f"- A backlog of {BACKLOG_MINUTES} minutes, {_rounded(backlog)} messages: {working + 1} instances carry"
        f" {working + 1} {TIMES} {_rounded(rate)} = {_rounded(together)} a second, {_rounded(together - PEAK)} more"
        f" than comes in. It is gone after {minutes:.0f} minutes more."
    )
    mixed = (
        f"- With one message in a hundred on the general path, {GENERAL_PATH_SECONDS * 1e6:.1f} µs more for each:"
        f" {_cores(dearer)}, so {_needed(dearer)}, and 1 to spare."
    )
    return "\n".join(
        [
            question,
            "",
            f"- {_cores(cost)}, so {working}, and 1 to spare: **{working + 1} instances, a core each**.",
            after_an_outage,
            f"- With exactly-once: {_cores(transactional)}, so {_needed(transactional)}, and 1 to spare.",
            mixed,
        ]
    )


def guarantees(rows: Summary) -> str:
    """Both guarantees beside each other."""
    classes = sorted(k for program, k in rows if program == EXACTLY_ONCE and (SERVICE, k) in rows)
    both = (SERVICE, EXACTLY_ONCE)
    at_k = [rows[each, CLASSES] for each in both]
    table = [
        *([f"messages a second, K = {k}", *(f"{rows[each, k]['rate']:,.0f}" for each in both)] for k in classes),
        [f"core seconds per {PER:,}, K = {CLASSES}", *(f"{row['cpu_seconds']:.3f}" for row in at_k)],
        [f"peak memory, K = {CLASSES}", *(f"{row['peak_rss'] / MIB:.0f} MiB" for row in at_k)],
    ]
    return "\n".join(markdown_table(["", "at-least-once", "exactly-once"], table, {""}))


def _cores(cost: float) -> str:
    cores = PEAK * cost / PER
    return f"{PEAK:,} {TIMES} {cost:.3f} ÷ {PER:,} = {cores:.1f} cores; ÷ {SHARE:g} = {cores / SHARE:.1f}"


def _needed(cost: float) -> int:
    return math.ceil(PEAK * cost / PER / SHARE)


def _rounded(rate: float) -> str:
    return f"{rate / MILLION:,.1f} million".replace(".0 ", " ") if rate >= MILLION else f"{round(rate, -3):,.0f}"
