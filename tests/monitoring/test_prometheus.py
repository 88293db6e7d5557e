"""Every query of the dashboard, and every rule, on a real Prometheus that scrapes real services under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import numpy as np
import pytest
from harness import Bus, ServiceProcess, pack
from prometheus_server import PrometheusServer, prometheus

from generate import dashboard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    from service.broker import Broker

BOARD: Final[dict[str, Any]] = json.loads(dashboard.text())
VARIABLES: Final = {"$__rate_interval": "15s", "$__range": "1m", "$job": ".*", "$instance": ".*"}
GOOD: Final = [pack(np.linspace(0, step / 10, 10, dtype=np.float32), id=step) for step in range(100)]
BAD: Final = pack([1.0, math.nan])
SHOWN_WITHIN: Final = 150.0


def filled(expression: str) -> str:
    """An expression as Grafana would send it."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def queries() -> dict[str, str]:
    """Each expression of the dashboard, by where it stands."""
    found = {
        f"panel {panel['title']}, {target['refId']}": target["expr"]
        for panel in BOARD["panels"]
        for target in panel.get("targets", ())
    }
    found |= {f"annotation {each['name']}": each["expr"] for each in BOARD["annotations"]["list"]}
    for variable in BOARD["templating"]["list"][1:]:
        values = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert values
        found[f"variable {variable['name']}"] = f"count by ({values[2]}) ({values[1]})"
    return {where: filled(expression) for where, expression in found.items()}


def has_values(answer: Mapping[str, Any]) -> bool:
    """Whether a range holds a number; NaN is what a quantile or a mean of nothing is."""
    return any(math.isfinite(float(value)) for series in answer["result"] for _, value in series["values"])


@contextlib.asynccontextmanager
async def load(*buses: Bus) -> AsyncIterator[None]:
    """Write good messages and a few bad ones, all the time."""

    async def write(bus: Bus) -> None:
        while True:
            await bus.send([*GOOD, BAD], partition=None)
            await asyncio.sleep(0.2)

    tasks = [asyncio.create_task(write(bus)) for bus in buses]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    # What went wrong with the load is why queries have no values.
    assert [each for each in ended if not isinstance(each, asyncio.CancelledError)] == []


def ask(server: PrometheusServer, expression: str, since: float) -> Any:
    """An expression's values from then to now."""
    return server.get("query_range", query=expression, start=since, end=time.time(), step="1s")


async def without_values(server: PrometheusServer, asked: Mapping[str, str], since: float) -> dict[str, str]:
    """Ask all queries again and again until each has had a value, or the time is over; those that have none."""
    left = dict(asked)
    deadline = time.monotonic() + SHOWN_WITHIN
    while left and time.monotonic() < deadline:
        for where, expression in list(left.items()):
            if has_values(await asyncio.to_thread(ask, server, expression, since)):
                del left[where]
        await asyncio.sleep(1)
    return left


async def unhealthy_rules(server: PrometheusServer) -> dict[str, str]:
    """Rules that could not be evaluated, once all have been tried or the time is over."""
    deadline = time.monotonic() + SHOWN_WITHIN
    while True:
        groups = (await asyncio.to_thread(server.get, "rules"))["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert rules
        if time.monotonic() > deadline or all(rule["health"] != "unknown" for rule in rules):
            return {rule["name"]: rule.get("lastError", "") for rule in rules if rule["health"] != "ok"}
        await asyncio.sleep(1)


def address(service: ServiceProcess) -> str:
    """Host and port of its metrics."""
    return str(urlsplit(service.events("listening")[-1]["address"]).netloc)


@pytest.mark.timeout(480)
async def test_every_query_and_rule_works_on_what_services_under_load_expose(
    kafka: Broker, bus: Bus, make_service: Callable[..., ServiceProcess], tmp_path: Path
) -> None:
    since = time.time()
    async with Bus(kafka.bootstrap_servers, f"{bus.name}e", 2) as transactional:
        services = [
            make_service(bus, delivery__guarantee="at_least_once"),
            make_service(transactional, delivery__guarantee="exactly_once"),
        ]
        for service in services:
            await service.start().ready(within=60)
        targets = {"softmax-service": [address(service) for service in services]}
        with prometheus(tmp_path, targets) as server:
            async with load(bus, transactional):
                assert await without_values(server, queries(), since) == {}
                nothing = await asyncio.to_thread(ask, server, "rate(softmax_nothing_total[15s])", since)
                assert not has_values(nothing)
                assert await unhealthy_rules(server) == {}


def test_an_error_of_a_query_is_told(tmp_path: Path) -> None:
    with prometheus(tmp_path, {}) as server, pytest.raises(AssertionError, match="parse error"):
        server.get("query", query="sum(")
