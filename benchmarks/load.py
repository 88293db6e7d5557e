"""Messages for benchmarks, and a filler of topics that is faster than what it is to be read by."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any, Final, Self

import msgpack
import numpy as np
from aiokafka import AIOKafkaProducer

from benchmarks.kafka import PARTITIONS

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A prime, so that the pool's turn and the boundaries of batches do not fall together.
POOL: Final = 4093
POOL_BYTES: Final = 64 << 20
BATCH_BYTES: Final = 1 << 18
LONGEST_ID_BITS: Final = 32
LONGEST_KEY_DIGITS: Final = 12


def _mixed(random: np.random.Generator, base: int, most_digits: int, size: int) -> NDArray[np.int64]:
    """Numbers of which each length, in digits of the base, is as frequent as any other."""
    return random.integers(0, base ** random.integers(1, most_digits, size, endpoint=True))


class Messages:
    """A pool of keys and messages `{"id": int, "logits": [float32, ...]}`, which repeats itself.

    Ids and keys differ in length from one message to the next. That is harder for the service than the counters
    of a sequence would be: it cannot take a batch for messages of one layout.
    """

    def __init__(self, classes: int, seed: int = 0) -> None:
        """Draw the logits from a normal distribution with standard deviation 3."""
        random = np.random.default_rng(seed)
        size = max(1, min(POOL, POOL_BYTES // (5 * classes)))
        elements = np.zeros((size, classes), np.dtype([("tag", np.uint8), ("number", ">f4")]))
        elements["tag"] = 0xCA
        elements["number"] = random.normal(scale=3, size=(size, classes))
        ids = _mixed(random, 2, LONGEST_ID_BITS, size).tolist()
        keys = _mixed(random, 10, LONGEST_KEY_DIGITS, size).tolist()
        array = b"\xa6logits" + msgpack.Packer().pack_array_header(classes)
        self.records: list[tuple[bytes, bytes]] = [
            (b"%d" % key, b"\x82\xa2id" + msgpack.packb(number) + array + row.tobytes())
            for key, number, row in zip(keys, ids, elements, strict=True)
        ]

    @property
    def mean_bytes(self) -> int:
        """Mean size of a record in the log, its few bytes of framing included."""
        return sum(len(key) + len(value) + 10 for key, value in self.records) // len(self.records)


class Filler:
    """Writes messages to a topic, the same number to each partition."""

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        messages: Messages,
        batch_records: int | None = None,
        partitions: int = PARTITIONS,
    ) -> None:
        """Write to nothing yet; then batches of 256 KiB, or of 1 to `batch_records` records each, at random."""
        self._partitions = partitions
        self._batch_records = batch_records
        self._random = random.Random(0)  # noqa: S311 - the same batches each time
        self._topic = topic
        self._records = messages.records
        # Partitions begin at different places, so that no two hold the same sequence.
        self._turns = [len(self._records) * partition // partitions for partition in range(partitions)]
        self._bootstrap = bootstrap

    async def __aenter__(self) -> Self:
        """Connect."""
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap, acks="all", max_batch_size=BATCH_BYTES, linger_ms=0
        )
        await self._producer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect."""
        await self._producer.stop()

    async def send(self, count: int) -> None:
        """Write so many messages, and wait until all are acknowledged."""
        each, over = divmod(count, self._partitions)
        shares = [each + (partition < over) for partition in range(self._partitions)]
        await asyncio.gather(*(self._send_to(partition, share) for partition, share in enumerate(shares) if share))

    async def _send_to(self, partition: int, count: int) -> None:
        pending = []
        while count:
            batch = self._producer.create_batch()
            now = int(time.time() * 1000)
            room = self._random.randint(1, self._batch_records) if self._batch_records else count
            for _ in range(min(room, count)):
                turn = self._turns[partition]
                key, value = self._records[turn]
                if batch.append(timestamp=now, key=key, value=value) is None:
                    break
                self._turns[partition] = (turn + 1) % len(self._records)
                count -= 1
            pending.append(await self._queue(batch, partition))
        await asyncio.gather(*pending)

    async def _queue(self, batch: Any, partition: int) -> asyncio.Future[object]:
        future: asyncio.Future[object] = await self._producer.send_batch(batch, self._topic, partition=partition)
        return future
