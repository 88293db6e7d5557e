"""How soon outputs come again when one of three instances dies or leaves, and what exactly-once costs by partitions.

    scripts/bench recovery --json recovery.json --write-docs

A sender writes to all partitions at a steady rate; the ends of the output's partitions are looked at every 20 ms. The
longest time for which one of them has stood still, from the signal until all have moved again, is the recovery. Then,
for several numbers of partitions, one instance with exactly-once: how long until it has taken all of them over, its
connections and its memory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
import time
import uuid
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any, Final, Self

import psutil
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from benchmarks import machine, report
from benchmarks.processes import BenchmarkError, MeasuredProcess
from benchmarks.programs import SERVICE, Place, service_command, service_environment
from benchmarks.traffic import message, tails
from service.broker import Broker, BrokerConfig

GUARANTEES: Final = ("at_least_once", "exactly_once")
INSTANCES: Final = 3
PARTITIONS: Final = 12
RATE: Final = 600
SESSION_MS: Final = 6000
SETTLE_SECONDS: Final = 3.0
WATCH_SECONDS: Final = SESSION_MS / 1000 + 10
LOOK_SECONDS: Final = 0.02
SCALES: Final = (1, 12, 100)
START_SECONDS: Final = 120
MIB: Final = 1 << 20


class Topics:
    """Three topics of so many partitions, what is sent to the first, and where the second ends."""

    def __init__(self, bootstrap: str, partitions: int) -> None:
        """Create nothing yet."""
        name = uuid.uuid4().hex[:8]
        self.place = Place(bootstrap, f"in-{name}", f"out-{name}", f"dead-{name}", f"group-{name}")
        self.partitions = [TopicPartition(self.place.output_topic, number) for number in range(partitions)]
        self._message = message(0, tails(10)[0])

    async def __aenter__(self) -> Self:
        """Create the topics and connect."""
        place = self.place
        admin = AIOKafkaAdminClient(bootstrap_servers=place.bootstrap)
        await admin.start()
        try:
            large = {"max.message.bytes": str(2 * MIB)}
            await admin.create_topics(
                [
                    NewTopic(place.input_topic, len(self.partitions), 1),
                    NewTopic(place.output_topic, len(self.partitions), 1),
                    NewTopic(place.dead_letter_topic, len(self.partitions), 1, topic_configs=large),
                ]
            )
        finally:
            await admin.close()
        self._producer = AIOKafkaProducer(bootstrap_servers=place.bootstrap)
        self._consumer = AIOKafkaConsumer(bootstrap_servers=place.bootstrap)
        await self._producer.start()
        await self._consumer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect."""
        await self._consumer.stop()
        await self._producer.stop()

    async def send(self) -> None:
        """A message to each partition."""
        topic = self.place.input_topic
        numbers = range(len(self.partitions))
        await asyncio.gather(*[await self._producer.send(topic, self._message, partition=n) for n in numbers])

    async def send_at(self, rate: float) -> None:
        """So many messages a second, for ever."""
        interval = len(self.partitions) / rate
        due = time.monotonic()
        while True:
            await self.send()
            due += interval
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def ends(self) -> list[int]:
        """Where the output's partitions end."""
        ends = await self._consumer.end_offsets(self.partitions)
        return [int(ends[partition]) for partition in self.partitions]


def instance(place: Place, guarantee: str) -> MeasuredProcess:
    """An instance of the service, not yet started."""
    settings = {
        "SOFTMAX_DELIVERY__GUARANTEE": guarantee,
        "SOFTMAX_KAFKA__SESSION_TIMEOUT_MS": str(SESSION_MS),
        "SOFTMAX_DELIVERY__DRAIN_TIMEOUT_MS": "3000",
        "SOFTMAX_LOG__FORMAT": "json",
    }
    return MeasuredProcess(SERVICE, service_command(), service_environment(place) | settings)


async def wait_for_outputs(topics: Topics, processes: list[MeasuredProcess]) -> None:
    """Wait until each partition of the output holds something.

    Raises:
        BenchmarkError: it does not come to that.
    """
    deadline = time.monotonic() + START_SECONDS
    while min(await topics.ends()) == 0:
        for process in processes:
            process.check()
        if time.monotonic() > deadline:
            raise BenchmarkError(f"no output of some partitions:\n{processes[0].tail()}")
        await topics.send()
        await asyncio.sleep(0.2)


async def recovery(bootstrap: str, guarantee: str, number: signal.Signals) -> float:
    """The longest standstill of a partition, in seconds, after a signal to one of the instances."""
    async with AsyncExitStack() as stack:
        topics = await stack.enter_async_context(Topics(bootstrap, PARTITIONS))
        members = [stack.enter_context(instance(topics.place, guarantee)) for _ in range(INSTANCES)]
        await wait_for_outputs(topics, members)
        sending = asyncio.create_task(topics.send_at(RATE))
        try:
            await asyncio.sleep(SETTLE_SECONDS)
            psutil.Process(members[0].pid).send_signal(number)
            return await longest_standstill(topics, WATCH_SECONDS)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)


async def longest_standstill(topics: Topics, seconds: float) -> float:
    """Look for so long; each partition is written to many times a second."""
    begun = time.monotonic()
    before = await topics.ends()
    moved = [begun] * len(before)
    longest = 0.0
    while (now := time.monotonic()) - begun < seconds:
        ends = await topics.ends()
        for partition, (old, new) in enumerate(zip(before, ends, strict=True)):
            if new > old:
                longest = max(longest, now - moved[partition])
                moved[partition] = now
        before = ends
        await asyncio.sleep(LOOK_SECONDS)
    return max(longest, time.monotonic() - min(moved))


async def scale(bootstrap: str, partitions: int) -> dict[str, Any]:
    """One instance with exactly-once: its take-over of all partitions, its connections, its memory."""
    async with Topics(bootstrap, partitions) as topics:
        await topics.send()
        with ExitStack() as stack:
            begun = time.monotonic()
            process = stack.enter_context(instance(topics.place, "exactly_once"))
            assigned = 0.0
            while min(await topics.ends()) == 0:
                process.check()
                if not assigned and '"assigned"' in process.tail(1 << 20):
                    assigned = time.monotonic()
                if time.monotonic() - begun > START_SECONDS:
                    raise BenchmarkError(f"no output of some partitions:\n{process.tail()}")
                await asyncio.sleep(LOOK_SECONDS)
            taken_over = time.monotonic()
            connections = len(psutil.Process(process.pid).net_connections("tcp"))
            rss = process.rss()
            process.stop()
    return {
        "partitions": partitions,
        "seconds": taken_over - (assigned or begun),
        "connections": connections,
        "rss": rss,
    }


async def measure(bootstrap: str, rounds: int) -> dict[str, Any]:
    """All of it."""
    recoveries = []
    for guarantee in GUARANTEES:
        for number in (signal.SIGKILL, signal.SIGTERM):
            seconds = [await recovery(bootstrap, guarantee, number) for _ in range(rounds)]
            row = {"guarantee": guarantee, "signal": number.name, "seconds": seconds}
            recoveries.append(row)
            print(f"{guarantee}, {number.name}: {', '.join(f'{s:.2f}' for s in seconds)} s", flush=True)
    scales = []
    for partitions in SCALES:
        scales.append(await scale(bootstrap, partitions))
        print(scales[-1], flush=True)
    return {"recoveries": recoveries, "scales": scales}


def section(results: dict[str, Any]) -> str:
    """What is to be read in docs/performance.md."""
    about = (
        f"One of {INSTANCES} instances on {PARTITIONS} partitions, {RATE} messages a second, session timeout"
        f" {SESSION_MS / 1000:g} s; seconds until all partitions had moved again:"
    )
    lines = [
        report.origin(results),
        "",
        about,
        "",
        "| guarantee | signal | median | longest |",
        "| --- | --- | ---: | ---: |",
        *(
            f"| {row['guarantee']} | {row['signal']} | {statistics.median(row['seconds']):.2f}"
            f" | {max(row['seconds']):.2f} |"
            for row in results["recoveries"]
        ),
        "",
        "One instance with exactly-once: from its assignment until the first output of every partition:",
        "",
        "| partitions | seconds | connections | RSS, MiB |",
        "| ---: | ---: | ---: | ---: |",
        *(
            f"| {row['partitions']} | {row['seconds']:.2f} | {row['connections']} | {row['rss'] / MIB:.0f} |"
            for row in results["scales"]
        ),
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parser = argparse.ArgumentParser(prog="scripts/bench recovery", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--write-docs", action="store_true", help="put the section into docs/performance.md")
    given = parser.parse_args()
    about = machine.describe(on_tmpfs=True)
    with Broker(BrokerConfig(tmpfs=True, benchmark=True), progress=print) as broker:
        figures = asyncio.run(measure(broker.bootstrap_servers, given.rounds))
    results = {"command": f"scripts/bench recovery --rounds {given.rounds}", "machine": about, **figures}
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    if given.write_docs:
        report.write_docs("recovery", section(results))


if __name__ == "__main__":
    main()
