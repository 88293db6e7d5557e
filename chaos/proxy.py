"""A TCP relay in front of a broker, which can delay, cut, freeze, and withhold answers."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from service.broker.ports import HOST

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

CHUNK: Final = 1 << 16
# What may wait in the relay on each way of a connection: chunks.
MOST_WAITING: Final = 64


class Relay:
    """Relays connections to a port of its own to the port of a broker.

    Attributes:
        port: where clients connect.
        target: where the broker listens.
        delay: draws for how many seconds the next piece of a request is held up; `None` for not at all.
    """

    def __init__(self) -> None:
        """Listen nowhere yet."""
        self.port = 0
        self.target = 0
        self.delay: Callable[[], float] | None = None
        self._requests, self._answers = asyncio.Event(), asyncio.Event()
        self._links: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen on any free port of the loopback interface."""
        self.thaw()
        self._server = await asyncio.start_server(self._serve, HOST)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Cut all connections and listen no more."""
        if self._server is not None:
            self._server.close()
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._links)

    def cut(self, random: Random, share: float) -> int:
        """Cut a share of the connections, with all that is on its way; return how many."""
        chosen = [link for link in self._links if random.random() < share]
        for link in chosen:
            for writer in self._links[link]:
                writer.transport.abort()
            link.cancel()
        return len(chosen)

    def freeze(self) -> None:
        """Let nothing through, in neither direction, and lose nothing."""
        self._requests.clear()
        self._answers.clear()

    def withhold_answers(self) -> None:
        """Let requests through and no answers."""
        self._answers.clear()

    def thaw(self) -> None:
        """Let all through again, also what has been held up."""
        self._requests.set()
        self._answers.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        if link is None:
            raise AssertionError("a callback of a server is a task")
        self._links[link] = (writer,)
        try:
            broker_reader, broker_writer = await asyncio.open_connection(HOST, self.target)
            self._links[link] = (writer, broker_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry_requests(reader, broker_writer))
                both.create_task(self._carry_answers(broker_reader, writer))
        except (OSError, asyncio.CancelledError):
            # The broker is away, or the connection was cut: for the client it is the same.
            pass
        finally:
            for end in self._links.pop(link):
                end.transport.abort()

    async def _carry_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry what the client sends, each piece when it is due.

        A client that gives up does not call its requests back: those under way arrive all the same.
        """
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MOST_WAITING)
        receiving = asyncio.create_task(self._receive(reader, waiting))
        try:
            while True:
                due, piece = await waiting.get()
                await asyncio.sleep(due - asyncio.get_running_loop().time())
                await self._requests.wait()
                if not piece:
                    break
                writer.write(piece)
                await writer.drain()
        except OSError:
            pass  # the broker is gone; the other direction notices it too
        finally:
            receiving.cancel()
            writer.close()

    async def _receive(self, reader: asyncio.StreamReader, waiting: asyncio.Queue[tuple[float, bytes]]) -> None:
        """Say of each piece when it is due, never before the one before it; an empty one is the end."""
        due, piece = 0.0, b"begin"
        while piece:
            piece = await _read(reader)
            delay = self.delay() if self.delay is not None and piece else 0.0
            due = max(due, asyncio.get_running_loop().time() + delay)
            await waiting.put((due, piece))

    async def _carry_answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry what the broker answers; the broker's end is the client's end."""
        while piece := await _read(reader):
            await self._answers.wait()
            with contextlib.suppress(OSError):  # the client may be gone while its requests are still under way
                writer.write(piece)
                await writer.drain()
        writer.transport.abort()


async def _read(reader: asyncio.StreamReader) -> bytes:
    """The next piece; an empty one at the end, however it came."""
    try:
        return await reader.read(CHUNK)
    except OSError:
        return b""
