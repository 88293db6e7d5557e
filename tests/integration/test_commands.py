"""The commands as a person runs them, against the real broker."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from typing import TYPE_CHECKING

import psutil
import pytest
from harness import Bus, ServiceProcess, clean_environment, environment, pack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.broker import Broker

    MakeService = Callable[..., ServiceProcess]


def _command(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - this very program
        [sys.executable, "-m", "service", *arguments],
        env=clean_environment() | environment(**settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_from_no_topic_to_probabilities_on_the_screen(kafka: Broker) -> None:
    """The README's order: topics create, check, produce, run until drained, tail."""
    name = f"cli{uuid.uuid4().hex[:8]}"
    settings: dict[str, object] = {
        "kafka__bootstrap_servers": kafka.bootstrap_servers,
        "kafka__group_id": name,
        "topics__input": f"{name}.in",
        "topics__output": f"{name}.out",
        "topics__dead_letter": f"{name}.dead",
        "http__port": 0,
    }
    assert _command("check", **settings).returncode == 3
    created = _command("topics", "create", "--partitions", "3", **settings)
    assert created.stdout.count(": created") == 3, created.stderr
    assert _command("topics", "create", **settings).stdout.count(": exists") == 3
    checked = _command("check", **settings)
    assert checked.returncode == 0
    assert f"{name}.in: 3 partitions" in checked.stdout
    produced = _command("produce", "--rate", "0", "--count", "300", "--classes", "7", "--malformed", "0.05", **settings)
    assert "300 messages acknowledged" in produced.stdout, produced.stderr
    with subprocess.Popen(
        [sys.executable, "-m", "service", "run"],
        env=clean_environment() | environment(**settings),
        stderr=subprocess.PIPE,
    ) as service:
        tailed = _command("tail", "--from-beginning", "-n", "5", "--top", "3", **settings)
        dead = _command("tail", "--dead-letters", "--from-beginning", "-n", "2", **settings)
        service.send_signal(signal.SIGINT)
        assert service.wait(20) == 0
    assert len(re.findall(rf"^{name}\.out-\d @\d+  id \d+$", tailed.stdout, re.MULTILINE)) == 5
    assert tailed.stdout.count("+ 4 more classes") == 5
    assert dead.stdout.count("malformed_msgpack") == 2
    assert f"from {name}.in-" in dead.stdout


async def test_tail_waits_for_the_next_output_and_ends_on_ctrl_c(bus: Bus, make_service: MakeService) -> None:
    """Without --from-beginning only what comes now is shown; Ctrl-C is no error."""
    service = await make_service(bus).start().ready()
    await bus.send([pack([1.0, 2.0], id=1)])
    await bus.outputs(1)
    tail = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", "tail"),
        env=clean_environment() | environment(**bus.settings) | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
    )
    assert tail.stdout is not None
    line = b""
    for number in range(2, 40):  # it may take a while to stand at the end
        await bus.send([pack([1.0, 2.0], id=number)])
        try:
            line = await asyncio.wait_for(tail.stdout.readline(), 0.5)
            break
        except TimeoutError:
            continue
    assert b"id " in line
    assert not line.endswith(b"id 1\n")
    tail.send_signal(signal.SIGINT)
    await tail.communicate()
    assert tail.returncode == 0
    assert await service.stop() == 0


async def test_produce_keeps_its_rate_and_ends_on_sigterm(bus: Bus) -> None:
    """At a rate of 500 a second for two seconds: about a thousand messages, whole and in order of their ids."""
    done = await asyncio.to_thread(_command, "produce", "--rate", "500", "--seconds", "2", **bus.settings)
    count = int(done.stdout.split()[0])
    assert 800 <= count <= 1001
    records = await bus.read(bus.input, count)
    assert sorted(unpack(record.value)["id"] for record in records) == list(range(count))
    assert all(record.key == str(unpack(record.value)["id"]).encode() for record in records)


def _children_of(pid: int) -> set[int]:
    return {child.pid for child in psutil.Process(pid).children(recursive=True)}


def test_the_demo_ends_by_itself_with_a_summary() -> None:
    """--seconds N: plain lines without a terminal, a summary, exit code 0, nothing left behind."""
    done = _command("demo", "--seconds", "4", "--rate", "2000")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"out [\d,]+/s  p50 [\d.]+ ms  p99 [\d.]+ ms  lag", done.stdout)
    moved = re.search(r"([\d,]+) messages in, ([\d,]+) out, 0 dead letters", done.stdout)
    assert moved is not None, done.stdout
    assert moved.group(1) == moved.group(2)
    assert int(moved.group(1).replace(",", "")) > 2000


def test_ctrl_c_ends_the_demo_cleanly() -> None:
    """An interrupt drains and ends the load, the service and Kafka; exit code 0."""
    with subprocess.Popen(
        [sys.executable, "-m", "service", "demo"],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as demo:
        try:
            assert demo.stdout is not None
            for line in demo.stdout:
                if "out 1" in line or "out 9" in line:
                    break
            children = _children_of(demo.pid)
            assert len(children) >= 3
            os.killpg(demo.pid, signal.SIGINT)
            rest, _ = demo.communicate(timeout=40)
        finally:
            demo.kill()
    assert demo.returncode == 0
    assert "messages in" in rest
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(psutil.pid_exists(pid) for pid in children):
        time.sleep(0.1)
    assert not [pid for pid in children if psutil.pid_exists(pid)]


@pytest.mark.parametrize("guarantee", ["at_least_once", "exactly_once"])
async def test_a_run_can_end_when_all_is_done(bus: Bus, guarantee: str) -> None:
    """`run --until-caught-up` answers what is there, also where it was there before, and ends with 0."""
    settings = {**bus.settings, "delivery__guarantee": guarantee}
    for number in (1, 2):
        await bus.send([pack([1.0, 2.0], id=n) for n in range(500)], partition=None)
        done = await asyncio.to_thread(_command, "run", "--until-caught-up", **settings)
        assert done.returncode == 0, done.stderr
        assert "caught up" in done.stderr + done.stdout
        await bus.outputs(500 * number)
    again = await asyncio.to_thread(_command, "run", "--until-caught-up", **settings)
    assert again.returncode == 0, again.stderr
    await bus.outputs(1000)
