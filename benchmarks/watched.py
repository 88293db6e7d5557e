"""A healthy service, watched as in production: the deployed rules on a real Prometheus, and no alert.

    scripts/watch --minutes 60 --json watched.json --write-docs

An embedded Kafka, the service as delivered, a steady load, and Prometheus with `deploy/prometheus` but for the target.
Alerts are asked for all the time: one that is pending or firing in a healthy hour would wake somebody for nothing.
At the end every panel of the dashboard is asked for what it would show; docs/images/dashboard-*.svg draws that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import yaml

from benchmarks import machine, report
from benchmarks.processes import BenchmarkError, MeasuredProcess
from benchmarks.programs import SERVICE, Place, service_command, service_environment
from service.broker import Broker, BrokerConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEPLOY: Final = Path(__file__).parent.parent / "deploy"
DASHBOARD: Final = DEPLOY / "grafana" / "dashboards" / "softmax-service.json"
SECONDS_BETWEEN_LOOKS: Final = 15.0
START_SECONDS: Final = 120.0
# Points of a panel's series: more would not be seen.
POINTS: Final = 200
VARIABLES: Final = {"$__rate_interval": "1m", "$job": ".*", "$instance": ".*"}


class Prometheus:
    """A Prometheus that runs, by its HTTP API."""

    def __init__(self, address: str) -> None:
        """Ask there."""
        self._address = address

    def get(self, path: str, **parameters: object) -> Any:
        """The data of an answer."""
        url = f"{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310 - our own
            return json.load(response)["data"]

    def wait(self, process: MeasuredProcess) -> None:
        """Wait until it has seen the service, and no alert is left of the time before.

        Raises:
            BenchmarkError: it never has.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            process.check()
            try:
                if self.get("query", query="softmax_ready == 1")["result"] and not self.get("alerts")["alerts"]:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise BenchmarkError(f"Prometheus does not see a healthy service:\n{process.tail()}")


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return int(candidate.getsockname()[1])


def prometheus_command(folder: Path, target: str, listen: str) -> list[str]:
    """Prometheus with the deployed configuration, on another target.

    Raises:
        BenchmarkError: it is not installed.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise BenchmarkError("Prometheus is missing: apt-get install prometheus")
    settings = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    settings["rule_files"] = [str(DEPLOY / "prometheus" / name) for name in settings["rule_files"]]
    (scrapes,) = settings["scrape_configs"]
    del scrapes["dns_sd_configs"]
    scrapes["static_configs"] = [{"targets": [target]}]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return [
        program,
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={listen}",
    ]


def panels(prometheus: Prometheus, since: float, until: float) -> list[dict[str, Any]]:
    """What each panel of the dashboard shows of that time."""
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    step = max(5, math.ceil((until - since) / POINTS))
    given = {**VARIABLES, "$__range": f"{math.ceil(until - since)}s"}
    found = []
    for panel in board["panels"]:
        series: list[dict[str, Any]] = []
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in given.items():
                expression = expression.replace(name, value)
            answer = prometheus.get("query_range", query=expression, start=since, end=until, step=step)
            series += _series(answer["result"], target.get("legendFormat", ""), since)
        unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit", "")
        found.append({"type": panel["type"], "title": panel["title"], "unit": unit, "series": series})
    return found


def _series(result: list[Mapping[str, Any]], legend: str, since: float) -> Iterator[dict[str, Any]]:
    for each in result:
        name = _named(legend, each["metric"])
        points = [(round(at - since), float(value)) for at, value in each["values"] if math.isfinite(float(value))]
        yield {"name": name, "points": points}


def _named(legend: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend)


class Watch:
    """While entered, a Prometheus with the deployed rules scrapes a service and is asked for its alerts.

    Attributes:
        seen: afterwards, `alerts` that were ever pending or firing, with which of it, and `panels`.
    """

    def __init__(self, folder: Path, port: int) -> None:
        """Start nothing yet; keep its data in `folder`, scrape `port` of the loopback interface."""
        self.seen: dict[str, Any] = {}
        listen = f"127.0.0.1:{free_port()}"
        self._prometheus = Prometheus(f"http://{listen}")
        self._process = MeasuredProcess("prometheus", prometheus_command(folder, f"127.0.0.1:{port}", listen), {})
        self._since = 0.0
        self._alerts: set[str] = set()
        self._looking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start Prometheus, and look at its alerts from time to time."""
        self._process.__enter__()
        try:
            await asyncio.to_thread(self._prometheus.wait, self._process)
        except BaseException:
            self._process.__exit__(None, None, None)
            raise
        self._since = time.time()
        self._looking = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        """Ask for what the dashboard shows of the time, if all went well; end Prometheus."""
        try:
            if self._looking is not None:
                self._looking.cancel()
                await asyncio.wait({self._looking})
                if not self._looking.cancelled():
                    self._looking.result()
            if kind is None:
                shown = await asyncio.to_thread(panels, self._prometheus, self._since, time.time())
                self.seen = {"alerts": sorted(self._alerts), "panels": shown}
        finally:
            self._process.__exit__(None, None, None)

    async def _look(self) -> None:
        while True:
            self._process.check()
            alerts = (await asyncio.to_thread(self._prometheus.get, "alerts"))["alerts"]
            new = {f"{alert['labels']['alertname']} {alert['state']}" for alert in alerts} - self._alerts
            for alert in sorted(new):
                print(f"{time.time() - self._since:7.1f} s  {alert}", flush=True)
            self._alerts |= new
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


async def watch(folder: Path, port: int, processes: list[MeasuredProcess], minutes: float) -> dict[str, Any]:
    """Watch a running service that listens on `port`; return what was seen.

    Raises:
        BenchmarkError: a process ended.
    """
    async with Watch(folder, port) as watching:
        deadline = time.monotonic() + 60 * minutes
        while (left := deadline - time.monotonic()) > 0:
            for process in processes:
                process.check()
            await asyncio.sleep(min(left, SECONDS_BETWEEN_LOOKS))
    return watching.seen


def execute(minutes: float, rate: int) -> dict[str, Any]:
    """Start everything, watch, and return what was seen."""
    about = machine.describe(on_tmpfs=True)
    with Broker(BrokerConfig(tmpfs=True), progress=print) as broker, tempfile.TemporaryDirectory() as folder:
        place = Place(broker.bootstrap_servers, "logits", "probabilities", "logits.dead-letter", "softmax-service")
        port = free_port()
        given = {**service_environment(place), "SOFTMAX_HTTP__PORT": str(port)}
        service = [sys.executable, "-m", "service"]
        subprocess.run([*service, "topics", "create"], env=given, stdout=subprocess.DEVNULL, check=True)  # noqa: S603 - ours
        load = [*service, "produce", "--rate", str(rate), "--classes", "10"]
        with (
            MeasuredProcess(SERVICE, service_command(), given) as served,
            MeasuredProcess("load", load, given) as loading,
        ):
            seen = asyncio.run(watch(Path(folder), port, [served, loading], minutes))
            loading.stop()
            served.stop()
    return {
        "command": f"scripts/watch --minutes {minutes:g} --rate {rate}",
        "machine": about,
        "watched_minutes": minutes,
        "rate": rate,
        **seen,
    }


def main() -> None:
    """Watch, print, write down."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parser = argparse.ArgumentParser(prog="scripts/watch", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=int, default=2000, help="messages a second")
    parser.add_argument("--json", type=Path, help="a file for what was seen")
    parser.add_argument("--write-docs", action="store_true", help="write it into docs/performance.md, with a drawing")
    options = parser.parse_args()
    results = execute(options.minutes, options.rate)
    if options.json:
        options.json.write_text(json.dumps(results) + "\n", encoding="utf-8")
    print(report.watched(results))
    if options.write_docs:
        report.publish(results)


if __name__ == "__main__":
    main()
