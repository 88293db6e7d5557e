"""Does it last? The service runs for an hour at a share of what it can carry: its memory, its lag, its latency.

    scripts/soak --watch --json soak.json --write-docs

What it can carry is measured first, for a minute, under the same loader, which sends whenever it may. Then the loader
keeps to its rate. In both it stays a bounded number of bytes ahead of the outputs, so that the topics, which keep
little, never drop a record that has not been read. A portion's age is counted from before it was sent until the looks
at the output's ends, every 20 ms, have found all of it. With `--watch` Prometheus scrapes the service meanwhile, with
the deployed rules, and alerts that come are written down (`watched.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
import sys
import tempfile
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks import machine, report
from benchmarks.environments import own_versions
from benchmarks.kafka import DEAD_LETTER_BYTES, EndOffsets, committed, create_topic
from benchmarks.load import Filler, Messages
from benchmarks.processes import BenchmarkError, MeasuredProcess
from benchmarks.programs import SERVICE, Place, service_command, service_environment
from benchmarks.watched import Watch, free_port
from service.broker import Broker, BrokerConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB: Final = 1 << 20
# All that waits could lie in one partition and would still be kept there.
AHEAD_BYTES: Final = 64 * MIB
RETAINED_BYTES: Final = 128 * MIB
SEGMENT_BYTES: Final = 32 * MIB
# Two topics, four partitions each, and what has been cut off but not yet removed.
LOG_BYTES: Final = 8 * (RETAINED_BYTES + 4 * SEGMENT_BYTES)
PORTION: Final = 20_000
# At a rate: small, so that the load is even.
PACED_PORTION: Final = 5_000
CAPACITY_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 0.02
SAMPLE_SECONDS: Final = 1.0
START_SECONDS: Final = 60
DRAIN_SECONDS: Final = 60
STALLED_SECONDS: Final = 60
# The first minutes belong to the allocator, which finds its size.
SETTLED_SECONDS: Final = 120
GROUP: Final = "soak"
RETENTION: Final = {"retention.bytes": RETAINED_BYTES, "segment.bytes": SEGMENT_BYTES}
BROKER_PROPERTIES: Final = {"log.retention.check.interval.ms": "2000", "log.segment.delete.delay.ms": "500"}


@dataclass(frozen=True, slots=True)
class Sample:
    """A look at the service: seconds since the load began, bytes of memory, outputs so far, messages without one."""

    second: float
    rss: int
    outputs: int
    waiting: int


class Soak:
    """The service under load."""

    def __init__(self, process: MeasuredProcess, filler: Filler, output: EndOffsets, ahead: int) -> None:
        """Send nothing yet; `ahead` messages at most are to wait for their outputs."""
        self.samples: list[Sample] = []
        # Of each portion that is complete: when it was sent, in seconds since the load began, and its age in seconds.
        self.ages: list[tuple[float, float]] = []
        self.sent = 0
        self.outputs = 0
        self._portions: deque[tuple[int, float]] = deque()
        self._started = 0.0
        self._process, self._filler, self._output, self._ahead = process, filler, output, ahead

    async def capacity(self, seconds: float) -> float:
        """Messages a second under as much load as it takes, once it works.

        Raises:
            BenchmarkError: it ended or stood still.
        """
        await self._send(PORTION)
        await self._wait_for_outputs(START_SECONDS)
        await self._under_load(seconds, math.inf)
        first, *_, last = [sample for sample in self.samples if sample.second >= seconds / 2]
        return (last.outputs - first.outputs) / (last.second - first.second)

    async def run(self, seconds: float, rate: float) -> None:
        """Load it for so long with so many messages a second.

        Raises:
            BenchmarkError: it ended or stood still.
        """
        await self.drain()
        self.samples, self.ages = [], []
        await self._under_load(seconds, rate)

    async def drain(self) -> None:
        """Wait for the last outputs.

        Raises:
            BenchmarkError: they do not come.
        """
        await self._wait_for_outputs(DRAIN_SECONDS)

    async def look(self) -> int:
        """How many messages wait for their outputs now."""
        ends = await self._output.each()
        self.outputs = sum(ends)
        # A portion is spread evenly.
        complete, now = min(ends) * len(ends), time.monotonic()
        while self._portions and self._portions[0][0] <= complete:
            _, sent_at = self._portions.popleft()
            self.ages.append((sent_at - self._started, now - sent_at))
        return self.sent - self.outputs

    async def _under_load(self, seconds: float, rate: float) -> None:
        self._started = time.monotonic()
        watching = [asyncio.create_task(self._sample()), asyncio.create_task(self._watch())]
        try:
            await self._feed(seconds, rate, watching)
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
        for task in watching:
            if not task.cancelled():
                task.result()

    async def _feed(self, seconds: float, rate: float, watching: Sequence[asyncio.Task[None]]) -> None:
        portion = PORTION if rate == math.inf else PACED_PORTION
        begin = self.sent
        while (passed := time.monotonic() - self._started) < seconds and not any(task.done() for task in watching):
            early = (self.sent + portion - begin) / rate - passed
            if early > 0:
                await asyncio.sleep(early)
            elif self.sent - self.outputs + portion > self._ahead:
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                await self._send(portion)

    async def _send(self, count: int) -> None:
        now = time.monotonic()
        self.sent += count
        self._portions.append((self.sent, now))
        await self._filler.send(count)

    async def _wait_for_outputs(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while await self.look() > 0:
            self._process.check()
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{self.sent - self.outputs} outputs missing:\n{self._process.tail()}")
            await asyncio.sleep(PAUSE_SECONDS)

    async def _watch(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(PAUSE_SECONDS)

    async def _sample(self) -> None:
        moved_at, before = self._started, self.outputs
        for number in range(1, sys.maxsize):
            await asyncio.sleep(max(0.0, self._started + number * SAMPLE_SECONDS - time.monotonic()))
            self._process.check()
            now = time.monotonic()
            waiting = self.sent - self.outputs
            self.samples.append(Sample(now - self._started, self._process.rss(), self.outputs, waiting))
            if self.outputs > before:
                moved_at, before = now, self.outputs
            elif now - moved_at > STALLED_SECONDS:
                raise BenchmarkError(f"No output for {STALLED_SECONDS} s:\n{self._process.tail()}")


async def soak(bootstrap: str, classes: int, seconds: float, share: float, *, watched: bool) -> dict[str, Any]:
    """Soak the service on a running broker, at a share of what it can carry; watch it, if asked to."""
    messages = Messages(classes)
    ahead = max(2 * PORTION, AHEAD_BYTES // messages.mean_bytes)
    port = free_port()
    place = Place(bootstrap, "soak-input", "soak-output", "soak-dead-letters", GROUP)
    await create_topic(bootstrap, place.input_topic, RETENTION)
    await create_topic(bootstrap, place.output_topic, RETENTION)
    await create_topic(bootstrap, place.dead_letter_topic, {"max.message.bytes": DEAD_LETTER_BYTES})
    async with (
        Filler(bootstrap, place.input_topic, messages) as filler,
        EndOffsets(bootstrap, place.output_topic) as output,
    ):
        given = {**service_environment(place), "SOFTMAX_HTTP__PORT": str(port)}
        with MeasuredProcess(SERVICE, service_command(), given) as process:
            run = Soak(process, filler, output, ahead)
            capacity = await run.capacity(min(CAPACITY_SECONDS, seconds))
            print(f"It carries {capacity:,.0f} messages a second; now {share:.0%} of that", flush=True)
            seen = await _run(run, seconds, share * capacity, port if watched else None)
            waiting = await run.look()
            await run.drain()
            peak_rss = process.peak_rss()
            end = process.stop()
        outputs = await output.total()
    if outputs != run.sent:
        raise BenchmarkError(f"{outputs} outputs for {run.sent} inputs")
    return {
        "classes": classes,
        "seconds": run.samples[-1].second,
        "outputs": outputs,
        "capacity": capacity,
        "share": share,
        "most_ahead": ahead,
        "lag_at_end_of_load": waiting,
        "uncommitted_after_stop": run.sent - await committed(bootstrap, GROUP),
        "cpu_seconds": end.cpu_seconds,
        "peak_rss": peak_rss,
        **_trend(run.samples),
        **seen,
        "minutes": _minutes(run),
        "samples": [asdict(sample) for sample in run.samples],
    }


async def _run(run: Soak, seconds: float, rate: float, port: int | None) -> dict[str, Any]:
    """Run the load; return what Prometheus has seen of the service that listens on `port`, if it is to look."""
    if port is None:
        await run.run(seconds, rate)
        return {}
    with tempfile.TemporaryDirectory() as folder:
        async with Watch(Path(folder), port) as watch:
            await run.run(seconds, rate)
        return {"watched": {"watched_minutes": seconds / 60, "rate": round(rate), **watch.seen}}


def _trend(samples: list[Sample]) -> dict[str, float]:
    """The line through the sizes once they have settled, in a short run from its middle on."""
    start = min(SETTLED_SECONDS, samples[-1].second / 2)
    seconds, sizes = np.array([(s.second, s.rss / MIB) for s in samples if s.second >= start]).T
    slope, intercept = np.polyfit(seconds, sizes, 1)
    return {
        "slope_from_second": start,
        "rss_slope_mib_per_hour": float(slope) * 3600,
        "rss_scatter_mib": float(np.std(sizes - (slope * seconds + intercept))),
    }


def _minutes(run: Soak) -> list[dict[str, float]]:
    """Each minute's size at its end, its rate, most waiting and ages; the last may be a part of one."""
    samples_a_minute = round(60 / SAMPLE_SECONDS)
    minutes = []
    before = run.samples[0]
    for number, start in enumerate(range(0, len(run.samples), samples_a_minute), 1):
        within = run.samples[start : start + samples_a_minute]
        last = within[-1]
        rate = (last.outputs - before.outputs) / max(last.second - before.second, SAMPLE_SECONDS)
        ages = [age * 1000 for sent_at, age in run.ages if 60 * (number - 1) <= sent_at < 60 * number]
        p50, p99 = np.percentile(ages, (50, 99)).tolist() if ages else (math.nan, math.nan)
        most = max(sample.waiting for sample in within)
        minutes.append({"minute": number, "rss": last.rss, "rate": rate, "waiting": most, "p50_ms": p50, "p99_ms": p99})
        before = last
    return minutes


def execute(classes: int, minutes: float, share: float, *, watched: bool) -> dict[str, Any]:
    """Start a broker, soak, and return everything that is to be known about it."""
    on_tmpfs = machine.fits_in_memory(LOG_BYTES)
    about = machine.describe(on_tmpfs=on_tmpfs)
    machine.warn_if_busy(about["load_before"])
    config = BrokerConfig(benchmark=True, tmpfs=on_tmpfs, properties=BROKER_PROPERTIES)
    with Broker(config, progress=print) as broker:
        figures = asyncio.run(soak(broker.bootstrap_servers, classes, minutes * 60, share, watched=watched))
    options = f"--minutes {minutes:g} --classes {classes} --share {share:g}{' --watch' if watched else ''}"
    return {
        "command": f"scripts/soak {options}",
        "machine": about,
        "versions": own_versions("softmax-service", "aiokafka", "msgpack", "numpy", "uvloop"),
        **figures,
    }


def show(results: dict[str, Any]) -> None:
    """Print what matters."""
    for row in results["minutes"]:
        print(
            f"minute {row['minute']:>3}: {row['rss'] / MIB:7.1f} MiB  {row['rate']:>10,.0f} messages/s"
            f"  p50 {row['p50_ms']:5.0f}  p99 {row['p99_ms']:5.0f} ms"
        )
    print(f"peak RSS: {results['peak_rss'] / MIB:.1f} MiB")
    print(
        f"RSS slope from second {results['slope_from_second']:.0f}:"
        f" {results['rss_slope_mib_per_hour']:+.2f} MiB an hour (scatter {results['rss_scatter_mib']:.2f} MiB)"
    )
    print(f"waiting when the load ended: {results['lag_at_end_of_load']} of {results['outputs']}")
    print(f"not committed after the stop: {results['uncommitted_after_stop']}")
    if "watched" in results:
        print(f"alerts: {', '.join(results['watched']['alerts']) or 'none'}")


def main() -> None:
    """Soak, print, write."""
    # So that what was started is ended: as an exception SIGTERM passes through all `with` blocks.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Load the service for an hour.")
    parser.add_argument("--minutes", type=float, default=60, help="how long (60)")
    parser.add_argument("--classes", type=int, default=100, help="logits in a message (100)")
    parser.add_argument("--share", type=float, default=0.7, help="of what it can carry (0.7)")
    parser.add_argument("--watch", action="store_true", help="with Prometheus and the deployed alerts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--write-docs", action="store_true", help="put the section into docs/performance.md")
    given = parser.parse_args()
    try:
        results = execute(given.classes, given.minutes, given.share, watched=given.watch)
    except BenchmarkError as error:
        sys.exit(f"soak: {error}")
    show(results)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    if given.write_docs:
        report.publish(results)


if __name__ == "__main__":
    main()
