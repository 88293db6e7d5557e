"""Three brokers with a relay in front of each, and the three topics."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from chaos.proxy import Relay
from service.broker import BrokerConfig, Cluster
from service.broker.ports import HOST

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from service.broker import Node

NODES: Final = 3
INPUT, OUTPUT, DEAD_LETTER = "chaos.logits", "chaos.probabilities", "chaos.dead"
# Between two services of which one reads what the other writes.
MIDDLE, MIDDLE_DEAD_LETTER = "chaos.middle", "chaos.middle.dead"
WHOLE_SECONDS: Final = 120.0


class ClusterError(Exception):
    """The cluster does not become whole again: the storm proves nothing."""


@dataclass(frozen=True, slots=True)
class Stage:
    """The cluster as the storm and its tools see it.

    Attributes:
        brokers: the nodes.
        relays: by node, in the same order, what the service connects to.
        direct: addresses past the relays, for the load and the readers.
        relayed: addresses of the relays.
    """

    brokers: Sequence[Node]
    relays: Sequence[Relay]
    direct: str
    relayed: str

    async def whole(self) -> None:
        """Wait until every replica of every partition is in sync: only then may another broker fail.

        Raises:
            ClusterError: that takes too long.
        """
        await asyncio.to_thread(_wait_until_whole, self.direct)


@asynccontextmanager
async def stage(partitions: int) -> AsyncIterator[Stage]:
    """Run the cluster and create the topics; all is gone afterwards."""
    relays = [Relay() for _ in range(NODES)]
    try:
        for relay in relays:
            await relay.start()
        config = BrokerConfig(
            tmpfs=True,
            relays={node: relay.port for node, relay in enumerate(relays, start=1)},
            properties={"log.retention.ms": "-1"},
        )
        cluster = Cluster(NODES, config)
        try:
            await asyncio.to_thread(cluster.start)
            for relay, broker in zip(relays, cluster.brokers, strict=True):
                relay.target = broker.relayed_port
            await asyncio.to_thread(_create_topics, cluster.bootstrap_servers, partitions)
            relayed = ",".join(f"{HOST}:{relay.port}" for relay in relays)
            yield Stage(cluster.brokers, relays, cluster.bootstrap_servers, relayed)
        finally:
            await asyncio.to_thread(cluster.stop)
    finally:
        for relay in relays:
            await relay.close()


def _create_topics(servers: str, partitions: int) -> None:
    admin = AdminClient({"bootstrap.servers": servers})
    wanted = [NewTopic(name, partitions, NODES) for name in (INPUT, MIDDLE, OUTPUT)]
    large = {"max.message.bytes": "1100000"}
    wanted += [NewTopic(name, partitions, NODES, config=large) for name in (DEAD_LETTER, MIDDLE_DEAD_LETTER)]
    for created in admin.create_topics(wanted).values():
        created.result(30)
    _wait_until_whole(servers)


def _wait_until_whole(servers: str) -> None:
    deadline = time.monotonic() + WHOLE_SECONDS
    while problem := _problem(servers):
        if time.monotonic() > deadline:
            raise ClusterError(f"after {WHOLE_SECONDS:.0f} s: {problem}")
        time.sleep(0.2)


def _problem(servers: str) -> str:
    """What is not as it should be, in words."""
    # A client of its own each time: one that lives longer may tell what it has heard before.
    try:
        metadata: Any = AdminClient({"bootstrap.servers": servers, "log_level": 0}).list_topics(timeout=5)
    except KafkaException as error:
        return str(error)
    if len(metadata.brokers) < NODES:
        return f"only brokers {sorted(metadata.brokers)}"
    for topic in metadata.topics.values():
        for partition in topic.partitions.values():
            if partition.error is not None and partition.error.code() != KafkaError.NO_ERROR:
                return f"{topic.topic}-{partition.id}: {partition.error}"
            if set(partition.isrs) != set(partition.replicas):
                return f"{topic.topic}-{partition.id}: in sync {partition.isrs} of {partition.replicas}"
    return ""
