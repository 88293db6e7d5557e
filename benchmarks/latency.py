"""Latency of the service and of others, measured from outside at fixed rates.

    scripts/bench latency --json figures.json --write-docs

A sender writes messages at evenly spaced moments, without linger; a reader reads the outputs and tells how long after
that moment each of them came (`traffic.py`). The program's processor time is that of the same span. Programs take
turns. A program that loses or repeats a message, or ends, has no figures for that turn. The turn named `no program`
reads the input topic itself: what sender, broker and reader cost without anybody between them.
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
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aiokafka import AIOKafkaProducer

from benchmarks import machine, report
from benchmarks.kafka import DEAD_LETTER_BYTES, PARTITIONS, EndOffsets, create_topic, delete_topic
from benchmarks.processes import BenchmarkError, MeasuredProcess
from benchmarks.programs import PROGRAMS, SERVICE, Place
from benchmarks.throughput import available
from benchmarks.traffic import FLUSH_SECONDS, SILENCE_SECONDS, WARM_UP_SHARE, message, tails
from service.broker import Broker, BrokerConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

CONTROL: Final = "no program"
DEFAULT_PROGRAMS: Final = (CONTROL, SERVICE, "forwarding", "go-by-hand", "confluent-loop")
RATES: Final = (1000, 5000, 20_000)
SECONDS: Final = 20.0
CLASSES: Final = 100
START_SECONDS: Final = 60
SECONDS_BETWEEN_PROBES: Final = 0.25
NUMBERS: Final = ("p50", "p99", "p999", "worst", "cpu_share", "rate_kept", "sender_late_p99")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: at each rate, in each round, each program for so many seconds."""

    rates: list[int]
    programs: list[str]
    rounds: int
    seconds: float
    quick: bool

    def command(self) -> str:
        """What to type for the same again."""
        programs = ",".join(name for name in self.programs if name != CONTROL)
        options = f"--rates {','.join(map(str, self.rates))} --programs {programs}"
        return f"scripts/bench latency {options} --rounds {self.rounds} --seconds {self.seconds:g}"

    def log_bytes(self) -> int:
        """Most bytes in the broker's logs: input and output of a turn, and those of the turn before."""
        return int(4 * max(self.rates) * self.seconds * (5 * CLASSES + 100))


@dataclass(frozen=True, slots=True)
class Run:
    """One turn of one program at one rate.

    Attributes:
        rate: messages a second, as planned.
        program: its name.
        round: from 1.
        p50: milliseconds; of the messages that were due after the first quarter.
        p99: the same.
        p999: the same.
        worst: the same.
        cpu_share: processor seconds a second, of the program.
        rate_kept: messages a second that the sender managed.
        sender_late_p99: milliseconds by which the sender was late itself.
    """

    rate: int
    program: str
    round: int
    p50: float
    p99: float
    p999: float
    worst: float
    cpu_share: float
    rate_kept: float
    sender_late_p99: float


@asynccontextmanager
async def _topics(bootstrap: str) -> AsyncIterator[Place]:
    names = [f"{kind}-{uuid.uuid4().hex[:8]}" for kind in ("input", "output", "dead-letters")]
    for name in names:
        large = {"max.message.bytes": DEAD_LETTER_BYTES} if name == names[-1] else {}
        await create_topic(bootstrap, name, large)
    try:
        source, output, dead_letters = names
        yield Place(bootstrap, source, output, dead_letters, group=f"group-{output}")
    finally:
        for name in names:
            await delete_topic(bootstrap, name)


@asynccontextmanager
async def traffic(*arguments: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """A sender or a reader of messages (`traffic.py`), which does not outlive the block."""
    command = [sys.executable, "-m", "benchmarks.traffic", *map(str, arguments)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def answer(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """What a sender or a reader says at its end.

    Raises:
        BenchmarkError: it has failed.
    """
    out, words = await process.communicate()
    if process.returncode:
        raise BenchmarkError(words.decode(errors="replace").strip()[-500:])
    said: dict[str, Any] = json.loads(out.splitlines()[-1])
    return said


async def _wait_until_it_works(place: Place, process: MeasuredProcess) -> list[int]:
    """Send messages until each partition's come out; return where the output then ends.

    Raises:
        BenchmarkError: they do not come.
    """
    tail, sent, deadline = tails(CLASSES)[0], 0, time.monotonic() + START_SECONDS
    async with (
        AIOKafkaProducer(bootstrap_servers=place.bootstrap) as producer,
        EndOffsets(place.bootstrap, place.output_topic) as output,
    ):
        while True:
            process.check()
            ends = await output.each()
            if min(ends) > 0 and sum(ends) >= sent:
                return ends
            if time.monotonic() > deadline:
                raise BenchmarkError(f"No output after {START_SECONDS} s:\n{process.tail()}")
            if min(ends) == 0:
                for partition in range(PARTITIONS):
                    await producer.send_and_wait(place.input_topic, message(0, tail), partition=partition)
                sent += PARTITIONS
            await asyncio.sleep(SECONDS_BETWEEN_PROBES)


async def run_program(bootstrap: str, name: str, rate: int, plan: Plan, turn: int) -> Run:
    """Give a program its turn.

    Raises:
        BenchmarkError: it did not do what it should.
    """
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(_topics(bootstrap))
        process, topic, offsets = None, place.input_topic, [0] * PARTITIONS
        if name != CONTROL:
            program = PROGRAMS[name]
            process = stack.enter_context(MeasuredProcess(name, program.command(), program.environment(place)))
            topic, offsets = place.output_topic, await _wait_until_it_works(place, process)
        places = ",".join(map(str, offsets))
        reading = await stack.enter_async_context(traffic("read", bootstrap, topic, places, int(rate * plan.seconds)))
        await asyncio.sleep(1)  # the reader has found the partitions
        sending = await stack.enter_async_context(
            traffic("send", bootstrap, place.input_topic, rate, plan.seconds, CLASSES)
        )
        (cpu_share,) = await cpu_shares(sending, [process.cpu_seconds if process else float], plan.seconds)
        async with asyncio.timeout(plan.seconds + FLUSH_SECONDS + 4 * SILENCE_SECONDS):
            sent, read = await answer(sending), await answer(reading)
        if process:
            process.stop()
    if not read["read"] == read["distinct"] == sent["sent"]:
        raise BenchmarkError(f"{sent['sent']} sent, {read['read']} read, {read['distinct']} of them distinct")
    p50, p99, p999, worst = read["ages_ms"]
    return Run(rate, name, turn, p50, p99, p999, worst, cpu_share, sent["rate"], sent["late_ms"][1])


async def cpu_shares(
    sending: asyncio.subprocess.Process, clocks: Sequence[Callable[[], float]], seconds: float
) -> list[float]:
    """Processor seconds a second in the span whose messages count.

    Args:
        sending: the sender, just started.
        clocks: each tells the processor time of something, so far.
        seconds: how long is sent.

    Raises:
        BenchmarkError: the sender did not begin.
    """
    first_line = await sending.stdout.readline() if sending.stdout else b""
    if not first_line:
        raise BenchmarkError("the sender did not begin")
    begin: float = json.loads(first_line)["begin"]
    looks = []
    for share in (WARM_UP_SHARE, 1.0):
        await asyncio.sleep(begin + share * seconds - time.monotonic())
        looks.append((time.monotonic(), [clock() for clock in clocks]))
    (began, before), (ended, after) = looks
    return [(late - early) / (ended - began) for early, late in zip(before, after, strict=True)]


async def measure(bootstrap: str, plan: Plan) -> tuple[list[Run], list[str]]:
    """Let the programs take turns at each rate; the first turn of all warms the broker and is not counted.

    Returns:
        The turns, and a line for each that has no figures.
    """
    runs, failures = [], []
    turns = [(0, plan.rates[0], plan.programs[-1])]
    turns += [(turn, rate, name) for rate in plan.rates for turn in range(1, plan.rounds + 1) for name in plan.programs]
    for turn, rate, name in turns:
        try:
            run = await run_program(bootstrap, name, rate, plan, turn)
        except (BenchmarkError, TimeoutError) as error:
            failures.append(f"{name} at {rate:,} a second, round {turn}: {str(error) or 'did not end'}")
            print(f"  {failures[-1]}", flush=True)
            continue
        print(
            f"  {f'round {turn}' if turn else 'warm-up':<8} {rate:>6}/s {name:<18} p50 {run.p50:8.2f}"
            f"  p99 {run.p99:8.2f}  p99.9 {run.p999:8.2f} ms  CPU {100 * run.cpu_share:5.1f} %",
            flush=True,
        )
        if turn:
            runs.append(run)
    return runs, failures


def summarise(runs: list[Run]) -> list[dict[str, Any]]:
    """Medians of the rounds, by rate and program."""
    kinds = dict.fromkeys((run.rate, run.program) for run in runs)
    return [
        {
            "rate": rate,
            "program": program,
            "rounds": len(same),
            **{name: statistics.median(getattr(run, name) for run in same) for name in NUMBERS},
        }
        for rate, program in kinds
        for same in [[run for run in runs if (run.rate, run.program) == (rate, program)]]
    ]


def execute(plan: Plan) -> dict[str, Any]:
    """Start a broker, measure, and return everything that is to be known about it."""
    on_tmpfs = machine.fits_in_memory(plan.log_bytes())
    about = machine.describe(on_tmpfs=on_tmpfs)
    machine.warn_if_busy(about["load_before"])
    programs = available([name for name in plan.programs if name != CONTROL])
    plan.programs[:] = [name for name in plan.programs if name == CONTROL or name in programs]
    # Removed logs free their memory soon, or those of several turns would add up.
    properties = {"log.segment.delete.delay.ms": "500"}
    with Broker(BrokerConfig(benchmark=True, tmpfs=on_tmpfs, properties=properties), progress=print) as broker:
        runs, failures = asyncio.run(measure(broker.bootstrap_servers, plan))
    return {
        "command": plan.command(),
        "quick": plan.quick,
        "classes": CLASSES,
        "seconds": plan.seconds,
        "planned_rounds": plan.rounds,
        "machine": about,
        "programs": programs,
        "latency": summarise(runs),
        "failures": failures,
        "runs": [asdict(run) for run in runs],
    }


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(PROGRAMS):
        raise argparse.ArgumentTypeError(f"no such program: {', '.join(unknown)}; there are {', '.join(PROGRAMS)}")
    return [CONTROL, *names]


def main() -> None:
    """Measure, print, write."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parser = argparse.ArgumentParser(prog="scripts/bench latency", description="Measure latency at fixed rates.")
    parser.add_argument("--rates", type=lambda text: [int(rate) for rate in text.split(",")], default=list(RATES))
    parser.add_argument("--programs", type=_names, default=list(DEFAULT_PROGRAMS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--quick", action="store_true", help="does it work at all?")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/performance.md")
    given = parser.parse_args()
    rounds, seconds = (1, 6.0) if given.quick else (given.rounds, given.seconds)
    results = execute(Plan(given.rates, given.programs, rounds, seconds, given.quick))
    print("\n" + report.latency(results))
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    if given.write_docs:
        report.publish(results)


if __name__ == "__main__":
    main()
