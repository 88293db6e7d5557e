"""Kafka's `server.properties` for one node."""

from collections.abc import Mapping
from pathlib import Path

from service.broker.config import BrokerConfig
from service.broker.ports import HOST, Ports

_MOST_REPLICAS = 3
_PLAIN, _CONTROLLER, _SECURE, _RELAYED = "PLAINTEXT", "CONTROLLER", "SECURE", "RELAYED"


def server_properties(
    config: BrokerConfig, node_id: int, cluster: Mapping[int, Ports], log_dir: Path
) -> dict[str, str]:
    """Return the properties of the node `node_id` of the cluster whose nodes have these ports."""
    return {
        "process.roles": "broker,controller",
        "node.id": str(node_id),
        "log.dirs": str(log_dir),
        "controller.quorum.voters": ",".join(f"{peer}@{HOST}:{ports.controller}" for peer, ports in cluster.items()),
        **_listeners(config, cluster[node_id], config.relays.get(node_id)),
        **_replication(len(cluster)),
        **_quick_reactions(len(cluster)),
        "auto.create.topics.enable": "false",
        # 128 MiB of heap by default, for logs far longer than those kept here.
        "log.cleaner.dedupe.buffer.size": str(16 * 2**20),
        **config.properties,
    }


def render(properties: Mapping[str, str]) -> str:
    """Write properties in Java's format, in which a backslash escapes and everything else is ASCII."""
    return "".join(f"{key}={_escape(value)}\n" for key, value in properties.items())


def _escape(value: str) -> str:
    units = value.replace("\\", "\\\\").replace("\n", "\\n").encode("utf-16-be")
    codes = (int.from_bytes(units[at : at + 2]) for at in range(0, len(units), 2))
    return "".join(chr(code) if ord(" ") <= code <= ord("~") else f"\\u{code:04x}" for code in codes)


def _listeners(config: BrokerConfig, ports: Ports, relay: int | None) -> dict[str, str]:
    open_to_clients = {_PLAIN: ports.plain}
    protocols = {_PLAIN: "PLAINTEXT", _CONTROLLER: "PLAINTEXT"}
    secured: Mapping[str, str] = {}
    if config.security is not None:
        open_to_clients[_SECURE] = ports.secure
        protocols[_SECURE] = config.security.protocol
        secured = config.security.properties(_SECURE)
    advertised = dict(open_to_clients)
    if relay is not None:
        open_to_clients[_RELAYED], advertised[_RELAYED] = ports.relayed, relay
        protocols[_RELAYED] = "PLAINTEXT"

    def addresses(listeners: Mapping[str, int]) -> str:
        return ",".join(f"{name}://{HOST}:{port}" for name, port in listeners.items())

    return {
        "listeners": addresses({**open_to_clients, _CONTROLLER: ports.controller}),
        "advertised.listeners": addresses(advertised),
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
        "controller.listener.names": _CONTROLLER,
        "inter.broker.listener.name": _PLAIN,
        **secured,
    }


def _replication(nodes: int) -> dict[str, str]:
    replicas = min(nodes, _MOST_REPLICAS)
    in_sync = max(replicas - 1, 1)
    properties = {"default.replication.factor": str(replicas), "min.insync.replicas": str(in_sync)}
    for topic in ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic"):
        # One partition for each node spreads the coordinators, and a partition less is a file less to open at start.
        properties[f"{topic}.num.partitions"] = str(nodes)
        properties[f"{topic}.replication.factor"] = str(replicas)
    properties["transaction.state.log.min.isr"] = str(in_sync)
    properties["share.coordinator.state.topic.min.isr"] = str(in_sync)
    return properties


def _quick_reactions(nodes: int) -> dict[str, str]:
    """Shorter than Kafka's defaults: nobody waits seconds for a group to form or for a lost node to be given up.

    A killed node is not let in again before it has been given up. Alone it can be given up sooner: no partition moves.
    """
    session, heartbeat = ("1500", "300") if nodes == 1 else ("3000", "500")
    return {
        "group.initial.rebalance.delay.ms": "0",
        "broker.session.timeout.ms": session,
        "broker.heartbeat.interval.ms": heartbeat,
    }
