"""Sample load: logit messages at a steady rate."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgpack
import numpy as np
from aiokafka import errors

from service.errors import BrokerUnusableError
from service.streaming.clients import bounded, close, make_producer
from service.streaming.startup import connect, describe

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiokafka import AIOKafkaProducer

    from service.settings import Settings

# Different sets of logits before they repeat; ids never do.
POOL: Final = 1024
TICK_SECONDS: Final = 0.01
BATCH_BYTES: Final = 1 << 18
# Messages handed over at once where no rate is set.
UNPACED_STEP: Final = 10_000


@dataclass(frozen=True, slots=True)
class Load:
    """What to send.

    Attributes:
        classes: logits in each message.
        rate: messages a second; 0 for as many as the broker takes.
        count: stop after so many; `None` for no such end.
        seconds: stop after so long; `None` for no such end.
        malformed: share of messages that are no msgpack, 0 to 1.
    """

    classes: int
    rate: float
    count: int | None
    seconds: float | None
    malformed: float


class MessagePool:
    """Makes messages `{"id": n, "logits": [float32, ...]}` faster than a service can read them."""

    def __init__(self, classes: int, malformed: float, seed: int = 0) -> None:
        """Draw the logits from a normal distribution with standard deviation 3."""
        random = np.random.default_rng(seed)
        elements = np.zeros((POOL, classes), np.dtype([("tag", np.uint8), ("number", ">f4")]))
        elements["tag"] = 0xCA
        elements["number"] = random.normal(scale=3, size=(POOL, classes))
        header = msgpack.Packer().pack_array_header(classes)
        self._logits = [b"\xa6logits" + header + row.tobytes() for row in elements]
        self._malformed = set(np.flatnonzero(random.random(POOL) < malformed).tolist())

    def message(self, number: int) -> bytes:
        """The message with this id."""
        turn = number % POOL
        message: bytes = b"\x82\xa2id" + msgpack.packb(number) + self._logits[turn]
        return message[:-1] if turn in self._malformed else message


async def produce(settings: Settings, load: Load, progress: Callable[[int], object], stop: asyncio.Event) -> int:
    """Send load to the input topic until its end or `stop`.

    Args:
        settings: how to reach the broker; the topic.
        load: what to send.
        progress: told the number of messages sent, now and then.
        stop: set to end early.

    Returns:
        The number of messages acknowledged.

    Raises:
        BrokerUnusableError: the broker cannot be reached or does not take them.
    """
    admin = await connect(settings)
    await admin.close()
    producer = make_producer(settings, BATCH_BYTES)
    try:
        await bounded(producer.start(), settings.kafka.request_timeout_ms)
        partitions = sorted(await bounded(producer.partitions_for(settings.topics.input), 10_000))
        sender = _Sender(producer, settings.topics.input, partitions, MessagePool(load.classes, load.malformed))
        await _pace(sender, load, progress, stop)
        await sender.settle()
    except (errors.KafkaError, TimeoutError) as error:
        raise BrokerUnusableError(
            f"Cannot write to {settings.topics.input}: {describe(error)}",
            "Create it with `softmax-service topics create`, or correct topics.input",
        ) from error
    finally:
        await close(producer, 5)
    return sender.acknowledged


async def _pace(sender: _Sender, load: Load, progress: Callable[[int], object], stop: asyncio.Event) -> None:
    started = time.monotonic()
    end = None if load.seconds is None else started + load.seconds
    while not stop.is_set() and (end is None or time.monotonic() < end):
        due = int((time.monotonic() - started) * load.rate) - sender.sent if load.rate else UNPACED_STEP
        if load.count is not None:
            due = min(due, load.count - sender.sent)
            if sender.sent >= load.count:
                return
        if due > 0:
            await sender.send(due)
            progress(sender.sent)
        if load.rate:
            await asyncio.sleep(TICK_SECONDS)


class _Sender:
    """Sends batches to the partitions in turn and counts acknowledgements."""

    def __init__(self, producer: AIOKafkaProducer, topic: str, partitions: list[int], pool: MessagePool) -> None:
        self.sent = 0
        self.acknowledged = 0
        self._producer = producer
        self._topic = topic
        self._partitions = partitions
        self._pool = pool
        self._pending: set[asyncio.Task[None]] = set()

    async def send(self, count: int) -> None:
        """Send so many messages, the same number to each partition."""
        shares = [count // len(self._partitions)] * len(self._partitions)
        for extra in range(count % len(self._partitions)):
            shares[(self.sent + extra) % len(shares)] += 1
        first = self.sent
        self.sent += count
        jobs = []
        for partition, share in zip(self._partitions, shares, strict=True):
            if share:
                jobs.append(self._send_to(partition, range(first, first + share)))
                first += share
        await asyncio.gather(*jobs)

    async def settle(self) -> None:
        """Wait for all acknowledgements."""
        await asyncio.gather(*self._pending)

    async def _send_to(self, partition: int, numbers: range) -> None:
        now = int(time.time() * 1000)
        batch = self._producer.create_batch()
        for number in numbers:
            key, value = b"%d" % number, self._pool.message(number)
            if batch.append(timestamp=now, key=key, value=value) is None:
                await self._queue(batch, partition)
                batch = self._producer.create_batch()
                batch.append(timestamp=now, key=key, value=value)
        await self._queue(batch, partition)

    async def _queue(self, batch: object, partition: int) -> None:
        records = batch.record_count()  # type: ignore[attr-defined]  # aiokafka is not typed
        future = await self._producer.send_batch(batch, self._topic, partition=partition)
        task = asyncio.create_task(self._acknowledge(future, records))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _acknowledge(self, future: asyncio.Future[object], records: int) -> None:
        await future
        self.acknowledged += records
