"""What becomes of bad input: one dead letter with its reason each, and nothing else suffers."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from typing import TYPE_CHECKING

import msgpack
import numpy as np
import psutil
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from harness import Bus, ServiceProcess, pack, unpack

from service import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.broker import Broker

    MakeService = Callable[..., ServiceProcess]

GOOD = pack(np.asarray([1, 2, 3], np.float32), id=7)
F32 = msgpack.packb({"logits": b"\0" * 8, "dtype": "float32", "shape": [2]})

# Real bytes for every reason that this service can find.
REFUSED: list[tuple[str, bytes]] = [
    ("too_large", pack(np.zeros(2000, np.float32), id=1)),
    *(("malformed_msgpack", GOOD[:length]) for length in range(len(GOOD))),
    ("malformed_msgpack", b"\xc1"),
    ("malformed_msgpack", b"\xdd\xff\xff\xff\xff"),
    ("malformed_msgpack", b"\xdf\xff\xff\xff\xff\xa2id\x01"),
    ("malformed_msgpack", b"\x81\xa6logits\xdd\xff\xff\xff\xff\xca\x00\x00\x00\x00"),
    ("malformed_msgpack", b"\xc6\xff\xff\xff\xffx"),
    ("malformed_msgpack", b"\x91" * 5000),
    ("trailing_bytes", GOOD + b"\x00"),
    ("trailing_bytes", GOOD + GOOD),
    ("too_deep", b"\x91" * 5000 + b"\x01"),
    ("extension_type", msgpack.packb({"logits": msgpack.ExtType(5, b"abc")})),
    ("extension_type", msgpack.packb({"logits": [1.0, msgpack.ExtType(5, b"abc")]})),
    ("duplicate_field", b"\x82" + msgpack.packb({"logits": [1.0]})[1:] * 2),
    ("duplicate_field", msgpack.packb({"logits": [1.0], "probabilities": []})),
    ("missing_logits", msgpack.packb({"id": 1})),
    ("missing_logits", b"\x80"),
    ("unsupported_encoding", msgpack.packb({"logits": "text"})),
    ("unsupported_encoding", msgpack.packb({"logits": None})),
    ("unsupported_encoding", msgpack.packb({"logits": 1.5})),
    ("unsupported_encoding", msgpack.packb({"logits": {"head": {"inner": [1.0]}}})),
    ("unsupported_encoding", msgpack.packb({"logits": {"head": b"\0\0\0\0"}})),
    ("unsupported_encoding", msgpack.packb({b"nd": False, b"type": "<f4", b"shape": [1], b"data": b"\0\0\0\0"})),
    ("unsupported_encoding", b"\xc3"),
    ("unsupported_encoding", msgpack.packb("text")),
    ("unsupported_dtype", msgpack.packb({"logits": b"\0" * 8})),
    ("unsupported_dtype", msgpack.packb({"logits": b"\0" * 8, "dtype": "complex64", "shape": [1]})),
    ("unsupported_dtype", msgpack.packb({b"nd": True, b"type": "|O", b"kind": b"O", b"shape": [1], b"data": b"\0"})),
    ("shape_mismatch", msgpack.packb({"logits": b"\0" * 8, "dtype": "float32"})),
    ("shape_mismatch", F32.replace(b"\x91\x02", b"\x91\x03")),
    ("shape_mismatch", F32.replace(b"\x91\x02", b"\x91\xff")),
    ("shape_mismatch", msgpack.packb({"logits": [[[[[1.0]]]]]})),
    ("ragged", msgpack.packb({"logits": [1.0, [2.0]]})),
    ("ragged", msgpack.packb({"logits": {"a": [1.0, float("nan")], "b": [[1.0], [2.0, 3.0]]}})),
    ("empty", msgpack.packb({"logits": []})),
    ("empty", b"\x90"),
    ("empty", msgpack.packb({"logits": {}})),
    ("too_many_classes", msgpack.packb({"logits": [0] * 501})),
    ("unexpected_classes", msgpack.packb({"model": "pair", "logits": [1.0]})),
    ("not_numeric", msgpack.packb({"logits": [1.0, True]})),
    ("not_numeric", msgpack.packb({"logits": [1.0, None]})),
    ("not_numeric", msgpack.packb({"logits": [1.0, "2"]})),
    ("nan", pack(np.asarray([1, np.nan, 3], np.float32), id=7)),
    ("positive_infinity", pack(np.asarray([1, np.inf, 3], np.float32), id=7)),
    ("all_masked", pack(np.asarray([-np.inf] * 3, np.float32), id=7)),
    ("unknown_model", msgpack.packb({"model": "nobody", "logits": [1.0]})),
]
# Settings without which some of them would be accepted.
LIMITING = {
    "limits__max_message_bytes": 8192,
    "limits__max_classes": 500,
    "models__pair__classes": 2,
    "models_strict": True,
}


async def test_each_refusal_is_one_dead_letter_and_its_neighbours_are_untouched(
    bus: Bus, make_service: MakeService
) -> None:
    """Every reason, by real bytes, between good records: each is answered once, in order, with its reason."""
    random = np.random.default_rng(0)
    noise = [(b"\xc1" + random.bytes(length)) for length in range(40)]
    bad = [*REFUSED, *(("malformed_msgpack", value) for value in noise)]
    values = [value for reason_value in bad for value in (GOOD, reason_value[1])] + [GOOD]
    await bus.send(values, partition=2, key=lambda index: b"%d" % index)
    service = make_service(bus, **LIMITING)
    await service.start().ready()
    dead = await bus.dead_letters(len(bad))
    assert [record.value for record in dead] == [value for _, value in bad]
    reasons = [dict(record.headers)["softmax-error-reason"].decode() for record in dead]
    assert reasons == [reason for reason, _ in bad]
    outputs = await bus.outputs(len(bad) + 1)
    assert len({record.value for record in outputs}) == 1
    assert unpack(outputs[0].value)["id"] == 7
    assert [record.key for record in outputs] == [b"%d" % (2 * n) for n in range(len(outputs))]
    assert service.metric("softmax_dead_letters_total") == len(bad)
    assert await service.stop() == 0


async def test_a_dead_letter_tells_where_it_came_from(bus: Bus, make_service: MakeService) -> None:
    """Key, value, own headers and timestamp are the record's; the rest says what happened where."""
    await bus.send([GOOD], partition=3)
    mine = [("trace", b"1"), ("softmax-error-attempt", b"2"), ("softmax-error-reason", b"old")]
    await bus.send([b"\xc1secret"], partition=3, key=lambda _: b"k", headers=mine, timestamp_ms=99)
    service = await make_service(bus).start().ready()
    (record,) = await bus.dead_letters(1)
    assert (record.partition, record.key, record.value, record.timestamp) == (3, b"k", b"\xc1secret", 99)
    message = dict(record.headers)["softmax-error-message"]
    assert b"secret" not in message
    assert list(record.headers) == [
        ("trace", b"1"),
        ("softmax-error-reason", b"malformed_msgpack"),
        ("softmax-error-message", message),
        ("softmax-error-topic", bus.input.encode()),
        ("softmax-error-partition", b"3"),
        ("softmax-error-offset", b"1"),
        ("softmax-error-timestamp", b"99"),
        ("softmax-error-group", f"{bus.name}.group".encode()),
        ("softmax-error-service-version", __version__.encode()),
        ("softmax-error-attempt", b"3"),
        ("__connect.errors.topic", bus.input.encode()),
        ("__connect.errors.partition", b"3"),
        ("__connect.errors.offset", b"1"),
        ("__connect.errors.exception.class.name", b"malformed_msgpack"),
        ("__connect.errors.exception.message", message),
    ]
    assert await service.stop() == 0
    assert b"secret".decode() not in service.log


async def test_hostile_messages_leave_memory_and_life_alone(bus: Bus, make_service: MakeService) -> None:
    """A megabyte of nesting, of one-byte elements and of empty fields: dead letters, bounded memory, alive."""
    size = 1_000_000
    hostile = [
        b"\x91" * size,
        b"\x92" * size,
        b"\x81" * size,
        b"\xdd\xff\xff\xff\xff" + b"\x00" * size,
        b"\xde\xff\xff" + b"\xc0\xc0" * 0xFFFF + b"\xc1",
        b"\x81\xa6logits\xdd" + (size - 20).to_bytes(4, "big") + b"\x01" * (size - 21),
        b"\x81\xa6logits\xc6\xff\xff\xff\xff" + b"\x00" * size,
        os.urandom(size),
    ]
    service = await make_service(bus).start().ready()
    await bus.send([GOOD])
    await bus.outputs(1)
    before = psutil.Process(service.process.pid).memory_info().rss
    for _ in range(3):
        await bus.send(hostile, partition=1)
    await bus.send([GOOD])
    await bus.outputs(2, within=60)
    dead = await bus.dead_letters(3 * len(hostile))
    assert Counter(dict(r.headers)["softmax-error-reason"] for r in dead)[b"malformed_msgpack"] >= 3 * 6
    assert psutil.Process(service.process.pid).memory_info().rss - before < 200 << 20
    assert service.get("/livez")[0] == 200
    assert await service.stop() == 0


async def test_an_output_too_large_for_its_topic_is_a_dead_letter(kafka: Broker, make_service: MakeService) -> None:
    """Float32 answers to one-byte integers grow fivefold: what does not fit is refused, the rest is sent."""
    async with Bus(kafka.bootstrap_servers, "large", 1, output_configs={"max.message.bytes": "2000"}) as bus:
        await bus.send([pack([1] * count, id=count) for count in (300, 600, 350)])
        service = await make_service(bus).start().ready()
        assert [unpack(record.value)["id"] for record in await bus.outputs(2)] == [300, 350]
        (dead,) = await bus.dead_letters(1)
        assert dict(dead.headers)["softmax-error-reason"] == b"output_too_large"
        assert await service.stop() == 0


async def test_a_limit_lowered_while_running_finds_its_record(kafka: Broker, make_service: MakeService) -> None:
    """The broker refuses a batch: it is cut until the record is found; its neighbours are delivered in order."""
    async with Bus(kafka.bootstrap_servers, "lowered", 1) as bus:
        service = await make_service(bus).start().ready()
        await bus.send([pack([1.0, 2.0], id=0)])
        await bus.outputs(1)
        admin = AIOKafkaAdminClient(**bus.connection)
        await admin.start()
        resource = ConfigResource(ConfigResourceType.TOPIC, bus.output, {"max.message.bytes": "1500"})
        await admin.alter_configs([resource])
        await admin.close()
        await bus.send([pack([1.0] * (500 if number == 5 else 10), id=number) for number in range(1, 12)])
        (dead,) = await bus.dead_letters(1)
        assert dict(dead.headers)["softmax-error-reason"] == b"output_too_large"
        assert unpack(dead.value)["id"] == 5
        ids = [unpack(record.value)["id"] for record in await bus.everything(bus.output)]
        assert list(dict.fromkeys(ids)) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
        assert await service.stop() == 0


async def test_a_record_that_the_broker_rejects_is_a_dead_letter(kafka: Broker, make_service: MakeService) -> None:
    """A compacted output topic takes no record without a key: only such records are refused."""
    async with Bus(kafka.bootstrap_servers, "compacted", 1, output_configs={"cleanup.policy": "compact"}) as bus:
        await bus.send(
            [pack([1.0, 2.0], id=number) for number in range(6)],
            key=lambda index: None if index == 2 else b"%d" % index,
        )
        service = await make_service(bus).start().ready()
        (dead,) = await bus.dead_letters(1)
        assert dict(dead.headers)["softmax-error-reason"] == b"rejected_by_broker"
        ids = [unpack(record.value)["id"] for record in await bus.everything(bus.output)]
        assert list(dict.fromkeys(ids)) == [0, 1, 3, 4, 5]
        assert await service.stop() == 0


async def test_a_dead_letter_too_large_for_its_topic_leaves_its_value_behind(
    kafka: Broker, make_service: MakeService
) -> None:
    """A value that only fits compressed goes without itself: its hash, length and coordinates stay."""
    async with Bus(
        kafka.bootstrap_servers,
        "bulky",
        1,
        input_configs={"max.message.bytes": "20000"},
        dead_letter_configs={"max.message.bytes": str(20000 + 16384)},
    ) as bus:
        value = b"\xc1" + b"x" * 100_000
        async with AIOKafkaProducer(**bus.connection, compression_type="gzip") as producer:
            await producer.send_and_wait(bus.input, value, key=b"k", partition=0)
        await bus.send([b"\xc1"], key=lambda _: b"k")
        service = await make_service(bus).start().ready()
        large, small = await bus.dead_letters(2)
        headers = dict(large.headers)
        assert (large.key, large.value, small.value) == (b"k", None, b"\xc1")
        assert headers["softmax-error-value-sha256"] == hashlib.sha256(value).hexdigest().encode()
        assert headers["softmax-error-value-length"] == b"100001"
        assert headers["softmax-error-offset"] == b"0"
        assert await service.stop() == 0


async def test_a_bad_value_does_not_slow_its_neighbours_down(bus: Bus, make_service: MakeService) -> None:
    """One NaN among a thousand records of its layout costs the others nothing."""
    rows = np.random.default_rng(1).normal(size=(1000, 10)).astype(np.float32)
    rows[500, 3] = np.nan
    await bus.send([pack(row, id=1000 + number) for number, row in enumerate(rows)])
    service = await make_service(bus).start().ready()
    await bus.outputs(999)
    (dead,) = await bus.dead_letters(1)
    assert dict(dead.headers)["softmax-error-reason"] == b"nan"
    assert 'softmax_records_total{path="columnar"} 999.0' in service.get("/metrics")[1]
    assert await service.stop() == 0


async def test_dead_letters_are_cut_to_their_own_topic_s_limit(kafka: Broker, make_service: MakeService) -> None:
    """Many refused records that fit one by one are not sent as one batch that does not."""
    async with Bus(
        kafka.bootstrap_servers,
        "narrow",
        1,
        input_configs={"max.message.bytes": "100000"},
        dead_letter_configs={"max.message.bytes": "120000"},
    ) as bus:
        await bus.send([b"\xc1" + bytes(9000) for _ in range(60)])
        service = await make_service(bus).start().ready()
        assert len(await bus.dead_letters(60)) == 60
        assert await service.stop() == 0


async def test_a_time_that_no_topic_accepts_is_no_poison(kafka: Broker, make_service: MakeService) -> None:
    """Output and dead letter are refused for the copied timestamp: the dead letter goes with its own time."""
    configs = {"message.timestamp.after.max.ms": str(10**12)}
    async with Bus(kafka.bootstrap_servers, "future", 1, input_configs=configs) as bus:
        soon = int(time.time() * 1000) + 2 * 3_600_000
        await bus.send([pack([1.0], id=0)])
        await bus.send([pack([1.0], id=1)], timestamp_ms=soon, headers=[("kept", b"x")])
        await bus.send([pack([1.0], id=2)])
        service = await make_service(bus).start().ready()
        (dead,) = await bus.dead_letters(1)
        headers = dict(dead.headers)
        assert headers["softmax-error-reason"] == b"rejected_by_broker"
        assert (headers["softmax-error-timestamp"], headers["kept"]) == (str(soon).encode(), b"x")
        assert unpack(dead.value)["id"] == 1
        assert dead.timestamp < soon
        ids = [unpack(record.value)["id"] for record in await bus.everything(bus.output)]
        assert list(dict.fromkeys(ids)) == [0, 2]
        assert await service.stop() == 0


async def test_a_key_too_large_for_any_topic_stays_behind(kafka: Broker, make_service: MakeService) -> None:
    """What only fits compressed, key included, ends as a bare dead letter with its coordinates."""
    async with Bus(kafka.bootstrap_servers, "bulkykey", 1) as bus:
        async with AIOKafkaProducer(**bus.connection, compression_type="gzip", max_request_size=4 << 20) as producer:
            await producer.send_and_wait(bus.input, pack([1.0], id=0), key=bytes(2 << 20), partition=0)
        await bus.send([pack([1.0], id=1)])
        service = await make_service(bus).start().ready()
        (dead,) = await bus.dead_letters(1)
        headers = dict(dead.headers)
        assert (dead.key, dead.value) == (b"0", None)
        assert headers["softmax-error-reason"] == b"output_too_large"
        assert headers["softmax-error-value-length"] == str(len(pack([1.0], id=0))).encode()
        assert [unpack(record.value)["id"] for record in await bus.outputs(1)] == [1]
        assert await service.stop() == 0


async def test_a_record_without_a_timestamp_stays_without(bus: Bus, make_service: MakeService) -> None:
    """-1 is Kafka's "no timestamp"; its neighbours' do not rub off on it."""
    times = [-1, 1_000_000, 1_700_000_000_000, -1]
    for number, stamp in enumerate(times):
        batch = bus.producer.create_batch()
        batch.append(timestamp=stamp, key=None, value=pack([1.0], id=number), headers=[])
        await (await bus.producer.send_batch(batch, bus.input, partition=0))
    service = await make_service(bus).start().ready()
    assert [record.timestamp for record in await bus.outputs(4)] == times
    assert await service.stop() == 0
