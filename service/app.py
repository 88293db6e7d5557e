"""The composition root: wires the rooms together, listens for signals, reports the end."""

from __future__ import annotations

import asyncio
import platform
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import aiokafka
import numpy as np
import structlog

from service import __version__, memory
from service.errors import ConfigurationError, ServiceError
from service.observability.events import Observers
from service.observability.http import HttpServer
from service.observability.logs import LogEvents
from service.observability.metrics import Metrics
from service.observability.status import Status
from service.streaming.faults import unheard
from service.streaming.worker import Worker
from service.transform.pipeline import Limits, Pipeline
from service.transform.refusals import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from service.observability.events import Observer
    from service.observability.tracing import Tracing
    from service.settings import Settings

LOOP_LAG_INTERVAL: Final = 0.1
VERSIONS: Final = {
    "version": __version__,
    "python": platform.python_version(),
    "numpy": np.__version__,
    "aiokafka": aiokafka.__version__,
}


def run(settings: Settings, *, until_caught_up: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, or until all that was there at the start is done; return when it is drained.

    Raises:
        ServiceError: with the exit code, why not.
    """
    memory.keep_freed_memory()
    memory.collect_garbage_seldom()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serve(settings, until_caught_up=until_caught_up))
    except ServiceError as error:
        structlog.stdlib.get_logger("service").error("ended", error=str(error), exit_code=int(error.code))
        raise


async def serve(settings: Settings, *, until_caught_up: bool = False) -> None:
    """Serve in the running loop; see `run`."""
    asyncio.get_running_loop().set_exception_handler(unheard)
    metrics = Metrics(
        VERSIONS,
        settings.batch.max_records,
        settings.batch.max_bytes,
        [reason.value for reason in Reason],
    )
    # Nobody asks for the health of a worker before it is there.
    status = Status(metrics, _about(settings), settings.shown(), lambda: worker.health)
    observers: list[Observer] = [metrics, status, LogEvents()]
    with _tracing(settings) as tracing:
        if tracing is not None:
            metrics.trace_of = tracing.trace_of
            observers.append(tracing)
        limits = Limits(settings.limits.max_message_bytes, settings.limits.max_classes)
        pipeline = Pipeline(limits, settings.profiles())
        worker = Worker(settings, pipeline, Observers(*observers), until_caught_up=until_caught_up)
        http = HttpServer(
            settings.http.host, settings.http.port, metrics.registry, lambda: worker.health, status.document
        )
        with _StopSignals(worker):
            address = await http.start()
            structlog.stdlib.get_logger("service").info("listening", address=address)
            watch = asyncio.create_task(_watch(metrics, status, worker))
            try:
                await worker.run()
            finally:
                watch.cancel()
                await http.stop()


def _about(settings: Settings) -> dict[str, object]:
    """What the status page says of the service."""
    return {
        **VERSIONS,
        "instance": settings.kafka.client_id,
        "group": settings.kafka.group_id,
        "input": settings.topics.input,
        "output": settings.topics.output,
        "dead_letter": settings.topics.dead_letter,
        "guarantee": settings.delivery.guarantee,
    }


@contextmanager
def _tracing(settings: Settings) -> Iterator[Tracing | None]:
    """Send traces while entered, if that is asked for; at the end send what is left."""
    endpoint = settings.tracing.endpoint
    if endpoint is None:
        yield None
        return
    try:
        from service.observability.tracing import to_collector  # noqa: PLC0415 - an extra that may not be there
    except ImportError as error:
        raise ConfigurationError(
            f"tracing.endpoint is set, but {error.name} is not installed", "Install softmax-service[otel]"
        ) from error
    tracing = to_collector(
        endpoint, {name: str(fact) for name, fact in _about(settings).items()}, settings.tracing.sample_ratio
    )
    try:
        yield tracing
    finally:
        tracing.close()


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


async def _watch(metrics: Metrics, status: Status, worker: Worker) -> None:
    """Look ten times a second how late the loop is, and once at all figures."""
    loop = asyncio.get_running_loop()
    while True:
        for _ in range(round(1 / LOOP_LAG_INTERVAL)):
            due = loop.time() + LOOP_LAG_INTERVAL
            await asyncio.sleep(LOOP_LAG_INTERVAL)
            metrics.loop_lag.observe(max(0.0, loop.time() - due))
            metrics.ready.set(worker.health.ready)
        status.tick()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - not there on every platform
    except ImportError:
        return None
    return uvloop.new_event_loop
