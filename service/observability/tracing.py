"""Spans of micro-batches, sent by OpenTelemetry: what was polled, processed, sent and committed, and when.

A micro-batch is a trace: `poll` for as long as it filled, within it `process`, linked to the traces of its
records, and `send` until all is acknowledged. A `commit` is linked to the micro-batches that it makes final.
Names and attributes follow OpenTelemetry's semantic conventions for messaging and for Kafka.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.observability.events import Observer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span, SpanContext

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.30.0"
# What is given up is never acknowledged: so many micro-batches are waited for at once.
MAX_OPEN: Final = 256
# A span has room for so many links.
MAX_LINKS: Final = 128
END_SECONDS: Final = 5


@dataclass(slots=True)
class _UnderWay:
    """A micro-batch that is not acknowledged yet."""

    process: Span
    send: Span | None
    parts_left: int


class Tracing(Observer):
    """Turns events into spans."""

    def __init__(self, processor: SpanProcessor, service: Mapping[str, str], ratio: float) -> None:
        """Send nothing yet.

        Args:
            processor: what becomes of spans that have ended.
            service: `version`, `instance`, `group`, `input` and `output`.
            ratio: share of the micro-batches that leave a trace.
        """
        resource = Resource.create(
            {
                "service.name": "softmax-service",
                "service.version": service["version"],
                "service.instance.id": service["instance"],
            },
            SCHEMA_URL,
        )
        self._provider = TracerProvider(
            resource=resource.merge(OTELResourceDetector().detect()),  # OTEL_SERVICE_NAME and its like win
            sampler=ParentBased(TraceIdRatioBased(ratio)),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("softmax-service", service["version"], SCHEMA_URL)
        self._group, self._input, self._output = service["group"], service["input"], service["output"]
        self._under_way: OrderedDict[int, _UnderWay] = OrderedDict()
        # What has been acknowledged since the last commit.
        self._acknowledged: deque[SpanContext] = deque(maxlen=MAX_LINKS)

    def trace_of(self, batch: int) -> str | None:
        """The trace id of a micro-batch under way, in hex, if it leaves a trace."""
        found = self._under_way.get(batch)
        context = found.process.get_span_context() if found else None
        return trace.format_trace_id(context.trace_id) if context and context.trace_flags.sampled else None

    def close(self) -> None:
        """Send what is left, for some seconds at most; blocks."""
        for found in self._under_way.values():
            self._end(found, given_up=True)
        self._under_way.clear()
        self._provider.force_flush(END_SECONDS * 1000)
        self._provider.shutdown()

    def batch_taken(self, batch: int, parts: int, waited: float, parents: Sequence[str]) -> None:
        """See `Observer`."""
        now = time.time_ns()
        attributes = self._attributes("poll", "receive", self._input)
        poll = self._tracer.start_span(
            f"poll {self._input}",
            kind=SpanKind.CLIENT,
            attributes=attributes,
            start_time=now - int(waited * 1e9),
        )
        poll.end(now)
        process = self._tracer.start_span(
            f"process {self._input}",
            context=trace.set_span_in_context(poll),
            kind=SpanKind.CONSUMER,
            attributes=self._attributes("process", "process", self._input),
            links=[Link(context) for context in map(_context, parents) if context.is_valid],
            start_time=now,
        )
        self._under_way[batch] = _UnderWay(process, None, parts)
        while len(self._under_way) > MAX_OPEN:
            _, oldest = self._under_way.popitem(last=False)
            self._end(oldest, given_up=True)

    def batch_transformed(self, batch: int, records: int) -> None:
        """See `Observer`."""
        found = self._under_way.get(batch)
        if found is None:
            return
        found.process.set_attribute("messaging.batch.message_count", records)
        found.process.end()
        found.send = self._tracer.start_span(
            f"send {self._output}",
            context=trace.set_span_in_context(found.process),
            kind=SpanKind.PRODUCER,
            attributes={
                **self._attributes("send", "send", self._output),
                "messaging.batch.message_count": records,
            },
        )

    def part_acknowledged(self, batch: int, topic: str, partition: int, records: int) -> None:  # noqa: ARG002
        """See `Observer`."""
        found = self._under_way.get(batch)
        if found is None:
            return
        found.parts_left -= 1
        if not found.parts_left:
            del self._under_way[batch]
            self._end(found)
            self._acknowledged.append(found.process.get_span_context())

    def committed(self, offsets: Mapping[Any, int], seconds: float) -> None:
        """See `Observer`."""
        now = time.time_ns()
        commit = self._tracer.start_span(
            f"commit {self._input}",
            kind=SpanKind.CLIENT,
            attributes={
                **self._attributes("commit", "settle", self._input),
                "softmax.offsets": [f"{p.topic}-{p.partition}@{offset}" for p, offset in offsets.items()],
            },
            links=[Link(context) for context in self._acknowledged],
            start_time=now - int(seconds * 1e9),
        )
        commit.end(now)
        self._acknowledged.clear()

    def _attributes(self, name: str, kind: str, topic: str) -> dict[str, str]:
        return {
            "messaging.system": "kafka",
            "messaging.operation.name": name,
            "messaging.operation.type": kind,
            "messaging.destination.name": topic,
            "messaging.consumer.group.name": self._group,
        }

    def _end(self, found: _UnderWay, *, given_up: bool = False) -> None:
        span = found.send or found.process
        if given_up:
            span.set_status(Status(StatusCode.ERROR, "given up; the records are read again"))
        span.end()


def to_collector(endpoint: str, service: Mapping[str, str], ratio: float) -> Tracing:
    """Send spans to a collector by OTLP over HTTP, from a thread of their own.

    Args:
        endpoint: the URL.
        service: as for `Tracing`.
        ratio: share of the micro-batches that leave a trace.
    """
    return Tracing(BatchSpanProcessor(OTLPSpanExporter(endpoint)), service, ratio)


def _context(parent: str) -> SpanContext:
    """What a record's header `traceparent` says; invalid if it says nothing that is understood."""
    found = TraceContextTextMapPropagator().extract({"traceparent": parent})
    return trace.get_current_span(found).get_span_context()
