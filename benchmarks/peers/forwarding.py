"""A peer that computes nothing: what aiokafka's public interface allows at most.

    BOOTSTRAP=… INPUT=… OUTPUT=… GROUP=… python forwarding.py

The same bytes go to the same partition with key, timestamp and headers; what is acknowledged is committed each second.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any, Final

import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

MIB: Final = 1 << 20
POLL_MILLISECONDS: Final = 200
COMMIT_SECONDS: Final = 1.0


class Forwarder:
    """Sends what it is given in record batches, and knows up to where each partition is acknowledged."""

    def __init__(self, producer: AIOKafkaProducer, topic: str) -> None:
        """Send to `topic`."""
        self._producer = producer
        self._topic = topic
        self._pending: defaultdict[TopicPartition, deque[tuple[asyncio.Future[object], int]]] = defaultdict(deque)

    async def forward(self, partition: TopicPartition, records: Sequence[Any]) -> None:
        """Send consecutive records of one partition; aiokafka queues one batch at most, and so bounds the memory."""
        batch = self._producer.create_batch()
        for record in records:
            headers = list(record.headers)  # it reads tuples and writes lists
            key, value, timestamp = record.key, record.value, record.timestamp
            if batch.append(timestamp=timestamp, key=key, value=value, headers=headers) is None:
                await self._send(batch, partition, record.offset)
                batch = self._producer.create_batch()
                batch.append(timestamp=timestamp, key=key, value=value, headers=headers)
        await self._send(batch, partition, records[-1].offset + 1)

    async def _send(self, batch: Any, partition: TopicPartition, following: int) -> None:
        future = await self._producer.send_batch(batch, self._topic, partition=partition.partition)
        self._pending[partition].append((future, following))

    def acknowledged(self) -> dict[TopicPartition, int]:
        """By partition, the offset to commit; raises what a delivery has failed with."""
        offsets = {}
        for partition, pending in self._pending.items():
            while pending and pending[0][0].done():
                future, following = pending.popleft()
                future.result()
                offsets[partition] = following
        return offsets

    async def settle(self) -> None:
        """Wait for all acknowledgements."""
        await asyncio.gather(*(future for pending in self._pending.values() for future, _ in pending))


@contextlib.asynccontextmanager
async def clients() -> AsyncIterator[tuple[AIOKafkaConsumer, AIOKafkaProducer]]:
    """Connect with the service's settings: the same promises, the same sizes of fetches and batches."""
    consumer = AIOKafkaConsumer(
        os.environ["INPUT"],
        bootstrap_servers=os.environ["BOOTSTRAP"],
        group_id=os.environ["GROUP"],
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        max_partition_fetch_bytes=MIB,
        fetch_max_bytes=16 * MIB,
    )
    producer = AIOKafkaProducer(
        bootstrap_servers=os.environ["BOOTSTRAP"],
        acks="all",
        enable_idempotence=True,
        max_batch_size=MIB,
        linger_ms=0,
    )
    async with producer, consumer:
        yield consumer, producer


async def main() -> None:
    """Run until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with clients() as (consumer, producer):
        forwarder = Forwarder(producer, os.environ["OUTPUT"])
        next_commit = loop.time() + COMMIT_SECONDS
        while not stop.is_set():
            polled = await consumer.getmany(timeout_ms=POLL_MILLISECONDS)
            # Together, so that a partition whose batch is still queued does not keep the others waiting.
            await asyncio.gather(*(forwarder.forward(partition, records) for partition, records in polled.items()))
            if loop.time() >= next_commit:
                await commit(consumer, forwarder)
                next_commit = loop.time() + COMMIT_SECONDS
        await forwarder.settle()
        await commit(consumer, forwarder)


async def commit(consumer: AIOKafkaConsumer, forwarder: Forwarder) -> None:
    """Store what has been acknowledged since the last time."""
    if offsets := forwarder.acknowledged():
        await consumer.commit(offsets)


if __name__ == "__main__":
    uvloop.run(main())
