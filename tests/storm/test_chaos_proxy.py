"""The relay in front of a broker does what the storm asks of it, and loses nothing by itself."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import pytest

from chaos.proxy import Relay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    Ends = tuple[Relay, "Server", asyncio.StreamReader, asyncio.StreamWriter]

MOMENT = 0.1


class Server:
    """Answers what it is sent by the same in capitals; remembers all of it."""

    def __init__(self) -> None:
        self.received = b""
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(1 << 16):
                self.received += piece
                writer.write(piece.upper())
                await writer.drain()
        except OSError:
            pass
        finally:
            self.ended.set()
            writer.close()


@asynccontextmanager
async def relayed() -> AsyncIterator[Ends]:
    server, relay = Server(), Relay()
    listening = await asyncio.start_server(server.serve, "127.0.0.1")
    await relay.start()
    relay.target = listening.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    try:
        yield relay, server, reader, writer
    finally:
        writer.transport.abort()
        await relay.close()
        listening.close()


async def _nothing_comes(reader: asyncio.StreamReader) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.readexactly(1), MOMENT)


async def test_all_bytes_pass_in_both_directions() -> None:
    """A megabyte goes there and back unchanged."""
    async with relayed() as (_, server, reader, writer):
        data = b"abcdefgh" * (1 << 17)
        sending = asyncio.create_task(_send(writer, data))
        assert await reader.readexactly(len(data)) == data.upper()
        await sending
        assert server.received == data


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def test_a_frozen_relay_holds_everything_until_it_is_thawed() -> None:
    """Nothing arrives meanwhile, everything afterwards."""
    async with relayed() as (relay, server, reader, writer):
        relay.freeze()
        writer.write(b"ask")
        await _nothing_comes(reader)
        assert server.received == b""
        relay.thaw()
        assert await reader.readexactly(3) == b"ASK"


async def test_answers_can_be_withheld_while_requests_arrive() -> None:
    """The broker has done what the client never hears of."""
    async with relayed() as (relay, server, reader, writer):
        relay.withhold_answers()
        writer.write(b"ask")
        await _nothing_comes(reader)
        assert server.received == b"ask"
        assert relay.cut(Random(1), 1.0) == 1  # noqa: S311 - all are chosen
        assert await _end(reader) == b""


async def _end(reader: asyncio.StreamReader) -> bytes:
    """What still comes before the connection ends, in order or not."""
    try:
        return await reader.read()
    except OSError:
        return b""


async def test_a_cut_ends_connections_at_both_sides_and_new_ones_work() -> None:
    """Client and broker both see their connection end; the next one is relayed again."""
    async with relayed() as (relay, server, reader, writer):
        writer.write(b"ask")
        await reader.readexactly(3)
        assert relay.cut(Random(1), 1.0) == 1  # noqa: S311 - all are chosen
        assert await _end(reader) == b""
        await server.ended.wait()
        again, writer_again = await asyncio.open_connection("127.0.0.1", relay.port)
        writer_again.write(b"again")
        assert await again.readexactly(5) == b"AGAIN"
        writer_again.transport.abort()


async def test_requests_are_delayed_and_stay_in_order() -> None:
    """Later pieces with a shorter delay do not overtake, and answers come as they come."""
    async with relayed() as (relay, _, reader, writer):
        delays = iter([3 * MOMENT, 0.0])
        relay.delay = lambda: next(delays)
        begun = asyncio.get_running_loop().time()
        writer.write(b"one")
        await asyncio.sleep(MOMENT)
        writer.write(b"two")
        assert await reader.readexactly(6) == b"ONETWO"
        assert asyncio.get_running_loop().time() - begun >= 3 * MOMENT


async def test_a_delayed_request_arrives_although_its_client_has_given_up() -> None:
    """What is on its way is not called back: that is what makes late requests dangerous."""
    async with relayed() as (relay, server, _, writer):
        relay.delay = lambda: 3 * MOMENT
        writer.write(b"late")
        await writer.drain()
        await asyncio.sleep(MOMENT)
        writer.close()
        await server.ended.wait()
        assert server.received == b"late"


async def test_an_absent_broker_ends_the_connection() -> None:
    """As a refused one: the client sees the end at once."""
    relay = Relay()
    await relay.start()
    relay.target = 1
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    assert await _end(reader) == b""
    writer.transport.abort()
    await relay.close()
    assert relay.connections == 0
