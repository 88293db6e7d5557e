"""How long a scrape of a busy service takes, and how large it is.

scripts/bench scrape [--partitions 12] [--models 20] [--write-docs] [--json scrape.json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import numpy as np

from benchmarks import machine, report
from service import memory
from service.observability.http import HttpServer
from service.observability.metrics import OPERATIONS, PATHS, Metrics
from service.observability.status import STAGES, Status
from service.transform.refusals import Reason

SCRAPES: Final = 200
OPENMETRICS: Final = {"Accept": "application/openmetrics-text; version=1.0.0"}


@dataclass(frozen=True)
class WellHealth:
    """A service that runs."""

    ready: bool = True
    stalled: bool = False
    why: str = "running"


def busy_metrics(partitions: int, models: int) -> Metrics:
    """Metrics that have met everything that a service of this size can meet."""
    metrics = Metrics({"version": "1"}, 16384, 4 << 20, [reason.value for reason in Reason])
    values = np.geomspace(1e-4, 60, 200)
    for partition in range(partitions):
        metrics.records_consumed("logits", partition, 1)
        metrics.records_produced("probabilities", partition, 1)
        metrics.lag("logits", partition, 1, 1.0)
    for model in range(models):
        metrics.outputs_acknowledged(0, f"model-{model}", values)
        metrics.predicted(f"model-{model}", values / 60, values / 4)
    for stage in STAGES:
        metrics.stage_ended(stage, 0.01)
    for path in PATHS:
        metrics.records_transformed(path, 1)
    for operation in OPERATIONS:
        metrics.retried(operation, TimeoutError())
    return metrics


async def measure(partitions: int, models: int) -> dict[str, Any]:
    """Scrape over and over, as Prometheus does it; return seconds and bytes."""
    metrics, health = busy_metrics(partitions, models), WellHealth()
    status = Status(metrics, {}, {}, lambda: health)
    server = HttpServer("127.0.0.1", 0, metrics.registry, lambda: health, status.document)
    address = await server.start()
    found: dict[str, Any] = {"partitions": partitions, "models": models}
    try:
        async with aiohttp.ClientSession() as session:
            for name, path, headers in (
                ("text", "metrics", {}),
                ("openmetrics", "metrics", OPENMETRICS),
                ("status", "status.json", {}),
            ):
                seconds, size = [], 0
                for _ in range(SCRAPES):
                    begun = time.monotonic()
                    async with session.get(f"{address}/{path}", headers=headers) as answer:
                        size = len(await answer.read())
                    seconds.append(time.monotonic() - begun)
                found[name] = {
                    "median_seconds": statistics.median(seconds),
                    "p99_seconds": float(np.quantile(seconds, 0.99)),
                    "bytes": size,
                }
    finally:
        await server.stop()
    return found


def main() -> None:
    """Measure, print, and write down what is asked for."""
    parser = argparse.ArgumentParser(prog="scripts/bench scrape", description=__doc__)
    parser.add_argument("--partitions", type=int, default=12)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--write-docs", action="store_true", help="write them into docs/performance.md")
    options = parser.parse_args()
    memory.collect_garbage_seldom()  # as the service does
    figures = {
        "command": f"scripts/bench scrape --partitions {options.partitions} --models {options.models}",
        "machine": machine.describe(on_tmpfs=False),
        **asyncio.run(measure(options.partitions, options.models)),
    }
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if options.write_docs:
        report.write_docs("scrape", report.scrape(figures))


if __name__ == "__main__":
    main()
