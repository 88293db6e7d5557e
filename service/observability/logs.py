"""Logs: one line per event that a person acts on, as console text or JSON."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import structlog

from service.observability.events import Observer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Repeated events are summed up and told at most this often.
QUIET_SECONDS: Final = 10.0
# The logger of this package.
OURS: Final = "service"


def configure(level: str, form: str) -> None:
    """Send all logs, those of libraries included, to stderr; of libraries' nothing below `info`.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        form: `console`, `json`, or `auto` for console on a terminal.
    """
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if console else structlog.processors.JSONRenderer()
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    handler.addFilter(_no_library_s_debug)
    handler.addFilter(_Quieten())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel("INFO" if level == "debug" else level.upper())
    logging.getLogger(OURS).setLevel(level.upper())
    logging.getLogger("aiokafka").setLevel(logging.INFO if level == "debug" else logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _no_library_s_debug(record: logging.LogRecord) -> bool:
    """Below INFO aiokafka writes whole requests and botocore whole answers, credentials included.

    Whatever level a logger of theirs has been given: the loggers' levels alone would be an opinion.
    """
    return record.levelno >= logging.INFO or record.name == OURS


class _Quieten(logging.Filter):
    """Lets a library repeat itself only now and then: an absent broker is reported ten times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._told_at: dict[object, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("aiokafka"):
            return True
        now = time.monotonic()
        if now - self._told_at.get(record.msg, -QUIET_SECONDS) < QUIET_SECONDS:
            return False
        self._told_at[record.msg] = now
        return True


class LogEvents(Observer):
    """Writes the events worth a person's attention."""

    def __init__(self) -> None:
        """Log under the service's name."""
        self._log = structlog.stdlib.get_logger(OURS)
        self._told_at: dict[str, float] = {}
        self._untold: Counter[str] = Counter()
        self._example: dict[str, object] = {}
        self._retries: Counter[str] = Counter()
        self._failures = 0

    def started(self, facts: Mapping[str, object]) -> None:
        """See `Observer`."""
        self._log.info("started", **facts)

    def stopping(self, why: str) -> None:
        """See `Observer`."""
        self._log.info("stopping", why=why)

    def stopped(self, how: str) -> None:
        """See `Observer`."""
        if self._untold:
            self._tell_dead_letters()
        self._log.info("stopped", how=how)

    def assigned(self, partitions: Sequence[Any]) -> None:
        """See `Observer`."""
        self._log.info("assigned", partitions=_names(partitions))

    def revoked(self, partitions: Sequence[Any], drained: bool) -> None:  # noqa: FBT001 - the event's signature
        """See `Observer`."""
        tell = self._log.info if drained else self._log.warning
        tell("revoked", partitions=_names(partitions), drained=drained)

    def dead_letters_produced(self, records: Mapping[str, int], examples: Sequence[Mapping[str, object]]) -> None:
        """See `Observer`."""
        self._untold.update(records)
        # What a record holds has no place in a log, whatever may be shown elsewhere.
        self._example = {name: fact for name, fact in examples[0].items() if name != "payload"} if examples else {}
        if self._due("dead letters"):
            self._tell_dead_letters()

    def retried(self, operation: str, error: BaseException) -> None:
        """See `Observer`."""
        self._retries[operation] += 1
        if self._due(f"retry {operation}"):
            self._log.warning(
                "waiting for the broker",
                operation=operation,
                times=self._retries.pop(operation),
                error=f"{type(error).__name__}: {error}",
            )

    def seam_unfit(self, version: str) -> None:
        """See `Observer`."""
        self._log.warning("slower: whole batches are not tested with this aiokafka", version=version)

    def producer_replaced(self, error: BaseException) -> None:
        """See `Observer`."""
        self._failures += 1
        if self._due("failure"):
            self._log.warning(
                "delivery failed; going back to the acknowledged records",
                times=self._failures,
                error=f"{type(error).__name__}: {error}",
            )
            self._failures = 0

    def offset_lost(self, topic: str, partition: int, offset: int, policy: str) -> None:
        """See `Observer`."""
        self._log.error("offset lost", topic=topic, partition=partition, offset=offset, policy=policy)

    def stalled(self, seconds: float, stacks: str) -> None:
        """See `Observer`."""
        self._log.error("stalled: records wait, the broker answers, nothing moves", seconds=seconds, stacks=stacks)

    def _tell_dead_letters(self) -> None:
        self._log.warning("dead letters", **self._untold, example=self._example)
        self._untold.clear()

    def _due(self, event: str) -> bool:
        now = time.monotonic()
        due = now - self._told_at.get(event, -QUIET_SECONDS) >= QUIET_SECONDS
        if due:
            self._told_at[event] = now
        return due


def _names(partitions: Sequence[Any]) -> list[str]:
    return [f"{partition.topic}-{partition.partition}" for partition in partitions]
