"""The composition root: wires the rooms together, listens for signals, reports the end."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

# Before numpy is imported: its idle BLAS threads only take time from the loop. Nothing here multiplies matrices.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import aiokafka
import numpy as np
import structlog

from service import __version__, allocator
from service.observability.events import Observers
from service.observability.http import HttpServer
from service.observability.logs import LogEvents
from service.observability.metrics import Metrics
from service.streaming.worker import Worker
from service.transform.pipeline import Limits, Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.settings import Settings

LOOP_LAG_INTERVAL = 0.1


def run(settings: Settings, *, until_caught_up: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, or until all that was there at the start is done; return when it is drained.

    Raises:
        ServiceError: with the exit code, why not.
    """
    allocator.keep_freed_memory()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(settings, until_caught_up=until_caught_up))


async def serve(settings: Settings, *, until_caught_up: bool = False) -> None:
    """Serve in the running loop; see `run`."""
    metrics = Metrics(
        {"version": __version__, "numpy": np.__version__, "aiokafka": aiokafka.__version__},
        settings.batch.max_records,
        settings.batch.max_bytes,
    )
    limits = Limits(settings.limits.max_message_bytes, settings.limits.max_classes)
    pipeline = Pipeline(limits, settings.profiles())
    worker = Worker(settings, pipeline, Observers(metrics, LogEvents()), until_caught_up=until_caught_up)
    http = HttpServer(settings.http.host, settings.http.port, metrics.registry, lambda: worker.health)
    with _StopSignals(worker):
        address = await http.start()
        structlog.stdlib.get_logger("service").info("listening", address=address)
        loop_lag = asyncio.create_task(_watch_loop(metrics))
        try:
            await worker.run()
        finally:
            loop_lag.cancel()
            await http.stop()


class _StopSignals:
    """While entered, SIGTERM and SIGINT ask the worker to drain; a second one ends the process at once."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    def _stop(self, number: signal.Signals) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
        self._worker.stop(signal.Signals(number).name)


async def _watch_loop(metrics: Metrics) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LOOP_LAG_INTERVAL
        await asyncio.sleep(LOOP_LAG_INTERVAL)
        metrics.loop_lag.observe(max(0.0, loop.time() - due))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - not there on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop
