"""Events: every observer hears each of them, and understands it as it is named."""

from __future__ import annotations

import inspect
from typing import Any, Final

import pytest

from service.observability.events import Observer, Observers
from service.observability.logs import LogEvents
from service.observability.metrics import Metrics
from service.observability.status import Status
from service.observability.tracing import Tracing

EVENTS: Final = [name for name in vars(Observer) if not name.startswith("_")]
# With what else each of them has for others to call.
OBSERVERS: Final[dict[type[Observer], set[str]]] = {
    Metrics: {"collect", "instruments"},
    LogEvents: set(),
    Status: {"tick", "document"},
    Tracing: {"trace_of", "close"},
}


def parameters(kind: type[Observer], event: str) -> list[inspect.Parameter]:
    return list(inspect.signature(getattr(kind, event)).parameters.values())


class Recorder(Observer):
    """Keeps what it hears."""

    def __init__(self, name: str, heard: list[tuple[str, str, Any]]) -> None:
        for event in EVENTS:
            setattr(self, event, self._hear(name, event, heard))

    @staticmethod
    def _hear(name: str, event: str, heard: list[tuple[str, str, Any]]) -> Any:
        return lambda *args, **kwargs: heard.append((name, event, (args, kwargs)))


def test_there_are_events() -> None:
    assert {"started", "batch_closed", "dead_letters_produced", "stalled"} <= set(EVENTS)


@pytest.mark.parametrize("event", EVENTS)
def test_each_event_is_told_to_all_observers_in_their_order(event: str) -> None:
    heard: list[tuple[str, str, Any]] = []
    observers = Observers(Recorder("first", heard), Recorder("second", heard))
    facts = tuple(range(len(parameters(Observer, event)) - 1))
    getattr(observers, event)(*facts)
    assert heard == [("first", event, (facts, {})), ("second", event, (facts, {}))]


def test_facts_may_be_told_by_name() -> None:
    heard: list[tuple[str, str, Any]] = []
    Observers(Recorder("one", heard)).stopping(why="SIGTERM")
    assert heard == [("one", "stopping", ((), {"why": "SIGTERM"}))]


def test_with_nobody_to_tell_an_event_is_nothing() -> None:
    Observers().stopping("SIGTERM")
    Observer().stopping("SIGTERM")


def test_an_observer_of_observers_tells_on() -> None:
    heard: list[tuple[str, str, Any]] = []
    Observers(Observers(Recorder("inner", heard)), Recorder("outer", heard)).stopped("drained")
    assert [name for name, _, _ in heard] == ["inner", "outer"]


@pytest.mark.parametrize("kind", OBSERVERS)
@pytest.mark.parametrize("event", EVENTS)
def test_an_observer_takes_an_event_s_facts_by_the_same_names_and_kinds(kind: type[Observer], event: str) -> None:
    assert parameters(kind, event) == parameters(Observer, event)


@pytest.mark.parametrize("kind", OBSERVERS)
def test_an_observer_has_nothing_that_looks_like_an_event_and_is_none(kind: type[Observer]) -> None:
    own = {name for name, member in vars(kind).items() if inspect.isfunction(member) and not name.startswith("_")}
    assert own - set(EVENTS) == OBSERVERS[kind]


@pytest.mark.parametrize("event", EVENTS)
def test_every_event_is_described(event: str) -> None:
    assert (inspect.getdoc(getattr(Observer, event)) or "").endswith(".")
