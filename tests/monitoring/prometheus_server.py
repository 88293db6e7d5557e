"""A real Prometheus on a free port of the loopback interface, with its data in a temporary folder."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

DEPLOYED: Final = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0


class PrometheusServer:
    """A Prometheus that runs."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str, **parameters: object) -> Any:
        """The data of an answer of the HTTP API.

        Raises:
            AssertionError: the answer is an error.
        """
        asked = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(asked, timeout=60) as response:  # noqa: S310 - our own
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def is_ready(self) -> bool:
        """Whether it answers queries."""
        try:
            with urllib.request.urlopen(f"{self.address}/-/ready", timeout=5) as response:  # noqa: S310 - our own
                return bool(response.status == 200)
        except OSError:
            return False


def program_or_skip() -> str:
    """Where Prometheus is; without it the test is skipped."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is missing: apt-get install prometheus")
    return program


@contextmanager
def prometheus(
    folder: Path, targets: Mapping[str, Sequence[str]], *, rules: Path = DEPLOYED
) -> Iterator[PrometheusServer]:
    """Run the deployed configuration against other targets, each second, until the block ends.

    Args:
        folder: for what it writes.
        targets: by job.
        rules: the folder of the rule files.
    """
    program = program_or_skip()
    configuration, log = folder / "prometheus.yml", folder / "prometheus.log"
    configuration.write_text(_configuration(targets, rules), encoding="utf-8")
    listen = f"127.0.0.1:{_free_port()}"
    command = [
        program,
        f"--config.file={configuration}",
        f"--storage.tsdb.path={folder / 'prometheus-data'}",
        f"--web.listen-address={listen}",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)  # noqa: S603 - found on the path
    try:
        server = PrometheusServer(f"http://{listen}")
        _wait(process, server, log)
        yield server
    finally:
        _end(process)


def _configuration(targets: Mapping[str, Sequence[str]], rules: Path) -> str:
    settings = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text(encoding="utf-8"))
    settings["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    settings["rule_files"] = [str(rules / name) for name in settings["rule_files"]]
    (scrapes,) = settings["scrape_configs"]
    del scrapes["dns_sd_configs"]
    scrapes["static_configs"] = [
        {"targets": list(addresses), "labels": {"job": job}} for job, addresses in targets.items()
    ]
    return yaml.safe_dump(settings)


def _free_port() -> int:
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return int(candidate.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], server: PrometheusServer, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not server.is_ready():
        running = process.poll() is None and time.monotonic() < deadline
        assert running, f"Prometheus does not get ready:\n{log.read_text(encoding='utf-8', errors='replace')}"
        time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
