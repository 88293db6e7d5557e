"""What other pages cite of a measured throughput, from figures that are easy to compute with."""

from __future__ import annotations

from typing import Any

from benchmarks import cited
from benchmarks.programs import EXACTLY_ONCE, SERVICE


def row(program: str, classes: int, rate: float, cpu_seconds: float) -> dict[str, Any]:
    return {
        "program": program,
        "classes": classes,
        "rate": rate,
        "cpu_seconds": cpu_seconds,
        "peak_rss": 100 * cited.MIB,
    }


RESULTS = {
    "summary": [
        row(SERVICE, 1000, 50_000, 1.6),
        row(SERVICE, 100, 400_000, 0.2),
        row(EXACTLY_ONCE, 100, 320_000, 0.25),
        row("kafka-streams", 100, 100_000, 1.5),
        row("kafka-streams-exactly-once", 100, 81_234, 1.6),
    ]
}


def written() -> dict[str, str]:
    return {section: text for _, section, text in cited.sections(RESULTS)}


def test_programs_stand_beside_each_other_and_what_was_not_measured_is_left_out() -> None:
    _, _, *rows = written()["at-a-glance"].splitlines()
    assert rows == [
        "| **Softmax Service** | 400,000 | 1.00 | 0.200 | yes | with reasons, limits, replay |",
        "| the same, exactly-once | 320,000 | 1.25 | 0.250 |  |  |",
        "| Kafka Streams, one thread | 100,000 | 4.00 | 1.500 | `exactly_once_v2`: 81,234 | a topic, since 4.2 |",
    ]


def test_an_instance_carries_the_reciprocal_of_what_a_message_costs() -> None:
    _, _, *rows = written()["one-instance"].splitlines()
    assert rows == [
        "| 100 | 0.200 | 500,000 a second | 400,000 |",
        "| 1000 | 1.600 | 62,000 a second | 50,000 |",
    ]


def test_the_example_is_what_a_sheet_of_paper_says() -> None:
    """One core for 500,000 a second, a core and three sevenths at 70 %: two instances, and one to spare."""
    _, _, needed, backlog, transactional, mixed = written()["instances"].splitlines()
    assert needed.endswith("= 1.0 cores; ÷ 0.7 = 1.4, so 2, and 1 to spare: **3 instances, a core each**.")
    # 300 million wait; 700,000 a second more are taken than come in, for 429 seconds.
    assert "300 million messages: 3 instances carry" in backlog
    assert backlog.endswith("= 1.2 million a second, 700,000 more than comes in. It is gone after 7 minutes more.")
    assert "= 1.2 cores; ÷ 0.7 = 1.8, so 2, and 1 to spare." in transactional
    assert "= 1.9 cores; ÷ 0.7 = 2.6, so 3, and 1 to spare." in mixed


def test_both_guarantees_stand_beside_each_other_where_both_were_measured() -> None:
    _, _, *rows = written()["exactly-once"].splitlines()
    assert rows == [
        "| messages a second, K = 100 | 400,000 | 320,000 |",
        "| core seconds per 100,000, K = 100 | 0.200 | 0.250 |",
        "| peak memory, K = 100 | 100 MiB | 100 MiB |",
    ]


def test_without_both_guarantees_nothing_is_cited() -> None:
    assert list(cited.sections({"summary": RESULTS["summary"][:2]})) == []
