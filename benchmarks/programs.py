"""The programs that are measured: how each is started, and what is fair to know about it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from benchmarks.environments import PEERS, own_versions, peer_versions, python_of
from benchmarks.toolchains import go_program, go_versions, java_command, java_versions, rust_program, rust_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SERVICE: Final = "softmax-service"
EXACTLY_ONCE: Final = "softmax-service-exactly-once"
OBSERVED: Final = "softmax-service-observed"
UNOBSERVED: Final = "softmax-service-unobserved"


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
        share: of the input that it is measured over, where all of it would take minutes.
        transactional: whether it writes in transactions, whose markers stand among its outputs.
        adds_headers: whether its outputs have headers that no input had.
    """

    command: Callable[[], Sequence[str]]
    environment: Callable[[Place], Mapping[str, str]]
    versions: Callable[[], Mapping[str, str]]
    transforms: bool
    notes: str
    share: float = 1.0
    transactional: bool = False
    adds_headers: bool = False


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
        # The checkout, but not its environment.
        "PYTHONPATH": str(PEERS.parent.parent),
    }


def _python(peer: str, script: str, *arguments: str) -> Callable[[], list[str]]:
    return lambda: [str(python_of(peer)), str(PEERS / script), *arguments]


def _confluent_versions() -> dict[str, str]:
    return peer_versions("confluent", "confluent-kafka", "msgpack", "numpy")


def _go(mode: str) -> Callable[[], list[str]]:
    return lambda: [str(go_program()), mode]


def _rust(mode: str) -> Callable[[], list[str]]:
    return lambda: [str(rust_program()), mode]


def _streams(guarantee: str) -> Callable[[], list[str]]:
    return lambda: [*java_command(), guarantee]


def _streams_versions() -> dict[str, str]:
    return java_versions("kafka-streams", "msgpack-core")


def _observed(how: str, notes: str) -> Program:
    return Program(
        command=lambda: [sys.executable, "-m", "benchmarks.observed", how],
        environment=service_environment,
        versions=lambda: own_versions("softmax-service", "aiokafka", "msgpack", "numpy", "uvloop"),
        transforms=True,
        notes=notes,
    )


_GO_NOTES: Final = (
    "Polls at most 10,000 records, transforms them in one goroutine, produces them, and waits for the acknowledgements"
    " of the poll before; then marks, and what is marked is committed each second. Reads `read_committed`; idempotent"
    " producer, `acks=all`, no linger, batches of 1 MB, no compression; everything else is franz-go's default, its"
    " goroutines and the garbage collector's among it, on all cores."
)

_RUST_NOTES: Final = (
    "Reads at most 10,000 records at once, produces their outputs, and waits for the acknowledgements of those before;"
    " then stores their offsets, and what is stored is committed each second. Reads `read_committed`; idempotent"
    " producer, `acks=all`, `linger.ms` 5, `batch.size` 1 MB, no compression; `queued.min.messages` 1,000,000 and"
    " `fetch.queue.backoff.ms` 10, without which it stops for a second each time that 100,000 small messages wait;"
    " everything else is librdkafka's default, its threads among it. Built with all optimisations and this machine's"
    " vector instructions."
)

_STREAMS_NOTES: Final = (
    "One stream thread, as by default; `batch.size` 1 MB, `read_committed`; everything else is Kafka Streams' default,"
    " G1 and the whole just-in-time compiler among it. A partitioner of ours keeps the input's partition. The span"
    " begins after 5 % of the input, so a part of the compiling is in it. Faster would be: a thread for each partition"
    " where there are cores for them, and no msgpack library."
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
    EXACTLY_ONCE: Program(
        command=service_command,
        environment=lambda place: {**service_environment(place), "SOFTMAX_DELIVERY__GUARANTEE": "exactly_once"},
        versions=lambda: own_versions("softmax-service", "aiokafka", "msgpack", "numpy", "uvloop"),
        transforms=True,
        transactional=True,
        notes="The same with `delivery.guarantee` `exactly_once`: as many messages in a transaction as have come.",
    ),
    OBSERVED: _observed(
        "all", "The same, with `/metrics` and `/status.json` read every second, by a thread of its own."
    ),
    UNOBSERVED: _observed("none", "The same without metrics, status, samples or logs of events."),
    "confluent-loop": Program(
        command=_python("confluent", "confluent_loop.py"),
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
        share=0.2,
    ),
    "confluent-stacked": Program(
        command=_python("confluent", "confluent_loop.py", "--stacked"),
        environment=_peer_environment,
        versions=_confluent_versions,
        transforms=True,
        notes=(
            f"The same loop with one softmax over many messages and one packer for all. {_CONFLUENT_NOTES}"
            " Faster would be: the same as above, save the array."
        ),
        share=0.3,
    ),
    "confluent-transform": Program(
        command=_python("transform", "confluent_loop.py", "--service"),
        environment=_peer_environment,
        versions=lambda: peer_versions("transform", "confluent-kafka", "msgpack", "numpy"),
        transforms=True,
        notes=(
            "The same loop around the service's own transform: what our columns bring without our record batches."
            f" {_CONFLUENT_NOTES} Faster would be: no object for each message, not waiting for the acknowledgements."
        ),
        share=0.5,
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
    "rust-library": Program(
        command=_rust("library"),
        environment=_peer_environment,
        versions=lambda: rust_versions("rdkafka", "rdkafka-sys", "rmp-serde"),
        transforms=True,
        notes=(
            "In Rust, each message into a struct and out of one by serde, through rdkafka's safe interface."
            f" {_RUST_NOTES} Faster would be: the next program."
        ),
    ),
    "rust-raw": Program(
        command=_rust("raw"),
        environment=_peer_environment,
        versions=lambda: rust_versions("rdkafka", "rdkafka-sys"),
        transforms=True,
        notes=(
            "The same in Rust by librdkafka's C interface: read in batches, an exponential function that the compiler"
            " makes vector instructions of, numbers rewritten in a buffer that is kept; it knows this message's layout"
            f" and no other. {_RUST_NOTES} Faster would be: no copy of each output into librdkafka's own memory, and a"
            " client that works on record batches."
        ),
    ),
    "kafka-streams": Program(
        command=_streams("at_least_once"),
        environment=_peer_environment,
        versions=_streams_versions,
        transforms=True,
        notes=f"In Java: `processValues` with msgpack-core. Commits each second. {_STREAMS_NOTES}",
        share=0.3,
    ),
    "kafka-streams-exactly-once": Program(
        command=_streams("exactly_once_v2"),
        environment=_peer_environment,
        versions=_streams_versions,
        transforms=True,
        transactional=True,
        notes=(
            "The same with `processing.guarantee=exactly_once_v2`, which commits each 100 ms by default."
            f" {_STREAMS_NOTES} Longer transactions would make it faster, and each output later."
        ),
        share=0.3,
    ),
    "faststream": Program(
        command=_python("faststream", "faststream_batch.py"),
        environment=_peer_environment,
        versions=lambda: peer_versions("faststream", "faststream", "aiokafka", "msgpack", "numpy"),
        transforms=True,
        adds_headers=True,
        notes=(
            "A batch subscriber of at most 1000 records, one softmax over many messages, `publish` for each without"
            " waiting, then all acknowledgements; `NACK_ON_ERROR`, so a batch is committed when its handler has"
            " returned. `read_committed`; idempotent producer, `acks=all`, `linger_ms` 5, batches of 1 MiB; on uvloop."
            " Faster would be: `publish_batch`, which gives all its messages one timestamp."
        ),
        share=0.1,
    ),
    "quix": Program(
        command=_python("quix", "quix_apply.py"),
        environment=_peer_environment,
        versions=lambda: peer_versions("quix", "quixstreams", "confluent-kafka", "msgpack", "numpy"),
        transforms=True,
        notes=(
            "Quix Streams: `apply` with a softmax for each message, as it offers no batch without a window."
            " `commit_interval` 1 s, `read_committed`, `linger.ms` 5, `batch.size` 1 MB; idempotence and `acks=all`"
            " are its defaults. The output partition is given through the producer that `to_topic` uses, whose public"
            " interface has none. Faster would be: several processes."
        ),
        share=0.1,
    ),
    "faust": Program(
        command=_python("faust", "faust_take.py", "worker", "--loglevel", "warn"),
        environment=_peer_environment,
        versions=lambda: peer_versions("faust", "faust-streaming", "aiokafka", "msgpack", "numpy"),
        transforms=True,
        notes=(
            "The maintained fork of Faust: an agent that takes at most 1000 events within 100 ms, one softmax over many"
            " messages, `send` for each, then all acknowledgements. `commit_interval` 1 s, `acks=all`, `linger` 5 ms,"
            " batches of 1 MiB. It has no idempotent producer and reads uncommitted records. Faster would be: several"
            " workers."
        ),
        share=0.02,
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
