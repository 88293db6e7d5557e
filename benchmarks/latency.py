"""Latency of the service and of others, measured from outside at fixed rates.

    scripts/bench latency --json figures.json --write-docs

A sender writes messages at evenly spaced moments, without linger; a reader reads the outputs and tells how long after
that moment each of them came (`traffic.py`). The program's processor time is that of the same span. Programs take
turns; a program that loses or repeats a message has no figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import subprocess
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import machine, report
from benchmarks.kafka import DEAD_LETTER_BYTES, create_topic, delete_topic
from benchmarks.processes import BenchmarkError, MeasuredProcess
from benchmarks.programs import PROGRAMS, Place
from benchmarks.throughput import available
from service.broker import Broker, BrokerConfig

DEFAULT_PROGRAMS: Final = ("softmax-service", "forwarding", "confluent-loop")
RATES: Final = (1000, 5000, 20_000)
SECONDS: Final = 20.0
CLASSES: Final = 100
# Until the program has joined its group, and the reader has found the partitions.
SETTLE_SECONDS: Final = 4.0
QUIET_SECONDS: Final = 3.0
# A program that has fallen behind by more than this is not waited for.
PATIENCE_SECONDS: Final = 60.0
WARM_UP_SHARE: Final = 0.25


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
        sender_late_p99: how late the sender was itself.
    """

    rate: int
    program: str
    round: int
    p50: float
    p99: float
    p999: float
    worst: float
    cpu_share: float
    sender_late_p99: float


def _traffic(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.traffic", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ours


async def run_program(bootstrap: str, name: str, rate: int, seconds: float, turn: int) -> Run:
    """Give a program its turn.

    Raises:
        BenchmarkError: it did not do what it should.
    """
    topics = source, output, dead_letters = [f"{kind}-{uuid.uuid4().hex[:8]}" for kind in ("input", "output", "dead")]
    for topic in topics:
        large = {"max.message.bytes": DEAD_LETTER_BYTES} if topic == dead_letters else {}
        await create_topic(bootstrap, topic, large)
    program = PROGRAMS[name]
    place = Place(bootstrap, source, output, dead_letters, f"group-{output}")
    helpers: list[subprocess.Popen[str]] = []
    try:
        with MeasuredProcess(name, program.command(), program.environment(place)) as process:
            await asyncio.sleep(SETTLE_SECONDS)
            helpers.append(_traffic("read", bootstrap, output, max(QUIET_SECONDS, SETTLE_SECONDS)))
            helpers.append(_traffic("send", bootstrap, source, rate, seconds, CLASSES))
            await asyncio.sleep(1 + WARM_UP_SHARE * seconds)
            cpu, at = process.cpu_seconds(), time.monotonic()
            await asyncio.sleep((1 - WARM_UP_SHARE) * seconds - 1)
            cpu, at = process.cpu_seconds() - cpu, time.monotonic() - at
            answers = [await asyncio.to_thread(_answer, helper) for helper in reversed(helpers)]
            process.stop()
    finally:
        for helper in helpers:
            helper.kill()
            helper.wait()
        for topic in topics:
            await delete_topic(bootstrap, topic)
    sent, read = answers
    if not read["read"] == read["distinct"] == sent["sent"]:
        counts = f"{sent['sent']} sent, {read['read']} read, {read['distinct']} of them distinct"
        raise BenchmarkError(f"{name} at {rate}/s: {counts}")
    p50, p99, p999, worst = read["ages_ms"]
    return Run(rate, name, turn, p50, p99, p999, worst, cpu / at, sent["late_ms"][1])


def _answer(helper: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = helper.communicate(timeout=PATIENCE_SECONDS + SECONDS)
    answer: dict[str, Any] = json.loads(out)
    return answer


async def measure(bootstrap: str, given: argparse.Namespace) -> list[Run]:
    """Let the programs take turns at each rate; the first turn of all warms the broker and is not counted."""
    runs: list[Run] = []
    for rate in given.rates:
        turns = [(0, given.programs[0])] if rate == given.rates[0] else []
        turns += [(turn, name) for turn in range(1, given.rounds + 1) for name in given.programs]
        for turn, name in turns:
            run = await run_program(bootstrap, name, rate, given.seconds, turn)
            print(
                f"  {f'round {turn}' if turn else 'warm-up':<8} {rate:>6}/s {name:<18} p50 {run.p50:8.2f}"
                f"  p99 {run.p99:8.2f}  p99.9 {run.p999:8.2f} ms  CPU {100 * run.cpu_share:5.1f} %",
                flush=True,
            )
            if turn:
                runs.append(run)
    return runs


def summarise(runs: list[Run]) -> list[dict[str, Any]]:
    """Medians of the rounds, by rate and program."""
    numbers = ("p50", "p99", "p999", "worst", "cpu_share", "sender_late_p99")
    kinds = dict.fromkeys((run.rate, run.program) for run in runs)
    return [
        {
            "rate": rate,
            "program": program,
            "rounds": len(same),
            **{name: statistics.median(getattr(run, name) for run in same) for name in numbers},
        }
        for rate, program in kinds
        for same in [[run for run in runs if (run.rate, run.program) == (rate, program)]]
    ]


def main() -> None:
    """Measure, print, write."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parser = argparse.ArgumentParser(prog="scripts/bench latency", description="Measure latency at fixed rates.")
    parser.add_argument("--rates", type=lambda text: [int(rate) for rate in text.split(",")], default=list(RATES))
    parser.add_argument("--programs", type=lambda text: text.split(","), default=list(DEFAULT_PROGRAMS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--quick", action="store_true", help="does it work at all?")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/performance.md")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.seconds = 1, 6.0
    about = machine.describe(on_tmpfs=True)
    machine.warn_if_busy(about["load_before"])
    programs = available(given.programs)
    given.programs = list(programs)
    try:
        with Broker(BrokerConfig(benchmark=True, tmpfs=True), progress=print) as broker:
            runs = asyncio.run(measure(broker.bootstrap_servers, given))
    except BenchmarkError as error:
        sys.exit(f"bench: {error}")
    rates = ",".join(map(str, given.rates))
    options = [f"--rates {rates}", f"--programs {','.join(given.programs)}"]
    options += [f"--rounds {given.rounds}", f"--seconds {given.seconds:g}"]
    results = {
        "command": " ".join(["scripts/bench latency", *options]),
        "quick": given.quick,
        "machine": about,
        "programs": programs,
        "latency": summarise(runs),
        "runs": [asdict(run) for run in runs],
    }
    print("\n" + report.latency(results))
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    if given.write_docs:
        report.write_docs("latency", report.latency(results))


if __name__ == "__main__":
    main()
