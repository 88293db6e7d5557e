"""Fixtures: one real Apache Kafka for the session, topics and service processes for each test."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

import pytest
from harness import Bus, ServiceProcess
from hypothesis import settings

from service.broker import Broker, BrokerConfig, prepare

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator
    from pathlib import Path

PARTITIONS = 4

# How hard hypothesis tries: `default` in every run, `long` for a search that takes its time.
settings.register_profile("default", max_examples=100, deadline=None)
settings.register_profile("long", max_examples=20_000, deadline=None)
settings.load_profile(os.environ.get("SOFTMAX_TEST_HYPOTHESIS_PROFILE", "default"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure where everything is required, but for what the machine is said to be without."""
    report = yield
    excused = item.get_closest_marker("docker") and os.environ.get("SOFTMAX_TEST_WITHOUT") == "docker"
    if os.environ.get("SOFTMAX_TEST_REQUIRE_ALL") == "1" and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "skipped" if excused else "failed"
    return report


@pytest.fixture(scope="session")
def kafka() -> Iterator[Broker]:
    """The session's broker, on memory where there is room."""
    prepare()
    # Some tests write records with timestamps of 1970, which retention would remove half a minute after the start.
    with Broker(BrokerConfig(tmpfs=True, properties={"log.retention.ms": "-1"})) as broker:
        yield broker


@pytest.fixture
async def bus(kafka: Broker) -> AsyncIterator[Bus]:
    """Three fresh topics on the session's broker."""
    async with Bus(kafka.bootstrap_servers, f"t{uuid.uuid4().hex[:8]}", PARTITIONS) as fresh:
        yield fresh


@pytest.fixture
def make_service(tmp_path: Path) -> Iterator[Callable[..., ServiceProcess]]:
    """Make service processes that end with the test, however it ends."""
    made: list[ServiceProcess] = []

    def make(bus: Bus, failpoint: str = "", control: str = "", **settings: object) -> ServiceProcess:
        log = tmp_path / f"service-{len(made)}.log"
        service = ServiceProcess(bus, log, settings, failpoint=failpoint, control=control)
        made.append(service)
        return service

    yield make
    for service in made:
        service.destroy()
