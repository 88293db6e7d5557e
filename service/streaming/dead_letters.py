"""The dead-letter topic for people: what is in it, and how it is given back to the service."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import msgpack
from aiokafka import AIOKafkaConsumer, TopicPartition, errors

from service.errors import BrokerUnusableError, ConfigurationError
from service.streaming.clients import bounded, close, connection
from service.streaming.headers import ATTEMPT, attempts_of, is_ours
from service.streaming.offsets import committed_offset, end_of_log
from service.streaming.outgoing import Batch
from service.streaming.startup import describe, examine
from service.streaming.transactions import Transactions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from service.settings import Settings
    from service.streaming.records import Received

# Replayed in one transaction.
AT_ONCE: Final = 500
BATCH_BYTES: Final = 1 << 18
POLL_MS: Final = 500
FETCH_WAIT_MS: Final = 20
# Reading that does not move for so long has failed.
PATIENCE_SECONDS: Final = 30


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters.

    Attributes:
        reasons: for one of these; none: for any.
        partition: in this partition of the dead-letter topic; `None`: in all.
    """

    reasons: frozenset[str] = frozenset()
    partition: int | None = None

    def takes(self, letter: DeadLetter) -> bool:
        """Whether it is one of them."""
        return not self.reasons or letter.reason in self.reasons

    @property
    def name(self) -> str:
        """The same for the same reasons."""
        return "+".join(sorted(self.reasons)) or "all"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record of the dead-letter topic, and what its headers say."""

    record: Received

    def header(self, name: str) -> str:
        """What this service's header of such a name says; empty if it is not there."""
        values = [value for header, value in self.record.headers if header == f"softmax-error-{name}"]
        return (values[-1] or b"").decode(errors="replace") if values else ""

    @property
    def reason(self) -> str:
        """Why it was refused."""
        return self.header("reason")

    @property
    def attempt(self) -> int:
        """The how-manyeth time it was."""
        return attempts_of(self.record.headers)

    @property
    def has_value(self) -> bool:
        """Whether its record's value is in it: one too long for its topic leaves without."""
        return not self.header("value-sha256")


@dataclass(frozen=True, slots=True)
class Repair:
    """What is changed of a record before it is read again.

    Attributes:
        unwrap: the field of a map whose content is the message; `None`: the value is.
        model: what the header `model` is to say; `None`: what it says.
        max_attempts: those that have been refused so often stay.
    """

    unwrap: str | None = None
    model: str | None = None
    max_attempts: int = 3

    def value(self, letter: DeadLetter) -> bytes | None:
        """The value to send.

        Raises:
            ValueError: why it stays.
        """
        if not letter.has_value:
            raise ValueError("without its value")
        if letter.attempt >= self.max_attempts:
            raise ValueError(f"refused {letter.attempt} times")
        return letter.record.value if self.unwrap is None else unwrapped(letter.record.value, self.unwrap)

    def headers(self, letter: DeadLetter) -> list[tuple[str, bytes | None]]:
        """The headers to send: the record's own, and how often it was refused."""
        kept = [header for header in letter.record.headers if not is_ours(header[0])]
        if self.model is not None:
            kept = [header for header in kept if header[0] != "model"] + [("model", self.model.encode())]
        return [*kept, (ATTEMPT, b"%d" % letter.attempt)]


@dataclass(slots=True)
class Replayed:
    """What became of dead letters.

    Attributes:
        sent: given back.
        stayed: not, by why.
    """

    sent: int = 0
    stayed: Counter[str] = field(default_factory=Counter)


def unwrapped(value: bytes | None, name: str) -> bytes:
    """What is in a field of a map: the content of a bin or a text, the bytes of anything else.

    Raises:
        ValueError: there is no such field.
    """
    unpacker = msgpack.Unpacker(strict_map_key=False, max_buffer_size=0)
    unpacker.feed(value or b"")
    try:
        for _ in range(unpacker.read_map_header()):
            key, begin = unpacker.unpack(), unpacker.tell()
            content = unpacker.unpack()
            if key == name:
                raw = (value or b"")[begin : unpacker.tell()]
                return content if isinstance(content, bytes) else content.encode() if isinstance(content, str) else raw
    except (msgpack.UnpackException, ValueError, TypeError):
        pass
    raise ValueError(f"without a field {name}")


class DeadLetters:
    """Reads the dead-letter topic from its beginning to where it ends now."""

    def __init__(self, settings: Settings) -> None:
        """Connect nothing yet."""
        self._settings = settings
        self._topic = settings.topics.dead_letter

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            BrokerUnusableError: Kafka or a topic cannot be used.
        """
        self._topology = await examine(self._settings)
        self._consumer = AIOKafkaConsumer(
            **connection(self._settings),
            isolation_level="read_committed",
            enable_auto_commit=False,
            # Questions wait behind a fetch that waits for records.
            fetch_max_wait_ms=FETCH_WAIT_MS,
        )
        try:
            await bounded(self._consumer.start(), self._settings.kafka.request_timeout_ms)
        except (errors.KafkaError, TimeoutError) as error:
            await close(self._consumer, 1)
            raise BrokerUnusableError(f"Cannot read {self._topic}: {describe(error)}", "See the brokers") from error
        # Once for all: to assign again and again is slow, and aiokafka may then not stop.
        partitions = self._partitions(Selection())
        self._consumer.assign(partitions)
        self._consumer.pause(*partitions)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect."""
        await close(self._consumer, 5)

    async def letters(self, selection: Selection) -> AsyncIterator[DeadLetter]:
        """Those that are selected, by partition and offset.

        Raises:
            BrokerUnusableError: reading stands still.
        """
        for partition in self._partitions(selection):
            async for letter in self._of(partition, 0):
                if selection.takes(letter):
                    yield letter

    async def letter(self, partition: int, offset: int) -> DeadLetter:
        """One of them.

        Raises:
            ConfigurationError: there is none.
        """
        for where in self._partitions(Selection(partition=partition)):
            async for letter in self._of(where, offset):
                if letter.record.offset == offset:
                    return letter
                break
        raise ConfigurationError(f"There is no dead letter at {self._topic}-{partition} @{offset}")

    async def replay(
        self,
        selection: Selection,
        repair: Repair,
        rate: float,
        progress: Callable[[int], object],
        *,
        dry_run: bool = False,
    ) -> Replayed:
        """Give dead letters back to the input topic, each once, also if this is broken off and begun again.

        What was sent and how far the topic was read are written in one transaction, for a group whose name says what
        was selected: a replay goes on where the last one with that selection ended. A dry run only counts.

        Raises:
            BrokerUnusableError: Kafka cannot be read or written.
        """
        done = Replayed()
        group = f"{self._settings.kafka.group_id}.replay.{selection.name}"
        kafka = self._settings.kafka.model_copy(update={"group_id": group, "idempotent_producer": True})
        settings = self._settings.model_copy(update={"kafka": kafka})
        for partition in self._partitions(selection):
            transactions = Transactions(settings, partition, BATCH_BYTES)
            replay = _Replay(selection, repair, rate, progress, done, dry_run)
            try:
                if not dry_run:  # it would take the lease from a replay that runs
                    await transactions.start()
                begin = await committed_offset(self._consumer, group, partition) or 0
                await self._replay(transactions, partition, begin, replay)
            except (errors.KafkaError, TimeoutError, OSError) as error:
                raise BrokerUnusableError(
                    f"The replay was broken off after {done.sent}: {describe(error)}",
                    "Begin it again: it goes on there",
                ) from error
            finally:
                await transactions.discard()
        return done

    async def _replay(self, transactions: Transactions, partition: TopicPartition, begin: int, replay: _Replay) -> None:
        some: list[DeadLetter] = []
        following = begin
        async for letter in self._of(partition, begin):
            some.append(letter)
            following = letter.record.offset + 1
            if len(some) == replay.at_once:
                await self._send(transactions, some, following, replay)
                some = []
        if some:
            await self._send(transactions, some, following, replay)

    async def _send(
        self, transactions: Transactions, letters: list[DeadLetter], following: int, replay: _Replay
    ) -> None:
        begun = time.monotonic()
        before = replay.done.sent
        batches = list(self._batches(transactions, letters, replay))
        if not replay.dry_run:
            await transactions.run(batches, following)
        replay.progress(replay.done.sent)
        if replay.rate and not replay.dry_run:
            await asyncio.sleep(max(0.0, begun + (replay.done.sent - before) / replay.rate - time.monotonic()))

    def _batches(self, transactions: Transactions, letters: list[DeadLetter], replay: _Replay) -> Iterator[Batch]:
        open_: dict[int, Batch] = {}
        for letter in letters:
            if not replay.selection.takes(letter):
                continue
            try:
                value = replay.repair.value(letter)
            except ValueError as why:
                replay.done.stayed[str(why)] += 1
                continue
            target = int(letter.header("partition") or letter.record.partition) % self._topology.input.partitions
            fields = {
                "timestamp": letter.record.timestamp,
                "key": letter.record.key,
                "value": value,
                "headers": replay.repair.headers(letter),
            }
            batch = open_.get(target)
            if batch is None or batch.builder.append(**fields) is None:
                if batch is not None:
                    yield batch
                builder: Any = transactions.new_batch()
                open_[target] = Batch(self._topology.input.name, target, letter.record.offset, 0, builder)
                builder.append(**fields)
            replay.done.sent += 1
        yield from open_.values()

    def _partitions(self, selection: Selection) -> list[TopicPartition]:
        numbers = range(self._topology.dead_letter.partitions)
        return [TopicPartition(self._topic, p) for p in numbers if selection.partition in {None, p}]

    async def _of(self, partition: TopicPartition, begin: int) -> AsyncIterator[DeadLetter]:
        """All of a partition from an offset to where it ends now."""
        timeout_ms = self._settings.kafka.request_timeout_ms
        try:
            end = await end_of_log(self._consumer, partition, "latest", timeout_ms)
            first = await end_of_log(self._consumer, partition, "earliest", timeout_ms)
        except (errors.KafkaError, TimeoutError) as error:
            raise BrokerUnusableError(f"Cannot read {self._topic}: {describe(error)}", "See the brokers") from error
        if max(begin, first) >= end:
            return
        self._consumer.seek(partition, max(begin, first))
        self._consumer.resume(partition)
        try:
            async for record in self._read_until(partition, end):
                yield DeadLetter(record)
        finally:
            self._consumer.pause(partition)
            self._consumer.seek(partition, end)  # nothing unread of it may keep its broker from being asked for others

    async def _read_until(self, partition: TopicPartition, end: int) -> AsyncIterator[Received]:
        moved, position = time.monotonic(), -1
        while (now := await self._consumer.position(partition)) < end:
            if now > position:
                moved, position = time.monotonic(), now
            elif time.monotonic() - moved > PATIENCE_SECONDS:
                raise BrokerUnusableError(f"{partition.topic}-{partition.partition} cannot be read on from {now}")
            records: list[Received] = []
            with contextlib.suppress(errors.KafkaError):
                records = (await self._consumer.getmany(timeout_ms=POLL_MS)).get(partition, [])
            for record in records:
                if record.offset < end:
                    yield record


@dataclass(frozen=True, slots=True)
class _Replay:
    """What `DeadLetters.replay` is asked for, and how far it is."""

    selection: Selection
    repair: Repair
    rate: float
    progress: Callable[[int], object]
    done: Replayed
    dry_run: bool

    @property
    def at_once(self) -> int:
        """Most dead letters in one transaction; of a slow replay, a second's."""
        return max(1, min(AT_ONCE, int(self.rate))) if self.rate else AT_ONCE
