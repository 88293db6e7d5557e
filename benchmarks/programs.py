"""The programs that are measured: how each is started, and what is fair to know about it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.environments import PEERS, go_program, go_versions, own_versions, peer_versions, python_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SERVICE: Final = "softmax-service"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a program works.

    Attributes:
        bootstrap: the broker.
        input_topic: what it reads.
        output_topic: what it writes.
        dead_letter_topic: where the service would put refused records.
        group: its consumer group, which is new.
    """

    bootstrap: str
    input_topic: str
    output_topic: str
    dead_letter_topic: str
    group: str


@dataclass(frozen=True, slots=True)
class Program:
    """A program under measurement.

    Attributes:
        command: what to start; called once everything it needs is to be there. It raises `Unavailable`, as
            `versions` does, where a toolchain is missing.
        environment: the variables that tell it its place.
        versions: of what it consists of.
        transforms: whether it writes probabilities; else it writes what it reads.
        notes: on its settings, and on what would make it faster.
    """

    command: Callable[[], Sequence[str]]
    environment: Callable[[Place], Mapping[str, str]]
    versions: Callable[[], Mapping[str, str]]
    transforms: bool
    notes: str


def service_environment(place: Place) -> dict[str, str]:
    """Settings of the service: where it works, and any free port; all else is as delivered."""
    return {
        "SOFTMAX_KAFKA__BOOTSTRAP_SERVERS": place.bootstrap,
        "SOFTMAX_KAFKA__GROUP_ID": place.group,
        "SOFTMAX_TOPICS__INPUT": place.input_topic,
        "SOFTMAX_TOPICS__OUTPUT": place.output_topic,
        "SOFTMAX_TOPICS__DEAD_LETTER": place.dead_letter_topic,
        "SOFTMAX_HTTP__HOST": "127.0.0.1",
        "SOFTMAX_HTTP__PORT": "0",
    }


def service_command() -> list[str]:
    """The service, as its console script runs it."""
    return [sys.executable, "-m", "service", "run"]


def _peer_environment(place: Place) -> dict[str, str]:
    return {
        "BOOTSTRAP": place.bootstrap,
        "INPUT": place.input_topic,
        "OUTPUT": place.output_topic,
        "GROUP": place.group,
    }


def _confluent(*options: str) -> Callable[[], list[str]]:
    return lambda: [str(python_of("confluent")), str(PEERS / "confluent_loop.py"), *options]


def _confluent_versions() -> dict[str, str]:
    return peer_versions("confluent", "confluent-kafka", "msgpack", "numpy")


def _go(mode: str) -> Callable[[], list[str]]:
    return lambda: [str(go_program()), mode]


_GO_NOTES: Final = (
    "Polls at most 10,000 records, transforms them in one goroutine, produces them, and waits for the acknowledgements"
    " of the poll before; then marks, and what is marked is committed each second. Reads `read_committed`; idempotent"
    " producer, `acks=all`, no linger, batches of 1 MB, no compression; everything else is franz-go's default, its"
    " goroutines and the garbage collector's among it, on all cores."
)

_CONFLUENT_NOTES: Final = (
    "Reads `read_committed`, `enable.auto.commit` off; idempotent producer, `acks=all`, `linger.ms` 5,"
    " `batch.size` 1 MB, no compression; commits asynchronously after each batch's acknowledgements; everything else"
    " is librdkafka's default. BLAS threads are off, as in the service."
)

PROGRAMS: Final[Mapping[str, Program]] = {
    SERVICE: Program(
        command=service_command,
        environment=service_environment,
        versions=lambda: own_versions("softmax-service", "aiokafka", "msgpack", "numpy", "uvloop"),
        transforms=True,
        notes=(
            "As delivered: every setting at its default save the broker, the topics, the group and the HTTP port."
            " Its metrics and health checks are on; the peers have none."
        ),
    ),
    "confluent-loop": Program(
        command=_confluent(),
        environment=_peer_environment,
        versions=_confluent_versions,
        transforms=True,
        notes=(
            "The loop that an engineer writes first: `consume(1000)`, then for each message `msgpack.unpackb`, softmax"
            f" in numpy, `packb`, `produce`; then `flush` and `commit`. {_CONFLUENT_NOTES} Faster would be: one array"
            " for many messages (the next program), not waiting for the acknowledgements before the next batch is read,"
            " several processes where there are cores for them, and no Python object for each logit, of which there"
            " are the more the larger K."
        ),
    ),
    "confluent-stacked": Program(
        command=_confluent("--stacked"),
        environment=_peer_environment,
        versions=_confluent_versions,
        transforms=True,
        notes=(
            f"The same loop with one softmax over many messages and one packer for all. {_CONFLUENT_NOTES}"
            " Faster would be: the same as above, save the array."
        ),
    ),
    "go-library": Program(
        command=_go("library"),
        environment=_peer_environment,
        versions=lambda: go_versions("github.com/twmb/franz-go", "github.com/vmihailenco/msgpack/v5"),
        transforms=True,
        notes=(
            "In Go, each message into a struct and out of one by the usual msgpack library, `math.Exp` for each logit."
            f" {_GO_NOTES} Faster would be: no library (the next program), a goroutine for each partition where there"
            " are cores for them, a larger `GOGC`."
        ),
    ),
    "go-by-hand": Program(
        command=_go("by-hand"),
        environment=_peer_environment,
        versions=lambda: go_versions("github.com/twmb/franz-go"),
        transforms=True,
        notes=(
            "The same in Go without a msgpack library: it knows this message's layout and no other, copies all outputs"
            " of a poll into one buffer, overwrites the numbers there, and has an exponential function of its own in"
            f" float32. {_GO_NOTES} Faster would be: vector instructions, which the Go compiler does not emit, a"
            " goroutine for each partition where there are cores for them, records from a pool, a larger `GOGC`."
        ),
    ),
    "forwarding": Program(
        command=lambda: [sys.executable, str(PEERS / "forwarding.py")],
        environment=_peer_environment,
        versions=lambda: own_versions("aiokafka", "uvloop"),
        transforms=False,
        notes=(
            "Computes nothing: `getmany`, the same bytes into `create_batch`, `send_batch`. It is what the public"
            " interface of the service's client library allows at most, with the service's sizes of fetches and"
            " batches, an idempotent producer, `acks=all` and a commit of what is acknowledged each second. It runs in"
            " the project's own environment, on uvloop. Faster would be: no object for each record, which the public"
            " interface does not allow."
        ),
    ),
}
