"""The demo: an embedded Kafka, load, the service as its own process, and live figures."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from service.broker import Broker, BrokerError
from service.distributions import lines, read_output
from service.errors import BrokerUnusableError, ServiceError
from service.settings import Settings, load
from service.streaming.reader import TopicReader
from service.streaming.topics import create_topics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

PARTITIONS: Final = 4
REFRESH_SECONDS: Final = 0.5
SHOWN_DISTRIBUTIONS: Final = 3


def run_demo(seconds: float | None, rate: float, classes: int) -> None:
    """Run the demo until Ctrl-C, or for so many seconds.

    Raises:
        ServiceError: a part of it failed; its log's end is in the message.
    """
    say = _teller()
    try:
        with Broker(progress=say) as broker:
            asyncio.run(_demo(broker.bootstrap_servers, seconds, rate, classes, say))
    except BrokerError as error:
        raise BrokerUnusableError(str(error).rstrip("."), "") from error


def _teller() -> Any:
    started = time.monotonic()

    def say(text: str) -> None:
        sys.stdout.write(f"[{time.monotonic() - started:5.1f} s] {text}\n")
        sys.stdout.flush()

    say("Starting an embedded Apache Kafka ...")
    return say


async def _demo(servers: str, seconds: float | None, rate: float, classes: int, say: Any) -> None:
    say(f"Kafka listens on {servers}; creating topics")
    environment = {"SOFTMAX_KAFKA__BOOTSTRAP_SERVERS": servers, "SOFTMAX_HTTP__PORT": "0"}
    settings = load(environment=environment)
    await create_topics(settings, PARTITIONS, None)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with tempfile.TemporaryDirectory(prefix="softmax-demo-") as logs, contextlib.ExitStack() as processes:
        service = processes.enter_context(_Process("service", ["run"], environment, Path(logs)))
        address = await service.address()
        say(f"The service runs as process {service.pid}; see it work: {address}/")
        arguments = ["produce", "--rate", str(rate), "--classes", str(classes)]
        load_generator = processes.enter_context(_Process("load", arguments, environment, Path(logs)))
        await _watch(settings, address, [service, load_generator], stop, seconds)
        load_generator.end()
        totals = (await _drain(address))["totals"]
        service.end()
    consumed, produced, dead = (totals[name] for name in ("consumed", "produced", "dead_letters"))
    say(f"{consumed:,.0f} messages in, {produced:,.0f} out, {dead:,.0f} dead letters")
    say("The service drained and ended with exit code 0")


class _Process:
    """The command `softmax-service` as a process of its own, in its own process group.

    Ctrl-C in the terminal then reaches only the demo, which ends the parts in their order.
    """

    def __init__(self, name: str, arguments: list[str], environment: Mapping[str, str], logs: Path) -> None:
        self._name = name
        self._log = logs / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - this very program
                [sys.executable, "-m", "service", *arguments],
                env={**os.environ, **environment, "SOFTMAX_LOG__FORMAT": "json"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def check(self) -> None:
        """See that it still runs.

        Raises:
            ServiceError: it has ended.
        """
        if (code := self._process.poll()) is not None:
            raise ServiceError(f"The {self._name} process ended with exit code {code}:\n{self._tail()}")

    def end(self) -> None:
        """Ask it to end, and wait until it has drained."""
        self._process.terminate()
        try:
            code = self._process.wait(30)
        except subprocess.TimeoutExpired:
            raise ServiceError(f"The {self._name} process does not end:\n{self._tail()}") from None
        if code:
            raise ServiceError(f"The {self._name} process ended with exit code {code}:\n{self._tail()}")

    async def address(self) -> str:
        """Where it says that it listens."""
        while True:
            self.check()
            for line in self._log.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if event.get("event") == "listening":
                        return str(event["address"])
            await asyncio.sleep(0.05)

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])


async def _status(address: str) -> dict[str, Any]:
    """What the service's status page shows."""
    status: dict[str, Any] = json.loads(await asyncio.to_thread(_get, f"{address}/status.json"))
    return status


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - an address of our own process
        content: bytes = response.read()
        return content


async def _drain(address: str) -> dict[str, Any]:
    """Wait until all that was sent has been answered; return the last status."""
    deadline = time.monotonic() + 10
    while True:
        status = await _status(address)
        totals = status["totals"]
        answered = totals["produced"] + totals["dead_letters"] == totals["consumed"]
        if (answered and not _lag(status)) or time.monotonic() > deadline:
            return status
        await asyncio.sleep(0.1)


async def _watch(
    settings: Settings, address: str, processes: list[_Process], stop: asyncio.Event, seconds: float | None
) -> None:
    """Show figures until told to stop or the time is up."""
    console = Console()
    reader = TopicReader(settings, settings.topics.output)
    await reader.start(from_beginning=False)
    end = None if seconds is None else time.monotonic() + seconds
    try:
        with Live(console=console, auto_refresh=False) if console.is_terminal else contextlib.nullcontext() as live:
            turn = 0
            while not stop.is_set() and (end is None or time.monotonic() < end):
                for process in processes:
                    process.check()
                status = await _status(address)
                distributions = list(_distributions(await reader.latest()))
                if live is not None:
                    live.update(_view(status, distributions, address, end), refresh=True)
                elif turn % 2 == 0:
                    console.print(_plain(status, distributions), soft_wrap=True, highlight=False)
                turn += 1
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), REFRESH_SECONDS)
    finally:
        await reader.stop()


def _distributions(records: list[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    for record in records[:SHOWN_DISTRIBUTIONS]:
        with contextlib.suppress(ValueError):
            name, heads = read_output(record.value or b"")
            yield name, next(iter(heads.values()))[0]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.1f} ms"


def _lag(status: dict[str, Any]) -> float:
    return float(sum(partition["lag_records"] for partition in status["partitions"]))


def _view(
    status: dict[str, Any], distributions: list[tuple[str, NDArray[Any]]], address: str, end: float | None
) -> Group:
    table = Table(box=None, padding=(0, 3, 0, 0))
    for title in ("in /s", "out /s", "p50", "p99", "lag", "dead letters", "out in all"):
        table.add_column(title, justify="right", min_width=9)
    table.add_row(
        f"{status['throughput']['consumed_per_second']:,.0f}",
        f"{status['throughput']['records_per_second']:,.0f}",
        _seconds(status["latency"]["p50"]),
        _seconds(status["latency"]["p99"]),
        f"{_lag(status):,.0f}",
        f"{status['totals']['dead_letters']:,.0f}",
        f"{status['totals']['produced']:,.0f}",
    )
    parts: list[Any] = [Text(), table, Text()]
    for name, row in distributions:
        parts.append(Text(f"id {name}", style="bold"))
        parts += [Text(line) for line in lines(row, 4)]
    left = "Ctrl-C ends it" if end is None else f"{max(0, end - time.monotonic()):.0f} s left"
    parts.append(Text(f"\n{left}.  Status page: {address}/", style="dim"))
    return Group(*parts)


def _plain(status: dict[str, Any], distributions: list[tuple[str, NDArray[Any]]]) -> str:
    throughput, latency = status["throughput"], status["latency"]
    text = (
        f"in {throughput['consumed_per_second']:,.0f}/s  out {throughput['records_per_second']:,.0f}/s"
        f"  p50 {_seconds(latency['p50'])}  p99 {_seconds(latency['p99'])}"
        f"  lag {_lag(status):,.0f}  total {status['totals']['produced']:,.0f}"
    )
    if distributions:
        name, row = distributions[0]
        text += f"  id {name}: class {int(row.argmax())} with {row.max():.3f}"
    return text
