"""What the integration tests share: topics, messages, and the service as a process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Self

import msgpack
import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from chaos.instance import CONTROLS_VARIABLE, FAILPOINTS_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

START_SECONDS = 20.0


def environment(**settings: object) -> dict[str, str]:
    """Environment variables of settings given as `section__name`."""
    return {f"SOFTMAX_{name.upper()}": _text(value) for name, value in settings.items()}


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, list) else str(value)


def clean_environment() -> dict[str, str]:
    """This process's environment without any setting."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SOFTMAX_")}


def pack(logits: ArrayLike, **fields: object) -> bytes:
    """A message with its fields before the logits, float32 where the array is."""
    array = np.asarray(logits)
    single = array.dtype == np.float32
    message: bytes = msgpack.packb({**fields, "logits": array.tolist()}, use_single_float=single)
    return message


def unpack(value: bytes | None) -> Any:
    """A message as Python objects."""
    return msgpack.unpackb(value or b"", strict_map_key=False)


def softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """The oracle, in double precision or better."""
    z = np.asarray(logits, np.longdouble)
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float64] = (e / e.sum(axis=-1, keepdims=True)).astype(np.float64)
    return probabilities


class Bus:
    """Three topics, and the means to write to the first and read the others."""

    def __init__(  # noqa: PLR0913 - what topics may differ in
        self,
        servers: str,
        name: str,
        partitions: int,
        *,
        replication: int = 1,
        output_partitions: int | None = None,
        output_configs: Mapping[str, str] | None = None,
        input_configs: Mapping[str, str] | None = None,
        dead_letter_configs: Mapping[str, str] | None = None,
        connection: Mapping[str, Any] | None = None,
    ) -> None:
        self.servers = servers
        self.name = name
        self.partitions = partitions
        self.input, self.output, self.dead_letter = f"{name}.logits", f"{name}.probabilities", f"{name}.dead"
        self.connection: dict[str, Any] = {"bootstrap_servers": servers, **(connection or {})}
        self._topics = [
            NewTopic(self.input, partitions, replication, topic_configs=dict(input_configs or {})),
            NewTopic(
                self.output, output_partitions or partitions, replication, topic_configs=dict(output_configs or {})
            ),
            NewTopic(
                self.dead_letter,
                partitions,
                replication,
                topic_configs={"max.message.bytes": "1100000", **(dead_letter_configs or {})},
            ),
        ]

    @property
    def settings(self) -> dict[str, object]:
        """Settings under which a service uses these topics, in a group of their own."""
        return {
            "kafka__bootstrap_servers": self.servers,
            "kafka__group_id": f"{self.name}.group",
            "topics__input": self.input,
            "topics__output": self.output,
            "topics__dead_letter": self.dead_letter,
            "http__port": 0,
        }

    async def __aenter__(self) -> Self:
        """Create the topics."""
        admin = AIOKafkaAdminClient(**self.connection)
        await admin.start()
        try:
            await admin.create_topics(self._topics)
        finally:
            await admin.close()
        self.producer = AIOKafkaProducer(**self.connection, acks="all", enable_idempotence=True, linger_ms=5)
        await self.producer.start()
        for topic in (self.input, self.output, self.dead_letter):
            await self.producer.partitions_for(topic)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection; the topics stay."""
        with contextlib.suppress(TimeoutError):  # the broker may be gone: that is what some tests are about
            await asyncio.wait_for(self.producer.stop(), 5)

    async def send(
        self,
        values: Iterable[bytes | None],
        *,
        partition: int | None = 0,
        key: Callable[[int], bytes | None] = lambda _: None,
        headers: Sequence[tuple[str, bytes | None]] = (),
        timestamp_ms: int | None = None,
    ) -> None:
        """Write values in order and wait until all are stored; spread over partitions if `partition` is None."""
        futures = [
            await self.producer.send(
                self.input,
                value,
                key=key(index),
                partition=index % self.partitions if partition is None else partition,
                headers=list(headers),
                timestamp_ms=timestamp_ms,
            )
            for index, value in enumerate(values)
        ]
        await asyncio.gather(*futures)

    async def read(self, topic: str, count: int, *, within: float = 30.0, settle: float = 0.3) -> list[Any]:
        """Read a topic from the beginning until it holds `count` records and then no more.

        Raises:
            AssertionError: it does not come to hold so many, or comes to hold more.
        """
        consumer = AIOKafkaConsumer(
            **self.connection, auto_offset_reset="earliest", isolation_level="read_committed", enable_auto_commit=False
        )
        await consumer.start()
        try:
            partitions = await self.producer.partitions_for(topic)
            consumer.assign([TopicPartition(topic, partition) for partition in partitions])
            await consumer.seek_to_beginning()
            found: list[Any] = []
            deadline = time.monotonic() + within
            while time.monotonic() < deadline and len(found) < count:
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    found += records
            for records in (await consumer.getmany(timeout_ms=int(settle * 1000))).values():
                found += records
        finally:
            await consumer.stop()
        assert len(found) == count, f"{topic} holds {len(found)} records, not {count}"
        return sorted(found, key=lambda record: (record.partition, record.offset))

    async def outputs(self, count: int, **options: float) -> list[Any]:
        """The output topic's records by partition and offset; see `read`."""
        return await self.read(self.output, count, **options)

    async def dead_letters(self, count: int, **options: float) -> list[Any]:
        """The dead-letter topic's records by partition and offset; see `read`."""
        return await self.read(self.dead_letter, count, **options)

    async def everything(self, topic: str, *, quiet: float = 1.0) -> list[Any]:
        """All records of a topic that are committed, once nothing more has come for so many seconds."""
        consumer = AIOKafkaConsumer(
            **self.connection, auto_offset_reset="earliest", isolation_level="read_committed", enable_auto_commit=False
        )
        await consumer.start()
        try:
            partitions = [TopicPartition(topic, p) for p in await self.producer.partitions_for(topic)]
            consumer.assign(partitions)
            await consumer.seek_to_beginning()
            found: list[Any] = []
            # Not as many as the ends tell: markers and aborted records have offsets too.
            ends: dict[Any, int] = {}
            while ends != (now := await consumer.end_offsets(partitions)):
                ends = now
                await asyncio.sleep(quiet)
            while any([await consumer.position(p) < ends[p] for p in partitions]):
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    found += records
        finally:
            await consumer.stop()
        return sorted(found, key=lambda record: (record.partition, record.offset))


class ServiceProcess:
    """`softmax-service run` as its own process.

    One with a failpoint, as in `committed=3`, dies there; one with a control lacks that safeguard.
    """

    def __init__(
        self, bus: Bus, log: Path, settings: Mapping[str, object], *, failpoint: str = "", control: str = ""
    ) -> None:
        defaults = {**bus.settings, "log__format": "json"}
        # The whole suite can be run on aiokafka's public interface alone, and with the other guarantee.
        if whole_batches := os.environ.get("SOFTMAX_TEST_WHOLE_BATCHES"):
            defaults["kafka__whole_batches"] = whole_batches
        if guarantee := os.environ.get("SOFTMAX_TEST_GUARANTEE"):
            defaults["delivery__guarantee"] = guarantee
        self._environment = clean_environment() | environment(**{**defaults, **settings})
        self.program = ["-m", "service"]
        self.arguments = ["run"]
        if failpoint or control:
            self.program = ["-m", "chaos.instance"]
            self._environment |= {FAILPOINTS_VARIABLE: failpoint, CONTROLS_VARIABLE: control}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> ServiceProcess:
        """Start it; wait for nothing."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - ours
                [sys.executable, *self.program, *self.arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    async def ready(self, within: float = START_SECONDS) -> ServiceProcess:
        """Wait until `/readyz` says so."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log
            if (await asyncio.to_thread(self.get, "/readyz"))[0] == 200:
                return self
            await asyncio.sleep(0.05)
        raise AssertionError(f"not ready after {within} s:\n{self.log}")

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process, which has been started."""
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        """All that it has written."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The logged events of this name."""
        return [event for event in self._all_events() if event.get("event") == name]

    def event_names(self) -> set[str]:
        """The names of all logged events."""
        return {str(event.get("event")) for event in self._all_events()}

    def _all_events(self) -> Iterator[dict[str, Any]]:
        for line in self.log.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a GET; status 0 where nothing listens yet."""
        listening = self.events("listening")
        if not listening:
            return 0, ""
        try:
            with urllib.request.urlopen(listening[-1]["address"] + path, timeout=5) as response:  # noqa: S310 - our own
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        _, text = self.get("/metrics")
        values = [line.rpartition(" ") for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        return sum(float(value) for _, _, value in values)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.process.pid, number)

    async def wait(self, within: float = 30.0) -> int:
        """Wait for its end; its exit code."""
        return await asyncio.to_thread(self.process.wait, within)

    async def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.signal(signal.SIGTERM)
        return await self.wait()

    async def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)
        await self.wait()

    def destroy(self) -> None:
        """End it if it still runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


async def eventually(condition: Callable[[], bool], within: float = 20.0, what: str = "the condition") -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: it does not in time.
    """
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if await asyncio.to_thread(condition):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{what} did not come true within {within} s")
