"""What comes out of a running service for what goes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgpack
import numpy as np
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import murmur2
from harness import Bus, ServiceProcess, eventually, pack, softmax, unpack

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.broker import Broker

    MakeService = Callable[..., ServiceProcess]

RANDOM = np.random.default_rng(4)


def _order(records: list[object]) -> dict[int, list[int]]:
    """The ids in each partition, in order."""
    found: dict[int, list[int]] = {}
    for record in records:
        found.setdefault(record.partition, []).append(unpack(record.value)["id"])  # type: ignore[attr-defined]
    return found


async def test_outputs_equal_the_oracle_and_keep_their_order(bus: Bus, make_service: MakeService) -> None:
    """Mixed lengths and encodings on all partitions: each output is right, in place and in order."""
    messages = []
    for number in range(3000):
        logits = RANDOM.normal(scale=4, size=(10, 100)[number % 2])
        dtype = (np.float32, np.float64, np.int64)[number % 3]
        messages.append((number, logits.astype(dtype)))
    await bus.send([pack(logits, id=number, note="é") for number, logits in messages], partition=None)
    service = await make_service(bus).start().ready()
    outputs = await bus.outputs(3000)
    assert _order(outputs) == {p: list(range(p, 3000, 4)) for p in range(4)}
    for record in outputs:
        output = unpack(record.value)
        number, logits = messages[output["id"]]
        assert list(output) == ["id", "note", "probabilities"]
        np.testing.assert_allclose(output["probabilities"], softmax(logits), rtol=2e-5, atol=1e-30)
        expected_tag = 0xCB if logits.dtype == np.float64 else 0xCA
        assert record.value[-1 - (8 if expected_tag == 0xCB else 4)] == expected_tag
        assert number % 4 == record.partition
    assert service.metric("softmax_records_produced_total") == 3000
    assert await service.stop() == 0


async def test_key_headers_timestamp_and_partition_are_kept(bus: Bus, make_service: MakeService) -> None:
    """All of the record but its value passes on; the service's own headers and dropped ones do not."""
    headers = [
        ("traceparent", b"00-abc"),
        ("softmax-error-reason", b"nan"),
        ("__connect.errors.topic", b"x"),
        ("ce_id", b"1"),
        ("twice", b"1"),
        ("twice", b"2"),
    ]
    await bus.send(
        [pack([1.0, 2.0], id=0)], partition=3, key=lambda _: b"\x00key", headers=headers, timestamp_ms=1234567
    )
    service = await make_service(bus, headers__drop=["ce_*"]).start().ready()
    (record,) = await bus.outputs(1)
    assert (record.partition, record.key, record.timestamp) == (3, b"\x00key", 1234567)
    assert list(record.headers) == [("traceparent", b"00-abc"), ("twice", b"1"), ("twice", b"2")]
    assert await service.stop() == 0


async def test_binary_tensors_leave_as_binary_tensors(bus: Bus, make_service: MakeService) -> None:
    """T3 in a micro-batch of one layout, big-endian and of rank 2, leaves little-endian with its shape."""
    tensors = RANDOM.normal(size=(50, 3, 7)).astype(">f4")
    messages = [
        msgpack.packb({"id": n, "logits": tensor.tobytes(), "dtype": ">f4", "shape": [3, 7]})
        for n, tensor in enumerate(tensors)
    ]
    await bus.send(messages)
    service = await make_service(bus).start().ready()
    for record, tensor in zip(await bus.outputs(50), tensors, strict=True):
        output = unpack(record.value)
        assert (output["dtype"], output["shape"]) == ("<f4", [3, 7])
        got = np.frombuffer(output["probabilities"], "<f4").reshape(3, 7)
        np.testing.assert_allclose(got, softmax(tensor), rtol=2e-6)
    assert await service.stop() == 0


@pytest.mark.parametrize("policy", ["dead_letter", "forward", "drop"])
async def test_tombstones_follow_their_policy(bus: Bus, make_service: MakeService, policy: str) -> None:
    """A record without a value becomes a dead letter, a tombstone of the output, or nothing."""
    await bus.send([pack([1.0], id=0), None, pack([1.0], id=1)], key=lambda _: b"k")
    service = await make_service(bus, topics__tombstones=policy).start().ready()
    outputs = await bus.outputs(3 if policy == "forward" else 2)
    dead = await bus.dead_letters(1 if policy == "dead_letter" else 0)
    assert [record.value is None for record in outputs] == (
        [False, True, False] if policy == "forward" else [False] * 2
    )
    assert [dict(record.headers)["softmax-error-reason"] for record in dead] == [b"null_value"] * len(dead)
    assert await service.stop() == 0


async def test_partitioning_by_key_follows_the_hash(kafka: Broker, make_service: MakeService) -> None:
    """By key, records go where the Java client would send them, whatever partition they came from."""
    async with Bus(kafka.bootstrap_servers, "bykey", 4, output_partitions=3) as bus:
        keys = [b"key%d" % number for number in range(200)]
        await bus.send([pack([1.0, 2.0], id=n) for n in range(200)], partition=None, key=keys.__getitem__)
        service = await make_service(bus, delivery__partitioning="key").start().ready()
        for record in await bus.outputs(200):
            assert record.partition == (murmur2(record.key) & 0x7FFFFFFF) % 3
            assert record.key == keys[unpack(record.value)["id"]]
        assert await service.stop() == 0


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_compressed_batches_are_read_and_written(bus: Bus, make_service: MakeService, codec: str) -> None:
    """Every compression is understood on input and used on output."""
    async with AIOKafkaProducer(**bus.connection, compression_type=codec, linger_ms=20) as producer:
        sends = [await producer.send(bus.input, pack([1.0, 2.0], id=n), partition=0) for n in range(100)]
        for send in sends:
            await send
    service = await make_service(bus, kafka__compression=codec).start().ready()
    assert _order(await bus.outputs(100)) == {0: list(range(100))}
    assert await service.stop() == 0


async def test_a_delay_gathers_larger_batches(bus: Bus, make_service: MakeService) -> None:
    """With batch.max_delay_ms, records that trickle in are transformed together."""
    service = await make_service(bus, batch__max_delay_ms=400).start().ready()
    for number in range(20):
        await bus.send([pack([1.0, 2.0], id=number)])
    await bus.outputs(20)
    assert service.metric("softmax_batches_total") < 10
    assert 'closed_by="delay"' in service.get("/metrics")[1]
    assert await service.stop() == 0


async def test_aborted_logits_are_never_published_and_lag_reaches_zero(bus: Bus, make_service: MakeService) -> None:
    """Behind a transactional producer only committed records count, and its markers leave no lag."""
    async with AIOKafkaProducer(**bus.connection, transactional_id=f"{bus.name}.tx") as producer:
        for number in range(6):
            await producer.begin_transaction()
            await producer.send_and_wait(bus.input, pack([1.0, 2.0], id=number), partition=1)
            await (producer.commit_transaction if number % 2 else producer.abort_transaction)()
    service = await make_service(bus).start().ready()
    assert _order(await bus.outputs(3)) == {1: [1, 3, 5]}
    await eventually(lambda: service.metric("softmax_consumer_lag_records") == 0, what="lag of 0")
    assert await service.stop() == 0


async def test_the_models_profile_decides_what_leaves(bus: Bus, make_service: MakeService) -> None:
    """A field or a header names the model; the field wins, and an unknown name has the default profile."""
    settings = {
        "models__a__outputs": ["predicted", "label"],
        "models__a__labels": ["x", "y"],
        "models__b__outputs": ["probabilities", "confidence"],
        "models__b__temperature": 2,
    }
    header: list[tuple[str, bytes | None]] = [("model", b"a")]
    sent: list[tuple[dict[str, object], list[tuple[str, bytes | None]]]] = [
        ({}, []), ({}, header), ({"model": "b"}, header), ({"model": "a"}, []), ({"model": "other"}, []),
        ({}, [("model", b"a"), ("model", b"b")]), ({}, [("model", None)]),
    ]  # fmt: skip
    for number, (fields, headers) in enumerate(sent):
        await bus.send([pack([0.0, 2.0], id=number, **fields)] * 3, partition=0, headers=headers)
    service = await make_service(bus, **settings).start().ready()
    outputs = [unpack(record.value) for record in await bus.outputs(3 * len(sent))]
    p, q = softmax([0.0, 2.0])[1], softmax([0.0, 1.0])[1]
    expected: list[dict[str, object]] = [
        {"probabilities": [1 - p, p]},
        {"predicted": 1, "label": "y"},
        {"model": "b", "probabilities": [1 - q, q], "confidence": q},
        {"model": "a", "predicted": 1, "label": "y"},
        {"model": "other", "probabilities": [1 - p, p]},
        {"probabilities": [1 - p, p]},
        {"probabilities": [1 - p, p]},
    ]
    for number, output in enumerate(outputs):
        assert output.pop("id") == number // 3
        assert list(output) == list(expected[number // 3])
        for name, value in expected[number // 3].items():
            assert output[name] == pytest.approx(value)
    counted = "softmax_end_to_end_latency_seconds_count"
    await eventually(lambda: service.metric(counted) == len(outputs), what="all outputs counted")
    _, text = service.get("/metrics")
    for name, count in {"a": 6, "b": 3, "default": 12}.items():
        assert f'{counted}{{model="{name}"}} {count}' in text
    assert await service.stop() == 0


async def test_strictness_sends_messages_of_unknown_models_to_the_dead_letters(
    bus: Bus, make_service: MakeService
) -> None:
    """Messages without a name, and of known models, are served as ever."""
    await bus.send([pack([1.0], id=0), pack([1.0], id=1, model="b"), pack([1.0], id=2, model="a")], partition=1)
    await bus.send([pack([1.0], id=3)], partition=1, headers=[("model", b"b")])
    service = await make_service(bus, models_strict=True, models__a__temperature=2).start().ready()
    assert [unpack(record.value)["id"] for record in await bus.outputs(2)] == [0, 2]
    letters = await bus.dead_letters(2)
    assert [unpack(letter.value)["id"] for letter in letters] == [1, 3]
    assert {dict(letter.headers)["softmax-error-reason"] for letter in letters} == {b"unknown_model"}
    assert await service.stop() == 0
