"""Are the outputs right? A sample of them, against the inputs and numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import confluent_kafka
import msgpack
import numpy as np
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from benchmarks.kafka import PARTITIONS
from benchmarks.processes import BenchmarkError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.programs import Program

PLACES: Final = 5
RECORDS_AT_A_PLACE: Final = 20
RECORDS_BETWEEN_SAMPLES: Final = 1009
READ_SECONDS: Final = 30
# float32 without special care; what is being looked for are wrong answers, not the last bit.
RELATIVE_TOLERANCE: Final = 1e-5


async def verify(
    bootstrap: str, input_topic: str, output_topic: str, ends: Sequence[int], program: Program, places: int = PLACES
) -> int:
    """Compare outputs with inputs: the first and the last of each partition, and some at random.

    Every program keeps partition and order, so that an output has its input's offset.

    Args:
        bootstrap: the broker.
        input_topic: filled by us.
        output_topic: filled by the program.
        ends: the number of outputs by partition.
        program: what it promises.
        places: at how many places of a partition to look, two at least.

    Returns:
        How many were compared.

    Raises:
        BenchmarkError: one is wrong.
    """
    compared = 0
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, max_partition_fetch_bytes=1 << 16)
    async with consumer:
        for number in range(len(ends)):
            pair = TopicPartition(input_topic, number), TopicPartition(output_topic, number)
            consumer.assign(pair)
            for place, count in _places(ends[number], places):
                for partition in pair:
                    consumer.seek(partition, place)
                for _ in range(count):
                    given, got = [await consumer.getone(partition) for partition in pair]
                    if given.offset != got.offset:
                        raise BenchmarkError(f"{_where(got)}: there is no record at offset {given.offset}")
                    _compare(given, got, program)
                    compared += 1
    return compared


async def verify_committed(
    bootstrap: str, input_topic: str, output_topic: str, program: Program, partitions: int = PARTITIONS
) -> tuple[int, int]:
    """Count the outputs that a reader of committed records sees, and compare some of them with their inputs.

    The n-th of them in a partition is that of the n-th input: between their offsets stand the markers of transactions.

    Returns:
        How many there are, and how many were compared.

    Raises:
        BenchmarkError: one is wrong.
    """
    count = compared = 0
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, max_partition_fetch_bytes=1 << 16)
    async with consumer:
        for number in range(partitions):
            source = TopicPartition(input_topic, number)
            consumer.assign([source])
            following = 0
            for position, got in _committed(bootstrap, output_topic, number):
                following = position + 1
                if got is not None:
                    consumer.seek(source, position)
                    _compare(await consumer.getone(source), got, program)
                    compared += 1
            count += following
    return count, compared


def _committed(bootstrap: str, topic: str, partition: int) -> Iterator[tuple[int, Any]]:
    """The positions of a partition's committed records; with some of them, and with the last, the record itself."""
    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "verification",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "enable.auto.commit": False,
        }
    )
    consumer.assign([confluent_kafka.TopicPartition(topic, partition, 0)])
    position, last = 0, None
    try:
        while (record := consumer.poll(READ_SECONDS)) is not None:
            if error := record.error():
                if error.code() != confluent_kafka.KafkaError._PARTITION_EOF:  # noqa: SLF001 - so it is named
                    raise BenchmarkError(str(error))
                break
            last = _as_aiokafka(record)
            yield position, None if position % RECORDS_BETWEEN_SAMPLES else last
            position += 1
        else:
            raise BenchmarkError(f"{topic}-{partition} could not be read to its end")
        if last is not None:
            yield position - 1, last
    finally:
        consumer.close()


def _as_aiokafka(record: confluent_kafka.Message) -> Any:
    return ConsumerRecord(
        topic=record.topic(),
        partition=record.partition(),
        offset=record.offset(),
        timestamp=record.timestamp()[1],
        timestamp_type=0,
        key=record.key(),
        value=record.value(),
        checksum=None,
        serialized_key_size=-1,
        serialized_value_size=-1,
        headers=tuple(record.headers() or ()),
    )


def _places(end: int, places: int) -> list[tuple[int, int]]:
    """Offsets to begin at, and how many records to read from there."""
    count = min(RECORDS_AT_A_PLACE, end)
    latest = end - count
    random = np.random.default_rng().integers(0, latest, places - 2, endpoint=True).tolist()
    return [(place, count) for place in sorted({0, latest, *random})] if count else []


def _compare(given: Any, got: Any, program: Program) -> None:
    if (given.key, given.timestamp) != (got.key, got.timestamp):
        raise BenchmarkError(f"{_where(got)}: key or timestamp are not the input's")
    if given.headers != (got.headers[: len(given.headers)] if program.adds_headers else got.headers):
        raise BenchmarkError(f"{_where(got)}: headers are not the input's")
    if not (_right(given.value, got.value) if program.transforms else given.value == got.value):
        raise BenchmarkError(f"{_where(got)}: the value is wrong: {got.value[:100]!r}")


def _where(got: Any) -> str:
    return f"{got.topic}-{got.partition} @{got.offset}"


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
