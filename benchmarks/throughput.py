"""Throughput of the service and of others, measured from outside, all in the same way.

    scripts/bench --classes 10,100,1000 --json figures.json --write-docs

For each number of classes an input topic is filled once. Then the programs take turns, round after round. Each gets
a new output topic and a new group, is started as a process, and the ends of its output topic are looked at every
20 ms: its rate is that of the messages between 5 % and 100 % of the input. Processor time is that of the same span.
Afterwards the outputs are counted and a sample is verified; a program that lost, repeated or miscalculated something
has no figures for that turn. A slow program is measured over a share of the input.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
import statistics
import sys
import time
import uuid
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import machine, report
from benchmarks.kafka import DEAD_LETTER_BYTES, PARTITIONS, EndOffsets, create_topic, delete_topic
from benchmarks.load import BATCH_BYTES, Filler, Messages
from benchmarks.processes import BenchmarkError, MeasuredProcess
from benchmarks.programs import OBSERVED, PROGRAMS, SERVICE, UNOBSERVED, Place, Program
from benchmarks.toolchains import Unavailable
from benchmarks.verification import verify, verify_committed
from service.broker import Broker, BrokerConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

SECONDS_BETWEEN_LOOKS: Final = 0.02
START_OF_SPAN: Final = 0.05
STALLED_SECONDS: Final = 60
# After the last output: time for a program to write what it should not.
SETTLE_SECONDS: Final = 0.5
# After a run: time for the broker to remove the log that nobody needs any more.
REST_SECONDS: Final = 2.0
# Enough for seconds of the fastest program, within a few GiB of memory.
ELEMENTS: Final = 100_000_000
MOST_MESSAGES: Final = 3_000_000
QUICK_SHARE: Final = 20
PER: Final = 100_000
COMPARED: Final = [name for name in PROGRAMS if name not in {OBSERVED, UNOBSERVED}]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Attributes:
        classes: one input topic for each.
        messages: in each; `None` for a number that suits the classes.
        rounds: how often each program runs.
        programs: their names, in the order of their turns.
        quick: a try rather than a measurement: few messages.
        batch_records: most records in a batch of the input, which then has 1 to so many; `None` for batches of 256 KiB.
    """

    classes: Sequence[int]
    messages: int | None
    rounds: int
    programs: Sequence[str]
    quick: bool
    batch_records: int | None = None

    def messages_for(self, classes: int) -> int:
        """How many messages of so many classes."""
        if self.messages is not None:
            return self.messages
        return min(MOST_MESSAGES, ELEMENTS // classes) // (QUICK_SHARE if self.quick else 1)

    def programs_for(self, classes: int) -> list[str]:
        """The programs that have a turn: of several numbers of classes, slow ones see only the middle one."""
        middle = sorted(self.classes)[len(self.classes) // 2]
        return [name for name in self.programs if classes == middle or PROGRAMS[name].share == 1]

    def command(self) -> str:
        """What to type for the same again."""
        options = ["--classes", ",".join(map(str, self.classes)), "--rounds", str(self.rounds)]
        options += [] if self.messages is None else ["--messages", str(self.messages)]
        options += ["--quick"] if self.quick else []
        options += [] if self.batch_records is None else ["--batch-records", str(self.batch_records)]
        return " ".join(["scripts/bench", *options, "--programs", ",".join(self.programs)])

    def log_bytes(self) -> int:
        """Most bytes in the broker's logs: the input, an output, and one that is being removed."""
        return max(3 * self.messages_for(classes) * (5 * classes + 100) for classes in self.classes)


@dataclass(frozen=True, slots=True)
class Span:
    """What was seen of a program at work.

    Attributes:
        rate: messages a second between 5 % and 100 %.
        cpu_seconds: for 100 000 messages, in the same span.
        first_output_seconds: from the start of the process to its first output.
    """

    rate: float
    cpu_seconds: float
    first_output_seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    """One turn of one program.

    Attributes:
        classes: logits in a message.
        messages: of the input that it was measured over.
        program: its name.
        round: from 1.
        rate: see `Span`.
        cpu_seconds: see `Span`.
        first_output_seconds: see `Span`.
        lifetime_cpu_seconds: of the process from its start to its end.
        peak_rss: most bytes of memory.
        verified: how many outputs were compared with what they should be.
    """

    classes: int
    messages: int
    program: str
    round: int
    rate: float
    cpu_seconds: float
    first_output_seconds: float
    lifetime_cpu_seconds: float
    peak_rss: int
    verified: int


@dataclass(frozen=True, slots=True)
class Input:
    """A filled input topic."""

    bootstrap: str
    topic: str
    dead_letter_topic: str
    classes: int
    messages: int


async def watch(process: MeasuredProcess, output: EndOffsets, messages: int) -> Span:
    """Look at a program until the outputs are complete.

    Raises:
        BenchmarkError: it ended, or went on without any output.
    """
    started = moved_at = time.monotonic()
    first_output: float | None = None
    begin: tuple[float, int, float] | None = None
    before = 0
    while True:
        count = await output.total()
        now = time.monotonic()
        if count > before:
            moved_at, before = now, count
            first_output = first_output or now - started
        if begin is None and count >= START_OF_SPAN * messages:
            begin = now, count, process.cpu_seconds()
        if begin is not None and count >= messages:
            break
        process.check()
        if now - moved_at > STALLED_SECONDS:
            raise BenchmarkError(f"No output for {STALLED_SECONDS} s after {count} of {messages}:\n{process.tail()}")
        # From look to look, not from answer to question.
        await asyncio.sleep(max(0.0, now + SECONDS_BETWEEN_LOOKS - time.monotonic()))
    began_at, already, cpu_before = begin
    if count == already:
        raise BenchmarkError(f"{messages} messages are too few: all of them came between two looks")
    measured = count - already
    cpu_seconds = (process.cpu_seconds() - cpu_before) * PER / measured
    return Span(measured / (now - began_at), cpu_seconds, first_output or 0.0)


async def settled(output: EndOffsets) -> None:
    """Give a program that has seen all its input the time to write what it should not."""
    before = -1
    while (now := await output.total()) > before:
        before = now
        await asyncio.sleep(SETTLE_SECONDS)


@asynccontextmanager
async def output_topic(bootstrap: str) -> AsyncIterator[tuple[str, EndOffsets]]:
    """A new topic, and the looks at it; removed afterwards."""
    name = f"output-{uuid.uuid4().hex[:8]}"
    await create_topic(bootstrap, name)
    try:
        async with EndOffsets(bootstrap, name) as ends:
            yield name, ends
    finally:
        await delete_topic(bootstrap, name)


async def run_program(name: str, program: Program, source: Input, turn: int) -> Run:
    """Give a program its turn.

    Raises:
        BenchmarkError: it did not do what it should.
    """
    command = program.command()
    async with output_topic(source.bootstrap) as (topic, output):
        group = f"group-{topic}"
        place = Place(source.bootstrap, source.topic, topic, source.dead_letter_topic, group)
        with MeasuredProcess(name, command, program.environment(place)) as process:
            span = await watch(process, output, math.ceil(program.share * source.messages))
            peak_rss = process.peak_rss()
            if program.share == 1:
                await settled(output)
            end = process.stop()
        if program.transactional:
            written, verified = await verify_committed(source.bootstrap, source.topic, topic, program)
        else:
            ends = await output.each()
            written, verified = sum(ends), await verify(source.bootstrap, source.topic, topic, ends, program)
        if not program.share * source.messages <= written <= source.messages:
            raise BenchmarkError(f"{name} wrote {written} outputs for {source.messages} inputs")
    return Run(
        classes=source.classes,
        messages=math.ceil(program.share * source.messages),
        program=name,
        round=turn,
        **asdict(span),
        lifetime_cpu_seconds=end.cpu_seconds,
        peak_rss=peak_rss,
        verified=verified,
    )


@asynccontextmanager
async def filled_input(bootstrap: str, classes: int, messages: int, batch_records: int | None) -> AsyncIterator[Input]:
    """An input topic with so many messages, and a dead-letter topic; removed afterwards."""
    topic, dead_letters = f"input-{classes}", f"dead-letters-{classes}"
    await create_topic(bootstrap, topic)
    await create_topic(bootstrap, dead_letters, {"max.message.bytes": DEAD_LETTER_BYTES})
    try:
        print(f"\nK = {classes}: writing {messages} messages", flush=True)
        async with Filler(bootstrap, topic, Messages(classes), batch_records) as filler:
            await filler.send(messages)
        yield Input(bootstrap, topic, dead_letters, classes, messages)
    finally:
        await delete_topic(bootstrap, topic)
        await delete_topic(bootstrap, dead_letters)


async def measure(bootstrap: str, plan: Plan) -> tuple[list[Run], list[str]]:
    """Carry the plan out on a running broker.

    Returns:
        The turns, and a line for each that has no figures.
    """
    runs, failures = [], []
    for classes in plan.classes:
        async with filled_input(bootstrap, classes, plan.messages_for(classes), plan.batch_records) as source:
            # Round 0 warms the broker, whose code is still being compiled, and is not counted.
            turns = [(0, plan.programs[0])]
            turns += [(turn, name) for turn in range(1, plan.rounds + 1) for name in plan.programs_for(classes)]
            for turn, name in turns:
                try:
                    run = await run_program(name, PROGRAMS[name], source, turn)
                except BenchmarkError as error:
                    failures.append(f"{name}, K = {classes}, round {turn}: {error}")
                    print(f"  {failures[-1]}", flush=True)
                    continue
                _show(run)
                if turn:
                    runs.append(run)
                await asyncio.sleep(REST_SECONDS)
    return runs, failures


def _show(run: Run) -> None:
    turn = f"round {run.round}" if run.round else "warm-up"
    print(
        f"  {turn:<8} {run.program:<26} {run.rate:>10,.0f}/s  {run.cpu_seconds:6.3f} CPU s per {PER:,}"
        f"  {run.peak_rss / (1 << 20):6.0f} MiB",
        flush=True,
    )


def summarise(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Medians by classes and program, and how the service compares."""
    groups: defaultdict[tuple[int, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.classes, run.program].append(run)
    medians = {key: statistics.median(run.rate for run in group) for key, group in groups.items()}
    return [
        {
            "classes": classes,
            "messages": group[0].messages,
            "program": program,
            "rounds": len(group),
            "rate": medians[classes, program],
            "lowest_rate": min(run.rate for run in group),
            "highest_rate": max(run.rate for run in group),
            "cpu_seconds": statistics.median(run.cpu_seconds for run in group),
            "peak_rss": statistics.median(run.peak_rss for run in group),
            "service_times_faster": (
                medians[classes, SERVICE] / medians[classes, program] if (classes, SERVICE) in medians else None
            ),
        }
        for (classes, program), group in groups.items()
    ]


def available(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What is to be known about the programs that can be built here; a line about each that cannot.

    Raises:
        BenchmarkError: none can.
    """
    programs = {}
    for name in names:
        try:
            programs[name] = {"versions": dict(PROGRAMS[name].versions()), "notes": PROGRAMS[name].notes}
        except Unavailable as missing:
            print(f"Without {name}: {missing}", flush=True)
    if not programs:
        raise BenchmarkError("None of the programs can be built here")
    return programs


def execute(plan: Plan) -> dict[str, Any]:
    """Start a broker, measure, and return everything that is to be known about it."""
    on_tmpfs = machine.fits_in_memory(plan.log_bytes())
    about = machine.describe(on_tmpfs=on_tmpfs)
    machine.warn_if_busy(about["load_before"])
    # Environments are built before anything is measured.
    programs = available(plan.programs)
    plan = replace(plan, programs=list(programs))
    # Removed logs free their memory soon, or those of several runs would add up.
    properties = {"log.segment.delete.delay.ms": "500"}
    with Broker(BrokerConfig(benchmark=True, tmpfs=on_tmpfs, properties=properties), progress=print) as broker:
        runs, failures = asyncio.run(measure(broker.bootstrap_servers, plan))
    if not runs:
        raise BenchmarkError("No program has a figure")
    return {
        "command": plan.command(),
        "quick": plan.quick,
        "machine": about,
        "partitions": PARTITIONS,
        "input_batch_bytes": None if plan.batch_records else BATCH_BYTES,
        "input_batch_records": plan.batch_records,
        "programs": programs,
        "summary": summarise(runs),
        "failures": failures,
        "runs": [asdict(run) for run in runs],
    }


def _numbers(text: str) -> list[int]:
    numbers = [int(number) for number in text.split(",")]
    if min(numbers) < 1:
        raise ValueError(text)
    return numbers


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(PROGRAMS):
        raise argparse.ArgumentTypeError(f"no such program: {', '.join(unknown)}; there are {', '.join(PROGRAMS)}")
    return names


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure throughput on an embedded Apache Kafka."
    )
    parser.add_argument("--classes", type=_numbers, default=[100], help="logits in a message; several as in 10,100")
    parser.add_argument("--messages", type=int, help="messages in each input topic; by default, by the classes")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each program (5)")
    parser.add_argument(
        "--programs",
        type=_names,
        default=COMPARED,
        help=f"of {','.join(PROGRAMS)} (all but the service's own variants of being observed)",
    )
    parser.add_argument("--quick", action="store_true", help="one round, few messages: does it work at all?")
    parser.add_argument(
        "--batch-records",
        type=int,
        metavar="N",
        help="record batches of 1 to N records in the input, as producers without linger write them",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/performance.md")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    # So that what was started is ended: as an exception SIGTERM passes through all `with` blocks.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    given = _arguments()
    rounds = 1 if given.quick else given.rounds
    plan = Plan(given.classes, given.messages, rounds, given.programs, given.quick, given.batch_records)
    try:
        results = execute(plan)
    except BenchmarkError as error:
        sys.exit(f"bench: {error}")
    print("\n" + report.plain_table(results))
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    if given.write_docs:
        report.publish(results)


if __name__ == "__main__":
    main()
