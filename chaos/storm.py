"""The storm: a cluster, the service, a load, faults; then calm, and the verdict."""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

from chaos.cluster import DEAD_LETTER, INPUT, MIDDLE, MIDDLE_DEAD_LETTER, OUTPUT, stage
from chaos.faults import FAULTS, SESSION_SECONDS, Fault, Scene
from chaos.fleet import Fleet
from chaos.ledger import Ledger
from chaos.load import Load
from chaos.readers import Reader
from chaos.verdict import Strike, decide

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from chaos.cluster import Stage
    from chaos.fleet import Exit
    from chaos.verdict import Verdict

# The service alone, before the first fault.
CALM_SECONDS: Final = 2.0
# When all has been answered: time to repeat what should not be.
AFTERMATH_SECONDS: Final = 3.0
# For the concurrent reader to read the last record that the final one has found.
MOMENT_SECONDS: Final = 1.0
MOST_PAUSE_SECONDS: Final = 4.0


@dataclass(frozen=True, slots=True)
class Options:
    """What kind of storm.

    Attributes:
        guarantee: what the service is told to promise, and the verdict looks for.
        minutes: how long faults are inflicted.
        seed: which faults in which order; how they fall together is the machine's.
        instances: of the service.
        rate: messages a second.
        faults: names of those that are inflicted.
        control: the safeguard that is switched off, or nothing.
        chained: whether two services follow each other, the second reading what the first writes.
        partitions: of each topic.
        settle_seconds: after the storm, how long to wait for the next answer while some are missing.
    """

    guarantee: str = "at_least_once"
    minutes: float = 2.0
    seed: int = 1
    instances: int = 3
    rate: float = 1000.0
    faults: Sequence[str] = tuple(FAULTS)
    control: str = ""
    chained: bool = False
    partitions: int = 6
    settle_seconds: float = 60.0

    @property
    def repeats_allowed(self) -> bool:
        """Whether some of the faults may make at-least-once repeat something."""
        return self.guarantee == "at_least_once" and not all(FAULTS[name].clean for name in self.faults)


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that came of a storm.

    Attributes:
        options: what was asked for.
        seconds: how long load was put on the service.
        messages: stored in the input topic.
        refused: how many of these must be dead letters.
        strikes: the faults, in their order.
        exits: of the service's processes.
        verdict: what the readers saw.
        logs: where the instances' logs are.
    """

    options: Options
    seconds: float
    messages: int
    refused: int
    strikes: Sequence[Strike]
    exits: Sequence[Exit]
    verdict: Verdict
    logs: Path

    @property
    def findings(self) -> Sequence[Exit]:
        """Ends of processes that nobody asked for."""
        return [exit_ for exit_ in self.exits if exit_.is_finding]

    @property
    def is_sound(self) -> bool:
        """Whether all is as promised."""
        return self.verdict.anomalies == 0 and not self.findings


async def storm(options: Options, tell: Callable[[str], None]) -> Outcome:
    """Run a storm; whatever happens, nothing of it runs afterwards.

    Args:
        options: what kind.
        tell: is given a line for people now and then.

    Raises:
        FleetError: the service does not accept its settings.
        LedgerError: the load could not be put on.
        ReaderError: the outcome could not be read.
        ClusterError: the cluster did not recover.
    """
    ledger = Ledger(options.partitions)
    logs = Path(tempfile.mkdtemp(prefix="softmax-chaos-"))
    tell(f"seed {options.seed}; the logs are in {logs}")
    async with stage(options.partitions) as here:
        bare = options.chained
        concurrent, final = (
            Reader(name, here.direct, ledger, options.partitions, bare=bare) for name in ("concurrent", "final")
        )
        load = Load(here.direct, ledger, options.partitions, options.rate, bare=bare)
        with concurrent:
            async with Fleet(logs, _settings(options, here), options.instances, options.control) as fleet:
                async with _loaded(load) as seconds:
                    scene = Scene(here, fleet, options.guarantee, [load, concurrent, fleet])
                    strikes = await _rage(options, scene, tell)
                await here.whole()
                await _settle(ledger, concurrent, options.settle_seconds, tell)
                await fleet.stop()
            at_the_end = await asyncio.to_thread(final.read_to_the_end)
            await asyncio.sleep(MOMENT_SECONDS)
    verdict = decide(
        ledger.expected(), concurrent.reading, at_the_end, strikes, repeats_allowed=options.repeats_allowed
    )
    return Outcome(options, seconds(), len(ledger), ledger.refused(), strikes, fleet.exits, verdict, logs)


def _settings(options: Options, here: Stage) -> list[dict[str, object]]:
    """Of one service, or of two in a chain."""
    common = _common_settings(options, here)
    services = [(INPUT, OUTPUT, DEAD_LETTER)]
    if options.chained:
        services = [(INPUT, MIDDLE, DEAD_LETTER), (MIDDLE, OUTPUT, MIDDLE_DEAD_LETTER)]
    return [
        {
            **common,
            "kafka__group_id": f"chaos-{source}",
            "topics__input": source,
            "topics__output": target,
            "topics__dead_letter": dead_letter,
        }
        for source, target, dead_letter in services
    ]


def _common_settings(options: Options, here: Stage) -> dict[str, object]:
    return {
        "kafka__bootstrap_servers": here.relayed,
        "delivery__guarantee": options.guarantee,
        # Dead members and silent brokers are noticed within seconds: there are more faults in a storm then.
        "kafka__session_timeout_ms": int(SESSION_SECONDS * 1000),
        "kafka__request_timeout_ms": 2500,
        "delivery__drain_timeout_ms": 4000,
        "delivery__commit_interval_ms": 200,
        "http__port": 0,
        "log__format": "json",
    }


@asynccontextmanager
async def _loaded(load: Load) -> AsyncIterator[Callable[[], float]]:
    """Put the load on within the block, and some calm before it; give how many seconds it was on."""
    begun = time.monotonic()
    ended: list[float] = []
    load.start()
    try:
        await asyncio.sleep(CALM_SECONDS)
        yield lambda: ended[0] - begun
    finally:
        await asyncio.to_thread(load.stop)
        ended.append(time.monotonic())


async def _rage(options: Options, scene: Scene, tell: Callable[[str], None]) -> list[Strike]:
    """Inflict faults in both lanes until the time is over and the last ones are healed."""
    strikes: list[Strike] = []
    deadline = time.monotonic() + 60 * options.minutes
    async with asyncio.TaskGroup() as lanes:
        for lane in ("service", "kafka"):
            chosen = [FAULTS[name] for name in options.faults if FAULTS[name].lane == lane]
            if chosen:
                lanes.create_task(_lane(sequence(f"{options.seed} {lane}", chosen), scene, deadline, strikes, tell))
    return sorted(strikes, key=lambda strike: strike.begun)


def sequence(seed: str, faults: Sequence[Fault]) -> Iterator[tuple[Fault, Random]]:
    """Faults without end, each with random numbers of its own: all follow from the seed.

    All kinds come before one comes again.
    """
    random = Random(seed)  # noqa: S311 - must be the same each time
    while True:
        for fault in random.sample(faults, len(faults)):
            yield fault, Random(random.random())  # noqa: S311 - as above


async def _lane(
    sequence: Iterator[tuple[Fault, Random]],
    scene: Scene,
    deadline: float,
    strikes: list[Strike],
    tell: Callable[[str], None],
) -> None:
    for fault, random in sequence:
        pause = random.uniform(0, MOST_PAUSE_SECONDS)
        if time.monotonic() + pause > deadline:
            return
        await asyncio.sleep(pause)
        for part in scene.watched:
            part.check()
        begun = time.monotonic()
        detail = await fault.inflict(scene, random)
        strikes.append(Strike(fault.name, detail, begun, time.monotonic()))
        tell(f"{fault.name}: {detail}")
        if fault.lane == "kafka":
            await scene.stage.whole()  # never two brokers behind at once: that would be more than is promised


async def _settle(ledger: Ledger, concurrent: Reader, patience: float, tell: Callable[[str], None]) -> None:
    """Wait until all has been answered, or nothing more is."""
    answered, changed = -1, time.monotonic()
    while answered < len(ledger) and time.monotonic() - changed < patience:
        if concurrent.answered != answered:
            answered, changed = concurrent.answered, time.monotonic()
        await asyncio.sleep(0.2)
    tell(f"calm: {answered} of {len(ledger)} answered")
    await asyncio.sleep(AFTERMATH_SECONDS)
