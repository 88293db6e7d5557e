"""At-least-once: outputs and dead letters are sent in order, acknowledged, and only then committed."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiokafka import errors

from service.errors import BrokerUnusableError
from service.streaming.clients import bounded, close, discard, make_producer
from service.streaming.delivery import Delivery, retrieve
from service.streaming.faults import Fault, fault_of
from service.streaming.startup import describe, unusable

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine, Sequence

    from aiokafka import AIOKafkaProducer, TopicPartition

    from service.streaming.delivery import Means
    from service.streaming.outgoing import Batch
    from service.streaming.progress import Ticket
    from service.streaming.records import Part, Summary


@dataclass(slots=True)
class _Failure:
    """A produce batch that was not stored; what is not known of it is absent."""

    error: BaseException
    partition: TopicPartition | None
    batch: Batch | None


class AtLeastOnce(Delivery):
    """Delivers transformed records; the only place that knows this guarantee.

    A batch that fails for good has used up sequence numbers of its producer. The remedy for every
    failure is therefore the same: a new producer, and everything again from the acknowledged prefix.
    """

    transactional = False
    finds_beginnings = False

    def __init__(self, means: Means) -> None:
        """Connect nothing yet."""
        super().__init__(means)
        self._producer: AIOKafkaProducer | None = None
        self._jobs: set[asyncio.Task[None]] = set()
        # By partition, the ticket whose batches are not all queued yet: the next ones must wait.
        self._queueing: dict[TopicPartition, Ticket] = {}
        self._commit_lock = asyncio.Lock()
        self._failure: _Failure | None = None

    async def start(self) -> None:
        """Connect the producer.

        Raises:
            BrokerUnusableError: it cannot be had within the request timeout.
        """
        producer = make_producer(self._settings, self._outgoing.max_batch_bytes)
        try:
            await bounded(producer.start(), self._settings.kafka.request_timeout_ms)
        except (errors.KafkaError, TimeoutError) as error:
            await discard(producer, 1)
            raise unusable(
                "Cannot start a producer",
                "Check that the user may write to the topics and, with kafka.idempotent_producer, IdempotentWrite",
                error,
            ) from error
        self._producer = producer

    async def deliver(self, parts: Sequence[Part]) -> None:
        """Hand a micro-batch over; it is sent and its acknowledgements are waited for in the background.

        Records that are no longer ours, or come while a drain waits, are left: they are not
        committed and will be read again.
        """
        await self._room(parts)
        # They share a producer, so that either all of them still count or none.
        if any(part.stamp != self.epoch for part in parts) or self._draining:
            return
        # No await from here on: a drain must see the whole micro-batch or nothing of it.
        for part in parts:
            self._culprits.mark(part)
        assembled = self._outgoing.assembled(parts, self._culprits.singly_until)
        for part in parts:
            self._start(self._deliver_part(part, self._begin(part), self.epoch, assembled.get(part)))
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
        self._observer.producer_replaced(failure.error)
        if self._producer is not None:
            await discard(self._producer, self._settings.kafka.request_timeout_ms / 1000)
            self._producer = None
        await self._end_jobs()  # what was acknowledged meanwhile still counts
        self._give_up()
        self._failure = None
        await self._reconnect()
        for partition in self._consumer.assignment():
            position = self.progress.position(partition)
            if position is not None:  # else nothing has been taken from it
                self._consumer.seek(partition, position)
                self.progress.jump(partition, position)

    async def topics_have_grown(self) -> None:
        """Partitions have been added: let the producer, which knows the topics, look at them again."""
        if self._producer is not None:
            await bounded(self._producer.client.force_metadata_update(), self._settings.kafka.request_timeout_ms)

    async def commit(self) -> None:
        """Store the progress.

        Raises:
            errors.KafkaError: it was not stored.
            TimeoutError: it was not stored in time.
        """
        async with self._commit_lock:
            # Between a revocation and the next assignment the consumer still names the old partitions.
            assignment = self._consumer.assignment() if self.holding else ()
            offsets = {tp: offset for tp, offset in self.progress.committable().items() if tp in assignment}
            if not offsets:
                return
            begun = time.monotonic()
            await bounded(self._consumer.commit(offsets), self._settings.kafka.request_timeout_ms)
            self.progress.committed(offsets)
            self._observer.committed(offsets, time.monotonic() - begun)

    def hold(self, assigned: Collection[TopicPartition]) -> None:  # noqa: ARG002 - one producer serves all
        """Partitions have been assigned; all that is known of earlier ones is void."""
        self._forget()
        self.holding = True

    def let_go(self) -> None:
        """The partitions are no longer ours; what is still under way no longer counts."""
        self._forget()
        self.holding = False

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - the budget is the caller's
        """End the producer."""
        await self._end_jobs()
        if self._producer is not None:
            # After a failed drain there is something left that must not be sent any more.
            await (discard if self.progress.records else close)(self._producer, timeout)

    @property
    def failed(self) -> bool:
        """Whether `recover` is called for."""
        return self._failure is not None

    def stamp(self, partition: TopicPartition) -> int:  # noqa: ARG002 - all partitions share one producer's fate
        """A number that changes whenever records taken before no longer count."""
        return self.epoch

    def _busy(self) -> bool:
        return bool(self.progress.records or self._jobs)

    def _give_up(self) -> None:
        self._queueing.clear()
        super()._give_up()

    async def _reconnect(self) -> None:
        while self._producer is None:
            await asyncio.sleep(0.1)
            try:
                await self.start()
            except BrokerUnusableError as error:
                self._observer.retried("connect", error)
                self._check_deadline(None, error)
        self._failing_since.pop(None, None)

    async def _room(self, parts: Sequence[Part]) -> None:
        """Wait until what is in flight leaves room for more, and the parts' partitions can queue them."""
        while self._failure is None and (self._full() or any(part.partition in self._queueing for part in parts)):
            await self._wait_for_move(1)

    def _begin(self, part: Part) -> Ticket:
        ticket = super()._begin(part)
        self._queueing[part.partition] = ticket
        return ticket

    def _start(self, job: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(_Failure(error, None, None))
        self._moved.set()

    async def _deliver_part(self, part: Part, ticket: Ticket, epoch: int, assembled: Sequence[Batch] | None) -> None:
        """Send a part and wait for its acknowledgements; one given up half-way is read again."""
        singly_until = self._culprits.singly_until(part.partition)
        sent: list[Batch] = []
        try:
            for batch in self._outgoing.batches(part, self._new_batch, singly_until, assembled):
                if not await self._send(batch, epoch):
                    return
                sent.append(batch)
        except (errors.KafkaError, TimeoutError) as error:
            self._fail(_Failure(error, part.partition, None))
            return
        finally:
            if self._queueing.get(ticket.partition) is ticket:
                del self._queueing[ticket.partition]
            self._moved.set()
        summary = part.summary(payloads=self._show_payloads)
        del part, assembled  # they hold the whole micro-batch
        await self._settle(ticket, sent, epoch, summary)

    def _new_batch(self) -> Any:
        if self._whole_batches:
            return self._outgoing.new_builder()
        if self._producer is None:
            raise errors.ProducerClosed
        return self._producer.create_batch()

    async def _send(self, batch: Batch, epoch: int) -> bool:
        """Queue a batch, unless all has been given up; the wait for a free place is the back pressure."""
        batch.builder.close()
        while epoch == self.epoch and self._failure is None and self._producer is not None:
            try:
                batch.future = await self._producer.send_batch(batch.builder, batch.topic, partition=batch.partition)
            except errors.KafkaTimeoutError as error:
                # Not queued. The broker is away, perhaps: `check_stuck` knows when it has been too long.
                self._observer.retried("produce", error)
            else:
                batch.future.add_done_callback(retrieve)
                return True
        return False

    async def _settle(self, ticket: Ticket, sent: Sequence[Batch], epoch: int, summary: Summary) -> None:
        """Wait for the acknowledgements of a part, and count it as done or failed."""
        for batch in sent:
            if batch.future is None:
                raise AssertionError(batch)
            try:
                await batch.future
            except (errors.KafkaError, TimeoutError, OSError) as error:
                if epoch == self.epoch:
                    self._fail(_Failure(error, ticket.partition, batch))
                return
        if epoch != self.epoch:
            return
        self._finish(ticket)
        self._report(summary, sent)

    def _fail(self, failure: _Failure) -> None:
        if self._failure is None:
            self._failure = failure
        self._moved.set()

    def _judge(self, failure: _Failure) -> None:
        """Decide what a failure means for the records in it and for the service."""
        if failure.partition is None:  # no answer of Kafka's, but a mistake of ours
            raise failure.error
        fault = fault_of(failure.error)
        if fault is Fault.RECORD and failure.batch is not None:
            self._culprits.blame(failure.partition, failure.batch, failure.error)
        elif fault is Fault.BROKER:
            self._check_deadline(failure.partition, failure.error)
        else:
            raise BrokerUnusableError(
                f"Kafka refuses what is written: {describe(failure.error)}",
                "Check the user's rights on topics.output and topics.dead_letter",
            ) from failure.error

    async def _end_jobs(self) -> None:
        if self._jobs:  # those whose acknowledgements are there need only their turn
            await asyncio.wait(self._jobs, timeout=0.05)
        for task in list(self._jobs):
            task.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
