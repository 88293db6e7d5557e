"""Metrics and health over HTTP, from a real server on a free port of 127.0.0.1."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import numpy as np
import prometheus_client.openmetrics.parser
import prometheus_client.parser
import pytest
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from service.errors import ConfigurationError, ExitCode
from service.observability.http import PAGE, HttpServer
from service.observability.metrics import Metrics
from service.observability.status import Status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
# What Prometheus 3 asks for.
PROMETHEUS_ACCEPT: Final = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@dataclass
class FakeHealth:
    """What the probes are told."""

    ready: bool = True
    stalled: bool = False
    why: str = "running"


@dataclass
class Served:
    """A server at work and what it shows."""

    address: str
    metrics: Metrics
    health: FakeHealth


@contextlib.asynccontextmanager
async def serving(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Served]:
    metrics, health = Metrics({"version": "1"}, 100, 1000), FakeHealth()
    status = Status(metrics, {"version": "1"}, {}, lambda: health)
    server = HttpServer(host, port, metrics.registry, lambda: health, status.document)
    address = await server.start()
    try:
        yield Served(address, metrics, health)
    finally:
        await server.stop()


@dataclass
class Answer:
    """What came back."""

    status: int
    content_type: str
    text: str


async def ask(url: str, method: str = "GET", **headers: str) -> Answer:
    async with aiohttp.ClientSession() as session, session.request(method, url, headers=headers) as response:
        return Answer(response.status, response.headers["Content-Type"], await response.text())


async def refusal(host: str, port: int) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        async with serving(host, port):
            pass
    assert caught.value.code is ExitCode.CONFIGURATION
    return caught.value


async def test_the_address_names_the_port_that_was_found() -> None:
    async with serving() as served:
        assert served.address.startswith("http://127.0.0.1:")
        assert int(served.address.rpartition(":")[2]) > 0


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain", "text/html,*/*;q=0.8"])
async def test_metrics_are_prometheus_text_for_who_asks_for_nothing_else(accept: str) -> None:
    async with serving() as served:
        served.metrics.rebalances.add(3)
        answer = await ask(f"{served.address}/metrics", **({"Accept": accept} if accept else {}))
    assert answer.status == 200
    assert answer.content_type.startswith("text/plain; version=")
    samples = {
        sample.name: sample.value
        for family in prometheus_client.parser.text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert samples["softmax_rebalances_total"] == 3


@pytest.mark.parametrize("accept", [OPENMETRICS, PROMETHEUS_ACCEPT, "application/openmetrics-text"])
async def test_metrics_are_openmetrics_for_who_asks_for_it(accept: str) -> None:
    async with serving() as served:
        served.metrics.rebalances.add(3)
        answer = await ask(f"{served.address}/metrics", Accept=accept)
    assert answer.status == 200
    assert answer.content_type.startswith("application/openmetrics-text; version=")
    assert answer.text.endswith("# EOF\n")
    samples = {
        sample.name: sample.value
        for family in prometheus_client.openmetrics.parser.text_string_to_metric_families(answer.text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }
    assert samples["softmax_rebalances_total"] == 3


@pytest.mark.parametrize("accept", [OPENMETRICS, "application/openmetrics-text", "text/plain;version=1.0.0"])
async def test_what_is_shown_is_what_the_library_would_show(accept: str) -> None:
    """Byte for byte, but for those lines that tell of the process and change by themselves."""
    async with serving() as served:
        served.metrics.outputs_acknowledged(0, 'a "model"\\\n\N{GREEK SMALL LETTER ALPHA}', np.array([0.1, 2.0]))
        answer = await ask(f"{served.address}/metrics", Accept=accept)
        encode, _ = choose_encoder(accept)
        expected = encode(served.metrics.registry).decode()
    assert len(ours(expected)) > 100
    assert ours(answer.text) == ours(expected)


def ours(text: str) -> list[str]:
    return [line for line in text.splitlines() if not re.match("(# [A-Z]+ )?(process|python)_", line)]


async def test_metrics_are_those_of_the_moment() -> None:
    async with serving() as served:
        for expected in (1, 2):
            served.metrics.rebalances.add(1)
            answer = await ask(f"{served.address}/metrics")
            assert f"softmax_rebalances_total {expected}.0\n" in answer.text


@pytest.mark.parametrize(
    ("health", "livez", "readyz"),
    [
        (FakeHealth(ready=True, stalled=False, why="running"), 200, 200),
        (FakeHealth(ready=False, stalled=False, why="joining the group"), 200, 503),
        (FakeHealth(ready=False, stalled=False, why="stopping"), 200, 503),
        (FakeHealth(ready=True, stalled=True, why="nothing has moved for 61 s"), 503, 200),
        (FakeHealth(ready=False, stalled=True, why="both"), 503, 503),
    ],
    ids=lambda each: each.why if isinstance(each, FakeHealth) else str(each),
)
async def test_liveness_fails_only_when_stalled_and_readiness_only_when_not_ready_both_with_why(
    health: FakeHealth, livez: int, readyz: int
) -> None:
    async with serving() as served:
        served.health.__dict__.update(health.__dict__)
        for path, status in (("livez", livez), ("readyz", readyz)):
            answer = await ask(f"{served.address}/{path}")
            assert (answer.status, answer.text) == (status, f"{health.why}\n")
            assert answer.content_type.startswith("text/plain")


async def test_health_is_asked_for_at_every_request() -> None:
    async with serving() as served:
        statuses = []
        for ready in (True, False, True):
            served.health.ready = ready
            statuses.append((await ask(f"{served.address}/readyz")).status)
    assert statuses == [200, 503, 200]


async def test_the_status_is_json_of_the_moment() -> None:
    async with serving() as served:
        served.metrics.rebalances.add(2)
        answer = await ask(f"{served.address}/status.json")
    assert answer.content_type.startswith("application/json")
    document = json.loads(answer.text)
    assert (document["rebalances"], document["health"]["why"]) == (2, "running")


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html"),
        ("/status.css", "text/css"),
        ("/status.js", "text/javascript"),
        ("/icon.svg", "image/svg+xml"),
    ],
)
async def test_the_page_s_files_are_served_by_their_kind(path: str, content_type: str) -> None:
    async with serving() as served:
        answer = await ask(served.address + path)
    assert answer.status == 200
    assert answer.content_type == f"{content_type}; charset=utf-8"
    assert answer.text


@pytest.mark.parametrize("path", ["/", "/status.json", "/metrics", "/livez", "/nothing"])
async def test_whatever_is_answered_nothing_else_may_run_or_frame_it(path: str) -> None:
    async with (
        serving() as served,
        aiohttp.ClientSession() as session,
        session.get(served.address + path) as response,
    ):
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_the_page_asks_for_nothing_from_elsewhere() -> None:
    async with serving() as served:
        for path in PAGE:
            text = (await ask(served.address + path)).text
            assert not re.findall(r"(?:src|href|url|import|fetch)\s*[=(]\s*[\"']?(?:https?:)?//", text)


@pytest.mark.parametrize("path", ["/nothing", "/metrics/", "/metrics/x", "/livez/", "/../settings"])
async def test_elsewhere_there_is_nothing(path: str) -> None:
    async with serving() as served:
        assert (await ask(served.address + path)).status == 404


@pytest.mark.parametrize("path", ["metrics", "livez", "readyz", "status.json", ""])
async def test_nothing_can_be_written(path: str) -> None:
    async with serving() as served:
        for method in ("POST", "PUT", "DELETE"):
            assert (await ask(f"{served.address}/{path}", method)).status == 405
        assert (await ask(f"{served.address}/{path}", "HEAD")).status == 200


async def taken_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = await refusal("127.0.0.1", port)
    assert str(error) == (
        f"Cannot listen on 127.0.0.1:{port}: another process does. Set http.port to a free port, or to 0 for any."
    )


async def unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nobody_knows(*_: object, **__: object) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", nobody_knows)
    error = await refusal("no-such-host", 8080)
    assert str(error) == (
        "Cannot listen on no-such-host:8080: Name or service not known. Correct http.host and http.port."
    )


async def foreign_address() -> None:
    # Set aside for documentation, so never an address of this machine: nothing is sent anywhere.
    error = await refusal("203.0.113.1", 0)
    assert "Cannot listen on 203.0.113.1:0: " in str(error)
    assert "http.host" in error.cure


async def test_an_unknown_host_is_refused_with_the_settings_to_correct(monkeypatch: pytest.MonkeyPatch) -> None:
    await unknown_host(monkeypatch)


@pytest.mark.parametrize("case", [taken_port, foreign_address])
async def test_an_address_that_cannot_be_had_is_refused_with_the_setting_and_the_cure(
    case: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    await case()


@pytest.mark.parametrize("case", [taken_port, foreign_address])
def test_it_is_refused_in_the_same_words_under_uvloop(case: Callable[[], Coroutine[Any, Any, None]]) -> None:
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not for this platform")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(case())


async def test_after_stopping_nobody_listens_and_the_port_can_be_had_again() -> None:
    async with serving() as first:
        port = int(first.address.rpartition(":")[2])
    with pytest.raises(aiohttp.ClientConnectorError):
        await ask(f"{first.address}/livez")
    async with serving(port=port) as second:
        assert (await ask(f"{second.address}/livez")).status == 200


async def test_the_url_of_an_ipv6_address_has_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web.AppRunner, "addresses", property(lambda _: [("::1", 8080, 0, 0)]))
    async with serving() as served:
        assert served.address == "http://[::1]:8080"
