"""Exactly-once on a real broker: whatever dies, readers of committed records see each answer once and in order."""

from __future__ import annotations

import asyncio
import signal
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition, errors
from aiokafka.admin import AIOKafkaAdminClient
from harness import Bus, ServiceProcess, environment, eventually, pack, unpack

from chaos.instance import FAILPOINTS, REBALANCES
from service.settings import load
from service.streaming.outgoing import Batch
from service.streaming.transactions import NotStored, Transactions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from service.broker import Broker

    MakeService = Callable[..., ServiceProcess]

EXACTLY_ONCE = {
    "delivery__guarantee": "exactly_once",
    "kafka__session_timeout_ms": 6000,
    "delivery__drain_timeout_ms": 3000,
}
LOGITS = np.linspace(-1, 1, 50, dtype=np.float32)


def _message(number: int) -> bytes:
    # Each hundredth has no logits.
    return pack(LOGITS, id=number) if number % 100 else pack([], id=number)


def _by_partition(records: Iterable[Any]) -> dict[int, list[int]]:
    found: defaultdict[int, list[int]] = defaultdict(list)
    for record in records:
        found[record.partition].append(unpack(record.value)["id"])
    return dict(found)


def _expected(bus: Bus, count: int, *, refused: bool) -> dict[int, list[int]]:
    return {
        partition: [number for number in range(partition, count, bus.partitions) if (number % 100 == 0) is refused]
        for partition in range(bus.partitions)
    }


async def _feed(bus: Bus, count: int, pause: float = 0.02) -> None:
    for first in range(0, count, 100):
        await bus.send([_message(number) for number in range(first, first + 100)], partition=None)
        await asyncio.sleep(pause)


async def _feed_until(bus: Bus, stop: asyncio.Event) -> int:
    """Write until told to stop; how many."""
    count = 0
    while not stop.is_set():
        await bus.send([_message(number) for number in range(count, count + 100)], partition=None)
        count += 100
        await asyncio.sleep(0.03)
    return count


async def _judge(bus: Bus, count: int) -> None:
    """Everything once and in order, outputs among outputs and dead letters among dead letters."""
    outputs = _expected(bus, count, refused=False)
    assert _by_partition(await bus.outputs(sum(map(len, outputs.values())), within=60)) == outputs
    letters = {partition: ids for partition, ids in _expected(bus, count, refused=True).items() if ids}
    assert _by_partition(await bus.dead_letters(sum(map(len, letters.values())))) == letters


async def _committed(bus: Bus) -> dict[int, int]:
    admin = AIOKafkaAdminClient(**bus.connection)
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets(f"{bus.name}.group")
    finally:
        await admin.close()
    return {partition.partition: entry.offset for partition, entry in offsets.items()}


@pytest.mark.parametrize("whole_batches", [True, False])
async def test_every_input_is_answered_once_and_its_offset_is_stored_with_it(
    bus: Bus, make_service: MakeService, *, whole_batches: bool
) -> None:
    """Outputs, dead letters and offsets are in transactions, as whole batches and by the public interface."""
    service = await make_service(bus, **EXACTLY_ONCE, kafka__whole_batches=whole_batches).start().ready()
    await _feed(bus, 4000, pause=0)
    await _judge(bus, 4000)
    await eventually(lambda: service.metric("softmax_consumer_lag_records") == 0)
    assert await _committed(bus) == dict.fromkeys(range(bus.partitions), 1000)
    assert await service.stop() == 0
    assert service.events("stopped")[-1]["how"] == "drained"


async def test_nothing_is_visible_before_its_offset_is(bus: Bus, make_service: MakeService) -> None:
    """Killed before the commit, the service leaves outputs that no reader of committed records ever sees."""
    service = make_service(bus, **EXACTLY_ONCE, failpoint="committing=1").start()
    await bus.send([_message(number) for number in range(1, 51)])
    assert await service.wait() == -signal.SIGKILL
    assert await bus.outputs(0, settle=1) == []
    assert (await _committed(bus)).get(0, 0) == 0
    again = await make_service(bus, **EXACTLY_ONCE).start().ready()
    await bus.outputs(50)
    assert await again.stop() == 0


@pytest.mark.parametrize("failpoint", sorted(FAILPOINTS["exactly_once"].keys() - REBALANCES))
async def test_killed_at_each_step_it_repeats_nothing_and_loses_nothing(
    bus: Bus, make_service: MakeService, failpoint: str
) -> None:
    """SIGKILL at a step of the protocol, twice, under load; the next process takes over."""
    feeding = asyncio.create_task(_feed(bus, 6000))
    # The same member each time: nobody waits for a dead one's session.
    settings = EXACTLY_ONCE | {"kafka__group_instance_id": "one"}
    for passes in (2, 3):
        service = make_service(bus, **settings, failpoint=f"{failpoint}={passes}").start()
        assert await service.wait(40) == -signal.SIGKILL
    last = await make_service(bus, **settings).start().ready()
    await feeding
    await _judge(bus, 6000)
    assert await last.stop() == 0


async def test_a_zombie_cannot_write(bus: Bus, make_service: MakeService) -> None:
    """Stopped in mid-stream past its session, succeeded, and continued: what it still held never appears."""
    enough = asyncio.Event()
    feeding = asyncio.create_task(_feed_until(bus, enough))
    first = await make_service(bus, **EXACTLY_ONCE).start().ready()
    await eventually(lambda: first.metric("softmax_records_produced_total") > 500)
    first.signal(signal.SIGSTOP)
    try:
        second = await make_service(bus, **EXACTLY_ONCE).start().ready()
        await eventually(lambda: second.metric("softmax_assigned_partitions") == bus.partitions)
        await eventually(lambda: second.metric("softmax_records_produced_total") > 100)
    finally:
        first.signal(signal.SIGCONT)
    await asyncio.sleep(1)
    enough.set()
    await _judge(bus, await feeding)
    await first.ready()
    for service in (first, second):
        assert await service.stop() == 0


async def test_members_that_come_and_go_repeat_nothing(bus: Bus, make_service: MakeService) -> None:
    """Rebalances under load."""
    enough = asyncio.Event()
    feeding = asyncio.create_task(_feed_until(bus, enough))
    first = await make_service(bus, **EXACTLY_ONCE).start().ready()
    await eventually(lambda: first.metric("softmax_records_produced_total") > 500)
    second = await make_service(bus, **EXACTLY_ONCE).start().ready()
    await eventually(lambda: second.metric("softmax_records_produced_total") > 300)
    assert await second.stop() == 0
    await eventually(lambda: first.metric("softmax_assigned_partitions") == bus.partitions)
    enough.set()
    await _judge(bus, await feeding)
    assert await first.stop() == 0


async def test_markers_of_transactions_leave_no_lag(bus: Bus, make_service: MakeService) -> None:
    """Behind a transactional producer the offset moves past the last marker, so that lag comes to 0."""
    service = await make_service(bus, **EXACTLY_ONCE).start().ready()
    async with AIOKafkaProducer(**bus.connection, transactional_id=f"{bus.name}.upstream") as producer:
        for aborts in (False, True):
            await producer.begin_transaction()
            for number in range(1, 11):
                await producer.send_and_wait(bus.input, _message(number), partition=1)
            await (producer.abort_transaction() if aborts else producer.commit_transaction())
    await bus.outputs(10)
    await eventually(lambda: service.metric("softmax_consumer_lag_records") == 0)
    # 10 records and a marker, and the same aborted.
    for _ in range(100):
        if (await _committed(bus)).get(1) == 22:
            break
        await asyncio.sleep(0.1)
    else:
        raise AssertionError(await _committed(bus))
    assert await service.stop() == 0


async def test_the_first_position_is_stored_before_anything_is_read(bus: Bus, make_service: MakeService) -> None:
    """With `latest`, what comes while the service is dead after its first start is answered by the next one."""
    latest = EXACTLY_ONCE | {"delivery__start_offset": "latest"}
    await bus.send([_message(1)])
    service = await make_service(bus, **latest).start().ready()
    for _ in range(100):
        if len(await _committed(bus)) == bus.partitions:
            break
        await asyncio.sleep(0.1)
    await service.kill()
    await bus.send([_message(2)])
    again = await make_service(bus, **latest).start().ready()
    (output,) = await bus.outputs(1)
    assert unpack(output.value)["id"] == 2
    assert await again.stop() == 0


async def test_a_record_that_the_broker_refuses_becomes_a_dead_letter(kafka: Broker, make_service: MakeService) -> None:
    """Refusals of the output topic cut a transaction up until the culprit is found; the others are answered once."""
    async with Bus(kafka.bootstrap_servers, "refuses", 1, output_configs={"max.message.bytes": "600"}) as bus:
        messages = [pack(LOGITS[:20], id=number) for number in range(20)]
        messages[7] = pack(np.linspace(-1, 1, 500, dtype=np.float32), id=7)
        await bus.send(messages)
        service = await make_service(bus, **EXACTLY_ONCE, kafka__compression="lz4").start().ready()
        assert [unpack(record.value)["id"] for record in await bus.outputs(19)] == [n for n in range(20) if n != 7]
        (letter,) = await bus.dead_letters(1)
        assert dict(letter.headers)["softmax-error-reason"] == b"output_too_large"
        assert await service.stop() == 0


async def test_without_waiting_for_acknowledgements_a_refused_batch_is_lost(
    kafka: Broker, make_service: MakeService
) -> None:
    """The control of the test before: aiokafka's commit takes a failed batch for done, and its offset is stored."""
    async with Bus(kafka.bootstrap_servers, "unsettled", 1, output_configs={"max.message.bytes": "600"}) as bus:
        await bus.send([pack(np.linspace(-1, 1, 500, dtype=np.float32), id=7)])
        service = make_service(bus, control="await_sends", **EXACTLY_ONCE, kafka__compression="lz4").start()
        for _ in range(200):
            if (await _committed(bus)).get(0) == 1:
                break
            await asyncio.sleep(0.1)
        assert await _committed(bus) == {0: 1}
        assert await bus.outputs(0) == await bus.dead_letters(0) == []
        await service.kill()


async def test_a_transaction_that_ended_between_two_steps_tells_with_what(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client library only finds itself outside of one; the cause decides what becomes of the service."""
    settings = load(environment=environment(**bus.settings))
    fenced, other = (Transactions(settings, TopicPartition(bus.input, 0), 1 << 20) for _ in range(2))

    def batch() -> Batch:
        builder = fenced.new_batch()
        builder.append(timestamp=None, key=None, value=b"x")
        return Batch(bus.output, 0, 0, 0, builder)

    begin = fenced.begin

    async def begin_and_be_fenced() -> None:
        await begin()
        await other.start()
        with pytest.raises(NotStored):
            await fenced.settle(await fenced.send([batch()]))

    monkeypatch.setattr(fenced, "begin", begin_and_be_fenced)
    try:
        await fenced.start()
        with pytest.raises(errors.ProducerFenced):
            await fenced.run([batch()], 1)
    finally:
        await fenced.discard()
        await other.discard()
