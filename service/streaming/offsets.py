"""Offsets that can be believed: committed ones, and the ends of logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiokafka import errors
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.protocol.commit import OffsetFetchRequest

from service.streaming.clients import bounded

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, TopicPartition


async def committed_offset(consumer: AIOKafkaConsumer, group: str, partition: TopicPartition) -> int | None:
    """Ask the group's coordinator for the committed offset; `None` if there surely is none.

    aiokafka reads only the error codes of single partitions: from a coordinator that has moved or
    is still loading it takes the empty answer for "nothing committed". Here any error is raised.

    Raises:
        errors.KafkaError: the coordinator cannot tell now.
    """
    client: Any = consumer._client  # noqa: SLF001 - the public `committed` has the fault described above
    node = await client.coordinator_lookup(CoordinationType.GROUP, group)
    request = OffsetFetchRequest(group, [(partition.topic, [partition.partition])])
    response = await client.send(node, request, group=ConnectionGroup.COORDINATION)
    _raise_for(response.error_code)
    for _, partitions in response.topics:
        for _, offset, _, error_code in partitions:
            _raise_for(error_code)
            return int(offset) if offset >= 0 else None
    raise errors.KafkaError(f"no answer about {partition}")


async def end_of_log(consumer: AIOKafkaConsumer, partition: TopicPartition, which: str, timeout_ms: int) -> int:
    """The `earliest` offset of a partition's log, or the `latest`: the one after its last record.

    Raises:
        errors.KafkaError: the leader cannot tell now.
        TimeoutError: it does not answer.
    """
    ask = consumer.beginning_offsets if which == "earliest" else consumer.end_offsets
    offsets = await bounded(ask([partition]), timeout_ms)
    return int(offsets[partition])


def _raise_for(error_code: int) -> None:
    error = errors.for_code(error_code)
    if error is not errors.NoError:
        raise error
