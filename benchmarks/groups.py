"""Several instances of the service that work together, and the broker that they work with, observed."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import psutil

from benchmarks.kafka import DEAD_LETTER_BYTES, create_topic, delete_topic
from benchmarks.processes import BenchmarkError, MeasuredProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import ExitStack

    from benchmarks.programs import Place, Program
    from service.broker import Broker

PARTITIONS: Final = 12
START_SECONDS: Final = 60
SECONDS_BETWEEN_PROBES: Final = 0.1


class Stand:
    """A running broker, of whose processor time is known."""

    def __init__(self, broker: Broker) -> None:
        """Observe it."""
        self.bootstrap = broker.bootstrap_servers
        self._observed = psutil.Process(broker.pid)

    def cpu_seconds(self) -> float:
        """Processor time so far."""
        times = self._observed.cpu_times()
        return times.user + times.system

    @asynccontextmanager
    async def topic(self, kind: str) -> AsyncIterator[str]:
        """A new topic; removed afterwards."""
        name = f"{kind}-{uuid.uuid4().hex[:8]}"
        large = {"max.message.bytes": DEAD_LETTER_BYTES} if kind == "dead-letters" else {}
        await create_topic(self.bootstrap, name, large, PARTITIONS)
        try:
            yield name
        finally:
            await delete_topic(self.bootstrap, name)


class Group:
    """Instances of the service that work together, started at once."""

    def __init__(self, stack: ExitStack, program: Program, instances: int, place: Place) -> None:
        """Start them; they end with the stack, if they have not before."""
        environment = {**program.environment(place), "SOFTMAX_LOG__FORMAT": "json"}
        self.started = time.monotonic()
        self.members = [
            stack.enter_context(MeasuredProcess(f"instance {number}", program.command(), environment))
            for number in range(1, instances + 1)
        ]

    def check(self) -> None:
        """See that all run.

        Raises:
            BenchmarkError: one has ended.
        """
        for member in self.members:
            member.check()

    def cpu_seconds(self) -> float:
        """Processor time of all of them so far."""
        return sum(member.cpu_seconds() for member in self.members)

    def assignments(self) -> list[list[int]]:
        """By instance, how many partitions it got in each of its assignments."""
        return [assignments(member.tail(1 << 20)) for member in self.members]

    async def balanced(self) -> None:
        """Wait until each has its share of the partitions.

        Raises:
            BenchmarkError: it does not come to that.
        """
        deadline = time.monotonic() + START_SECONDS
        while any(not had or had[-1] != PARTITIONS // len(self.members) for had in self.assignments()):
            self.check()
            if time.monotonic() > deadline:
                raise BenchmarkError(f"no even assignment: {self.assignments()}\n{self.members[0].tail()}")
            await asyncio.sleep(SECONDS_BETWEEN_PROBES)

    async def stop(self) -> None:
        """Stop all at once.

        Raises:
            BenchmarkError: one did not end in order.
        """
        await asyncio.gather(*(asyncio.to_thread(member.stop) for member in self.members))


def assignments(log: str) -> list[int]:
    """How many partitions an instance got in each assignment that its log tells of."""
    lines = (json.loads(line) for line in log.splitlines() if line.startswith("{") and line.endswith("}"))
    return [len(line["partitions"]) for line in lines if line.get("event") == "assigned"]
