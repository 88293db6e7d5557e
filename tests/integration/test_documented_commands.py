"""The documents' commands, typed as the pages say, in their order, on a real broker; and none is forgotten."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgpack
import pytest
from aiokafka import AIOKafkaProducer
from documented import DRAWN, NOT_RUN, PAGES, ROOT, RUN, TYPED, blocks, commands
from harness import clean_environment, pack
from markdown_it import MarkdownIt

from service.broker.ports import reserve_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.broker import Broker

FIRST_HOUR: Final = "docs/getting-started.md"


# --- none is forgotten ------------------------------------------------------------------------


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_is_run_or_it_is_said_why_not(page: Path) -> None:
    name = named(page)
    shown = [
        (block, command)
        for block in blocks(page)
        if not block.startswith(DRAWN.get(name, ()))
        for command in commands(block)
    ]
    excused, typed = NOT_RUN.get(name, {}), TYPED.get(name, ())
    forgotten = [
        command
        for block, command in shown
        if command not in {*excused, *typed}
        and not command.startswith("export ")  # alone it does nothing
        and not (block.startswith("$ ") and name in RUN)
        and not (name == FIRST_HOUR and block in _steps())
    ]
    assert forgotten == []
    stale = {*excused, *typed} - {command for _, command in shown}
    assert not stale, "the page does not have them any more"


def test_a_new_command_would_be_found() -> None:
    assert list(commands("softmax-service run   # it\nscripts/new \\\n  --x\n")) == [
        "softmax-service run",
        "scripts/new --x",
    ]
    assert list(commands("$ a \\\n  | b\nanswer\n$ c\n")) == ["a | b", "c"]


def test_where_it_is_said_to_be_run_there_is_a_test() -> None:
    named_files = {file for files in RUN.values() for file in files}
    for reasons in NOT_RUN.values():
        named_files |= {file for reason in reasons.values() for file in re.findall(r"tests/[\w/]+\.py", reason)}
    assert [file for file in sorted(named_files) if not (ROOT / file).is_file()] == []


# --- terminals --------------------------------------------------------------------------------


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminals:
    """Shells in one folder, as a person has them open; what is typed in each, and what it says."""

    def __init__(self, folder: Path, replaced: dict[str, str]) -> None:
        self.folder = folder
        self.replaced = replaced
        self.exported = ""
        self._open: dict[str, subprocess.Popen[bytes]] = {}

    def _bash(self, block: str) -> list[str]:
        bash = shutil.which("bash")
        assert bash is not None
        for old, new in self.replaced.items():
            block = block.replace(old, new)
        return [bash, "-c", f"exec 2>&1\n{self.exported}{block}"]

    @property
    def _environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**clean_environment(), "PATH": path, "PYTHONPATH": str(ROOT)}

    def type(self, block: str) -> str:
        """Type it, wait for its end; what it says.

        Raises:
            AssertionError: a command of it fails.
        """
        ran = subprocess.run(  # noqa: S603 - the page's own commands
            [*self._bash(f"set -e -o pipefail\n{block}")],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == 0, f"{block}{ran.stdout}"
        for line in re.findall(r"^export .*\n", block, re.MULTILINE):
            for old, new in self.replaced.items():
                line = line.replace(old, new)  # noqa: PLW2901 - as it was typed
            self.exported += line
        return ran.stdout

    def leave(self, name: str, block: str) -> None:
        """Type it in a terminal of its own, where it goes on."""
        with (self.folder / f"{name}.said").open("wb") as said:
            self._open[name] = subprocess.Popen(  # noqa: S603 - the page's own commands
                self._bash(block),
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                start_new_session=True,
                # In a terminal Ctrl-C is heard, also if whoever runs the tests in the background has it ignored.
                preexec_fn=_hear_ctrl_c,  # noqa: PLW1509 - it does nothing else
            )

    def said(self, name: str) -> str:
        """What stands in a terminal."""
        return (self.folder / f"{name}.said").read_text(encoding="utf-8", errors="replace")

    def sees(self, name: str, pattern: str, within: float = 60) -> str:
        """Wait until a terminal says it.

        Raises:
            AssertionError: it does not in time.
        """
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if found := re.search(pattern, self.said(name), re.MULTILINE):
                return found.group()
            time.sleep(0.1)
        raise AssertionError(f"{name} does not say {pattern}:\n{self.said(name)}")

    def ctrl_c(self, name: str) -> int:
        """Ctrl-C in a terminal, which reaches all that runs there; the exit code."""
        process = self._open[name]
        os.killpg(process.pid, signal.SIGINT)
        return process.wait(60)

    def close(self) -> None:
        """End all that still runs."""
        for process in self._open.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextmanager
def terminals(folder: Path, **replaced: str) -> Iterator[tuple[Terminals, int]]:
    """With a port for the status page, as 8080 may be taken."""
    if shutil.which("curl") is None:
        pytest.skip("curl is missing: apt-get install curl")
    with reserve_ports(1) as (ports,):
        port = ports.plain
    found = Terminals(folder, {**replaced, "127.0.0.1:8080": f"127.0.0.1:{port}"})
    found.exported = f"export SOFTMAX_HTTP__PORT={port}\n"
    try:
        yield found, port
    finally:
        found.close()


def ready(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the service does not come to be ready")


# --- the first hour, parts 4 to 7 -------------------------------------------------------------


def _files(folder: Path) -> None:
    """What the page says to save."""
    for token in MarkdownIt("commonmark").parse((ROOT / FIRST_HOUR).read_text(encoding="utf-8")):
        _, _, name = token.info.partition(" ")
        if token.type == "fence" and name:
            (folder / name).write_text(token.content, encoding="utf-8")


def _steps() -> list[str]:
    """The page's blocks for a shell that show no answer, but for those that it is said of why they are not run."""
    found = [block for block in blocks(ROOT / FIRST_HOUR) if not block.startswith("$ ")]
    return [block for block in found if not set(commands(block)) <= set(NOT_RUN[FIRST_HOUR])]


def test_the_first_hour_on_a_broker(tmp_path: Path) -> None:
    """From the broker without Docker to Ctrl-C; only addresses are others."""
    _files(tmp_path)
    following = iter(_steps())

    def block(begin: str) -> str:
        """The page's next block, which this test takes for the one that begins so."""
        found = next(following)
        assert found.startswith(begin), f"the page goes on with {found}"
        return found

    with terminals(tmp_path) as (shell, port):
        shell.leave("kafka", block("python -m service.broker run"))
        shell.replaced["localhost:9094"] = shell.sees("kafka", r"^127\.0\.0\.1:\d+$")
        said = shell.type(block("export SOFTMAX_KAFKA__BOOTSTRAP_SERVERS=localhost:9094\n"))
        assert said.count(": created\n") == 3
        assert "logits: 4 partitions" in said
        assert said.endswith("is ready for the service.\n")
        shell.leave("run", block("softmax-service run --config settings.yaml"))
        ready(port)
        shell.leave("tail", block("softmax-service tail"))
        said = shell.type(block("softmax-service produce --rate 5"))
        assert re.search(r"^\d+ messages acknowledged by logits$", said, re.MULTILINE)
        shell.sees("tail", r"^probabilities-\d @\d+  id \d+$")
        shell.type(block("python send.py"))
        shell.sees("tail", r"id mine$")
        said = shell.type(block("python send.py"))
        assert "logits.dead-letter-0 @0  from logits-0 @" in said
        assert "missing_logits" in said
        assert "1 dead letters in logits.dead-letter\n" in said
        assert "missing_logits" in shell.type(block("softmax-service dead-letters show 0 0"))
        said = shell.type(block("softmax-service dead-letters replay"))
        assert "1 dead letters would be replayed to logits\n" in said
        assert said.endswith("1 dead letters replayed to logits\n")
        shell.sees("tail", r"id wrapped$")
        said = shell.type(block("softmax-service produce --count 1000 --malformed 0.02"))
        assert "1000 messages acknowledged by logits\n" in said
        assert 1 <= said.count("malformed_msgpack: ") <= 5
        said = shell.type(block("curl -s"))
        status, end = json.JSONDecoder().raw_decode(said)
        assert status["totals"]["dead_letters"] >= 2
        assert said[end:].startswith("running\n")
        assert re.search(r'^softmax_dead_letters_total\{.*reason="missing_logits".*\} 1\.0$', said, re.MULTILINE)
        assert next(following, None) is None, "the page has more that is not typed here"
        assert shell.ctrl_c("run") == 0
        assert "drained" in shell.said("run")
        assert shell.ctrl_c("tail") == 0
        assert shell.ctrl_c("kafka") == 0
        assert "Traceback" not in shell.said("kafka")


# --- the first page, and the tools for dead letters --------------------------------------------


async def test_the_first_page_and_the_tools_for_dead_letters(kafka: Broker, tmp_path: Path) -> None:
    """README.md, "Run it", and then what docs/delivery.md shows, for the dead letters of that service."""
    create, check, run, produce, tail = TYPED["README.md"]
    tail_dead, listed, show, dry, unwrap, other = TYPED["docs/delivery.md"]
    with terminals(tmp_path, **{"localhost:9092": kafka.bootstrap_servers}) as (shell, port):
        (exported,) = (c for b in blocks(ROOT / "README.md") for c in commands(b) if c.startswith("export "))
        said = shell.type(f"{exported}\n{create}\n{check}\n")
        assert said.endswith("is ready for the service.\n")
        shell.leave("run", run)
        ready(port)
        shell.leave("produce", produce)
        shell.leave("tail", tail)
        shell.sees("tail", r"^probabilities-\d @\d+  id \d+$")
        assert shell.ctrl_c("produce") == 0
        assert "messages acknowledged by logits" in shell.said("produce")
        assert shell.ctrl_c("tail") == 0

        shell.leave("dead", tail_dead)
        # Offset 17 is there then, and not all of them can be repaired.
        wrapped = [msgpack.packb({"payload": {"id": f"wrapped {n}", "logits": [1.0, 2.0]}}) for n in range(20)]
        async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
            for value in [*wrapped, b"\xc1"]:
                await producer.send_and_wait("logits", value, partition=0)
                # `tail` begins where the topic ends when it has come: until it shows one, more are needed.
                await producer.send_and_wait("logits", pack([1.0, 2.0], id=1), partition=0)
        for _ in range(100):
            if "missing_logits" in shell.said("dead"):
                break
            async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
                await producer.send_and_wait("logits", wrapped[0], partition=0)
            await asyncio.sleep(0.2)
        assert re.search(
            r"^logits\.dead-letter-0 @\d+  from logits-0 @\d+  missing_logits", shell.said("dead"), re.MULTILINE
        )
        assert shell.ctrl_c("dead") == 0

        said = shell.type(listed)
        of_reasons = {reason: int(number) for number, reason in re.findall(r"^ +(\d+)  (\w+)$", said, re.MULTILINE)}
        assert of_reasons["missing_logits"] >= 20
        assert of_reasons["malformed_msgpack"] == 1
        assert f"{sum(of_reasons.values())} dead letters in logits.dead-letter\n" in said
        assert "missing_logits" in shell.type(show)
        assert f"{sum(of_reasons.values())} dead letters would be replayed to logits\n" in shell.type(dry)
        assert f"{of_reasons['missing_logits']} dead letters replayed to logits\n" in shell.type(unwrap)
        shell.leave("again", "softmax-service tail --from-beginning")
        shell.sees("again", r"id wrapped 19$")
        assert re.search(r"^\d+ dead letters replayed to logits$", shell.type(other), re.MULTILINE)
        assert shell.ctrl_c("again") == 0
        assert shell.ctrl_c("run") == 0
