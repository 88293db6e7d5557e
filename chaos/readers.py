"""Readers of committed records: one beside the storm, one after it. Both check every record."""

from __future__ import annotations

import threading
import time
from array import array
from typing import TYPE_CHECKING, Any, Final, Self

from confluent_kafka import Consumer, KafkaError, TopicPartition

from chaos import messages
from chaos.cluster import DEAD_LETTER, OUTPUT
from chaos.verdict import Reading, reading

if TYPE_CHECKING:
    from chaos.ledger import Ledger

# Kept in words; more are only counted.
MOST_FAULTS: Final = 1000
# A transaction that nobody ends is ended by the broker; until then it hides what follows.
END_SECONDS: Final = 150.0


class ReaderError(Exception):
    """A reader cannot go on: what it has seen proves nothing."""


class _Column:
    """What has been read of one partition."""

    def __init__(self) -> None:
        self.numbers: array[int] = array("q")
        self.offsets: array[int] = array("q")
        self.at: array[float] = array("d")
        self.most = -1


class Reader:
    """Reads both topics from their beginnings.

    Attributes:
        error: what ended it early, if something did.
    """

    def __init__(self, name: str, servers: str, ledger: Ledger, partitions: int, *, bare: bool = False) -> None:
        """Read nothing yet; then answers to messages, or to bare logits that have passed through two services."""
        self._bare = bare
        self.error: BaseException | None = None
        self._name = name
        self._ledger = ledger
        self._partitions = partitions
        self._corrupted: list[str] = []
        self._columns = {(topic, p): _Column() for topic in (OUTPUT, DEAD_LETTER) for p in range(partitions)}
        self._answered = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._consumer = Consumer(
            {
                "bootstrap.servers": servers,
                "group.id": f"chaos-{name}",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                # Whoever has read a record must never be told that there is no such offset.
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                "check.crcs": True,
                "fetch.wait.max.ms": 100,
                "socket.timeout.ms": 5000,
                "reconnect.backoff.max.ms": 500,
                "topic.metadata.refresh.interval.ms": 2000,
                "log_level": 0,
            }
        )

    @property
    def answered(self) -> int:
        """How many messages it has seen answered, each counted once if they came in order."""
        return self._answered

    def __enter__(self) -> Self:
        """Read in a thread of its own."""
        self._begin()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()
        self._consumer.close()

    @property
    def reading(self) -> Reading:
        """What it has read.

        Raises:
            ReaderError: it could not read on.
        """
        self.check()
        columns = [(column.numbers, column.offsets, column.at) for column in self._columns.values()]
        return reading(self._name, columns, self._partitions, self._corrupted)

    def check(self) -> None:
        """See that it still reads.

        Raises:
            ReaderError: it could not read on.
        """
        if self.error is not None:
            raise ReaderError(f"reader {self._name} ended early: {self.error}") from self.error

    def read_to_the_end(self) -> Reading:
        """Read all that there is; return it.

        Raises:
            ReaderError: for too long nothing has come, and the end was not reached.
        """
        self._begin()
        answered, moved_at = self._answered, time.monotonic()
        left = set(self._columns)
        while left:
            # Millions of records take minutes to read and to check: only a standstill is an error.
            if self._answered != answered:
                answered, moved_at = self._answered, time.monotonic()
            if time.monotonic() - moved_at > END_SECONDS:
                raise ReaderError(f"reader {self._name} has not come to the end of {sorted(left)}")
            for topic, partition, offset in self._take():
                _, end = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
                if offset >= end:
                    left.discard((topic, partition))
        self._consumer.close()
        return self.reading

    def _begin(self) -> None:
        self._consumer.assign([TopicPartition(topic, partition, 0) for topic, partition in self._columns])

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._take()
        except BaseException as error:  # noqa: BLE001 - told by `check`
            self.error = error

    def _take(self) -> list[tuple[str, int, int]]:
        """Take what has come; return the ends (topic, partition, offset) that were reached."""
        ends: list[tuple[str, int, int]] = []
        message: Any
        for message in self._consumer.consume(1000, 0.1):
            error = message.error()
            if error is None:
                self._look(message)
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - librdkafka's own codes are named so
                ends.append((message.topic(), message.partition(), message.offset()))
            elif error.fatal() or error.code() in {
                KafkaError._AUTO_OFFSET_RESET,  # noqa: SLF001 - as above
                KafkaError._LOG_TRUNCATION,  # noqa: SLF001 - as above
            }:
                raise ReaderError(f"{message.topic()}-{message.partition()}: {error}")
        return ends

    def _look(self, message: Any) -> None:
        """Write down which message a record answers, and whether it does so rightly."""
        topic, partition = message.topic(), message.partition()
        place = f"{topic}-{partition}@{message.offset()}"
        key = message.key() or b""
        if not key.isdigit():
            self._blame(f"{place}: an unknown key {key[:40]!r}")
            return
        number = int(key)
        column = self._columns[topic, partition]
        if number > column.most:
            column.most = number
            self._answered += 1
        column.numbers.append(number)
        column.offsets.append(message.offset())
        column.at.append(time.monotonic())
        if topic == OUTPUT:
            fault = messages.fault_of_output(number, message.value(), message.headers(), bare=self._bare)
        else:
            coordinates = self._ledger.coordinates(partition, number)
            value, headers = message.value(), message.headers()
            fault = messages.fault_of_dead_letter(number, value, headers, coordinates, bare=self._bare)
        if message.timestamp()[1] != messages.timestamp_ms(number):
            fault = fault or f"another timestamp: {message.timestamp()}"
        if fault:
            self._blame(f"{place}: {number}: {fault}")

    def _blame(self, fault: str) -> None:
        self._corrupted.append(fault if len(self._corrupted) < MOST_FAULTS else "")
