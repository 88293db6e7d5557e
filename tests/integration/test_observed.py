"""What a running service shows of itself: its status, its metrics, its traces."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest
from aiohttp import web
from harness import Bus, ServiceProcess, eventually, pack
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from service import app
from service.errors import ConfigurationError
from service.settings import load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    MakeService = Callable[..., ServiceProcess]

GOOD: Final = pack(np.asarray([1, 2, 3], np.float32), id=7)
BAD: Final = pack(np.asarray([1, np.nan, 3], np.float32), secret="in the payload")
TRACE: Final = "0af7651916cd43dd8448eb211c80319c"


def status_of(service: ServiceProcess) -> dict[str, Any]:
    code, body = service.get("/status.json")
    assert code == 200
    document: dict[str, Any] = json.loads(body)
    return document


async def test_the_status_tells_what_happened(bus: Bus, make_service: MakeService) -> None:
    service = await make_service(bus, http__show_payloads=True).start().ready()
    await bus.send([GOOD] * 500, partition=None)
    await bus.send([BAD], partition=2)
    await bus.outputs(500)
    await bus.dead_letters(1)
    await eventually(lambda: status_of(service)["totals"] == {"consumed": 501, "produced": 500, "dead_letters": 1})
    await eventually(lambda: len(status_of(service)["partitions"]) == bus.partitions)
    document = status_of(service)
    assert document["health"] == {"ready": True, "stalled": False, "why": "running"}
    assert document["service"]["input"] == bus.input
    assert document["latency"]["count"] == document["latency"]["models"]["default"]["count"] == 500
    assert document["latency"]["p50"] > 0
    assert sum(document["paths"].values()) == 501 - 1
    assert document["in_flight"] == {"records": 0, "bytes": 0}
    assert {"layout", "softmax", "assemble", "deliver"} <= {each["stage"] for each in document["stages"]}
    assert all(each["lag_records"] == 0 for each in document["partitions"])
    assert document["predictions"]["default"]["mean_confidence"] == pytest.approx(0.6652409, abs=1e-6)
    assert document["predictions"]["default"]["mean_entropy"] == pytest.approx(0.8323955, abs=1e-6)
    (letter,) = document["dead_letters"]["last"]
    assert document["dead_letters"]["by_reason"] == {"nan": 1}
    assert (letter["reason"], letter["topic"], letter["partition"]) == ("nan", bus.input, 2)
    assert bytes.fromhex(letter["payload"]) == BAD
    assert "in the payload" not in service.log
    assert BAD.hex() not in service.log


async def test_without_leave_no_payload_is_shown_and_no_secret_ever(bus: Bus, make_service: MakeService) -> None:
    service = await make_service(bus, kafka__sasl_password="planted").start().ready()
    await bus.send([BAD])
    await bus.dead_letters(1)
    await eventually(lambda: bool(status_of(service)["dead_letters"]["last"]))
    _, body = service.get("/status.json")
    (letter,) = json.loads(body)["dead_letters"]["last"]
    assert "payload" not in letter
    assert "planted" not in body
    assert json.loads(body)["settings"]["kafka"]["sasl_password"] == "**********"


async def test_hostile_model_names_make_no_series(bus: Bus, make_service: MakeService) -> None:
    service = await make_service(bus, models__images__temperature=2).start().ready()
    names = ["images", "default", 'x"} 1\nsoftmax_fake 1', "\x00", *(f"m{number}" for number in range(300))]
    await bus.send([pack(np.asarray([1, 2], np.float32), model=name) for name in names])
    await bus.send([pack(np.asarray([1, 2], np.float32))] * 3, headers=[("model", b"\xff{}\n")])
    await bus.outputs(len(names) + 3)
    await eventually(lambda: status_of(service)["latency"]["count"] == len(names) + 3)
    assert set(status_of(service)["latency"]["models"]) == {"images", "default"}
    _, text = service.get("/metrics")
    models = {line.partition('model="')[2].partition('"')[0] for line in text.splitlines() if 'model="' in line}
    assert models == {"images", "default"}
    assert "softmax_fake" not in text


class Collector:
    """An OTLP receiver."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.endpoint = ""

    async def take(self, request: web.Request) -> web.Response:
        message = ExportTraceServiceRequest.FromString(await request.read())
        self.spans += [span for r in message.resource_spans for s in r.scope_spans for span in s.spans]
        return web.Response(content_type="application/x-protobuf")

    def named(self, beginning: str) -> list[Any]:
        return [span for span in self.spans if span.name.startswith(beginning)]


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector, server = Collector(), web.Application()
    server.add_routes([web.post("/v1/traces", collector.take)])
    runner = web.AppRunner(server)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        collector.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
        yield collector
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("guarantee", ["at_least_once", "exactly_once"])
async def test_traces_reach_a_collector(bus: Bus, make_service: MakeService, guarantee: str) -> None:
    async with collecting() as collector:
        service = make_service(bus, tracing__endpoint=collector.endpoint, delivery__guarantee=guarantee)
        await service.start().ready()
        parent = f"00-{TRACE}-b7ad6b7169203331-01".encode()
        await bus.send([GOOD] * 4, partition=None, headers=[("traceparent", parent)])
        outputs = await bus.outputs(4)
        assert all(("traceparent", parent) in output.headers for output in outputs)
        await eventually(lambda: status_of(service)["totals"]["produced"] == 4)
        _, text = await asyncio.to_thread(service.get, "/metrics")
        assert "trace_id" not in text  # exemplars are for OpenMetrics only
        assert await service.stop() == 0
    processed = collector.named("process ")
    linked = {link.trace_id.hex() for span in processed for link in span.links}
    assert linked == {TRACE}
    sent = {span.trace_id for span in collector.named("send ")}
    assert {span.trace_id for span in processed} == sent == {span.trace_id for span in collector.named("poll ")}
    committed = {link.span_id for span in collector.named("commit ") for link in span.links}
    assert committed <= {span.span_id for span in processed}
    assert committed


def test_traces_without_their_packages_are_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "service.observability.tracing", raising=False)
    settings = load(environment={"SOFTMAX_TRACING__ENDPOINT": "http://127.0.0.1:4318/v1/traces"})
    with pytest.raises(ConfigurationError, match=r"opentelemetry is not installed. Install softmax-service\[otel\]"):
        app._tracing(settings).__enter__()
