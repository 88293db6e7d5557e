"""The faults: each is inflicted, lasts, and is healed again, also when the storm is broken off."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

from chaos.instance import FAILPOINTS, REBALANCES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from random import Random

    from chaos.cluster import Stage
    from chaos.fleet import Fleet, Instance
    from chaos.proxy import Relay

Lane = Literal["service", "kafka"]

# A paused instance is declared dead after its session; then it comes back as a zombie.
SESSION_SECONDS: Final = 6.0
# An armed instance that does not come by its failpoint is relieved.
ARMED_SECONDS: Final = 25.0
# How many instances there are, one size after the other, as an autoscaler would have it.
SIZES: Final = (1, 2, 4, 2, 1)


class Watched(Protocol):
    """A part of the storm itself."""

    def check(self) -> None:
        """Raise what has gone wrong with it, if something has."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What faults are inflicted on.

    Attributes:
        stage: brokers and relays.
        fleet: instances.
        guarantee: the service's, which decides what failpoints there are.
        watched: what must not fail, or there is nothing to prove any more.
    """

    stage: Stage
    fleet: Fleet
    guarantee: str
    watched: Sequence[Watched]


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault.

    Attributes:
        name: what it is called.
        lane: what it hits. Faults of one lane follow each other, those of the two lanes overlap.
        clean: under at-least-once, too, it repeats nothing.
        inflict: does it and heals it; tells on whom and how long. What it does follows from the random numbers alone.
    """

    name: str
    lane: Lane
    clean: bool
    inflict: Callable[[Scene, Random], Awaitable[str]]


async def _kill(scene: Scene, random: Random) -> str:
    instance = random.choice(scene.fleet.instances)
    away = random.choice([0.0, random.uniform(0, 3), SESSION_SECONDS + 2])
    await instance.kill()
    await asyncio.sleep(away)
    await instance.start()
    await instance.joined()
    return f"{instance.name}, away {away:.1f} s"


async def _kill_all(scene: Scene, random: Random) -> str:
    away = random.uniform(0, 2)
    await asyncio.gather(*(instance.kill() for instance in scene.fleet.instances))
    await asyncio.sleep(away)
    for instance in scene.fleet.instances:
        await instance.start()
    for instance in scene.fleet.instances:
        await instance.joined()
    return f"all, away {away:.1f} s"


async def _pause(scene: Scene, random: Random) -> str:
    instance = random.choice(scene.fleet.instances)
    seconds = SESSION_SECONDS + random.uniform(2, 6)
    instance.pause()
    try:
        await asyncio.sleep(seconds)
    finally:
        instance.resume()
    return f"{instance.name}, {seconds:.1f} s"


async def _rolling_restart(scene: Scene, random: Random) -> str:
    pauses = [random.uniform(0, 2) for _ in scene.fleet.instances]
    for instance, pause in zip(scene.fleet.instances, pauses, strict=True):
        await instance.stop()
        await asyncio.sleep(pause)
        await instance.start()
        await instance.joined()
    return "all, one after the other"


async def _burst(scene: Scene, random: Random) -> str:
    """Extra members come and go, some before they have joined."""
    stays = [random.choice([random.uniform(0.5, 2), random.uniform(3, 8)]) for _ in range(random.randint(1, 3))]
    for stay in stays:
        extra = scene.fleet.new("extra")
        await extra.start()
        await asyncio.sleep(stay)
        await extra.stop()
    return ", ".join(f"{stay:.1f} s" for stay in stays)


async def _scale(scene: Scene, random: Random) -> str:
    """The group shrinks and grows to several sizes by clean stops and starts; in the end it is as before.

    Who goes is drawn, be it the group's leader, the oldest or the newest; those who go at the same time do not wait
    for each other.
    """
    regular = scene.fleet.instances
    extras = [scene.fleet.new(f"extra-{number}") for number in range(max(SIZES) - len(regular))]
    members = [*regular, *extras]
    plan = [(size, random.sample(range(len(members)), len(members)), random.uniform(2, 5)) for size in SIZES]
    for size, order, stay in plan:
        running = [members[place] for place in order if members[place].runs]
        resting = [members[place] for place in order if not members[place].runs]
        await asyncio.gather(*(instance.stop() for instance in running[size:]))
        await _begin(resting[: max(0, size - len(running))])
        await asyncio.sleep(stay)
    await _begin([instance for instance in regular if not instance.runs])
    await asyncio.gather(*(instance.stop() for instance in extras if instance.runs))
    return ", ".join(str(size) for size in SIZES)


async def _begin(instances: Sequence[Instance]) -> None:
    for instance in instances:
        await instance.start()
    for instance in instances:
        await instance.joined()


async def _failpoint(scene: Scene, random: Random) -> str:
    """An instance dies at a step of its protocol; where that takes a rebalance, another member makes one."""
    instance = random.choice(scene.fleet.instances)
    name = random.choice(sorted(FAILPOINTS[scene.guarantee]))
    in_rebalance = name in REBALANCES
    passes = random.randint(1, 2) if in_rebalance else random.randint(1, 60)
    await instance.stop()
    await instance.start(f"{name}={passes}")
    await instance.joined()
    if in_rebalance:
        extra = scene.fleet.new("extra")
        await extra.start()
        await instance.ended(ARMED_SECONDS)
        await extra.stop()
    died = await instance.ended(0 if in_rebalance else ARMED_SECONDS)
    await instance.stop()
    await instance.start()
    await instance.joined()
    return f"{instance.name}, {name} at pass {passes}{'' if died else ', never reached'}"


async def _kill_broker(scene: Scene, random: Random) -> str:
    broker = random.choice(scene.stage.brokers)
    away = random.uniform(0, 8)
    await asyncio.to_thread(broker.kill)
    try:
        await asyncio.sleep(away)
    finally:
        await asyncio.to_thread(broker.start)
    return f"broker {broker.id}, away {away:.1f} s"


async def _freeze_broker(scene: Scene, random: Random) -> str:
    broker = random.choice(scene.stage.brokers)
    seconds = random.uniform(1, 9)
    broker.freeze()
    try:
        await asyncio.sleep(seconds)
    finally:
        broker.thaw()
    return f"broker {broker.id}, {seconds:.1f} s"


async def _rolling_brokers(scene: Scene, random: Random) -> str:
    for broker in random.sample(scene.stage.brokers, len(scene.stage.brokers)):
        await asyncio.to_thread(broker.restart)
        await scene.stage.whole()
    return "all, one after the other"


async def _cut(scene: Scene, random: Random) -> str:
    cuts = random.randint(2, 8)
    cut = 0
    for _ in range(cuts):
        for relay in scene.stage.relays:
            cut += relay.cut(random, 0.5)
        await asyncio.sleep(random.uniform(0.05, 1))
    return f"{cut} connections"


async def _delay(scene: Scene, random: Random) -> str:
    seconds, share = random.uniform(4, 12), random.uniform(0.1, 0.9)
    for relay in scene.stage.relays:
        relay.delay = lambda: random.uniform(0.1, 3) if random.random() < share else 0.0
    try:
        await asyncio.sleep(seconds)
    finally:
        for relay in scene.stage.relays:
            relay.delay = None
    return f"{share:.0%} of requests by 0.1 to 3 s, for {seconds:.1f} s"


async def _freeze_connections(scene: Scene, random: Random) -> str:
    relays = _some(scene, random)
    seconds = random.uniform(0.5, 7)
    for relay in relays:
        relay.freeze()
    try:
        await asyncio.sleep(seconds)
    finally:
        for relay in relays:
            relay.thaw()
    return f"to {len(relays)} broker(s), {seconds:.1f} s"


async def _lose_answers(scene: Scene, random: Random) -> str:
    """Requests arrive, their answers never do."""
    relays = _some(scene, random)
    seconds = random.uniform(0.2, 3)
    for relay in relays:
        relay.withhold_answers()
    try:
        await asyncio.sleep(seconds)
    finally:
        for relay in relays:
            relay.cut(random, 1.0)
            relay.thaw()
    return f"of {len(relays)} broker(s), {seconds:.1f} s"


def _some(scene: Scene, random: Random) -> Sequence[Relay]:
    return random.sample(scene.stage.relays, random.randint(1, len(scene.stage.relays)))


FAULTS: Final = {
    fault.name: fault
    for fault in (
        Fault("kill", "service", clean=False, inflict=_kill),
        Fault("kill_all", "service", clean=False, inflict=_kill_all),
        Fault("pause", "service", clean=False, inflict=_pause),
        Fault("rolling_restart", "service", clean=True, inflict=_rolling_restart),
        Fault("burst", "service", clean=True, inflict=_burst),
        Fault("scale", "service", clean=True, inflict=_scale),
        Fault("failpoint", "service", clean=False, inflict=_failpoint),
        Fault("kill_broker", "kafka", clean=False, inflict=_kill_broker),
        Fault("freeze_broker", "kafka", clean=False, inflict=_freeze_broker),
        Fault("rolling_brokers", "kafka", clean=False, inflict=_rolling_brokers),
        Fault("cut", "kafka", clean=False, inflict=_cut),
        Fault("delay", "kafka", clean=False, inflict=_delay),
        Fault("freeze_connections", "kafka", clean=False, inflict=_freeze_connections),
        Fault("lose_answers", "kafka", clean=False, inflict=_lose_answers),
    )
}
