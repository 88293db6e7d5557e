"""What happens when instances are added: throughput, cost, memory; and is every answer right while they come and go?

    scripts/bench scale-out --json scale-out.json --write-docs

For each guarantee, on an input topic of 12 partitions, 1, 2 and 4 instances take turns, round after round. In a turn
all of them are started at once on a backlog, and the ends of the output's partitions are looked at every 20 ms, as in
throughput.py: rate and processor time, of the instances and of the broker, are those of the span between 5 % and 100 %
of the messages. Then a turn each at a low, fixed rate (`traffic.py`). A turn in which an instance failed, or an output
is missing, repeated or wrong, has no figures. At last `chaos/` has the group scaled up and down under load, by the
fault `scale` alone, on three brokers, and judges all answers.

What a message costs the instances and the broker is what docs/sizing.md computes with (`capacity.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
import time
from collections import defaultdict
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aiokafka import AIOKafkaConsumer

from benchmarks import machine, report
from benchmarks.capacity import PER, Costs
from benchmarks.environments import own_versions
from benchmarks.groups import PARTITIONS, Group, Stand
from benchmarks.kafka import EndOffsets, partitions
from benchmarks.latency import answer, cpu_shares, traffic
from benchmarks.load import Filler, Messages
from benchmarks.processes import BenchmarkError
from benchmarks.programs import EXACTLY_ONCE, PROGRAMS, SERVICE, Place
from benchmarks.scaled_storms import RATE, storms
from benchmarks.throughput import REST_SECONDS, SECONDS_BETWEEN_LOOKS, STALLED_SECONDS, START_OF_SPAN, settled
from benchmarks.traffic import FLUSH_SECONDS
from benchmarks.verification import verify, verify_committed
from service.broker import Broker, BrokerConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

# By guarantee, the program that works so.
GUARANTEES: Final = {"at_least_once": SERVICE, "exactly_once": EXACTLY_ONCE}
INSTANCES: Final = (1, 2, 4)
CLASSES: Final = 100
MESSAGES: Final = 800_000
QUICK_MESSAGES: Final = 60_000
# Of a record in a batch, beside key and value: lengths, attributes, offset and timestamp.
FRAMING_BYTES: Final = 10
# A share of the rate: what is measured at another one is not comparable.
LEAST_RATE_KEPT: Final = 0.95
# Of each partition, where outputs are compared: its first and last ones, and some between.
PLACES: Final = 3
SAMPLED_SECONDS: Final = 10
BROKER_PROPERTIES: Final = {
    # Removed logs free their memory soon, or those of several turns would add up.
    "log.segment.delete.delay.ms": "500",
    # So long a new group gathers, and again when another member has come: instances that start together join together.
    "group.initial.rebalance.delay.ms": "1000",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Attributes:
        guarantees: some of `GUARANTEES`.
        messages: of the backlog.
        rounds: how often each number of instances has its turns.
        rate: messages a second, of the turns at a low rate.
        seconds: how long these last.
        storm_seconds: how long the group is scaled up and down; 0 for not at all.
        quick: a try rather than a measurement.
    """

    guarantees: Sequence[str]
    messages: int
    rounds: int
    rate: int
    seconds: float
    storm_seconds: float
    quick: bool

    def command(self) -> str:
        """What to type for the same again."""
        options = f"--guarantee {','.join(self.guarantees)} --messages {self.messages} --rounds {self.rounds}"
        options += f" --rate {self.rate} --seconds {self.seconds:g} --storm-seconds {self.storm_seconds:g}"
        return f"scripts/bench scale-out {options}{' --quick' if self.quick else ''}"

    def log_bytes(self) -> int:
        """Most bytes in the broker's logs: the backlog, its outputs, and those of the turn before."""
        return 3 * self.messages * (5 * CLASSES + 100)


@dataclass(frozen=True, slots=True)
class BacklogRun:
    """A turn on a backlog.

    Attributes:
        guarantee: of the service.
        instances: how many.
        round: from 1.
        rate: messages a second between 5 % and 100 %.
        cpu_seconds: of all instances for 100,000 messages, in the same span.
        broker_cpu_seconds: the same of the broker.
        peak_rss: most bytes of memory of an instance, of the one that took most.
        consumed_seconds: from the start of the processes to the first output of the last partition.
        rebalances: most assignments that an instance has had.
        verified: how many outputs were compared with what they should be.
    """

    guarantee: str
    instances: int
    round: int
    rate: float
    cpu_seconds: float
    broker_cpu_seconds: float
    peak_rss: int
    consumed_seconds: float
    rebalances: int
    verified: int


@dataclass(frozen=True, slots=True)
class SteadyRun:
    """A turn at a low rate.

    Attributes:
        guarantee: of the service.
        instances: how many.
        round: from 1.
        cpu_share: processor seconds a second, of all instances.
        broker_cpu_share: the same of the broker.
        rate_kept: messages a second that the sender managed.
    """

    guarantee: str
    instances: int
    round: int
    cpu_share: float
    broker_cpu_share: float
    rate_kept: float


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at a moment.

    Attributes:
        at: monotonic seconds.
        outputs: records in the output topic.
        members: processor seconds of all instances so far.
        broker: the same of the broker.
    """

    at: float
    outputs: int
    members: float
    broker: float


async def watch(group: Group, stand: Stand, output: EndOffsets, messages: int) -> tuple[Look, Look, float]:
    """Look until the outputs are complete; the first and the last look of the span, and `consumed_seconds`.

    Raises:
        BenchmarkError: an instance ended, or there was no more output.
    """
    begin: Look | None = None
    consumed: float | None = None
    before, moved_at = 0, group.started
    while True:
        ends = await output.each()
        now, count = time.monotonic(), sum(ends)
        if consumed is None and min(ends) > 0:
            consumed = now - group.started
        if count > before:
            before, moved_at = count, now
        if begin is None and count >= START_OF_SPAN * messages:
            begin = Look(now, count, group.cpu_seconds(), stand.cpu_seconds())
        if count >= messages and begin is not None:
            if count == begin.outputs:
                raise BenchmarkError(f"{messages} messages are too few: all of them came between two looks")
            return begin, Look(now, count, group.cpu_seconds(), stand.cpu_seconds()), consumed or now - group.started
        group.check()
        if now - moved_at > STALLED_SECONDS:
            raise BenchmarkError(f"no output for {STALLED_SECONDS} s after {count}:\n{group.members[0].tail()}")
        # From look to look, not from answer to question.
        await asyncio.sleep(max(0.0, now + SECONDS_BETWEEN_LOOKS - time.monotonic()))


async def count_and_verify(place: Place, guarantee: str, output: EndOffsets, messages: int) -> int:
    """Count the outputs and compare some of them with their inputs; how many.

    Raises:
        BenchmarkError: some are missing, repeated or wrong.
    """
    program = PROGRAMS[GUARANTEES[guarantee]]
    source, target = place.input_topic, place.output_topic
    if program.transactional:
        written, verified = await verify_committed(place.bootstrap, source, target, program, PARTITIONS)
    else:
        ends = await output.each()
        written, verified = sum(ends), await verify(place.bootstrap, source, target, ends, program, PLACES)
    if written != messages:
        raise BenchmarkError(f"{written} outputs for {messages} inputs")
    return verified


@dataclass(frozen=True, slots=True)
class Backlog:
    """A filled input topic, and a topic for dead letters."""

    topic: str
    dead_letters: str
    messages: int


async def backlog_run(stand: Stand, backlog: Backlog, guarantee: str, instances: int, turn: int) -> BacklogRun:
    """Give some instances their turn on the backlog.

    Raises:
        BenchmarkError: they did not do what they should.
    """
    async with stand.topic("output") as topic, EndOffsets(stand.bootstrap, topic, PARTITIONS) as output:
        place = Place(stand.bootstrap, backlog.topic, topic, backlog.dead_letters, f"group-{topic}")
        with ExitStack() as stack:
            group = Group(stack, PROGRAMS[GUARANTEES[guarantee]], instances, place)
            first, last, consumed = await watch(group, stand, output, backlog.messages)
            peak = max(member.peak_rss() for member in group.members)
            await settled(output)
            had = group.assignments()
            await group.stop()
        verified = await count_and_verify(place, guarantee, output, backlog.messages)
    measured = last.outputs - first.outputs
    return BacklogRun(
        guarantee=guarantee,
        instances=instances,
        round=turn,
        rate=measured / (last.at - first.at),
        cpu_seconds=(last.members - first.members) * PER / measured,
        broker_cpu_seconds=(last.broker - first.broker) * PER / measured,
        peak_rss=peak,
        consumed_seconds=consumed,
        rebalances=max(map(len, had)),
        verified=verified,
    )


async def steady_run(stand: Stand, plan: Plan, guarantee: str, instances: int, turn: int) -> SteadyRun:
    """Give some instances their turn at a low rate.

    Raises:
        BenchmarkError: they did not do what they should.
    """
    async with AsyncExitStack() as stack:
        source, target, dead_letters = [
            await stack.enter_async_context(stand.topic(kind)) for kind in ("input", "output", "dead-letters")
        ]
        place = Place(stand.bootstrap, source, target, dead_letters, f"group-{target}")
        output = await stack.enter_async_context(EndOffsets(stand.bootstrap, target, PARTITIONS))
        program = PROGRAMS[GUARANTEES[guarantee]]
        group = Group(stack.enter_context(ExitStack()), program, instances, place)
        await group.balanced()
        sending = await stack.enter_async_context(
            traffic("send", stand.bootstrap, place.input_topic, plan.rate, plan.seconds, CLASSES, PARTITIONS)
        )
        ours, the_brokers = await cpu_shares(sending, [group.cpu_seconds, stand.cpu_seconds], plan.seconds)
        async with asyncio.timeout(plan.seconds + FLUSH_SECONDS):
            said = await answer(sending)
        await settled(output)
        await group.stop()
        if program.transactional:
            written, _ = await verify_committed(stand.bootstrap, source, target, program, PARTITIONS)
        else:
            written = await output.total()
        if written != said["sent"]:
            raise BenchmarkError(f"{written} outputs for {said['sent']} inputs")
        if said["rate"] < LEAST_RATE_KEPT * plan.rate:
            raise BenchmarkError(f"the sender managed {said['rate']:,.0f} messages a second only")
    return SteadyRun(guarantee, instances, turn, ours, the_brokers, said["rate"])


async def fill(stand: Stand, filler: Filler, messages: int) -> float:
    """Write messages to the backlog; the broker's processor seconds for 100,000 of them."""
    before = stand.cpu_seconds()
    await filler.send(messages)
    return (stand.cpu_seconds() - before) * PER / messages


async def record_bytes(bootstrap: str, topic: str) -> float:
    """Mean size of the first records of a partition, as they lie in its log uncompressed.

    Raises:
        BenchmarkError: none can be read.
    """
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap) as consumer:
        (first, *_) = partitions(topic, PARTITIONS)
        consumer.assign([first])
        await consumer.seek_to_beginning(first)
        found = (await consumer.getmany(first, timeout_ms=SAMPLED_SECONDS * 1000)).get(first, [])
    if not found:
        raise BenchmarkError(f"no record of {topic} could be read")
    return statistics.fmean(len(record.key or b"") + len(record.value) + FRAMING_BYTES for record in found)


class Measurement:
    """The turns of a plan, as they become known.

    Attributes:
        backlog: turns on the backlog.
        steady: turns at the low rate.
        failures: a line for each turn without figures.
        fill: the broker's processor seconds for 100,000 messages that were written.
        input_bytes: of a message.
        output_bytes: of an output.
    """

    def __init__(self, stand: Stand, plan: Plan) -> None:
        """Measure nothing yet."""
        self.backlog: list[BacklogRun] = []
        self.steady: list[SteadyRun] = []
        self.failures: list[str] = []
        self.fill = 0.0
        self.input_bytes = 0.0
        self.output_bytes = 0.0
        self._stand, self._plan = stand, plan

    async def run(self) -> None:
        """Fill the backlog and let the numbers of instances take turns."""
        stand, plan = self._stand, self._plan
        async with stand.topic("backlog") as topic, stand.topic("dead-letters") as dead_letters:
            half = plan.messages // 2
            async with Filler(stand.bootstrap, topic, Messages(CLASSES), partitions=PARTITIONS) as filler:
                print(f"writing {plan.messages} messages", flush=True)
                # The broker's code is still being compiled: the first half, and a turn on it, are not counted.
                await fill(stand, filler, half)
                await self._sample(Backlog(topic, dead_letters, half))
                self.fill = await fill(stand, filler, plan.messages - half)
            whole = Backlog(topic, dead_letters, plan.messages)
            for turn in range(1, plan.rounds + 1):
                for guarantee in plan.guarantees:
                    for instances in INSTANCES:
                        await self._backlog_turn(whole, guarantee, instances, turn)
        # Single messages take other ways through the broker, so its code is compiled once more: round 0 is not counted.
        await self._steady_turn(plan.guarantees[0], 1, 0)
        for turn in range(1, plan.rounds + 1):
            for guarantee in plan.guarantees:
                for instances in INSTANCES:
                    await self._steady_turn(guarantee, instances, turn)

    async def _sample(self, backlog: Backlog) -> None:
        """Let one instance work, and look at how large records are."""
        stand = self._stand
        self.input_bytes = await record_bytes(stand.bootstrap, backlog.topic)
        async with stand.topic("output") as topic, EndOffsets(stand.bootstrap, topic, PARTITIONS) as output:
            place = Place(stand.bootstrap, backlog.topic, topic, backlog.dead_letters, f"group-{topic}")
            with ExitStack() as stack:
                group = Group(stack, PROGRAMS[SERVICE], 1, place)
                await watch(group, stand, output, backlog.messages)
                await group.stop()
            self.output_bytes = await record_bytes(stand.bootstrap, topic)

    async def _backlog_turn(self, backlog: Backlog, guarantee: str, instances: int, turn: int) -> None:
        try:
            run = await backlog_run(self._stand, backlog, guarantee, instances, turn)
        except (BenchmarkError, TimeoutError) as error:
            self._fail(f"{guarantee}, {instances} on the backlog, round {turn}", error)
        else:
            self.backlog.append(run)
            print(
                f"  round {turn} {guarantee:<14} {instances} on the backlog {run.rate:>10,.0f}/s"
                f"  {run.cpu_seconds:6.3f} CPU s per {PER:,}, the broker {run.broker_cpu_seconds:6.3f}"
                f"  {run.peak_rss / (1 << 20):5.0f} MiB  all consumed after {run.consumed_seconds:5.2f} s"
                f"  {run.rebalances} assignment(s)",
                flush=True,
            )
        await asyncio.sleep(REST_SECONDS)

    async def _steady_turn(self, guarantee: str, instances: int, turn: int) -> None:
        try:
            run = await steady_run(self._stand, self._plan, guarantee, instances, turn)
        except (BenchmarkError, TimeoutError) as error:
            self._fail(f"{guarantee}, {instances} at {self._plan.rate} a second, round {turn}", error)
        else:
            if turn:
                self.steady.append(run)
            print(
                f"  round {turn} {guarantee:<14} {instances} at {self._plan.rate} a second"
                f"  CPU {100 * run.cpu_share:5.1f} %, the broker {100 * run.broker_cpu_share:5.1f} %",
                flush=True,
            )

    def _fail(self, what: str, error: Exception) -> None:
        self.failures.append(f"{what}: {str(error) or 'did not end'}")
        print(f"  {self.failures[-1]}", flush=True)


def summarise(backlog_runs: Sequence[BacklogRun], steady_runs: Sequence[SteadyRun]) -> list[dict[str, Any]]:
    """Medians by guarantee and number of instances; what was not measured is `None`."""
    backlog: defaultdict[tuple[str, int], list[BacklogRun]] = defaultdict(list)
    steady: defaultdict[tuple[str, int], list[SteadyRun]] = defaultdict(list)
    for run in backlog_runs:
        backlog[run.guarantee, run.instances].append(run)
    for low in steady_runs:
        steady[low.guarantee, low.instances].append(low)

    def median(runs: Sequence[object], name: str) -> float | None:
        return statistics.median(getattr(run, name) for run in runs) if runs else None

    return [
        {
            "guarantee": guarantee,
            "instances": instances,
            "rate": median(runs, "rate"),
            "lowest_rate": min((run.rate for run in runs), default=None),
            "highest_rate": max((run.rate for run in runs), default=None),
            **{name: median(runs, name) for name in ("cpu_seconds", "broker_cpu_seconds", "consumed_seconds")},
            "peak_rss": max((run.peak_rss for run in runs), default=None),
            **{name: median(at_rate, name) for name in ("cpu_share", "broker_cpu_share")},
        }
        for guarantee, instances in sorted({*backlog, *steady})
        for runs, at_rate in [(backlog[guarantee, instances], steady[guarantee, instances])]
    ]


def costs(
    rows: Sequence[dict[str, Any]], guarantee: str, write: float, record_bytes: tuple[float, float]
) -> Costs | None:
    """What a message costs, by the dearest of the numbers of instances; `None` if that was not measured.

    Rounded as they are printed: what docs/sizing.md computes from them can be computed from the page.
    """
    ours = [row for row in rows if row["guarantee"] == guarantee and row["cpu_seconds"] is not None]
    if not ours:
        return None
    return Costs(
        service=round(max(row["cpu_seconds"] for row in ours), 3),
        write=round(write, 3),
        serve=round(max(row["broker_cpu_seconds"] for row in ours), 3),
        input_bytes=round(record_bytes[0]),
        output_bytes=round(record_bytes[1]),
    )


def execute(plan: Plan) -> dict[str, Any]:
    """Start a broker, measure, then the storms; return everything that is to be known about it.

    Raises:
        BenchmarkError: nothing could be measured.
    """
    on_tmpfs = machine.fits_in_memory(plan.log_bytes())
    about = machine.describe(on_tmpfs=on_tmpfs)
    machine.warn_if_busy(about["load_before"])
    config = BrokerConfig(benchmark=True, tmpfs=on_tmpfs, properties=BROKER_PROPERTIES)
    with Broker(config, progress=print) as broker:
        measured = Measurement(Stand(broker), plan)
        asyncio.run(measured.run())
    scaled, failures = asyncio.run(storms(plan.guarantees if plan.storm_seconds else [], plan.storm_seconds))
    rows = summarise(measured.backlog, measured.steady)
    if not rows:
        raise BenchmarkError("No turn has a figure")
    guarantee = plan.guarantees[0]
    found = costs(rows, guarantee, measured.fill, (measured.input_bytes, measured.output_bytes))
    return {
        "command": plan.command(),
        "quick": plan.quick,
        "machine": about,
        "versions": own_versions("softmax-service", "aiokafka", "msgpack", "numpy", "uvloop"),
        "classes": CLASSES,
        "partitions": PARTITIONS,
        "messages": plan.messages,
        "planned_rounds": plan.rounds,
        "steady_rate": plan.rate,
        "scale_out": rows,
        "costs_guarantee": guarantee,
        "costs": asdict(found) if found else None,
        "storms": scaled,
        "storm_rate": RATE,
        "failures": [*measured.failures, *failures],
        "backlog_runs": [asdict(run) for run in measured.backlog],
        "steady_runs": [asdict(run) for run in measured.steady],
    }


def _guarantees(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(GUARANTEES):
        raise argparse.ArgumentTypeError(f"no such guarantee: {', '.join(sorted(unknown))}")
    return names


def _plan() -> tuple[Plan, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="scripts/bench scale-out", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--guarantee",
        type=_guarantees,
        default=list(GUARANTEES),
        help=f"of {','.join(GUARANTEES)}, which are both measured by default; the costs are those of the first",
    )
    parser.add_argument("--messages", type=int, default=MESSAGES, help=f"of the backlog ({MESSAGES:,})")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each number of instances (2)")
    parser.add_argument("--rate", type=int, default=2000, help="messages a second of the turns at a low rate (2000)")
    parser.add_argument("--seconds", type=float, default=5, help="how long these last (5)")
    parser.add_argument(
        "--storm-seconds",
        type=float,
        default=10,
        help="of scaling up and down, which is done at least once; 0 for none (10)",
    )
    parser.add_argument("--quick", action="store_true", help="one round, few messages: does it work at all?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--write-docs", action="store_true", help="put the section into docs/performance.md and the example into sizing"
    )
    given = parser.parse_args()
    messages, rounds = (QUICK_MESSAGES, 1) if given.quick else (given.messages, given.rounds)
    plan = Plan(given.guarantee, messages, rounds, given.rate, given.seconds, given.storm_seconds, given.quick)
    return plan, given


def main() -> None:
    """Measure, print, write; exit code 1 if a turn failed or an answer was wrong."""
    # So that what was started is ended: as an exception SIGTERM passes through all `with` blocks.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    plan, given = _plan()
    try:
        results = execute(plan)
    except BenchmarkError as error:
        sys.exit(f"bench: {error}")
    print("\n" + report.scale_out(results))
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    if given.write_docs:
        report.publish(results)
    if results["failures"] or not all(row["sound"] for row in results["storms"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
