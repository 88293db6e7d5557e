"""At-least-once: outputs and dead letters are sent in order, acknowledged, and only then committed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from aiokafka import errors

from service.errors import BrokerUnusableError
from service.streaming.clients import bounded, close, discard, make_producer
from service.streaming.faults import Fault, fault_of, refusal_by_broker
from service.streaming.outgoing import Batch, Outgoing
from service.streaming.progress import Progress, Ticket
from service.streaming.startup import describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

    from service.observability.events import Observer
    from service.settings import Settings
    from service.streaming.records import Part
    from service.streaming.startup import Topology
    from service.transform.refusals import InvalidMessage

# Larger batches save round trips; beyond this they only cost memory.
MAX_BATCH_BYTES: Final = 1 << 20
# The one model profile there is.
MODEL: Final = "default"


@dataclass(slots=True)
class _Failure:
    """A produce batch that was not stored; `batch` is absent where none could even be queued."""

    error: BaseException
    partition: TopicPartition
    batch: Batch | None


class AtLeastOnce:
    """Delivers transformed records; the only place that knows this guarantee.

    A batch that fails for good has used up sequence numbers of its producer. The remedy for every
    failure is therefore the same: a new producer, and everything again from the acknowledged
    prefix. If a record is to blame, the batch is then cut into single ones to find it.
    """

    def __init__(self, settings: Settings, topology: Topology, consumer: AIOKafkaConsumer, observer: Observer) -> None:
        """Deliver what `consumer` reads; nothing is connected yet."""
        self.progress = Progress()
        self.epoch = 0
        self._settings = settings
        self._topology = topology
        self._consumer = consumer
        self._observer = observer
        self._outgoing = Outgoing(settings, topology)
        self._max_batch_bytes = min(MAX_BATCH_BYTES, topology.output.max_message_bytes)
        self._producer: AIOKafkaProducer | None = None
        self._settling: set[asyncio.Task[None]] = set()
        self._moved = asyncio.Event()
        self._commit_lock = asyncio.Lock()
        self._failure: _Failure | None = None
        self._failing_since: float | None = None
        # By partition: up to which offset records are sent one by one, and those found guilty.
        self._suspects: dict[TopicPartition, int] = {}
        self._guilty: dict[tuple[TopicPartition, int], InvalidMessage] = {}

    async def start(self) -> None:
        """Connect the producer.

        Raises:
            BrokerUnusableError: it cannot be had within the request timeout.
        """
        producer = make_producer(self._settings, self._max_batch_bytes)
        try:
            await bounded(producer.start(), self._settings.kafka.request_timeout_ms)
        except (errors.KafkaError, TimeoutError) as error:
            await discard(producer, 1)
            raise BrokerUnusableError(
                f"Cannot start a producer: {describe(error)}",
                "Check that the user may write to the topics and, with kafka.idempotent_producer, IdempotentWrite",
            ) from error
        self._producer = producer

    async def deliver(self, parts: Sequence[Part]) -> None:
        """Hand a micro-batch over; acknowledgements are waited for in the background."""
        await self._room()
        if len(parts) == 1:
            await self._deliver_part(parts[0])
        else:
            await asyncio.gather(*map(self._deliver_part, parts))
        self._observer.in_flight(self.progress.records, self.progress.size)

    async def recover(self) -> None:
        """If a delivery has failed, make a new producer and go back to what is acknowledged.

        Raises:
            BrokerUnusableError: the failure is final or has lasted too long.
        """
        failure = self._failure
        if failure is None:
            return
        self._judge(failure)
        self.epoch += 1
        self._observer.producer_replaced(failure.error)
        if self._producer is not None:
            await discard(self._producer, self._settings.kafka.request_timeout_ms / 1000)
            self._producer = None
        await self._end_settling()
        self.progress.give_up()
        self._observer.in_flight(0, 0)
        self._failure = None
        while self._producer is None:
            await asyncio.sleep(0.1)
            try:
                await self.start()
            except BrokerUnusableError as error:
                self._observer.retried("connect", error)
                self._check_deadline(error)
        for partition in self._consumer.assignment():
            position = self.progress.position(partition)
            if position is not None:  # else nothing has been taken from it
                self._consumer.seek(partition, position)

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109 - the budget is the caller's
        """Wait until all that is under way is acknowledged; tell whether it was."""
        deadline = time.monotonic() + timeout
        while self.progress.records or self._settling:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or self._failure is not None:
                return False
            await self._wait_for_move(remaining)
        return True

    async def commit(self) -> None:
        """Store the progress.

        Raises:
            errors.KafkaError: it was not stored.
            TimeoutError: it was not stored in time.
        """
        async with self._commit_lock:
            assignment = self._consumer.assignment()
            offsets = {tp: offset for tp, offset in self.progress.committable().items() if tp in assignment}
            if not offsets:
                return
            begun = time.monotonic()
            await bounded(self._consumer.commit(offsets), self._settings.kafka.request_timeout_ms)
            self.progress.committed(offsets)
            self._observer.stage_ended("commit", time.monotonic() - begun)
            self._observer.committed(offsets)

    def forget(self, partitions: Sequence[TopicPartition]) -> None:
        """These partitions are no longer ours; what is still under way no longer counts."""
        self.epoch += 1
        self.progress.forget(partitions)
        self._observer.in_flight(0, 0)
        for partition in partitions:
            self._suspects.pop(partition, None)

    def check_stuck(self) -> None:
        """See that the oldest delivery is not older than the deadline.

        Raises:
            BrokerUnusableError: it is.
        """
        oldest = self.progress.oldest()
        limit = self._settings.delivery.retry_deadline_ms / 1000
        if oldest is not None and time.monotonic() - oldest.begun_at > limit:
            raise BrokerUnusableError(
                f"No acknowledgement from Kafka for {limit:.0f} s",
                "See the brokers; delivery.retry_deadline_ms is the limit",
            )

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - the budget is the caller's
        """End the producer."""
        await self._end_settling()
        if self._producer is not None:
            # After a failed drain there is something left that must not be sent any more.
            await (discard if self.progress.records else close)(self._producer, timeout)

    @property
    def failed(self) -> bool:
        """Whether `recover` is called for."""
        return self._failure is not None

    async def _room(self) -> None:
        """Wait until what is in flight leaves room for more."""
        while self.progress.size > self._settings.limits.in_flight_bytes and self._failure is None:
            await self._wait_for_move(1)

    async def _wait_for_move(self, timeout: float) -> None:  # noqa: ASYNC109 - the budget is the caller's
        self._moved.clear()
        try:
            await asyncio.wait_for(self._moved.wait(), timeout)
        except TimeoutError:
            return

    async def _deliver_part(self, part: Part) -> None:
        epoch = self.epoch
        self._mark_guilty(part)
        ticket = Ticket(part.partition, part.records[-1].offset + 1, len(part.records), part.size, time.monotonic())
        self.progress.begin(ticket)
        sent: list[Batch] = []
        try:
            singly_until = self._suspects.get(part.partition, -1)
            for batch in self._outgoing.batches(part, self._new_batch, singly_until):
                if epoch != self.epoch or self._failure is not None:
                    break
                batch.future = await self._send(batch)
                sent.append(batch)
            else:
                self._settle_later(part, ticket, sent, epoch)
                return
        except (errors.KafkaError, TimeoutError) as error:
            self._fail(_Failure(error, part.partition, None))
        # Given up half-way: the records will be read again. Nobody else looks at these futures.
        for batch in sent:
            if batch.future is not None:
                batch.future.add_done_callback(_retrieve)

    def _mark_guilty(self, part: Part) -> None:
        if not self._guilty:
            return
        guilty = {offset: refusal for (tp, offset), refusal in self._guilty.items() if tp == part.partition}
        part.outputs = list(part.outputs)
        for position, record in enumerate(part.records):
            if record.offset in guilty:
                part.outputs[position] = None
                part.refusals[position] = guilty[record.offset]

    def _new_batch(self) -> Any:
        if self._producer is None:
            raise errors.ProducerClosed
        return self._producer.create_batch()

    async def _send(self, batch: Batch) -> asyncio.Future[object]:
        """Queue a batch; the wait for a free place in the partition's queue is the back pressure."""
        batch.builder.close()
        while True:
            if self._producer is None:
                raise errors.ProducerClosed
            try:
                future: asyncio.Future[object] = await self._producer.send_batch(
                    batch.builder, batch.topic, partition=batch.partition
                )
            except errors.KafkaTimeoutError as error:
                # Not queued. The broker is away, perhaps: `check_stuck` knows when it has been too long.
                self._observer.retried("produce", error)
            else:
                return future

    def _settle_later(self, part: Part, ticket: Ticket, sent: list[Batch], epoch: int) -> None:
        task = asyncio.create_task(self._settle(part, ticket, sent, epoch))
        self._settling.add(task)
        task.add_done_callback(self._settled)

    def _settled(self, task: asyncio.Task[None]) -> None:
        self._settling.discard(task)
        self._moved.set()

    async def _settle(self, part: Part, ticket: Ticket, sent: list[Batch], epoch: int) -> None:
        """Wait for the acknowledgements of a part, and count it as done or failed."""
        for batch in sent:
            if batch.future is None:
                raise AssertionError(batch)
            try:
                await batch.future
            except (errors.KafkaError, TimeoutError, OSError) as error:
                if epoch == self.epoch:
                    self._fail(_Failure(error, part.partition, batch))
        if self._failure is not None or epoch != self.epoch:
            return
        self._failing_since = None
        self.progress.finish(ticket)
        self._report(part, [batch for batch in sent if batch.topic == self._topology.output.name])

    def _report(self, part: Part, outputs: list[Batch]) -> None:
        observer, now = self._observer, time.time()
        for batch in outputs:
            observer.records_produced(batch.topic, batch.partition, batch.builder.record_count())
        if outputs:
            refusals = part.refusals
            stamps = [record.timestamp for p, record in enumerate(part.records) if p not in refusals]
            born = np.asarray(stamps, np.float64) / 1000
            observer.outputs_acknowledged(MODEL, now - born[born >= 0])  # Kafka writes -1 for "no timestamp"
        if part.refusals:
            position = min(part.refusals)
            observer.dead_letters_produced(
                Counter(refusal.reason.value for refusal in part.refusals.values()),
                {
                    "reason": part.refusals[position].reason.value,
                    "detail": part.refusals[position].detail,
                    "topic": part.partition.topic,
                    "partition": part.partition.partition,
                    "offset": part.records[position].offset,
                },
            )
            self._acquit(part)
        observer.progressed(now)
        observer.in_flight(self.progress.records, self.progress.size)

    def _acquit(self, part: Part) -> None:
        for position in part.refusals:
            self._guilty.pop((part.partition, part.records[position].offset), None)

    def _fail(self, failure: _Failure) -> None:
        if self._failure is None:
            self._failure = failure
        self._moved.set()

    def _judge(self, failure: _Failure) -> None:
        """Decide what a failure means for the records in it and for the service."""
        fault = fault_of(failure.error)
        batch = failure.batch
        if fault is Fault.RECORD and batch is not None and batch.topic == self._topology.output.name:
            if batch.builder.record_count() == 1:
                self._guilty[failure.partition, batch.first] = refusal_by_broker(failure.error)
            self._suspects[failure.partition] = max(batch.last + 1, self._suspects.get(failure.partition, 0))
        elif fault is not Fault.BROKER:
            raise BrokerUnusableError(
                f"Kafka refuses what is written: {describe(failure.error)}",
                "Check the user's rights on topics.output and topics.dead_letter, and the topics' limits",
            ) from failure.error
        else:
            self._check_deadline(failure.error)

    def _check_deadline(self, error: BaseException) -> None:
        now = time.monotonic()
        self._failing_since = now if self._failing_since is None else self._failing_since
        limit = self._settings.delivery.retry_deadline_ms / 1000
        if now - self._failing_since > limit:
            raise BrokerUnusableError(
                f"Nothing could be written to Kafka for {limit:.0f} s: {describe(error)}",
                "See the brokers; delivery.retry_deadline_ms is the limit",
            ) from error

    async def _end_settling(self) -> None:
        for task in list(self._settling):
            task.cancel()
        await asyncio.gather(*self._settling, return_exceptions=True)


def _retrieve(future: asyncio.Future[object]) -> None:
    """Look at a future's exception, which asyncio would otherwise complain about."""
    if not future.cancelled():
        future.exception()
