"""Reading outputs from outside the service: for people, not for processing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition, errors

from service.errors import BrokerUnusableError
from service.streaming.clients import bounded, close, connection
from service.streaming.startup import connect, describe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from service.settings import Settings
    from service.streaming.records import Received


class TopicReader:
    """Reads a topic without a group: it commits nothing and disturbs nobody."""

    def __init__(self, settings: Settings, topic: str) -> None:
        """Connect nothing yet."""
        self._settings = settings
        self._topic = topic
        self._consumer: AIOKafkaConsumer | None = None

    async def start(self, *, from_beginning: bool) -> None:
        """Stand at the beginning or at the end of every partition.

        Raises:
            BrokerUnusableError: the topic cannot be read.
        """
        await (await connect(self._settings)).close()
        consumer = AIOKafkaConsumer(
            **connection(self._settings), isolation_level="read_committed", enable_auto_commit=False
        )
        try:
            await bounded(consumer.start(), self._settings.kafka.request_timeout_ms)
            consumer._client.add_topic(self._topic)  # noqa: SLF001 - partitions are known only of followed topics
            partitions = await bounded(consumer._client._wait_on_metadata(self._topic), 10_000)  # noqa: SLF001
            consumer.assign([TopicPartition(self._topic, partition) for partition in sorted(partitions)])
            await bounded((consumer.seek_to_beginning if from_beginning else consumer.seek_to_end)(), 10_000)
        except (errors.KafkaError, TimeoutError) as error:
            await close(consumer, 1)
            raise BrokerUnusableError(
                f"Cannot read topic {self._topic}: {describe(error)}", "Check that it exists and may be read"
            ) from error
        self._consumer = consumer

    async def records(self) -> AsyncIterator[Received]:
        """All records, as they come."""
        while True:
            for records in (await self._poll()).values():
                for record in records:
                    yield record

    async def latest(self) -> list[Received]:
        """The newest record of each partition that has any, skipping all that came before."""
        consumer = self._started()
        partitions = consumer.assignment()
        ends = await bounded(consumer.end_offsets(partitions), self._settings.kafka.request_timeout_ms)
        wanted = {tp: end - 1 for tp, end in ends.items() if end > 0}
        for partition, offset in wanted.items():
            consumer.seek(partition, offset)
        found: dict[TopicPartition, Received] = {}
        for _ in range(4):
            if len(found) == len(wanted):
                break
            found.update({tp: records[0] for tp, records in (await self._poll(200)).items() if tp not in found})
        return list(found.values())

    async def ends(self) -> int:
        """The sum of the partitions' end offsets: how many records were ever written."""
        consumer = self._started()
        return sum((await bounded(consumer.end_offsets(consumer.assignment()), 10_000)).values())

    async def stop(self) -> None:
        """Close the connection."""
        if self._consumer is not None:
            await close(self._consumer, 5)

    async def _poll(self, timeout_ms: int = 500) -> dict[TopicPartition, list[Received]]:
        try:
            return await self._started().getmany(timeout_ms=timeout_ms, max_records=500)  # type: ignore[no-any-return]
        except errors.KafkaError:
            await asyncio.sleep(0.2)
            return {}

    def _started(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise RuntimeError("the reader was not started")
        return self._consumer
