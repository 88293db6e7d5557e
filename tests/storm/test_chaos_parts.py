"""The parts of the storm: messages that can be checked, failpoints that exist, faults that follow from the seed."""

from __future__ import annotations

import os
import pkgutil
import signal
import subprocess
import sys
from itertools import islice
from random import Random
from typing import Any

import msgpack
import pytest

from chaos import messages
from chaos.faults import FAULTS, SIZES, Scene
from chaos.fleet import Exit
from chaos.instance import CONTROLS, CONTROLS_VARIABLE, FAILPOINTS, FAILPOINTS_VARIABLE
from chaos.storm import Options, sequence
from service.transform.pipeline import Limits, Pipeline

NUMBERS = range(4 * messages.INVALID_EVERY + 1)


def test_all_kinds_of_messages_come() -> None:
    """Valid ones, and one of each reason."""
    assert {messages.reason(number) for number in NUMBERS} == {None, *messages.REASONS}
    assert {messages.reason(number, bare=True) for number in NUMBERS} == {None, *messages.BARE_REASONS}


@pytest.mark.parametrize("bare", [False, True])
def test_the_service_answers_and_refuses_as_the_storm_expects(*, bare: bool) -> None:
    """What the messages are made for is what the transform does with them; with bare logits, twice."""
    pipeline = Pipeline(Limits(1 << 20, 1000))
    outcome = pipeline.transform([messages.value(number, bare=bare) for number in NUMBERS])
    for number, output in zip(NUMBERS, outcome.outputs, strict=True):
        refusal = outcome.refusals.get(number)
        assert (refusal.reason.value if refusal else None) == messages.reason(number, bare=bare)
        if output is not None:
            (last,) = pipeline.transform([output]).outputs if bare else [output]
            assert messages.fault_of_output(number, last, messages.headers(number), bare=bare) is None


def test_right_answers_are_found_right_and_wrong_ones_wrong() -> None:
    """The check accepts an answer computed otherwise, and no other number's, no other header, no damaged one."""
    number = 8
    scores = messages.logits(number).tolist()
    total = sum(2.718281828459045**score for score in scores)
    right = {"id": number, "probabilities": [2.718281828459045**score / total for score in scores]}
    packed = msgpack.packb(right)
    assert messages.fault_of_output(number, packed, messages.headers(number)) is None
    assert messages.fault_of_output(number + 1, packed, messages.headers(number))
    assert messages.fault_of_output(number, packed, [("trace", b"")])
    assert messages.fault_of_output(number, packed[:-1], [])
    assert messages.fault_of_output(number, None, [])
    right["probabilities"][0] *= 1.001  # type: ignore[index]  # a list
    assert messages.fault_of_output(number, msgpack.packb(right), [])


@pytest.mark.parametrize("bare", [False, True])
def test_dead_letters_are_checked(*, bare: bool) -> None:
    """Value, reason and coordinates must be those of the message."""
    number = 2 * messages.INVALID_EVERY
    told = {"reason": messages.reason(number, bare=bare) or "", "partition": "1", "offset": "7"}
    found = [(f"softmax-error-{name}", text.encode()) for name, text in told.items()]
    value = messages.value(number, bare=bare)
    assert messages.fault_of_dead_letter(number, value, found, (1, 7), bare=bare) is None
    assert messages.fault_of_dead_letter(number, value, found, (1, 8), bare=bare)
    assert messages.fault_of_dead_letter(number, value + b" ", found, (1, 7), bare=bare)
    assert messages.fault_of_dead_letter(number, value, found[1:], (1, 7), bare=bare)
    assert messages.fault_of_dead_letter(number, value, found, (1, 7), bare=not bare)


@pytest.mark.parametrize("guarantee", FAILPOINTS)
def test_every_failpoint_names_a_step_of_the_service(guarantee: str) -> None:
    """A step that was renamed would never be reached."""
    for failpoint in FAILPOINTS[guarantee].values():
        assert callable(pkgutil.resolve_name(failpoint.step))


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_still_finds_what_it_switches_off(control: str) -> None:
    """Applied in a process of its own, like all that changes the service."""
    script = f"from chaos.instance import CONTROLS; CONTROLS[{control!r}]()"
    subprocess.run([sys.executable, "-c", script], check=True)  # noqa: S603 - our own script


def test_the_wrapper_leaves_no_trace_in_the_settings() -> None:
    """The service refuses unknown settings: its own variables must be gone when its command line begins."""
    environment = {**os.environ, FAILPOINTS_VARIABLE: "committed=3", CONTROLS_VARIABLE: next(iter(CONTROLS))}
    done = subprocess.run(
        [sys.executable, "-m", "chaos.instance", "config", "check"], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_failpoint_ends_the_process_at_the_pass_that_was_asked_for() -> None:
    """By SIGKILL, after the step has been passed so often."""
    script = """if True:
        from chaos.instance import Failpoint, arm
        from service.streaming.progress import Progress
        arm("test", Failpoint("service.streaming.progress:Progress.give_up", "before"), 2)
        progress = Progress()
        progress.give_up()
        print("once", flush=True)
        progress.give_up()
        print("twice", flush=True)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)  # noqa: S603 - our own script
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b"once\n"


def test_the_seed_determines_the_faults() -> None:
    """The same seed gives the same faults with the same random numbers, another one others."""

    def drawn(seed: str) -> list[tuple[str, float]]:
        return [(fault.name, random.random()) for fault, random in islice(sequence(seed, list(FAULTS.values())), 40)]

    assert drawn("1") == drawn("1")
    assert drawn("1") != drawn("2")
    assert {name for name, _ in drawn("1")[: len(FAULTS)]} == set(FAULTS)


class Member:
    """An instance that only says whether it runs."""

    def __init__(self, *, runs: bool) -> None:
        self.runs = runs

    async def start(self) -> None:
        self.runs = True

    async def joined(self) -> None:
        assert self.runs

    async def stop(self) -> None:
        assert self.runs
        self.runs = False


class Members:
    """A fleet of such instances."""

    def __init__(self, count: int) -> None:
        self.instances = [Member(runs=True) for _ in range(count)]
        self.all = list(self.instances)

    def new(self, _name: str) -> Member:
        self.all.append(Member(runs=False))
        return self.all[-1]


@pytest.mark.parametrize("count", [1, 3, 4, 6])
async def test_the_group_is_scaled_to_each_size_and_back(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many instances there were, and whoever goes: in the end those of before run, and no other."""
    seen: list[int] = []

    async def sleep(_seconds: float) -> None:
        seen.append(sum(member.runs for member in fleet.all))

    monkeypatch.setattr("chaos.faults.asyncio.sleep", sleep)
    for seed in range(20):
        fleet: Any = Members(count)
        nothing: Any = None
        await FAULTS["scale"].inflict(Scene(nothing, fleet, "exactly_once", []), Random(seed))  # noqa: S311 - a seed
        assert [member for member in fleet.all if member.runs] == fleet.instances
    assert seen == [*SIZES] * 20


def test_repeats_are_allowed_only_where_something_dies() -> None:
    """Exactly once never; at least once not for clean stops and rebalances."""
    assert Options().repeats_allowed
    assert not Options(faults=("rolling_restart", "burst", "scale")).repeats_allowed
    assert not Options(guarantee="exactly_once").repeats_allowed


@pytest.mark.parametrize(
    ("wanted", "code", "joined", "finding"),
    [
        ("kill", -9, True, False),
        ("failpoint", -9, True, False),
        ("stop", 0, True, False),
        ("stop", 5, True, False),
        ("stop", -9, True, True),
        ("stop", 70, True, True),
        (None, 0, True, True),
        (None, 3, True, True),
        (None, 3, False, False),
        (None, 70, False, True),
        ("failpoint", 70, True, True),
    ],
)
def test_ends_that_nobody_asked_for_are_findings(wanted: str | None, code: int, joined: bool, finding: bool) -> None:  # noqa: FBT001 - a table
    """A bug, a hang, an end by itself; but not a start given up while a broker was away."""
    end = Exit("one", code, wanted, joined=joined, at=0.0, last_words="")  # type: ignore[arg-type]  # a table of texts
    assert end.is_finding == finding
