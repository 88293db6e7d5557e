"""Deaths, stops, rebalances and a broker that goes away: nothing is lost, order is kept."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.record.util import calc_crc32c as crc32c
from harness import Bus, ServiceProcess, eventually, pack, unpack

from service.broker import Broker, BrokerConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    MakeService = Callable[..., ServiceProcess]

# Gives up on an absent broker within seconds.
HASTY = {"kafka__request_timeout_ms": 1000, "delivery__retry_deadline_ms": 4000, "delivery__drain_timeout_ms": 1000}
LOGITS = np.linspace(-1, 1, 50, dtype=np.float32)


# Not done within the time that it takes to notice that something is.
MUCH: Final = 50_000


def _message(number: int) -> bytes:
    return pack(LOGITS, id=number)


def _has_produced(service: ServiceProcess, records: float) -> bool:
    return service.metric("softmax_records_produced_total") > records


def _by_partition(records: Iterable[Any]) -> dict[int, list[int]]:
    found: defaultdict[int, list[int]] = defaultdict(list)
    for record in records:
        found[record.partition].append(unpack(record.value)["id"])
    return dict(found)


async def _feed(bus: Bus, start: int, count: int, pause: float = 0.02) -> None:
    """Write to all partitions, a hundred messages at a time, for as long as it takes."""
    for first in range(start, start + count, 100):
        await bus.send([_message(number) for number in range(first, first + 100)], partition=None)
        await asyncio.sleep(pause)


async def _feed_until(bus: Bus, stop: asyncio.Event) -> int:
    """Write to all partitions until told to stop; how many."""
    count = 0
    while not stop.is_set():
        await _feed(bus, count, 100)
        count += 100
    return count


def _expected(bus: Bus, count: int) -> dict[int, list[int]]:
    return {partition: list(range(partition, count, bus.partitions)) for partition in range(bus.partitions)}


async def test_kill_and_restart_loses_nothing(bus: Bus, make_service: MakeService) -> None:
    """After several SIGKILLs under load every record is answered, first occurrences in order."""
    enough = asyncio.Event()
    feeding = asyncio.create_task(_feed_until(bus, enough))
    service = make_service(bus, delivery__commit_interval_ms=50, kafka__session_timeout_ms=6000,
                           delivery__drain_timeout_ms=3000, kafka__group_instance_id="one")  # fmt: skip
    for _ in range(4):
        await service.start().ready()
        produced = service.metric("softmax_records_produced_total")
        await eventually(partial(_has_produced, service, produced + 200))
        await service.kill()
    await service.start().ready()
    enough.set()
    count = await feeding
    await eventually(lambda: service.metric("softmax_consumer_lag_records") == 0, what="lag of 0")
    found = _by_partition(await bus.everything(bus.output, quiet=3))
    assert {partition: list(dict.fromkeys(ids)) for partition, ids in found.items()} == _expected(bus, count)
    assert await service.stop() == 0


async def test_sigterm_repeats_nothing(bus: Bus, make_service: MakeService) -> None:
    """Stopped and started again under load, the service answers every record exactly once."""
    enough = asyncio.Event()
    feeding = asyncio.create_task(_feed_until(bus, enough))
    service = make_service(bus)
    for _ in range(4):
        await service.start().ready()
        await eventually(lambda: service.metric("softmax_records_produced_total") > 200)
        assert await service.stop() == 0
        assert service.events("stopped")[-1]["how"] == "drained"
    await service.start().ready()
    enough.set()
    count = await feeding
    assert _by_partition(await bus.outputs(count)) == _expected(bus, count)
    assert await service.stop() == 0


async def test_a_second_member_joins_and_leaves_and_nothing_is_repeated(bus: Bus, make_service: MakeService) -> None:
    """Two rebalances under load: all answered exactly once and in order, by both members."""
    enough = asyncio.Event()
    feeding = asyncio.create_task(_feed_until(bus, enough))
    first = await make_service(bus).start().ready()
    await eventually(lambda: first.metric("softmax_records_produced_total") > 500)
    second = await make_service(bus).start().ready()
    await eventually(lambda: second.metric("softmax_records_produced_total") > 500)
    assert second.metric("softmax_assigned_partitions") == 2
    assert await second.stop() == 0
    await eventually(lambda: first.metric("softmax_assigned_partitions") == 4)
    enough.set()
    count = await feeding
    assert _by_partition(await bus.outputs(count)) == _expected(bus, count)
    assert [event["drained"] for event in first.events("revoked")] == [True, True]
    assert await first.stop() == 0


async def test_a_standby_member_is_ready_and_takes_over(bus: Bus, make_service: MakeService) -> None:
    """More members than partitions: the last one waits, ready, and serves when another leaves."""
    members = [await make_service(bus).start().ready() for _ in range(5)]
    await eventually(lambda: sorted(m.metric("softmax_assigned_partitions") for m in members) == [0, 1, 1, 1, 1])
    (standby,) = [m for m in members if m.metric("softmax_assigned_partitions") == 0]
    assert standby.get("/readyz")[0] == 200
    leaver = next(m for m in members if m is not standby)
    assert await leaver.stop() == 0
    await eventually(lambda: standby.metric("softmax_assigned_partitions") == 1)
    await bus.send([_message(number) for number in range(40)], partition=None)
    await bus.outputs(40)
    for member in members:
        if member is not leaver:
            assert await member.stop() == 0


async def test_the_broker_is_killed_and_restarted_in_mid_stream(make_service: MakeService) -> None:
    """The service outlives its broker's death, answers all, in order, and stays the same process."""
    with Broker(BrokerConfig(tmpfs=True)) as broker:
        async with Bus(broker.bootstrap_servers, "dies", 2) as bus:
            service = await make_service(bus).start().ready()
            await _feed(bus, 0, 2000)
            await eventually(lambda: service.metric("softmax_records_produced_total") > 500)
            await asyncio.to_thread(broker.kill)
            await asyncio.sleep(3)
            await asyncio.to_thread(broker.start)
            await _feed(bus, 2000, 2000)
            found = _by_partition(await bus.everything(bus.output, quiet=3))
            assert {p: list(dict.fromkeys(ids)) for p, ids in found.items()} == _expected(bus, 4000)
            assert await service.stop() == 0


async def test_a_frozen_broker_is_waited_for(make_service: MakeService) -> None:
    """A broker that answers nothing for longer than a request may take costs nothing but time."""
    with Broker(BrokerConfig(tmpfs=True)) as broker:
        async with Bus(broker.bootstrap_servers, "freezes", 1) as bus:
            service = make_service(bus, kafka__request_timeout_ms=2000)
            await service.start().ready()
            await _feed(bus, 0, 1000)
            await asyncio.to_thread(broker.freeze)
            await asyncio.sleep(6)
            assert service.get("/livez")[0] == 200
            await asyncio.to_thread(broker.thaw)
            await _feed(bus, 1000, 1000)
            found = _by_partition(await bus.everything(bus.output, quiet=3))
            assert list(dict.fromkeys(found[0])) == list(range(2000))
            assert await service.stop() == 0


async def test_a_broker_that_stays_away_ends_the_service_with_code_3(make_service: MakeService) -> None:
    """Past delivery.retry_deadline_ms the service gives up and says what to look at."""
    with Broker(BrokerConfig(tmpfs=True)) as broker:
        async with Bus(broker.bootstrap_servers, "gone", 1) as bus:
            service = await make_service(bus, **HASTY).start().ready()
            feeding = asyncio.create_task(_feed(bus, 0, 5000, pause=0))
            await eventually(lambda: service.metric("softmax_records_produced_total") > 100)
            await asyncio.to_thread(broker.kill)
            assert await service.wait(60) == 3
            assert "delivery.retry_deadline_ms" in service.log
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            await asyncio.to_thread(broker.start)


async def test_sigterm_while_the_broker_is_away_ends_within_the_budget(make_service: MakeService) -> None:
    """What cannot be drained is told with exit code 5, the process does not hang, and nothing is lost by it."""
    soon = {"kafka__session_timeout_ms": 6000, "kafka__request_timeout_ms": 1000, "delivery__drain_timeout_ms": 2000}
    with Broker(BrokerConfig(tmpfs=True)) as broker:
        async with Bus(broker.bootstrap_servers, "term", 1) as bus:
            await bus.send([_message(number) for number in range(MUCH)])  # enough to be in the middle of it
            service = make_service(bus, batch__max_records=50, **soon).start()
            await eventually(partial(_has_produced, service, 500))
            await asyncio.to_thread(broker.freeze)
            begun = asyncio.get_running_loop().time()
            assert await service.stop() == 5
            assert asyncio.get_running_loop().time() - begun < 15
            assert "not acknowledged within delivery.drain_timeout_ms" in service.log
            await asyncio.to_thread(broker.thaw)
            await service.start().ready()
            await eventually(lambda: service.metric("softmax_consumer_lag_records") == 0, within=60)
            found = _by_partition(await bus.everything(bus.output, quiet=3))
            assert list(dict.fromkeys(found[0])) == list(range(MUCH))
            assert await service.stop() == 0


async def test_an_idle_service_notices_that_its_broker_is_gone(make_service: MakeService) -> None:
    """With nothing under way the deadline holds as well."""
    with Broker(BrokerConfig(tmpfs=True)) as broker:
        async with Bus(broker.bootstrap_servers, "idle", 1) as bus:
            service = await make_service(bus, **HASTY).start().ready()
            await asyncio.to_thread(broker.kill)
            assert await service.wait(40) == 3
            assert "answered nothing" in service.log
            assert len(service.log.splitlines()) < 60
            await asyncio.to_thread(broker.start)


class _SlowToLeave(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is not typed
    """A member that makes the others wait in their rebalance."""

    def __init__(self) -> None:
        self.seconds = 0.0

    async def on_partitions_revoked(self, revoked: object) -> None:  # noqa: ARG002 - aiokafka's signature
        await asyncio.sleep(self.seconds)

    def on_partitions_assigned(self, assigned: object) -> None:
        pass


async def test_a_slow_rebalance_commits_nothing_that_was_only_taken(bus: Bus, make_service: MakeService) -> None:
    """Records held back by a delay when a rebalance begins are answered afterwards, however long it takes."""
    slow = _SlowToLeave()

    def peer() -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            **bus.connection,
            group_id=f"{bus.name}.group",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            partition_assignment_strategy=(RoundRobinPartitionAssignor,),
            heartbeat_interval_ms=300,
            rebalance_timeout_ms=60_000,
        )

    service = await make_service(bus, batch__max_delay_ms=8000).start().ready()
    async with peer() as first, peer() as second:
        first.subscribe([bus.input], listener=slow)
        await eventually(lambda: service.metric("softmax_assigned_partitions") == 2)
        slow.seconds = 5
        await bus.send([_message(number) for number in range(40)], partition=None)
        await eventually(lambda: service.metric("softmax_records_consumed_total") == 20)
        second.subscribe([bus.input])
        await eventually(lambda: service.metric("softmax_rebalances_total") >= 3)
        await asyncio.sleep(7)  # another rebalance would take the slow member's time once more
        assert service.metric("softmax_rebalances_total") == 3
        slow.seconds = 0
    assert _by_partition(await bus.outputs(40, within=60)) == _expected(bus, 40)
    assert await service.stop() == 0


async def test_an_aborted_transaction_is_no_stall(bus: Bus, make_service: MakeService) -> None:
    """Aborted records on an idle partition leave no lag, and no reason to restart the service."""
    service = await make_service(bus, http__stall_seconds=1).start().ready()
    await eventually(lambda: service.get("/metrics")[1].count("softmax_consumer_lag_records{") == bus.partitions)
    async with AIOKafkaProducer(**bus.connection, transactional_id=f"{bus.name}.aborts") as producer:
        await producer.begin_transaction()
        for _ in range(10):
            await producer.send_and_wait(bus.input, _message(0), partition=1)
        await producer.abort_transaction()
    await asyncio.sleep(3)
    assert service.metric("softmax_consumer_lag_records") == 0
    assert service.get("/livez")[0] == 200
    assert await service.stop() == 0


async def test_a_header_name_that_is_no_text_stops_the_service_with_a_reason(
    bus: Bus, make_service: MakeService
) -> None:
    """The public interface cannot read such a record; exit code 3 says so, and nothing before it is lost."""
    await bus.send([_message(0)])
    batch = bus.producer.create_batch()
    batch.append(timestamp=1, key=None, value=_message(1), headers=[("name", b"")])
    raw = bytearray(batch._build())
    raw[raw.index(b"name")] = 0xFF
    raw[17:21] = crc32c(bytes(raw[21:])).to_bytes(4, "big")
    batch._buffer = bytes(raw)
    batch._set_producer_state = lambda *_, **__: None
    async with AIOKafkaProducer(**bus.connection) as plain:
        await (await plain.send_batch(batch, bus.input, partition=0))
    service = make_service(bus, kafka__whole_batches=False).start()
    assert await service.wait() == 3
    assert "header name that is not UTF-8" in service.log
    assert "Traceback" not in service.log


# A service whose consumer, after some time, returns nothing any more although there is something.
DEAF = """
import asyncio, time
from aiokafka import AIOKafkaConsumer
from service.cli import main
getmany, begun = AIOKafkaConsumer.getmany, time.monotonic()
async def deaf(self, *partitions, timeout_ms=0, max_records=None):
    if time.monotonic() - begun < 4:
        return await getmany(self, *partitions, timeout_ms=timeout_ms, max_records=max_records)
    await asyncio.sleep(timeout_ms / 1000)
    return {}
AIOKafkaConsumer.getmany = deaf
main()
"""


async def test_a_consumer_that_silently_stops_is_noticed_and_ended(bus: Bus, make_service: MakeService) -> None:
    """First `/livez` fails, with the stacks in the log; then the process ends, and its successor does the work."""
    service = make_service(bus, http__stall_seconds=3)
    service.program = ["-c", DEAF]
    await service.start().ready()
    await asyncio.sleep(4)
    await bus.send([_message(number) for number in range(100)], partition=None)
    await eventually(lambda: service.get("/livez")[0] == 503)
    assert await service.wait() == 3
    assert "Nothing has moved for" in service.log
    assert "main loop" in service.log
    successor = await make_service(bus).start().ready()
    await bus.outputs(100)
    assert await successor.stop() == 0


async def _add_partitions(bus: Bus, total: int, *topics: str) -> None:
    admin = AIOKafkaAdminClient(**bus.connection)
    await admin.start()
    try:
        await admin.create_partitions({topic: NewPartitions(total) for topic in topics})
    finally:
        await admin.close()


@pytest.mark.parametrize("guarantee", ["at_least_once", "exactly_once"])
async def test_partitions_that_are_added_are_served(bus: Bus, make_service: MakeService, guarantee: str) -> None:
    """To both topics: noticed, assigned and answered without a restart."""
    soon = {"kafka__metadata_max_age_ms": 1000, "delivery__guarantee": guarantee}
    service = await make_service(bus, **soon).start().ready()
    await bus.send([_message(number) for number in range(40)], partition=None)
    await bus.outputs(40)
    await _add_partitions(bus, bus.partitions + 2, bus.output, bus.input)
    await eventually(lambda: service.metric("softmax_assigned_partitions") == bus.partitions + 2)
    async with AIOKafkaProducer(**bus.connection) as producer:
        for partition in range(bus.partitions + 2):
            await producer.send_and_wait(bus.input, _message(partition), partition=partition)
    await eventually(lambda: service.metric("softmax_records_produced_total") == 40 + bus.partitions + 2)
    assert await service.stop() == 0


async def test_partitions_that_only_the_input_gets_end_the_service(bus: Bus, make_service: MakeService) -> None:
    """Exit code 3 names both topics and the cure, before a record has nowhere to go."""
    service = await make_service(bus, kafka__metadata_max_age_ms=1000).start().ready()
    await _add_partitions(bus, bus.partitions + 1, bus.input)
    await eventually(lambda: service.metric("softmax_assigned_partitions") == bus.partitions + 1)
    async with AIOKafkaProducer(**bus.connection) as producer:
        await producer.send_and_wait(bus.input, _message(1), partition=bus.partitions)
    assert await service.wait() == 3
    assert f"Topic {bus.output} has {bus.partitions} partitions, fewer than" in service.log
    assert "Traceback" not in service.log


@pytest.mark.parametrize("guarantee", ["at_least_once", "exactly_once"])
async def test_a_static_member_that_is_restarted_stops_nobody_else(
    bus: Bus, make_service: MakeService, guarantee: str
) -> None:
    """With kafka.group_instance_id a restart within the session takes nothing from the others, not for a moment."""
    common = {"delivery__guarantee": guarantee}
    members = [
        await make_service(bus, **common, kafka__group_instance_id=name).start().ready() for name in ("a", "b", "c")
    ]
    await eventually(lambda: sum(m.metric("softmax_assigned_partitions") for m in members) == bus.partitions)
    rebalances = [len(member.events("revoked")) for member in members]
    feeding = asyncio.create_task(_feed(bus, 0, 8000, pause=0.05))
    for index, member in enumerate(members):
        await asyncio.sleep(0.5)
        assert await member.stop() == 0
        await member.start().ready()
        others = [m for m in members if m is not member]
        seen = [len(m.events("revoked")) for m in others]
        assert seen == [count for at, count in enumerate(rebalances) if at != index], member.log
        rebalances[index] = len(member.events("revoked"))
    await feeding
    assert _by_partition(await bus.outputs(8000, within=60)) == _expected(bus, 8000)
    for member in members:
        assert await member.stop() == 0
