"""What a cluster carries, computed from what one message costs. Pure; the formulas stand in docs/sizing.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PER: Final = 100_000
BYTES_IN_A_GIGABIT: Final = 1e9 / 8


@dataclass(frozen=True, slots=True)
class Costs:
    """What messages cost, as measured with one replica and no reader of the outputs.

    Attributes:
        service: core seconds of all instances together for 100,000 messages.
        write: core seconds of the broker for 100,000 messages that producers write.
        serve: core seconds of the broker for 100,000 messages that it hands out and whose outputs it takes.
        input_bytes: of a message in the log of its partition.
        output_bytes: the same of its output.
    """

    service: float
    write: float
    serve: float
    input_bytes: float
    output_bytes: float


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is.

    Attributes:
        brokers: leaders spread evenly over them.
        broker_cores: of each.
        replication: of both topics.
        instances: of the service.
        instance_cores: of each; it uses one at most.
        partitions: of the input topic.
        gigabits: a second, in each direction, of each broker's and each instance's network.
        readers: groups that read the outputs.
        brokers_missing: how many may be away at the peak.
        instances_missing: the same of instances.
        share: of cores and networks that is to be used.
    """

    brokers: int
    broker_cores: float
    replication: int
    instances: int
    instance_cores: float
    partitions: int
    gigabits: float
    readers: int = 1
    brokers_missing: int = 1
    instances_missing: int = 1
    share: float = 0.7


@dataclass(frozen=True, slots=True)
class Capacity:
    """What it carries.

    Attributes:
        bounds: messages a second, by what would be used up at that rate.
    """

    bounds: dict[str, float]

    @property
    def rate(self) -> float:
        """Messages a second."""
        return min(self.bounds.values())

    @property
    def bound(self) -> str:
        """What is used up first."""
        return min(self.bounds, key=self.bounds.__getitem__)


def capacity(costs: Costs, cluster: Cluster) -> Capacity:
    """Compute what a cluster carries.

    Raises:
        ValueError: it lacks the brokers for its replication, or nobody works when those who may be missing are.
    """
    brokers = cluster.brokers - cluster.brokers_missing
    instances = cluster.instances - cluster.instances_missing
    if cluster.replication > cluster.brokers:
        raise ValueError(f"{cluster.brokers} brokers cannot hold {cluster.replication} replicas")
    if min(brokers, instances, cluster.partitions, cluster.replication) < 1:
        raise ValueError("a cluster needs a broker, an instance, a partition and a replica that are there")
    # The instance that has most partitions is the first that cannot follow; those that have none do nothing.
    fullest = -(-cluster.partitions // instances) / cluster.partitions
    copies = cluster.replication - 1
    # To copy a message to a follower is to hand it out and to write it once more, which `serve` is; each message has
    # two records to copy. A reader of the outputs costs less than that.
    broker_seconds = (costs.write + costs.serve * (1 + 2 * copies + cluster.readers)) / PER
    record_bytes = costs.input_bytes + costs.output_bytes
    bytes_in = cluster.replication * record_bytes
    bytes_out = costs.input_bytes + cluster.readers * costs.output_bytes + copies * record_bytes
    network = cluster.share * cluster.gigabits * BYTES_IN_A_GIGABIT
    return Capacity(
        {
            "instances' cores": cluster.share * min(cluster.instance_cores, 1) / (fullest * costs.service / PER),
            "instances' network": network / (fullest * max(costs.input_bytes, costs.output_bytes)),
            "brokers' cores": cluster.share * brokers * cluster.broker_cores / broker_seconds,
            "brokers' network": network * brokers / max(bytes_in, bytes_out),
        }
    )
