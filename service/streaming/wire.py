"""Bytes between the socket and record batches, with as few copies as the client library's interfaces allow.

aiokafka reads through `asyncio.StreamReader`, which copies what it gets into a buffer, each answer out of it, and moves
up what is left; decoding copies each partition's batches once more. Here a long answer is received where it stays: its
own memory, of which the batches are views. A produce request was put together by three concatenations, each a copy;
here it is one.
"""

from __future__ import annotations

import asyncio
import io
import struct
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from aiokafka import conn
from aiokafka.protocol import fetch, produce
from aiokafka.protocol.types import Int32

if TYPE_CHECKING:
    from collections.abc import Sequence

# A shorter answer is not worth a buffer of its own.
LONG_BYTES: Final = 1 << 14
# What a read may bring while no long answer is awaited.
SCRATCH_BYTES: Final = 1 << 14
# How much a connection reads before it is paused: with aiokafka's 64 KiB it stops and starts at every chunk, which is
# a tenth of all time at 1000 classes.
READ_AHEAD_BYTES: Final = 1 << 20
# Longer than any number or name in an answer to a fetch.
SHORT_FIELD_BYTES: Final = 256
# Those that carry record batches of today's format.
_PRODUCE_REQUESTS: Final = (
    produce.ProduceRequest_v3,
    produce.ProduceRequest_v4,
    produce.ProduceRequest_v5,
    produce.ProduceRequest_v6,
    produce.ProduceRequest_v7,
)
_FETCH: Final = fetch.FetchResponse_v4.API_KEY
_LENGTH: Final = struct.Struct(">i")
_handle_frame: Final[Any] = conn.AIOKafkaConnection._handle_frame  # noqa: SLF001 - hooked below


def install() -> None:
    """Put the hooks in place, for all connections of this process."""
    conn.READER_LIMIT = READ_AHEAD_BYTES
    conn.AIOKafkaProtocol = Receiver
    conn.AIOKafkaConnection._handle_frame = _handle  # noqa: SLF001 - a hook
    conn.io = SimpleNamespace(BytesIO=_opened)
    for request in _PRODUCE_REQUESTS:
        request.encode = _encode_produce_request


class Receiver(asyncio.BufferedProtocol):
    """Stands in for aiokafka's protocol of a connection: feeds its reader, save with long answers.

    It must not be an `asyncio.Protocol` too: uvloop would take it for one that is handed copies.
    """

    def __init__(self, closed: asyncio.Future[None], reader: Any, *, loop: asyncio.AbstractEventLoop) -> None:
        """Feed `reader`; `closed` is told of the end."""
        self._closed = closed
        self._reader = reader
        self._loop = loop
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._answer: memoryview | None = None
        self._filled = 0
        self._complete: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._read_short = reader.readexactly
        reader.readexactly = self._read

    # --- what the transport calls -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._reader.set_transport(transport)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Where the next bytes go."""
        return self._scratch if self._answer is None else self._answer[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """They are there."""
        if self._answer is None:
            self._reader.feed_data(bytes(self._scratch[:nbytes]))
            return
        self._filled += nbytes
        if self._filled == len(self._answer):
            self._answer = None
            if self._complete is not None and not self._complete.done():
                self._complete.set_result(None)

    def eof_received(self) -> None:
        """The broker sends no more."""
        self._break_off(None)
        self._reader.feed_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._break_off(exc)
        if exc is None:
            self._reader.feed_eof()
        else:
            self._reader.set_exception(exc)
        self.resume_writing()
        if not self._closed.done():
            self._closed.set_result(None)

    def pause_writing(self) -> None:
        """The socket takes no more for now."""
        self._writable = self._writable or self._loop.create_future()

    def resume_writing(self) -> None:
        """It does again."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # --- what the stream's ends call --------------------------------------------------------------

    async def _drain_helper(self) -> None:
        """`StreamWriter.drain` waits by it."""
        if self._writable is not None:
            await asyncio.shield(self._writable)

    def _get_close_waiter(self, _: object) -> asyncio.Future[None]:
        """`StreamWriter.wait_closed` waits for it."""
        return self._closed

    async def _read(self, size: int) -> bytes | memoryview:
        """Stands in for the reader's `readexactly`: a long answer comes in memory of its own."""
        if size < LONG_BYTES:
            short: bytes = await self._read_short(size)
            return short
        # Not a bytearray, which would be filled with zeros first.
        answer = np.empty(size, np.uint8).data
        here = self._take(answer)
        if here < size:
            self._answer, self._filled = answer, here
            self._complete = self._loop.create_future()
            try:
                await self._complete
            finally:
                self._answer = self._complete = None
        return answer

    def _take(self, answer: memoryview) -> int:
        """Move what the reader already has; tell how much that is.

        Raises:
            IncompleteReadError: no more will come.
        """
        reader = self._reader
        held = reader._buffer  # noqa: SLF001 - read as `readexactly` does
        here = min(len(held), len(answer))
        answer[:here] = held[:here]
        del held[:here]
        reader._maybe_resume_transport()  # noqa: SLF001 - as above
        if here < len(answer) and (reader.at_eof() or reader.exception() is not None):
            raise reader.exception() or asyncio.IncompleteReadError(bytes(answer[:here]), len(answer))
        return here

    def _break_off(self, exc: Exception | None) -> None:
        if self._complete is not None and not self._complete.done():
            self._complete.set_exception(exc or asyncio.IncompleteReadError(b"", None))


class _Frame:
    """Stands in for `io.BytesIO` with the answer to a fetch: what is long is handed out as a view."""

    def __init__(self, frame: memoryview) -> None:
        self._frame = frame
        self._at = 0

    def read(self, size: int) -> bytes | memoryview:
        field = self._frame[self._at : self._at + size]
        self._at += len(field)
        return field if size > SHORT_FIELD_BYTES else bytes(field)


def _handle(connection: Any, answer: Any) -> None:
    """Hand a long answer to a fetch on as views; all others as they were."""
    if isinstance(answer, memoryview):
        _, request, _ = connection._requests[0]  # noqa: SLF001 - as the original
        answer = _Frame(answer) if request is not None and request.API_KEY == _FETCH else bytes(answer)
    _handle_frame(connection, answer)


def _opened(answer: Any) -> Any:
    return answer if isinstance(answer, _Frame) else io.BytesIO(answer)


class _Pieces:
    """An encoded request that is put together once, when its length is put before it."""

    def __init__(self, pieces: Sequence[Any]) -> None:
        self._pieces = pieces
        self._length = sum(map(len, pieces))

    def __len__(self) -> int:
        return self._length

    def __radd__(self, before: bytes) -> Any:
        """What aiokafka puts before it: the request's header, then the length of both."""
        pieces = [before, *self._pieces]
        return b"".join(pieces) if before == _LENGTH.pack(self._length) else _Pieces(pieces)


def _encode_produce_request(request: Any) -> Any:
    """What the request's own `encode` gives, in one copy of the batches instead of six."""
    transactional_id, acks, timeout, _ = request.SCHEMA.fields
    pieces = [transactional_id.encode(request.transactional_id), acks.encode(request.required_acks)]
    pieces += [timeout.encode(request.timeout), Int32.encode(len(request.topics))]
    for topic, batches in request.topics:
        pieces += [transactional_id.encode(topic), Int32.encode(len(batches))]
        for partition, batch in batches:
            pieces += [Int32.encode(partition), Int32.encode(len(batch)), batch]
    return _Pieces(pieces)
