"""Taking records from the consumer: when, from where on, and how many at once."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiokafka import errors

from service.errors import BrokerUnusableError, LostProgressError
from service.streaming.batching import BatchPolicy, Window
from service.streaming.clients import bounded
from service.streaming.faults import is_final, raise_if_final
from service.streaming.offsets import committed_offset
from service.streaming.records import Part, Record, size_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiokafka import AIOKafkaConsumer, TopicPartition

    from service.observability.events import Observer
    from service.settings import Settings
    from service.streaming.at_least_once import AtLeastOnce

    Polled = dict[TopicPartition, list[Record]]

# An idle poll is a waiting future; how long it waits matters only to the checks between two polls.
IDLE_POLL_MS: Final = 500


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Records that are transformed together.

    Attributes:
        parts: by partition.
        epoch: the delivery's, when they were taken; in another one they are no longer ours.
        waited: seconds since the first of them came.
        closed_by: what closed the batch.
    """

    parts: list[Part]
    epoch: int
    waited: float
    closed_by: str


class Poller:
    """Polls the consumer and cuts what has come into micro-batches."""

    def __init__(
        self, settings: Settings, consumer: AIOKafkaConsumer, delivery: AtLeastOnce, observer: Observer
    ) -> None:
        """Take nothing yet."""
        batch = settings.batch
        self._policy = BatchPolicy(batch.max_records, batch.max_bytes, batch.max_delay_ms / 1000)
        self._settings = settings
        self._consumer = consumer
        self._delivery = delivery
        self._observer = observer
        self._waiting: asyncio.Task[None] | None = None
        self._failing_since: float | None = None

    async def micro_batches(self) -> Iterator[MicroBatch]:
        """Poll until the window closes (with no delay asked for: what has arrived), and cut it."""
        gathered: Polled = {}
        window, epoch = Window(self._policy), self._delivery.epoch
        while window.closed_by(time.monotonic()) is None:
            remaining = window.remaining(time.monotonic())
            timeout_ms = IDLE_POLL_MS if remaining is None else max(1, int(remaining * 1000))
            polled = await self._poll(timeout_ms, self._policy.max_records - window.records)
            if epoch != self._delivery.epoch:
                # Assigned anew or gone back meanwhile: what was gathered before is read again.
                window, gathered, epoch = Window(self._policy), {}, self._delivery.epoch
            for partition, records in polled.items():
                self._take(partition, records)
                gathered.setdefault(partition, []).extend(records)
                window.add(len(records), size_of(records), time.monotonic())
            if self._delivery.failed or (not polled and remaining is None):
                break
        now = time.monotonic()
        return self._cut(gathered, epoch, window.waited(now), window.closed_by(now) or "drain")

    def interrupt(self) -> None:
        """Cancel the task that polls, if it is waiting for records.

        A poll during a rebalance outlasts its timeout. Nothing is lost by cancelling it: records
        leave the consumer only in the step that returns them.
        """
        if self._waiting is not None:
            self._waiting.cancel()

    def _take(self, partition: TopicPartition, records: list[Record]) -> None:
        self._delivery.progress.take(partition, records[0].offset, records[-1].offset + 1, records[-1].timestamp)
        self._observer.records_consumed(partition.topic, partition.partition, len(records))

    async def _poll(self, timeout_ms: int, max_records: int) -> Polled:
        self._waiting = asyncio.current_task()
        try:
            polled: Polled = await self._consumer.getmany(timeout_ms=timeout_ms, max_records=max_records)
        except errors.NoOffsetForPartitionError as error:
            await self._begin(error.args[0])
        except errors.OffsetOutOfRangeError as error:
            await self._begin_anew(error.args[0])
        except errors.KafkaError as error:
            # Other partitions' records may have left the consumer in the call that raised this.
            self._delivery.holding &= not is_final(error)
            raise_if_final(error)
            await self._wait_out(error)
        except UnicodeDecodeError as error:
            self._delivery.holding = False
            raise BrokerUnusableError(
                f"A record of the input topic has a header name that is not UTF-8: {error.object[:64]!r}",
                "The client library cannot read it; remove it, or move the group's offset past it",
            ) from error
        else:
            self._failing_since = None
            return polled
        finally:
            self._waiting = None
        return {}

    async def _wait_out(self, error: errors.KafkaError) -> None:
        """Bear with a fault of the broker, but not for ever."""
        now, limit = time.monotonic(), self._settings.delivery.retry_deadline_ms / 1000
        self._failing_since = self._failing_since or now
        if now - self._failing_since > limit:
            raise BrokerUnusableError(
                f"Nothing could be read from Kafka for {limit:.0f} s: {type(error).__name__}: {error}",
                "See the brokers; delivery.retry_deadline_ms is the limit",
            ) from error
        self._observer.retried("consume", error)
        await asyncio.sleep(0.5)

    def _cut(self, polled: Polled, epoch: int, waited: float, closed_by: str) -> Iterator[MicroBatch]:
        """Cut what was polled where `batch.max_bytes` says so."""
        parts: list[Part] = []
        room = self._policy.max_bytes
        for partition, records in polled.items():
            size = size_of(records)
            if size <= room:
                parts.append(Part(partition, records, [], [], {}, size))
                room -= size
                continue
            start = 0
            for position, record in enumerate(records):
                size = len(record.value or b"")
                if size > room and (parts or position > start):
                    if position > start:
                        parts.append(Part.of(partition, records[start:position]))
                    yield MicroBatch(parts, epoch, waited, "bytes")
                    parts, start, room = [], position, self._policy.max_bytes
                room -= size
            parts.append(Part.of(partition, records[start:]))
        if parts:
            yield MicroBatch(parts, epoch, waited, closed_by)

    async def _begin(self, partition: TopicPartition) -> None:
        """Find out where to begin on a partition that seems to have no commit."""
        epoch = self._delivery.epoch
        try:
            offset = await committed_offset(self._consumer, self._settings.kafka.group_id, partition)
            if offset is None:
                offset = await self._end_of_log(partition, self._settings.delivery.start_offset)
        except (errors.KafkaError, TimeoutError) as error:
            raise_if_final(error)
            self._observer.retried("offset_fetch", error)
            await asyncio.sleep(0.2)
            return  # the consumer asks again
        self._go_to(partition, offset, epoch)

    async def _begin_anew(self, lost: dict[TopicPartition, int]) -> None:
        """Decide what to do where the next record has fallen off the log."""
        policy, epoch = self._settings.delivery.on_offset_lost, self._delivery.epoch
        for partition, offset in lost.items():
            if not await self._is_lost(partition, offset):
                continue
            self._observer.offset_lost(partition.topic, partition.partition, offset, policy)
            if policy == "stop":
                raise LostProgressError(
                    f"Offset {offset} of {partition.topic}-{partition.partition} is no longer in the log",
                    "Records may be missing; to go on, set delivery.on_offset_lost to earliest or latest",
                )
            try:
                self._go_to(partition, await self._end_of_log(partition, policy), epoch)
            except (errors.KafkaError, TimeoutError) as error:
                self._observer.retried("offset_fetch", error)

    async def _is_lost(self, partition: TopicPartition, offset: int) -> bool:
        """Whether the offset is out of the log: a report may be of an earlier assignment, or a replica's."""
        if partition not in self._consumer.assignment():
            return False
        try:
            first, end = [await self._end_of_log(partition, which) for which in ("earliest", "latest")]
        except (errors.KafkaError, TimeoutError) as error:
            self._observer.retried("offset_fetch", error)
            return False  # the consumer reports it again
        return not first <= offset <= end

    async def _end_of_log(self, partition: TopicPartition, which: str) -> int:
        ask = self._consumer.beginning_offsets if which == "earliest" else self._consumer.end_offsets
        offsets = await bounded(ask([partition]), self._settings.kafka.request_timeout_ms)
        return int(offsets[partition])

    def _go_to(self, partition: TopicPartition, offset: int, epoch: int) -> None:
        """Read on from `offset`, if the partition is still ours since `epoch`."""
        if epoch == self._delivery.epoch and partition in self._consumer.assignment():
            self._consumer.seek(partition, offset)
            self._delivery.progress.jump(partition, offset)
