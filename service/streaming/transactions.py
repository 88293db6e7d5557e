"""The transactional producer of one input partition: outputs, dead letters and the offset, all or nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from aiokafka import errors
from aiokafka.protocol.transaction import EndTxnRequest

from service.streaming.clients import discard, make_producer
from service.streaming.delivery import retrieve

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiokafka import AIOKafkaProducer, TopicPartition

    from service.settings import Settings
    from service.streaming.outgoing import Batch

DISCARD_SECONDS: Final = 2.0


class NotStored(Exception):  # noqa: N818 - what became of the batch
    """A batch that the broker did not take.

    Attributes:
        batch: which.
        error: the broker's answer.
    """

    def __init__(self, batch: Batch, error: BaseException) -> None:
        """Hold both."""
        super().__init__(str(error))
        self.batch = batch
        self.error = error


def transactional_id(group: str, partition: TopicPartition) -> str:
    """The lease on an input partition: whoever has initialised it last may write for it, and nobody else."""
    return f"{group}.{partition.topic}.{partition.partition}"


class Transactions:
    """A producer that is good until its first failure, and then only to be thrown away.

    Attributes:
        tainted: a request got no answer, or the end of a transaction had to be asked for twice. A request that is
            still on its way could then arrive within a later transaction, which Kafka cannot tell from its own: the
            producer must be initialised anew before the next one, even if this one has succeeded.
    """

    def __init__(self, settings: Settings, partition: TopicPartition, max_batch_bytes: int) -> None:
        """Connect nothing yet."""
        self.tainted = False
        self._partition = partition
        self._group = settings.kafka.group_id
        # Kafka gives a transaction up after its time; long before, we do.
        self._seconds = settings.delivery.transaction_timeout_ms / 2000
        self._producer = make_producer(
            settings, max_batch_bytes, transactional_id=transactional_id(self._group, partition)
        )
        self._ends = 0
        self._watch(self._producer)

    async def start(self) -> None:
        """Take the lease: whatever its last holder has not committed is aborted, whatever it has is complete.

        Raises:
            errors.KafkaError: it cannot be had.
            TimeoutError: it cannot be had in time.
        """
        async with asyncio.timeout(self._seconds):
            await self._producer.start()

    def new_batch(self) -> Any:
        """An empty batch of aiokafka's own."""
        return self._producer.create_batch()

    async def run(self, batches: Iterable[Batch], next_offset: int) -> list[Batch]:
        """Write batches and the offset after their inputs in one transaction.

        Returns:
            The batches.

        Raises:
            NotStored: a batch was not taken.
            errors.KafkaError: something else was not.
            TimeoutError: not in time; what became of the transaction only the next `start` decides.
        """
        self._ends = 0
        try:
            async with asyncio.timeout(self._seconds):
                await self.begin()
                sent = await self.send(batches)
                await self.settle(sent)
                await self.send_offset(next_offset)
                await self.commit()
        except (errors.IllegalOperation, AssertionError) as surprise:
            # The transaction has ended between two steps, and aiokafka is surprised at the next one: tell with what.
            raise self._end() or surprise from surprise
        return sent

    async def discard(self) -> None:
        """Close without a flush; what is open is aborted by the next holder, or by Kafka in time."""
        await discard(self._producer, DISCARD_SECONDS)

    async def begin(self) -> None:
        """Open a transaction; only here, nothing is asked of Kafka yet."""
        self._check_alive()
        await self._producer.begin_transaction()

    async def send(self, batches: Iterable[Batch]) -> list[Batch]:
        """Queue batches; aiokafka queues one a partition, and the wait for its place is the back pressure."""
        sent = []
        for batch in batches:
            batch.builder.close()
            batch.future = await self._producer.send_batch(batch.builder, batch.topic, partition=batch.partition)
            batch.future.add_done_callback(retrieve)
            sent.append(batch)
        return sent

    async def settle(self, sent: Iterable[Batch]) -> None:
        """Wait until batches are stored: aiokafka's commit does so too, but takes failed ones for done."""
        for batch in sent:
            if batch.future is None:
                raise AssertionError(batch)
            try:
                await batch.future
            except (errors.KafkaError, OSError) as error:
                raise NotStored(batch, error) from error

    async def send_offset(self, next_offset: int) -> None:
        """Add the offset to the transaction."""
        await self._producer.send_offsets_to_transaction({self._partition: next_offset}, self._group)

    async def commit(self) -> None:
        """End the transaction: from here on it is Kafka that completes it, whatever becomes of us."""
        self._check_alive()
        await self._producer.commit_transaction()
        self.tainted |= self._ends > 1

    def _check_alive(self) -> None:
        """Raise what the sender has ended with; aiokafka would only find itself in the wrong state."""
        sender = self._producer._sender.sender_task  # noqa: SLF001 - it is told nowhere else
        if sender is None or sender.cancelled():
            raise errors.ProducerClosed
        if sender.done():
            raise sender.exception() or errors.ProducerClosed()

    def _end(self) -> BaseException | None:
        """What the transaction has ended with, if it has failed."""
        waiter = self._producer._txn_manager.wait_for_transaction_end()  # noqa: SLF001 - as above
        ended = waiter is not None and waiter.done() and not waiter.cancelled()
        error: BaseException | None = waiter.exception() if ended else None
        return error

    def _watch(self, producer: AIOKafkaProducer) -> None:
        """Notice what aiokafka passes over in silence: it repeats requests by itself."""
        send = producer.client.send

        async def watched(node_id: int, request: Any, **options: Any) -> Any:
            self._ends += isinstance(request, EndTxnRequest)
            try:
                return await send(node_id, request, **options)
            except errors.KafkaError:
                self.tainted = True
                raise

        producer.client.send = watched
