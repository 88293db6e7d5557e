"""Ports on the loopback interface that nobody uses."""

import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

HOST = "127.0.0.1"

# Below the ephemeral ranges of Linux and macOS. A port inside them may be lost while its broker is down to any outgoing
# connection, even that of a client that retries this very port until the kernel happens to connect it with itself.
_LOWEST, _HIGHEST = 20_000, 32_000


@dataclass(frozen=True)
class Ports:
    """The ports of one node."""

    plain: int
    controller: int
    secure: int
    relayed: int


@contextmanager
def reserve_ports(nodes: int) -> Iterator[list[Ports]]:
    """Hold free ports for some nodes until the block ends; the nodes should listen on them soon after."""
    with ExitStack() as held:

        def hold() -> int:
            return held.enter_context(_bind_somewhere()).getsockname()[1]  # type: ignore[no-any-return]

        yield [Ports(plain=hold(), controller=hold(), secure=hold(), relayed=hold()) for _ in range(nodes)]


def _bind_somewhere() -> socket.socket:
    while True:
        candidate = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            candidate.bind((HOST, _LOWEST + secrets.randbelow(_HIGHEST - _LOWEST)))
        except OSError:
            candidate.close()
        else:
            return candidate
