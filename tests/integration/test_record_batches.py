"""Whole record batches on a real broker: the outputs are those of the public interface, byte for byte."""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from base64 import b64decode
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any, Final

import confluent_kafka
import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import OffsetAndMetadata
from crc32c import crc32c
from harness import Bus, ServiceProcess, eventually, pack, unpack

from service.broker import Broker, BrokerConfig
from service.broker.installation import install
from service.streaming import seam

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    MakeService = Callable[..., ServiceProcess]

CODECS: Final = ("none", "gzip", "snappy", "lz4", "zstd")
RANDOM: Final = np.random.default_rng(11)


def message(number: int, classes: int = 5) -> bytes:
    return pack(RANDOM.normal(size=classes).astype(np.float32), id=number)


def facts(records: Sequence[Any]) -> list[tuple[Any, ...]]:
    return [(each.partition, each.key, each.value, each.timestamp, each.headers) for each in records]


@pytest.fixture
async def other(bus: Bus) -> AsyncIterator[Bus]:
    """Topics for the outputs of a second service."""
    async with Bus(bus.servers, f"{bus.name}.other", bus.partitions) as fresh:
        yield fresh


async def both(
    bus: Bus, other: Bus, make_service: MakeService, count: int, dead: int = 0, **settings: object
) -> list[Any]:
    """The outputs of `bus.input` with whole batches, once they are seen to be those of the public interface."""
    found = []
    for one, whole in ((bus, True), (other, False)):
        service = make_service(one, topics__input=bus.input, kafka__whole_batches=whole, **settings).start()
        outputs = await one.outputs(count)
        letters = await one.dead_letters(dead)
        await eventually(lambda service=service: service.metric("softmax_consumer_lag_records") == 0)  # type: ignore[misc]
        assert await service.stop() == 0, service.log
        found.append((facts(outputs), [fact[:4] for fact in facts(letters)], outputs))
    assert found[0][:2] == found[1][:2]
    return found[0][2]


async def send_batch(producer: Any, topic: str, values: Sequence[bytes], **fields: Any) -> None:
    """One record batch."""
    batch = producer.create_batch()
    for number, value in enumerate(values):
        headers = fields.get("headers", [])
        appended = batch.append(timestamp=1_000_000 + number, key=b"k%d" % number, value=value, headers=headers)
        assert appended is not None, "the batch is full"
    await (await producer.send_batch(batch, topic, partition=fields.get("partition", 0)))


async def all_there(bus: Bus, topic: str) -> list[Any]:
    """The records of a topic's partition 0, of which compaction may have removed some."""
    consumer = AIOKafkaConsumer(**bus.connection, enable_auto_commit=False)
    await consumer.start()
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        await consumer.seek_to_beginning()
        end, found = (await consumer.end_offsets([partition]))[partition], list[Any]()
        while await consumer.position(partition) < end:
            found += (await consumer.getmany(timeout_ms=200)).get(partition, [])
        return found
    finally:
        await consumer.stop()


async def raw_batches(bus: Bus, topic: str) -> list[seam.WholeBatch]:
    """The record batches of a topic."""
    assert seam.install()
    with seam.whole_batches():
        consumer = AIOKafkaConsumer(**bus.connection, auto_offset_reset="earliest", enable_auto_commit=False)
        await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, partition) for partition in range(bus.partitions)])
        await consumer.seek_to_beginning()
        found: list[seam.WholeBatch] = []
        while batches := await consumer.getmany(timeout_ms=700):
            found += [batch for some in batches.values() for batch in some]
        return found
    finally:
        await consumer.stop()


async def test_a_commit_in_the_middle_of_a_batch_is_where_reading_goes_on(
    bus: Bus, other: Bus, make_service: MakeService
) -> None:
    await send_batch(bus.producer, bus.input, [message(number) for number in range(20)])
    for one in (bus, other):
        group = AIOKafkaConsumer(**bus.connection, group_id=one.settings["kafka__group_id"], enable_auto_commit=False)
        await group.start()
        group.assign([TopicPartition(bus.input, 0)])
        await group.commit({TopicPartition(bus.input, 0): OffsetAndMetadata(7, "")})
        await group.stop()
    outputs = await both(bus, other, make_service, 13)
    assert [unpack(record.value)["id"] for record in outputs] == list(range(7, 20))


async def test_aborted_transactions_between_committed_ones_leave_no_trace(
    bus: Bus, other: Bus, make_service: MakeService
) -> None:
    """Batches of a running transaction lie between those of another."""
    names = [f"{bus.name}.{number}" for number in range(2)]
    producers = [AIOKafkaProducer(**bus.connection, transactional_id=name) for name in names]
    for producer in producers:
        await producer.start()
        await producer.begin_transaction()
    for number in range(12):
        await send_batch(producers[number % 2], bus.input, [message(number)] * 3)
        await send_batch(bus.producer, bus.input, [message(100 + number)])
    await producers[0].commit_transaction()
    await producers[1].abort_transaction()
    for producer in producers:
        await producer.stop()
    outputs = await both(bus, other, make_service, 6 * 3 + 12)
    ids = [unpack(record.value)["id"] for record in outputs]
    assert ids == [i for n in range(12) for i in ([n] * 3 if n % 2 == 0 else []) + [100 + n]]


async def test_times_set_by_the_broker_are_those_of_the_outputs(kafka: Broker, make_service: MakeService) -> None:
    configs = {"message.timestamp.type": "LogAppendTime"}
    name = f"t{uuid.uuid4().hex[:8]}"
    async with (
        Bus(kafka.bootstrap_servers, name, 1, input_configs=configs) as bus,
        Bus(kafka.bootstrap_servers, f"{name}.other", 1) as other,
    ):
        await send_batch(bus.producer, bus.input, [message(number) for number in range(60)])
        inputs = await bus.read(bus.input, 60)
        outputs = await both(bus, other, make_service, 60)
        assert [record.timestamp for record in outputs] == [record.timestamp for record in inputs]
        assert min(record.timestamp for record in outputs) > 1_000_100


async def test_what_compaction_leaves_is_transformed_and_lag_reaches_zero(make_service: MakeService) -> None:
    """Gaps between and behind a batch's records, and batches that have become empty."""
    quick = {"log.cleaner.backoff.ms": "100", "log.retention.ms": "-1"}
    configs = {
        "cleanup.policy": "compact",
        "segment.ms": "100",
        "min.cleanable.dirty.ratio": "0.001",
        "max.compaction.lag.ms": "200",
    }
    with Broker(BrokerConfig(properties=quick, tmpfs=True)) as kafka:
        servers = kafka.bootstrap_servers
        async with Bus(servers, "c", 1, input_configs=configs) as bus, Bus(servers, "c.other", 1) as other:
            # Keys k0 to k9 over and over: the last batch replaces some of each one before, and one as a whole.
            for number, size in enumerate((10, 10, 4, 7)):
                await send_batch(bus.producer, bus.input, [message(10 * number + i) for i in range(size)])
                await asyncio.sleep(0.2)
            await bus.send([message(99)], key=lambda _: b"last")  # closes the segment before it
            for _ in range(60):
                left = await all_there(bus, bus.input)
                if len(left) <= 12:
                    break
                await asyncio.sleep(0.2)
            assert len(left) <= 12
            assert [record.offset for record in left] != list(range(len(left)))
            outputs = await both(bus, other, make_service, len(left))
            assert [unpack(each.value)["id"] for each in outputs] == [unpack(each.value)["id"] for each in left]


@pytest.mark.parametrize("dropped", [[], ["ce_*", "x"]])
async def test_headers_pass_but_for_those_that_are_dropped(
    bus: Bus, other: Bus, make_service: MakeService, dropped: list[str]
) -> None:
    """In one micro-batch of four partitions, some of which need a look at single records and others do not."""
    many = [("traceparent", b"00-1"), ("ce_id", b"7"), ("x", None), ("softmax-error-reason", b"nan")]
    for number, headers in enumerate([many, [], many[:1], [("empty", b""), ("größe", b"\xff")]]):
        await send_batch(bus.producer, bus.input, [message(number)] * 30, headers=headers, partition=number)
    outputs = await both(bus, other, make_service, 120, headers__drop=dropped)
    names = {name for record in outputs for name, _ in record.headers}
    assert names == {"traceparent", "empty", "größe"} | (set() if dropped else {"ce_id", "x"})


async def test_a_header_name_that_is_no_text_passes_in_whole_batches(bus: Bus, make_service: MakeService) -> None:
    """Beside it, a refused record with such a header becomes a dead letter that keeps it."""
    batch = bus.producer.create_batch()
    batch.append(timestamp=1, key=None, value=message(1), headers=[("name", b"a")])
    batch.append(timestamp=1, key=None, value=b"no message", headers=[("name", b"b")])
    raw = bytearray(batch._build())
    for _ in range(2):
        raw[raw.index(b"name")] = 0xFF
    raw[17:21] = crc32c(bytes(raw[21:])).to_bytes(4, "big")
    batch._buffer, batch._set_producer_state = bytes(raw), lambda *_, **__: None
    async with AIOKafkaProducer(**bus.connection) as plain:
        await (await plain.send_batch(batch, bus.input, partition=0))
    service = await make_service(bus).start().ready()
    await eventually(lambda: service.metric("softmax_records_produced_total") == 1)
    await eventually(lambda: service.metric("softmax_dead_letters_total") == 1)
    for topic, value in ((bus.output, b"a"), (bus.dead_letter, b"b")):
        (found,) = await raw_batches(bus, topic)
        assert b"\xffame" + bytes([2]) + value in bytes(found.read().records)
    assert await service.stop() == 0


@pytest.mark.parametrize("codec", CODECS)
async def test_every_client_reads_what_is_written(bus: Bus, other: Bus, make_service: MakeService, codec: str) -> None:
    """Inputs of all compressions at once; outputs of one are read by aiokafka, librdkafka and Kafka's own client."""
    for kind in CODECS:
        async with AIOKafkaProducer(
            **bus.connection, compression_type=None if kind == "none" else kind, max_batch_size=1 << 18
        ) as producer:
            await send_batch(producer, bus.input, [message(n, 100) for n in range(100)], headers=[("h", b"1")])
    outputs = await both(bus, other, make_service, 500, kafka__compression=codec)
    expected = [(each.key, each.value, each.timestamp, each.headers) for each in outputs]
    assert await asyncio.to_thread(read_by_librdkafka, bus, 500) == expected
    if not which("javac"):
        pytest.skip("Kafka's Java client needs a JDK to be asked: apt install default-jdk-headless")
    assert await asyncio.to_thread(read_by_java, bus, 500) == expected


def read_by_librdkafka(bus: Bus, count: int) -> list[tuple[Any, ...]]:
    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": bus.servers,
            "group.id": uuid.uuid4().hex,
            "enable.auto.commit": False,
            "check.crcs": True,
        }
    )
    try:
        consumer.assign([confluent_kafka.TopicPartition(bus.output, 0, 0)])
        found: list[tuple[Any, ...]] = []
        while len(found) < count and (one := consumer.poll(10)) is not None:
            assert one.error() is None
            found.append((one.key(), one.value(), one.timestamp()[1], tuple(one.headers() or ())))
        return found
    finally:
        consumer.close()


def read_by_java(bus: Bus, count: int) -> list[tuple[Any, ...]]:
    """By Kafka's own client."""
    class_path = os.pathsep.join(map(str, install().class_path))
    source = Path(__file__).with_name("ReadRecords.java")
    done = subprocess.run(  # noqa: S603 - our own program
        [which("java") or "", "-cp", class_path, str(source), bus.servers, bus.output, str(count)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = []
    for line in done.stdout.splitlines():
        stamp, key, value, *headers = line.split()
        named = tuple((name, b64decode(content)) for name, content in batched(headers))
        found.append((b64decode(key), b64decode(value), int(stamp), named))
    return found


def batched(flat: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


async def test_batches_of_single_records_leave_in_few(bus: Bus, other: Bus, make_service: MakeService) -> None:
    """As producers without linger write them, over all partitions."""
    for number in range(400):
        await send_batch(bus.producer, bus.input, [message(number)], partition=number % 4)
    outputs = await both(bus, other, make_service, 400)
    assert len(outputs) == 400
    written, read = await raw_batches(bus, bus.output), await raw_batches(bus, bus.input)
    assert sum(batch.count for batch in written) == 400
    assert len(read) == 400
    assert len(written) < 100


@pytest.mark.parametrize(
    "caps", [{"batch__max_records": 3}, {"batch__max_bytes": 200}], ids=lambda caps: next(iter(caps))
)
async def test_micro_batches_are_cut_inside_record_batches(
    bus: Bus, other: Bus, make_service: MakeService, caps: dict[str, int]
) -> None:
    values = [message(number, 1 + number % 9) for number in range(50)]
    values[20] = b"refused"
    await send_batch(bus.producer, bus.input, values)
    outputs = await both(bus, other, make_service, 49, dead=1, **caps)
    assert [unpack(record.value)["id"] for record in outputs] == [n for n in range(50) if n != 20]


async def test_output_batches_stay_within_their_topics_limit(kafka: Broker, make_service: MakeService) -> None:
    """A batch of inputs becomes several; an output that fits in none is a dead letter."""
    name = f"t{uuid.uuid4().hex[:8]}"
    limit = {"max.message.bytes": "1000"}
    async with (
        Bus(kafka.bootstrap_servers, name, 1, output_configs=limit) as bus,
        Bus(kafka.bootstrap_servers, f"{name}.other", 1, output_configs=limit) as other,
    ):
        values = [message(number, 20) for number in range(60)]
        values[30] = message(30, 700)
        await send_batch(bus.producer, bus.input, values)
        await both(bus, other, make_service, 59, dead=1)
        written = await raw_batches(bus, bus.output)
        assert all(batch.size <= 1000 for batch in written)
        assert len(written) > 59 * 120 // 1000
