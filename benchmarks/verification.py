"""Are the outputs right? A sample of them, against the inputs and numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition

from benchmarks.kafka import PARTITIONS
from benchmarks.processes import BenchmarkError

if TYPE_CHECKING:
    from collections.abc import Sequence

PLACES: Final = 5
RECORDS_AT_A_PLACE: Final = 20
# float32 without special care; what is being looked for are wrong answers, not the last bit.
RELATIVE_TOLERANCE: Final = 1e-5


async def verify(bootstrap: str, input_topic: str, output_topic: str, ends: Sequence[int], *, transformed: bool) -> int:
    """Compare outputs with inputs: the first and the last of each partition, and some at random.

    Every program keeps partition and order, so that an output has its input's offset.

    Args:
        bootstrap: the broker.
        input_topic: filled by us.
        output_topic: filled by the program.
        ends: the number of outputs by partition.
        transformed: whether the outputs are probabilities; else the input's bytes.

    Returns:
        How many were compared.

    Raises:
        BenchmarkError: one is wrong.
    """
    compared = 0
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, max_partition_fetch_bytes=1 << 16)
    async with consumer:
        for number in range(PARTITIONS):
            pair = TopicPartition(input_topic, number), TopicPartition(output_topic, number)
            consumer.assign(pair)
            for place, count in _places(ends[number]):
                for partition in pair:
                    consumer.seek(partition, place)
                for _ in range(count):
                    _compare(*[await consumer.getone(partition) for partition in pair], transformed=transformed)
                    compared += 1
    return compared


def _places(end: int) -> list[tuple[int, int]]:
    """Offsets to begin at, and how many records to read from there."""
    count = min(RECORDS_AT_A_PLACE, end)
    latest = end - count
    random = np.random.default_rng().integers(0, latest, PLACES - 2, endpoint=True).tolist()
    return [(place, count) for place in sorted({0, latest, *random})] if count else []


def _compare(given: Any, got: Any, *, transformed: bool) -> None:
    where = f"{got.topic}-{got.partition} @{got.offset}"
    if given.offset != got.offset:
        raise BenchmarkError(f"{where}: there is no record at offset {given.offset}")
    if (given.key, given.timestamp, given.headers) != (got.key, got.timestamp, got.headers):
        raise BenchmarkError(f"{where}: key, timestamp or headers are not the input's")
    if not (_right(given.value, got.value) if transformed else given.value == got.value):
        raise BenchmarkError(f"{where}: the value is wrong: {got.value[:100]!r}")


def _right(value: bytes, output: bytes) -> bool:
    message, answer = msgpack.unpackb(value), msgpack.unpackb(output)
    # The same fields in order, and float32 everywhere: half as many bytes as a program that writes float64.
    if list(answer) != ["id", "probabilities"] or msgpack.packb(answer, use_single_float=True) != output:
        return False
    logits = np.array(message["logits"], np.float64)
    exponentials = np.exp(logits - logits.max())
    expected = exponentials / exponentials.sum()
    got = np.array(answer["probabilities"])
    same_shape = answer["id"] == message["id"] and got.shape == expected.shape
    return same_shape and bool(np.allclose(got, expected, rtol=RELATIVE_TOLERANCE, atol=1e-30))
