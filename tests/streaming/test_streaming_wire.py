"""What passes between the socket and record batches is what aiokafka's own ways would have made of it."""

from __future__ import annotations

import asyncio
import io
import os
import struct
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import pytest
import uvloop
from aiokafka.protocol import fetch, produce
from aiokafka.protocol.struct import Struct
from hypothesis import given
from hypothesis import strategies as st

from service.streaming import wire

if TYPE_CHECKING:
    from collections.abc import Callable

LOOPS: Final[dict[str, Callable[[], asyncio.AbstractEventLoop]]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}
SIZES: Final = (0, 1, 100, wire.LONG_BYTES - 1, wire.LONG_BYTES, wire.LONG_BYTES + 1, 5 * wire.LONG_BYTES)


def framed(answers: list[bytes]) -> bytes:
    return b"".join(struct.pack(">i", len(answer)) + answer for answer in answers)


async def read_frames(reader: Any, count: int) -> list[bytes]:
    """As a connection of aiokafka does."""
    found = []
    for _ in range(count):
        (size,) = struct.unpack(">i", await reader.readexactly(4))
        found.append(bytes(await reader.readexactly(size)))
    return found


def receiver() -> tuple[wire.Receiver, asyncio.StreamReader, asyncio.Future[None]]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=wire.READ_AHEAD_BYTES)
    closed: asyncio.Future[None] = loop.create_future()
    made = wire.Receiver(closed, reader, loop=loop)
    made.connection_made(asyncio.Transport())
    return made, reader, closed


def deliver(to: wire.Receiver, data: bytes) -> None:
    """What a transport does with what it has read."""
    while data:
        buffer = to.get_buffer(-1)
        some = min(len(buffer), len(data))
        buffer[:some] = data[:some]
        to.buffer_updated(some)
        data = data[some:]


@given(
    st.lists(st.sampled_from(SIZES), min_size=1, max_size=5),
    st.lists(st.integers(1, 3 * wire.LONG_BYTES), max_size=10),
)
async def test_answers_come_whole_however_they_are_cut(sizes: list[int], cuts: list[int]) -> None:
    answers = [os.urandom(size) for size in sizes]
    data = framed(answers)
    to, reader, _ = receiver()
    reading = asyncio.create_task(read_frames(reader, len(answers)))
    for cut in [*cuts, len(data)]:
        deliver(to, data[:cut])
        data = data[cut:]
        await asyncio.sleep(0)
    assert await asyncio.wait_for(reading, 5) == answers


@pytest.mark.parametrize("error", [None, ConnectionResetError("gone")])
@pytest.mark.parametrize("received", [0, 10, wire.LONG_BYTES])
async def test_an_answer_that_is_broken_off_is_no_answer(error: Exception | None, received: int) -> None:
    to, reader, closed = receiver()
    reading = asyncio.create_task(read_frames(reader, 1))
    deliver(to, framed([bytes(2 * wire.LONG_BYTES)])[: 4 + received])
    for _ in range(3):
        await asyncio.sleep(0)
    if error is None:
        to.eof_received()
    to.connection_lost(error)
    with pytest.raises(asyncio.IncompleteReadError if error is None else ConnectionResetError):
        await asyncio.wait_for(reading, 5)
    assert closed.done()


async def test_an_answer_that_ended_before_it_was_asked_for_is_no_answer() -> None:
    to, reader, _ = receiver()
    deliver(to, bytes(10))
    to.eof_received()
    with pytest.raises(asyncio.IncompleteReadError):
        await asyncio.wait_for(reader.readexactly(wire.LONG_BYTES), 5)


async def test_a_full_socket_is_waited_for() -> None:
    to, _, _ = receiver()
    await asyncio.wait_for(to._drain_helper(), 1)
    to.pause_writing()
    waiting = asyncio.create_task(to._drain_helper())
    await asyncio.sleep(0)
    assert not waiting.done()
    to.resume_writing()
    await asyncio.wait_for(waiting, 1)


@pytest.mark.parametrize("loop", LOOPS)
def test_answers_come_whole_through_a_real_socket(loop: str) -> None:
    """On both event loops, with more under way than is read ahead."""
    answers = [os.urandom(size) for size in (3, 5 << 20, 17, wire.LONG_BYTES, 1 << 20, 0, 2 << 20)]

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(framed(answers))
        await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader = asyncio.StreamReader(limit=wire.READ_AHEAD_BYTES)
        running = asyncio.get_running_loop()
        made = wire.Receiver(running.create_future(), reader, loop=running)
        transport, _ = await running.create_connection(lambda: made, *server.sockets[0].getsockname())
        try:
            assert await asyncio.wait_for(read_frames(reader, len(answers)), 20) == answers
        finally:
            transport.close()
            server.close()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(run())


# What is read


def test_a_long_answer_to_a_fetch_is_decoded_as_aiokafka_does() -> None:
    """Equal content, and the batches are views of the answer's own memory."""
    batches = [os.urandom(size) for size in (0, 3, 300, 70_000)]
    partitions = [(number, 0, 10, 9, 0, [(7, 3)], -1, batch) for number, batch in enumerate(batches)]
    answer = fetch.FetchResponse_v11(0, 0, 0, [("a-topic", partitions)]).encode()
    ours = fetch.FetchResponse_v11.decode(wire._Frame(memoryview(answer)))
    theirs = fetch.FetchResponse_v11.decode(io.BytesIO(answer))
    assert repr(ours.topics[0][0]) == repr(theirs.topics[0][0])
    for mine, other in zip(ours.topics[0][1], theirs.topics[0][1], strict=True):
        assert (*mine[:-1], bytes(mine[-1])) == other
    assert [type(partition[-1]) for partition in ours.topics[0][1]] == [bytes, bytes, memoryview, memoryview]


@pytest.mark.parametrize(("key", "kind"), [(1, wire._Frame), (3, bytes)])
def test_only_answers_to_fetches_are_views(monkeypatch: pytest.MonkeyPatch, key: int, kind: type) -> None:
    handled: list[Any] = []
    monkeypatch.setattr(wire, "_handle_frame", lambda _, answer: handled.append(answer))
    wire._handle(SimpleNamespace(_requests=[(1, SimpleNamespace(API_KEY=key), None)]), memoryview(b"x"))
    assert [type(answer) for answer in handled] == [kind]


# What is written


produced = st.lists(
    st.tuples(st.text(max_size=5), st.lists(st.tuples(st.integers(0, 99), st.binary(max_size=30)), max_size=3)),
    max_size=3,
)


@given(produced, st.none() | st.text(max_size=5), st.integers(-1, 1), st.integers(0, 1 << 30), st.binary(min_size=8))
def test_produce_requests_are_encoded_as_aiokafka_does(
    topics: list[Any], transactional_id: str | None, acks: int, timeout: int, header: bytes
) -> None:
    """As a connection puts them together: the header before it, and the length of both before that."""
    for kind in wire._PRODUCE_REQUESTS:
        request = kind(transactional_id, acks, timeout, topics)
        views = [(topic, [(number, memoryview(content)) for number, content in batches]) for topic, batches in topics]
        message = header + wire._encode_produce_request(kind(transactional_id, acks, timeout, views))
        expected = header + Struct.encode(request)
        assert len(message) == len(expected)
        assert struct.pack(">i", len(message)) + message == struct.pack(">i", len(expected)) + expected


def test_every_version_of_the_produce_request_that_holds_batches_is_known() -> None:
    offered = produce.ProduceRequest._CLASSES
    assert set(wire._PRODUCE_REQUESTS) == {kind for kind in offered if kind.API_VERSION >= 3}
