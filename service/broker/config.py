"""What a caller can choose about the embedded broker."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from service.broker.errors import BrokerError


class Security(Protocol):
    """How clients must come in on the secured listener."""

    @property
    def protocol(self) -> str:
        """Kafka's security protocol of the listener, say `SASL_PLAINTEXT`."""

    def properties(self, listener: str) -> Mapping[str, str]:
        """Return the server properties that the listener of that name needs."""


@dataclass(frozen=True)
class SaslPlain:
    """User names and passwords, over SASL PLAIN without encryption."""

    users: Mapping[str, str] = field(repr=False)

    @property
    def protocol(self) -> str:
        """Kafka's security protocol of the listener."""
        return "SASL_PLAINTEXT"

    def properties(self, listener: str) -> Mapping[str, str]:
        """Return the server properties that the listener of that name needs."""
        prefix = f"listener.name.{listener.lower()}"
        users = " ".join(_jaas_user(name, password) for name, password in self.users.items())
        module = "org.apache.kafka.common.security.plain.PlainLoginModule"
        return {
            f"{prefix}.sasl.enabled.mechanisms": "PLAIN",
            f"{prefix}.plain.sasl.jaas.config": f"{module} required {users};",
        }


def _jaas_user(name: str, password: str) -> str:
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        message = f"the user name {name!r} does not fit a JAAS configuration: use letters, digits, '_', '.', '-'"
        raise BrokerError(message)
    quoted = password.replace("\\", "\\\\").replace('"', '\\"')
    return f'user_{name}="{quoted}"'


@dataclass(frozen=True, kw_only=True)
class BrokerConfig:
    """Choices for one broker, or for every broker of a cluster.

    Attributes:
        data_dir: Where the data are kept, and kept after the end; by default in a private directory that is removed.
        tmpfs: Put the private directory into memory, where the machine has `/dev/shm` with enough room.
        heap: The largest Java heap, as in `-Xmx`; by default 512m, or 1g with `benchmark`.
        properties: Server properties that are added to ours or replace them.
        benchmark: Start slower and run faster: the whole just-in-time compiler, Kafka's own choice of collector.
        security: Adds a secured listener, which `bootstrap_servers` then names; `admin_servers` stays open.
        relays: By node id, the port of a relay on this machine. Adds a listener at `Node.relayed_port` that sends its
            clients there: Kafka's clients go where a broker says that it is, not where they have come from.
        jvm_arguments: Further arguments of the Java virtual machine.
        start_timeout: Seconds within which a started broker must answer.
        stop_timeout: Seconds that a broker has for an orderly end before it is killed.
    """

    data_dir: Path | None = None
    tmpfs: bool = False
    heap: str | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    benchmark: bool = False
    security: Security | None = None
    relays: Mapping[int, int] = field(default_factory=dict)
    jvm_arguments: tuple[str, ...] = ()
    start_timeout: float = 60.0
    stop_timeout: float = 10.0
