"""How long the command takes to say what it can do, and the service to be ready on a warm broker.

scripts/bench startup --json startup.json
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

from benchmarks import machine
from benchmarks.processes import BenchmarkError, MeasuredProcess
from benchmarks.programs import SERVICE, Place, service_command, service_environment
from service.broker import Broker, BrokerConfig

SECONDS_BETWEEN_LOOKS: Final = 0.01
READY_SECONDS: Final = 60


def help_seconds() -> float:
    """From the start of `softmax-service --help` to its end."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "service", "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - begun


def ready_seconds(bootstrap: str, group: str) -> float:
    """From the start of the service until its `/readyz` says that it has partitions.

    Raises:
        BenchmarkError: it never does.
    """
    environment = service_environment(Place(bootstrap, "logits", "probabilities", "logits.dead-letter", group))
    begun = time.monotonic()
    with MeasuredProcess(SERVICE, service_command(), environment) as process:
        while time.monotonic() - begun < READY_SECONDS:
            process.check()
            if (found := re.search(r"http://[\d.:]+", process.tail())) and _is_ready(found[0]):
                seconds = time.monotonic() - begun
                process.stop()
                return seconds
            time.sleep(SECONDS_BETWEEN_LOOKS)
    raise BenchmarkError(f"not ready after {READY_SECONDS} s")


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=1):  # noqa: S310 - ours
            return True
    except OSError:
        return False


def execute(rounds: int) -> dict[str, Any]:
    """Start a broker, measure, and return the figures, in seconds."""
    about = machine.describe(on_tmpfs=True)
    with Broker(BrokerConfig(tmpfs=True), progress=print) as broker:
        given = service_environment(
            Place(broker.bootstrap_servers, "logits", "probabilities", "logits.dead-letter", "g")
        )
        topics = [sys.executable, "-m", "service", "topics", "create"]
        subprocess.run(topics, env=given, stdout=subprocess.DEVNULL, check=True)  # noqa: S603 - ours
        # The first of each warms file caches and the broker.
        helps = [help_seconds() for _ in range(rounds + 1)][1:]
        readies = [ready_seconds(broker.bootstrap_servers, f"g{number}") for number in range(rounds + 1)][1:]
    return {
        "command": f"scripts/bench startup --rounds {rounds}",
        "machine": about,
        "help_seconds": statistics.median(helps),
        "slowest_help_seconds": max(helps),
        "ready_seconds": statistics.median(readies),
        "slowest_ready_seconds": max(readies),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench startup", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    results = execute(given.rounds)
    for name in ("help", "ready"):
        print(f"{name}: {results[f'{name}_seconds']:.2f} s, the slowest {results[f'slowest_{name}_seconds']:.2f} s")
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
