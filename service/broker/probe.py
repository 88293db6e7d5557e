"""Asks a broker which nodes it knows to be alive: the proof that it answers, by one request over a plain socket.

A listening port proves nothing, because Kafka opens its ports before it has recovered its logs and joined its cluster.
"""

import socket
import struct

from service.broker.ports import HOST

_METADATA, _VERSION, _CORRELATION = 3, 1, 7
_CLIENT_ID = b"probe"
_NO_TOPICS = 0
_REQUEST = struct.pack(
    f">hhih{len(_CLIENT_ID)}si", _METADATA, _VERSION, _CORRELATION, len(_CLIENT_ID), _CLIENT_ID, _NO_TOPICS
)


def alive_nodes(port: int, timeout: float = 1.0) -> frozenset[int]:
    """Return the ids of the brokers that the broker behind `port` lists, or nothing while it does not answer."""
    try:
        with socket.create_connection((HOST, port), timeout) as connection:
            connection.settimeout(timeout)
            connection.sendall(struct.pack(">i", len(_REQUEST)) + _REQUEST)
            (length,) = struct.unpack(">i", _receive(connection, 4))
            return _broker_ids(_receive(connection, length))
    except OSError:
        return frozenset()


def _receive(connection: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        part = connection.recv(size - len(received))
        if not part:
            raise ConnectionResetError
        received += part
    return bytes(received)


def _broker_ids(response: bytes) -> frozenset[int]:
    """Read the head of a Metadata response, version 1: correlation, then brokers of (id, host, port, nullable rack)."""
    _, count = struct.unpack_from(">ii", response)
    at, ids = 8, set()
    for _ in range(count):
        node_id, host_length = struct.unpack_from(">ih", response, at)
        ids.add(node_id)
        at += 4 + 2 + host_length + 4
        (rack_length,) = struct.unpack_from(">h", response, at)
        at += 2 + max(rack_length, 0)
    return frozenset(ids)
