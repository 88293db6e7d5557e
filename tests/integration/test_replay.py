"""Dead letters as people see them, and their way back: each once, whatever is broken off."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import msgpack
import numpy as np
import pytest
from harness import Bus, ServiceProcess, clean_environment, environment, eventually, pack, unpack

from chaos.instance import FAILPOINTS_VARIABLE
from service.streaming.dead_letters import unwrapped

if TYPE_CHECKING:
    from collections.abc import Callable

    MakeService = Callable[..., ServiceProcess]

LOGITS = np.linspace(-1, 1, 50, dtype=np.float32)


async def _command(bus: Bus, *arguments: str, failpoint: str = "") -> subprocess.CompletedProcess[str]:
    settings = {
        **bus.settings,
        "delivery__guarantee": "exactly_once",
        "limits__dead_letter_max_run": 0,
        "limits__dead_letter_max_ratio": 1,
    }
    added = {FAILPOINTS_VARIABLE: failpoint} if failpoint else {}
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "chaos.instance" if failpoint else "service", "dead-letters", *arguments],
        env=clean_environment() | environment(**settings) | added,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _wrapped(number: int) -> bytes:
    packed: bytes = msgpack.packb({"source": "a queue", "payload": pack(LOGITS, id=number)})
    return packed


@pytest.mark.parametrize("guarantee", ["at_least_once", "exactly_once"])
async def test_dead_letters_are_listed_and_shown(bus: Bus, make_service: MakeService, guarantee: str) -> None:
    """Also where markers of transactions stand between them and at the end."""
    service = await make_service(bus, delivery__guarantee=guarantee).start().ready()
    await bus.send([pack([float("nan")], id=1), pack(LOGITS, id=2), b"\xc1", pack([float("nan")], id=4)])
    await bus.dead_letters(3)
    listed = await _command(bus, "list")
    assert listed.returncode == 0, listed.stderr
    assert f"from {bus.input}-0 @2  malformed_msgpack" in listed.stdout
    assert f"3 dead letters in {bus.dead_letter}" in listed.stdout
    assert [line.split() for line in listed.stdout.splitlines()[-2:]] == [["2", "nan"], ["1", "malformed_msgpack"]]
    only = await _command(bus, "list", "--reason", "malformed_msgpack", "-n", "0")
    assert only.stdout.splitlines()[0] == f"1 dead letters in {bus.dead_letter}"
    shown = await _command(bus, "show", "0", "0")
    assert shown.returncode == 0, shown.stderr
    assert "softmax-error-offset: 0" in shown.stdout
    assert "nan" in shown.stdout
    missing = await _command(bus, "show", "0", "99")
    assert missing.returncode == 2
    assert f"There is no dead letter at {bus.dead_letter}-0 @99" in missing.stderr
    unknown = await _command(bus, "list", "--reason", "bad")
    assert unknown.returncode == 2
    assert "There is no reason bad" in unknown.stderr
    assert await service.stop() == 0


async def test_a_repaired_replay_is_answered_once_each(bus: Bus, make_service: MakeService) -> None:
    """Wrapped messages, refused, come back unwrapped with key and header; doing it again sends nothing."""
    service = await make_service(bus, delivery__guarantee="exactly_once").start().ready()
    await bus.send([_wrapped(n) for n in range(40)], partition=None, key=lambda n: b"%d" % n, headers=[("trace", b"x")])
    await bus.send([pack([], id=99)])
    await bus.dead_letters(41)
    planned = await _command(bus, "replay", "--reason", "missing_logits", "--unwrap", "payload", "--dry-run")
    assert planned.stdout == f"40 dead letters would be replayed to {bus.input}\n", planned.stderr
    replay = "replay", "--reason", "missing_logits", "--unwrap", "payload", "--rate", "0"
    for expected in (40, 0):
        done = await _command(bus, *replay)
        assert done.stdout == f"{expected} dead letters replayed to {bus.input}\n", done.stderr
    outputs = await bus.outputs(40)
    assert sorted(unpack(output.value)["id"] for output in outputs) == list(range(40))
    for output in outputs:
        number = unpack(output.value)["id"]
        assert (output.key, output.partition) == (b"%d" % number, number % bus.partitions)
        assert list(output.headers) == [("trace", b"x")]
    await bus.dead_letters(41)
    assert await service.stop() == 0


async def test_a_replay_that_dies_goes_on_where_it_was(bus: Bus, make_service: MakeService) -> None:
    """Killed after a commit that it does not know of, and in the middle of one: each is answered once."""
    service = await make_service(bus, delivery__guarantee="exactly_once", limits__dead_letter_max_run=0).start().ready()
    await bus.send([_wrapped(n) for n in range(4000)], partition=None)
    await bus.dead_letters(4000)
    for failpoint in ("committed=3", "offset_sent=2"):
        died = await _command(bus, "replay", "--unwrap", "payload", "--rate", "0", failpoint=failpoint)
        assert died.returncode == -signal.SIGKILL
    done = await _command(bus, "replay", "--unwrap", "payload", "--rate", "0")
    assert done.returncode == 0, done.stderr
    outputs = await bus.outputs(4000, within=60)
    assert sorted(unpack(output.value)["id"] for output in outputs) == list(range(4000))
    assert await service.stop() == 0


async def test_what_is_refused_too_often_stays(bus: Bus, make_service: MakeService) -> None:
    """Each replay counts an attempt; at the cap nothing is sent any more."""
    service = await make_service(bus).start().ready()
    await bus.send([pack([], id=1)])
    for attempt in (1, 2, 3):
        letters = await bus.dead_letters(attempt)
        assert dict(letters[-1].headers)["softmax-error-attempt"] == b"%d" % attempt
        done = await _command(bus, "replay")
        assert done.stdout.startswith("1 dead letters replayed" if attempt < 3 else "0 dead letters replayed")
    assert "1  stay: refused 3 times" in done.stdout
    assert await service.stop() == 0


async def test_another_profile_can_repair(bus: Bus, make_service: MakeService) -> None:
    """A model's profile refuses; a replay under another model's name passes."""
    service = await make_service(bus, models__strict__classes=3).start().ready()
    await bus.send([pack(LOGITS, id=5)], headers=[("model", b"strict")])
    await bus.dead_letters(1)
    done = await _command(bus, "replay", "--model", "other")
    assert done.returncode == 0, done.stderr
    (output,) = await bus.outputs(1)
    assert dict(output.headers) == {"model": b"other"}
    assert await service.stop() == 0


async def test_too_many_refusals_end_the_service(bus: Bus, make_service: MakeService) -> None:
    """Exit code 4 with the commonest reason and an example; nothing is lost by it."""
    service = await make_service(bus).start().ready()
    await bus.send([pack(LOGITS, id=n) for n in range(50)])
    await bus.outputs(50)
    await bus.send([pack([], id=n) for n in range(1500)])
    assert await service.wait() == 4
    assert "records in a row" in service.log
    assert "empty" in service.log
    assert "limits.dead_letter_max_run" in service.log
    assert "Traceback" not in service.log
    patient = await make_service(bus, limits__dead_letter_max_run=0).start().ready()
    await bus.dead_letters(1500)
    await eventually(lambda: patient.metric("softmax_consumer_lag_records") == 0)
    assert await patient.stop() == 0


@pytest.mark.parametrize(
    ("wrapper", "expected"),
    [
        ({"a": 1, "p": b"bytes"}, b"bytes"),
        ({"p": "text"}, b"text"),
        ({"p": {"logits": [1.5]}}, msgpack.packb({"logits": [1.5]})),
        ({3: None, "p": []}, b"\x90"),
    ],
)
def test_what_is_unwrapped(wrapper: dict[object, object], expected: bytes) -> None:
    assert unwrapped(msgpack.packb(wrapper), "p") == expected


def test_float32_stays_float32_when_unwrapped() -> None:
    inner = msgpack.packb({"logits": [0.1]}, use_single_float=True)
    assert unwrapped(b"\x81\xa1p" + inner, "p") == inner


@pytest.mark.parametrize("value", [None, b"", b"\x90", b"\x81\xa1q\x01", b"\x81\xa1p", b"\xc1"])
def test_what_cannot_be_unwrapped_stays(value: bytes | None) -> None:
    with pytest.raises(ValueError, match="without a field p"):
        unwrapped(value, "p")
