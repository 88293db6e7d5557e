"""A stage on which services run well for a while, and then meet the cause of each alert.

One broker, one Prometheus, and a service in each of several jobs: causes work at the same time and are told apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from harness import Bus, ServiceProcess, pack
from hastened_rules import write_hastened
from prometheus_server import PrometheusServer, prometheus

from service.broker import Broker, BrokerConfig
from service.broker.ports import HOST, reserve_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
    from pathlib import Path

# Alerts on scrapes know one job by its name; the others are called after what becomes of them.
NAMED: Final = "softmax-service"
JOBS: Final[Mapping[str, Mapping[str, object]]] = {
    NAMED: {},
    "late": {},
    # It goes on, a little at a time, while more comes than it takes.
    "throttled": {"batch__max_records": 20},
    "refusing": {},
    "lost": {"delivery__on_offset_lost": "earliest"},
    # A member hears of a rebalance by its heartbeat, of which a session has three.
    "unsettled": {"kafka__session_timeout_ms": 3000, "delivery__drain_timeout_ms": 1000},
    # Of what it has fetched it takes no more than that while nothing is acknowledged: the others wait.
    "stuck": {"kafka__request_timeout_ms": 2000, "batch__max_records": 20, "limits__in_flight_bytes": 1 << 20},
    "unready": {"kafka__request_timeout_ms": 2000},
}
PARTITIONS: Final = 2
GOOD: Final = [pack(np.linspace(0, step / 10, 10, dtype=np.float32), id=step) for step in range(20)]
BULKY: Final = pack(np.zeros(25_000, np.float32))
BAD: Final = [pack([1.0, float("nan")])] * 2
SECONDS_BETWEEN_WRITES: Final = 0.2
START_SECONDS: Final = 180.0
WELL_SECONDS: Final = 30
FIRING_SECONDS: Final = 150.0
STOPPED_SECONDS: Final = 0.3
SETTLED_SECONDS: Final = 1.5
SOME_TIME: Final = 0.05
ATTEMPTS: Final = 20
FIRING: Final = 'ALERTS{alertstate="firing"}'
NUMBERS: Final = count()


def heavy() -> list[bytes]:
    """Messages like no other before, each some 15 ms of work."""
    return [
        msgpack.packb({"logits": {f"head {head} of {number}": [1, 2.0] for head in range(300)}})
        for number in (next(NUMBERS) for _ in range(40))
    ]


@dataclass
class Job:
    """A service with topics of its own, and what is written to them all the time.

    Attributes:
        values: makes the next values.
        age: how old the next records say they are, in seconds.
    """

    bus: Bus
    service: ServiceProcess
    address: str
    values: Callable[[], Sequence[bytes]] = lambda: GOOD
    age: float = 0.0

    async def feed(self) -> None:
        """Write for ever."""
        while True:
            written = int((time.time() - self.age) * 1000)
            await self.bus.send(self.values(), partition=None, timestamp_ms=written)
            await asyncio.sleep(SECONDS_BETWEEN_WRITES)


@dataclass
class Stage:
    """What meets causes, and what was seen of it.

    Attributes:
        spoiled: alerts that fired while all was well.
        outputs: by job, how many there were at the end of that time.
        fired: by name and job, so many seconds after their cause alerts were first seen firing.
        logged: by job, the names of all events.
    """

    broker: Broker
    server: PrometheusServer
    jobs: Mapping[str, Job]
    spoiled: set[tuple[str, str]] = field(default_factory=set)
    outputs: dict[str, float] = field(default_factory=dict)
    fired: dict[tuple[str, str], float] = field(default_factory=dict)
    logged: dict[str, set[str]] = field(default_factory=dict)

    async def ask(self, query: str) -> list[dict[str, Any]]:
        """The series that an expression has now."""
        found: list[dict[str, Any]] = (await asyncio.to_thread(self.server.get, "query", query=query))["result"]
        return found

    async def start_time(self, job: str) -> float:
        """When a service was started, as Prometheus knows it."""
        series = await self.ask(f'process_start_time_seconds{{job="{job}"}}')
        return float(series[0]["value"][1]) if series else 0.0

    async def is_well(self, seconds: int) -> None:
        """Wait until all is well, and see which alerts fire in the time after that."""
        all_well = f"count(up == 1) == {len(self.jobs)} unless on () {FIRING}"
        await until(self.ask, all_well, START_SECONDS)
        await asyncio.sleep(seconds)
        fired = await self.ask(f"last_over_time({FIRING}[{seconds}s])")
        self.spoiled = {_which(alert["metric"]) for alert in fired}
        produced = await self.ask("sum by (job) (softmax_records_produced_total)")
        self.outputs = {series["metric"]["job"]: float(series["value"][1]) for series in produced}

    async def meets(self, causes: Sequence[Cause]) -> None:
        """Inflict causes together, until all their alerts have fired or the time is over."""
        awaited = {alert for cause in causes for alert in cause.alerts.items()}
        begun = time.monotonic()
        async with running(cause.inflict(self) for cause in causes) as tasks:
            while awaited and time.monotonic() - begun < FIRING_SECONDS:
                for which in {_which(alert["metric"]) for alert in await self.ask(FIRING)} & awaited:
                    awaited.remove(which)
                    await self._remember(which, time.monotonic() - begun)
                if any(task.done() and task.exception() for task in tasks):
                    break
                await asyncio.sleep(0.5)

    async def _remember(self, which: tuple[str, str], after: float) -> None:
        """Keep an alert that fires, and log its figures: the runbook has them."""
        alerts = (await asyncio.to_thread(self.server.get, "alerts"))["alerts"]
        told = [each["annotations"]["description"] for each in alerts if which == _which(each["labels"])]
        self.fired[which] = after
        logging.getLogger(__name__).info("%s of %s fires after %.0f s: %s", *which, after, told)


@dataclass(frozen=True)
class Cause:
    """What is done to services until told to stop, and which alerts of which jobs come of it."""

    inflict: Callable[[Stage], Coroutine[None, None, None]]
    alerts: Mapping[str, str]


async def write_late(stage: Stage) -> None:
    """A producer holds records back for a second."""
    stage.jobs["late"].age = 1.0


async def throttle(stage: Stage) -> None:
    """A process that gets half of its core has more to do than it can."""
    job = stage.jobs["throttled"]
    job.values = heavy
    try:
        while True:
            job.service.signal(signal.SIGSTOP)
            await asyncio.sleep(STOPPED_SECONDS)
            job.service.signal(signal.SIGCONT)
            await asyncio.sleep(STOPPED_SECONDS)
    finally:
        job.service.signal(signal.SIGCONT)


async def write_nan(stage: Stage) -> None:
    """Every eleventh record is refused."""
    stage.jobs["refusing"].values = lambda: [*GOOD, *BAD]


async def delete_records(stage: Stage) -> None:
    """Records are deleted that a service would have read after its start."""
    job = stage.jobs["lost"]
    assert await job.service.stop() == 0
    for partition in range(PARTITIONS):
        await job.bus.send(GOOD, partition=partition)
    admin = AIOKafkaAdminClient(**job.bus.connection)
    await admin.start()
    try:
        everything = RecordsToDelete(before_offset=-1)
        await admin.delete_records({TopicPartition(job.bus.input, p): everything for p in range(PARTITIONS)})
    finally:
        await admin.close()
    job.service.start()


async def join_and_leave(stage: Stage) -> None:
    """Another member comes and goes, again and again."""
    bus = stage.jobs["unsettled"].bus
    while True:
        member = AIOKafkaConsumer(
            bus.input,
            **bus.connection,
            group_id=f"{bus.name}.group",
            enable_auto_commit=False,
            partition_assignment_strategy=(RoundRobinPartitionAssignor,),
            session_timeout_ms=3000,
            heartbeat_interval_ms=300,
        )
        try:
            await member.start()
        finally:  # a start that is cancelled leaves connections behind
            await member.stop()


async def kill_again_and_again(stage: Stage) -> None:
    """A process is killed and started three times, and the fourth time killed for good."""
    service = stage.jobs[NAMED].service
    for _ in range(3):
        before = await stage.start_time(NAMED)
        await service.kill()
        service.start()
        await until(stage.ask, f'process_start_time_seconds{{job="{NAMED}"}} > {before}', START_SECONDS)
    await until(stage.ask, 'ALERTS{alertname="SoftmaxRestarts", alertstate="firing"}', FIRING_SECONDS)
    await service.kill()


async def freeze_the_broker(stage: Stage) -> None:
    """The broker answers nothing, while records wait for one service and another one is started."""
    stuck, unready = stage.jobs["stuck"], stage.jobs["unready"]
    for attempt in range(1, ATTEMPTS):
        stuck.service.signal(signal.SIGSTOP)
        await stuck.bus.send([BULKY] * 200, partition=None)
        stuck.service.signal(signal.SIGCONT)
        # It is to have begun, and not to have ended.
        await asyncio.sleep(attempt * SOME_TIME)
        stage.broker.freeze()
        await asyncio.sleep(SETTLED_SECONDS)
        if stuck.service.metric("softmax_consumer_lag_records") > 0:
            break
        stage.broker.thaw()
    await unready.service.kill()
    unready.service.start()


AT_ONCE: Final = (
    Cause(write_late, {"SoftmaxLatencyBurnFast": "late", "SoftmaxLatencyBurnSlow": "late"}),
    Cause(throttle, {"SoftmaxEventLoopLag": "throttled", "SoftmaxLagGrowing": "throttled"}),
    Cause(write_nan, {"SoftmaxDeadLetterRatio": "refusing", "SoftmaxDeadLetters": "refusing"}),
    Cause(delete_records, {"SoftmaxOffsetsLost": "lost"}),
    Cause(join_and_leave, {"SoftmaxRebalanceStorm": "unsettled"}),
    Cause(
        kill_again_and_again,
        {"SoftmaxRestarts": NAMED, "SoftmaxInstanceDown": NAMED, "SoftmaxServiceDown": NAMED},
    ),
)
# All services meet this one.
AT_LAST: Final = (Cause(freeze_the_broker, {"SoftmaxNoProgress": "stuck", "SoftmaxNotReady": "unready"}),)


async def play(folder: Path) -> Stage:
    """Let services run well, then provoke every alert; what was seen."""
    async with _stage(folder) as stage:
        async with running(job.feed() for job in stage.jobs.values()):
            await stage.is_well(WELL_SECONDS)
            await stage.meets(AT_ONCE)
        await stage.meets(AT_LAST)
        for name, job in stage.jobs.items():
            stage.logged[name] = job.service.event_names()
        return stage


@contextlib.asynccontextmanager
async def _stage(folder: Path) -> AsyncIterator[Stage]:
    """The broker, services that are ready, and Prometheus with hastened rules; all ends with the block."""
    write_hastened(folder)
    short_sessions = {"group.min.session.timeout.ms": "1000"}
    async with contextlib.AsyncExitStack() as stack:
        broker = stack.enter_context(Broker(BrokerConfig(tmpfs=True, properties=short_sessions)))
        with reserve_ports(len(JOBS)) as reserved:
            ports = [each.plain for each in reserved]
        jobs: dict[str, Job] = {}
        for port, (name, settings) in zip(ports, JOBS.items(), strict=True):
            bus = await stack.enter_async_context(Bus(broker.bootstrap_servers, name, PARTITIONS))
            service = ServiceProcess(bus, folder / f"{name}.log", {**settings, "http__port": port})
            stack.callback(service.destroy)
            jobs[name] = Job(bus, service.start(), f"{HOST}:{port}")
        await asyncio.gather(*(job.service.ready(START_SECONDS) for job in jobs.values()))
        targets = {name: [job.address] for name, job in jobs.items()}
        server = stack.enter_context(prometheus(folder, targets, rules=folder))
        stack.callback(broker.thaw)
        yield Stage(broker, server, jobs)


@contextlib.asynccontextmanager
async def running(coroutines: Iterable[Coroutine[None, None, None]]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run coroutines until the block ends; whatever went wrong in them is raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    failed = [each for each in ended if isinstance(each, Exception)]
    if failed:
        raise ExceptionGroup("a cause or its load failed", failed)


def _which(labels: Mapping[str, str]) -> tuple[str, str]:
    return labels["alertname"], labels["job"]


async def until(ask: Callable[[str], Coroutine[None, None, object]], query: str, within: float) -> None:
    """Wait until an expression has a value.

    Raises:
        AssertionError: it has none in time.
    """
    deadline = time.monotonic() + within
    while not await ask(query):
        assert time.monotonic() < deadline, f"{query} has no value after {within} s"
        await asyncio.sleep(0.2)
