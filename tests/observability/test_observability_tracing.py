"""Traces: a micro-batch's spans, how they hang together, and that a collector gets them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import prometheus_client.openmetrics.exposition
import prometheus_client.openmetrics.parser
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_trace_id

from service.observability.metrics import Metrics
from service.observability.tracing import MAX_OPEN, SCHEMA_URL, Tracing, to_collector

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICE: Final = {"version": "9", "instance": "here", "group": "g", "input": "logits", "output": "probabilities"}
PARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Partition(NamedTuple):
    """A partition as events name it."""

    topic: str
    partition: int


class Traced:
    """A tracing whose spans the test sees."""

    def __init__(self, ratio: float = 1.0) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracing = Tracing(SimpleSpanProcessor(self._exporter), SERVICE, ratio)

    def batch(self, number: int, *parents: str, parts: int = 1) -> None:
        self.tracing.batch_taken(number, parts, 0.25, parents)
        self.tracing.batch_transformed(number, 7)

    @property
    def spans(self) -> list[Any]:
        return list(self._exporter.get_finished_spans())

    def named(self, beginning: str) -> list[Any]:
        return [span for span in self.spans if span.name.startswith(beginning)]


@pytest.fixture
def traced() -> Iterator[Traced]:
    found = Traced()
    yield found
    found.tracing.close()


def test_a_micro_batch_is_one_trace_of_poll_process_and_send(traced: Traced) -> None:
    traced.batch(1)
    traced.tracing.part_acknowledged(1, "logits", 0, 7)
    spans = {span.name: span for span in traced.spans}
    assert set(spans) == {"poll logits", "process logits", "send probabilities"}
    poll, process, send = (spans[name] for name in ("poll logits", "process logits", "send probabilities"))
    assert len({span.context.trace_id for span in spans.values()}) == 1
    assert (poll.parent, process.parent.span_id, send.parent.span_id) == (
        None, poll.context.span_id, process.context.span_id,
    )  # fmt: skip
    assert (poll.kind, process.kind, send.kind) == (SpanKind.CLIENT, SpanKind.CONSUMER, SpanKind.PRODUCER)
    assert poll.end_time - poll.start_time == 250_000_000
    assert poll.end_time == process.start_time <= process.end_time <= send.start_time <= send.end_time


def test_spans_say_what_the_conventions_ask_for(traced: Traced) -> None:
    traced.batch(1)
    traced.tracing.part_acknowledged(1, "logits", 0, 7)
    (process,) = traced.named("process")
    assert dict(process.attributes) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "logits",
        "messaging.consumer.group.name": "g",
        "messaging.batch.message_count": 7,
    }
    assert process.instrumentation_scope.schema_url == process.resource.schema_url == SCHEMA_URL
    assert process.resource.attributes["service.name"] == "softmax-service"
    assert process.resource.attributes["service.instance.id"] == "here"


def test_the_environment_may_name_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "images")
    traced = Traced()
    traced.batch(1)
    traced.tracing.close()
    assert traced.spans[0].resource.attributes["service.name"] == "images"


def test_it_is_linked_to_the_traces_of_its_records_and_to_no_nonsense(traced: Traced) -> None:
    traced.batch(1, PARENT, "nonsense", "", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "\ufffd" * 55)
    traced.tracing.part_acknowledged(1, "logits", 0, 7)
    (process,) = traced.named("process")
    (link,) = process.links
    assert format_trace_id(link.context.trace_id) == "0af7651916cd43dd8448eb211c80319c"


def test_sending_ends_with_the_last_of_the_partitions(traced: Traced) -> None:
    traced.batch(1, parts=2)
    traced.tracing.part_acknowledged(1, "logits", 0, 3)
    assert traced.named("send") == []
    traced.tracing.part_acknowledged(1, "logits", 1, 4)
    assert len(traced.named("send")) == 1


def test_a_commit_is_linked_to_what_it_makes_final_once(traced: Traced) -> None:
    for number in (1, 2):
        traced.batch(number)
        traced.tracing.part_acknowledged(number, "logits", 0, 7)
    partition = Partition("logits", 0)
    traced.tracing.committed({partition: 14}, 0.5)
    traced.tracing.committed({partition: 15}, 0.5)
    first, second = traced.named("commit")
    processed = [span.context.span_id for span in traced.named("process")]
    assert [link.context.span_id for link in first.links] == processed
    assert second.links == ()
    assert first.attributes["softmax.offsets"] == ("logits-0@14",)
    assert first.attributes["messaging.operation.type"] == "settle"
    assert first.end_time - first.start_time == 500_000_000


def test_what_is_never_acknowledged_is_given_up_and_memory_is_bounded(traced: Traced) -> None:
    for number in range(MAX_OPEN + 3):
        traced.batch(number)
    given_up = traced.named("send")
    assert len(given_up) == 3
    assert {span.status.status_code for span in given_up} == {StatusCode.ERROR}
    traced.tracing.part_acknowledged(0, "logits", 0, 7)  # too late
    traced.tracing.close()
    assert len(traced.named("send")) == MAX_OPEN + 3


def test_nothing_leaves_a_trace_that_is_not_sampled() -> None:
    traced = Traced(ratio=0)
    traced.batch(1)
    assert traced.tracing.trace_of(1) is None
    traced.tracing.part_acknowledged(1, "logits", 0, 7)
    traced.tracing.close()
    assert traced.spans == []


def test_latency_buckets_name_the_trace_of_one_of_their_values(traced: Traced) -> None:
    metrics = Metrics({"version": "1"}, 100, 1000)
    metrics.trace_of = traced.tracing.trace_of
    traced.batch(1)
    metrics.outputs_acknowledged(1, "default", np.array([0.004, 0.3]))
    metrics.outputs_acknowledged(2, "default", np.array([0.02]))  # a micro-batch without a trace
    text = prometheus_client.openmetrics.exposition.generate_latest(metrics.registry).decode()  # type: ignore[no-untyped-call]
    families = prometheus_client.openmetrics.parser.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    exemplars = [
        (sample.labels["le"], sample.exemplar.labels["trace_id"], sample.exemplar.value)
        for family in families
        for sample in family.samples
        if sample.exemplar
    ]
    assert exemplars == [("0.5", traced.tracing.trace_of(1), 0.3)]


async def test_a_collector_gets_them_by_otlp() -> None:
    got: list[ExportTraceServiceRequest] = []

    async def collect(request: web.Request) -> web.Response:
        got.append(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response(content_type="application/x-protobuf")

    app = web.Application()
    app.add_routes([web.post("/v1/traces", collect)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        tracing = to_collector(f"http://127.0.0.1:{port}/v1/traces", SERVICE, 1.0)
        tracing.batch_taken(1, 1, 0.0, [PARENT])
        tracing.batch_transformed(1, 7)
        tracing.part_acknowledged(1, "logits", 0, 7)
        await asyncio.to_thread(tracing.close)
    finally:
        await runner.cleanup()
    spans = [span for each in got for r in each.resource_spans for s in r.scope_spans for span in s.spans]
    assert sorted(span.name for span in spans) == ["poll logits", "process logits", "send probabilities"]


async def test_a_collector_that_is_away_delays_the_end_by_seconds_at_most() -> None:
    tracing = to_collector("http://127.0.0.1:9/v1/traces", SERVICE, 1.0)
    tracing.batch_taken(1, 1, 0.0, [])
    async with asyncio.timeout(30):
        await asyncio.to_thread(tracing.close)
