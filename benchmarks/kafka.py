"""Topics of a benchmark, and looks at them from outside the programs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, Self

from aiokafka import AIOKafkaConsumer, TopicPartition, errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

PARTITIONS: Final = 4
# What the service asks of its dead-letter topic: room for any input and for headers.
DEAD_LETTER_BYTES: Final = 2 << 20


def partitions(topic: str, count: int = PARTITIONS) -> list[TopicPartition]:
    """The partitions of a topic of ours."""
    return [TopicPartition(topic, number) for number in range(count)]


@contextlib.asynccontextmanager
async def _admin(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def create_topic(
    bootstrap: str, name: str, configuration: Mapping[str, object] | None = None, count: int = PARTITIONS
) -> None:
    """Create a topic of so many partitions.

    Raises:
        errors.KafkaError: it could not be created.
    """
    settings = {key: str(value) for key, value in (configuration or {}).items()}
    async with _admin(bootstrap) as admin:
        answer: Any = await admin.create_topics([NewTopic(name, count, 1, topic_configs=settings)])
    for _, code, *_rest in answer.topic_errors:
        if code:
            raise errors.for_code(code)(name)


async def delete_topic(bootstrap: str, name: str) -> None:
    """Delete a topic, so that its log does not fill the memory that it lies in."""
    async with _admin(bootstrap) as admin:
        await admin.delete_topics([name])


async def committed(bootstrap: str, group: str) -> int:
    """Sum of the offsets that a group has committed."""
    async with _admin(bootstrap) as admin:
        offsets = await admin.list_consumer_group_offsets(group)
    return sum(max(0, entry.offset) for entry in offsets.values())


class EndOffsets:
    """Asks for the ends of a topic's partitions."""

    def __init__(self, bootstrap: str, topic: str, count: int = PARTITIONS) -> None:
        """Ask nothing yet."""
        self._partitions = partitions(topic, count)
        self._bootstrap = bootstrap

    async def __aenter__(self) -> Self:
        """Connect, and wait until the topic can be asked about."""
        self._consumer = AIOKafkaConsumer(bootstrap_servers=self._bootstrap)
        await self._consumer.start()
        try:
            await self.total()
        except BaseException:
            await self._consumer.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect."""
        await self._consumer.stop()

    async def each(self) -> list[int]:
        """The ends by partition."""
        ends = await self._consumer.end_offsets(self._partitions)
        return [int(ends[partition]) for partition in self._partitions]

    async def total(self) -> int:
        """Records written so far, the markers of transactions among them."""
        return sum(await self.each())
