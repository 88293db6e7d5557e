"""`docs/events.md`: every line that the service logs, and what a person makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from service.observability.logs import QUIET_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator


class Event(NamedTuple):
    """A line of the log.

    Attributes:
        levels: it is written at.
        facts: the fields that it has beside `timestamp`, `level`, `logger` and `event`.
        meaning: what has happened.
        action: what a person does; nothing, mostly.
        summed: repetitions are told together, at most every `QUIET_SECONDS`.
    """

    levels: tuple[str, ...]
    facts: tuple[str, ...]
    meaning: str
    action: str = "–"
    summed: bool = False


# A test compares the names and levels with the calls in the code.
EVENTS: Final = {
    "listening": Event(("info",), ("address",), "`/metrics`, the probes and the status page are served there."),
    "started": Event(
        ("info",),
        ("group", "input", "output", "dead_letter", "guarantee"),
        "Kafka is reached, the topics fit each other; the group is being joined.",
    ),
    "assigned": Event(("info",), ("partitions",), "A rebalance ended; these partitions are served here now."),
    "revoked": Event(
        ("info", "warning"),
        ("partitions", "drained"),
        "A rebalance takes these partitions. A warning where not all could be finished first: their next owner repeats it, "
        "or with exactly-once ends it.",
        "Often: raise `delivery.drain_timeout_ms`, or see why the broker is slow.",
    ),
    "waiting for the broker": Event(
        ("warning",),
        ("operation", "times", "error"),
        "Kafka could not serve an operation; it is tried again until `delivery.retry_deadline_ms`.",
        "Lasting: see the brokers. The service loses nothing meanwhile.",
        summed=True,
    ),
    "delivery failed; going back to the acknowledged records": Event(
        ("warning",),
        ("times", "error"),
        "Something was not stored for good; a new producer takes over and the records are read again.",
        "Lasting: see the brokers and what `error` says.",
        summed=True,
    ),
    "dead letters": Event(
        ("warning",),
        ("one for each reason, with how many", "example"),
        "Records were refused and are in the dead-letter topic.",
        "See `softmax-service dead-letters list` and `show`, and who wrote them.",
        summed=True,
    ),
    "slower: whole batches are not tested with this aiokafka": Event(
        ("warning",),
        ("version",),
        "Another version of aiokafka is installed than the fast path is known to work with; the public interface is used.",
        "Install from the locked requirements.",
    ),
    "offset lost": Event(
        ("error",),
        ("topic", "partition", "offset", "policy"),
        "The next record is no longer in the log: it was deleted before it was read.",
        "Records are missing. Lengthen the topic's retention; see SoftmaxOffsetsLost in the [runbook](runbook.md).",
    ),
    "stalled: records wait, the broker answers, nothing moves": Event(
        ("error",),
        ("seconds", "stacks"),
        "The consumer has silently stopped. `/livez` fails from here on; after as long again the process ends with exit code 3.",
        "Restart, and report the stacks.",
    ),
    "stopping": Event(("info",), ("why",), "No more records are taken; those under way are finished."),
    "stopped": Event(("info",), ("how",), "The work is ended: `drained`, or what was left and will be read again."),
    "ended": Event(
        ("error",),
        ("error", "exit_code"),
        "The process ends for this reason. The codes are in the README.",
        "Do what the message says.",
    ),
}


def text() -> str:
    """The page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Log events"
    yield ""
    yield "<!-- Made by scripts/generate. -->"
    yield ""
    yield (
        "One line for each event that a person may act on, none for a record or a micro-batch: console text on a terminal, "
        "else a JSON object a line (`log.format`). Each has `timestamp` (UTC), `level`, `logger` and `event`. What holds "
        f"for longer is summed up and told every {QUIET_SECONDS:.0f} seconds at most (∑). No line holds a payload or a secret."
    )
    yield ""
    yield "| event | level | fields | meaning | what to do |"
    yield "|---|---|---|---|---|"
    for name, event in EVENTS.items():
        told = f"`{name}`" + (" ∑" if event.summed else "")
        facts = ", ".join(f"`{fact}`" if fact.isidentifier() else fact for fact in event.facts)
        yield f"| {told} | {', '.join(event.levels)} | {facts} | {event.meaning} | {event.action} |"
    yield ""
    yield (
        "Lines of the logger `aiokafka` are the client library's, from `warning` on, each text at most every "
        f"{QUIET_SECONDS:.0f} seconds. It complains about brokers before the service does; nothing needs to be done about "
        "them alone. With `log.level: debug` it tells more, but of no library anything below `info` is logged: there whole "
        "requests would be."
    )
