"""Logs: one line per event that a person acts on; nothing secret, nothing lost, nothing over and over."""

from __future__ import annotations

import json
import logging
import re
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import pytest
import structlog
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.observability import logs
from service.observability.logs import QUIET_SECONDS, LogEvents, configure
from service.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator

PLANTED: Final = "pl4nted-s3cret"
TOUCHED: Final = ("aiokafka", "aiohttp.access", "service")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Logging is the process's: leave it as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in TOUCHED}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    structlog.reset_defaults()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time that `LogEvents` sees; `clock.now` may be set."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What was logged as JSON, line by line; nothing on stdout."""
    out, err = capsys.readouterr()
    assert out == ""
    return [json.loads(line) for line in err.splitlines()]


def partition(number: int) -> SimpleNamespace:
    return SimpleNamespace(topic="logits", partition=number)


# --- form -------------------------------------------------------------------------------------


def test_every_line_is_a_json_object_with_time_level_logger_and_event(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    events = LogEvents()
    events.started({"group": "g", "input": 'quotes " and\nline ends'})
    events.assigned([partition(0), partition(1)])
    events.offset_lost("logits", 0, 17, "stop")
    found = lines(capsys)
    assert [(line["level"], line["event"]) for line in found] == [
        ("info", "started"),
        ("info", "assigned"),
        ("error", "offset lost"),
    ]
    for line in found:
        assert line["logger"] == "service"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line["timestamp"])
    assert found[0]["input"] == 'quotes " and\nline ends'
    assert found[1]["partitions"] == ["logits-0", "logits-1"]
    assert (found[2]["topic"], found[2]["partition"], found[2]["offset"]) == ("logits", 0, 17)


def test_the_lines_of_libraries_take_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    logging.getLogger("some.library").warning("%d of %s", 3, "them")
    (line,) = lines(capsys)
    assert (line["event"], line["level"], line["logger"]) == ("3 of them", "warning", "some.library")


def test_an_exception_stays_within_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    try:
        raise ZeroDivisionError("never mind")  # noqa: TRY301 - it is only logged
    except ZeroDivisionError:
        logging.getLogger("some.library").exception("failed")
        structlog.stdlib.get_logger("service").exception("failed too")
    for line in lines(capsys):
        assert "ZeroDivisionError: never mind" in line["exception"]


def test_what_json_cannot_hold_does_not_hinder_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    LogEvents().started({"bytes": b"\xff", "object": object(), "set": {1}})
    assert len(lines(capsys)) == 1


def test_on_no_terminal_auto_is_json_and_console_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "auto")
    LogEvents().stopping("SIGTERM")
    assert lines(capsys)[0]["why"] == "SIGTERM"
    structlog.reset_defaults()
    configure("info", "console")
    LogEvents().stopping("SIGTERM")
    console = capsys.readouterr().err
    assert re.search(r"\[info +\] stopping .*why=SIGTERM", console)
    assert "\x1b" not in console


@pytest.mark.parametrize(
    ("level", "told"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_only_what_is_as_severe_as_asked_for_is_told(
    level: str, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    configure(level, "json")
    for severity in ("debug", "info", "warning", "error"):
        getattr(structlog.stdlib.get_logger("service"), severity)("ours")
        getattr(logging.getLogger("some.library"), severity)("theirs")
    found = lines(capsys)
    assert [line["level"] for line in found if line["event"] == "ours"] == told
    assert [line["level"] for line in found if line["event"] == "theirs"] == [each for each in told if each != "debug"]


# --- secrets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_the_kafka_client_never_tells_its_requests_which_hold_credentials(
    level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(level, "json")
    for name in ("aiokafka", "aiokafka.conn", "aiokafka.producer.sender"):
        logging.getLogger(name).debug("Request: %s", PLANTED)
        assert not logging.getLogger(name).isEnabledFor(logging.DEBUG)
        assert logging.getLogger(name).isEnabledFor(logging.ERROR)
    assert lines(capsys) == []


def test_the_kafka_client_s_own_news_are_told_only_to_who_asks_for_everything(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for level in ("info", "debug"):
        configure(level, "json")
        logging.getLogger("aiokafka.consumer").info("told at %s", level)
        logging.getLogger("aiokafka.consumer").warning("always")
    assert [line["event"] for line in lines(capsys)] == ["always", "told at debug", "always"]


@pytest.mark.parametrize("name", ["aiokafka", "aiokafka.conn", "botocore.parsers", "asyncio"])
def test_a_library_s_own_level_lets_nothing_more_through(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure("debug", "json")
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        logger.debug("Request: %s", PLANTED)
        logger.info("told")
    finally:
        logger.setLevel(before)
    assert [line["event"] for line in lines(capsys)] == ["told"]


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_exception_shows_no_variables(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure("debug", form)
    try:
        password = PLANTED
        raise ZeroDivisionError(len(password))  # noqa: TRY301 - it is only logged
    except ZeroDivisionError:
        structlog.stdlib.get_logger("service").exception("failed")
        logging.getLogger("asyncio").exception("failed")
    told = capsys.readouterr().err
    assert told.count("ZeroDivisionError") >= 2
    assert PLANTED not in told


@pytest.mark.parametrize("form", ["json", "console"])
def test_settings_in_a_line_show_no_secret(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = load(environment={"SOFTMAX_KAFKA__SASL_PASSWORD": PLANTED})
    configure("debug", form)
    structlog.stdlib.get_logger("service").info("x", settings=settings, kafka=settings.kafka, shown=settings.shown())
    logging.getLogger("some.library").info("%s %r", settings, settings.kafka.sasl_password)
    told = capsys.readouterr().err
    assert "***" in told
    assert PLANTED not in told


# --- events -----------------------------------------------------------------------------------


def test_each_event_of_a_life_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    events = LogEvents()
    events.started({"group": "g"})
    events.assigned([partition(3)])
    events.revoked([partition(3)], True)  # noqa: FBT003 - the event's signature
    events.revoked([partition(3)], False)  # noqa: FBT003 - the event's signature
    events.producer_replaced(OSError("gone"))
    events.stalled(61.0, "the stacks")
    events.stopping("SIGTERM")
    events.stopped("drained")
    told = [(line["level"], line["event"]) for line in lines(capsys)]
    assert told == [
        ("info", "started"),
        ("info", "assigned"),
        ("info", "revoked"),
        ("warning", "revoked"),
        ("warning", "delivery failed; going back to the acknowledged records"),
        ("error", "stalled: records wait, the broker answers, nothing moves"),
        ("info", "stopping"),
        ("info", "stopped"),
    ]


def test_events_of_every_micro_batch_are_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    configure("debug", "json")
    events = LogEvents()
    events.batch_closed(1, 1, 0.0, "idle")
    events.stage_ended("layout", 0.1)
    events.records_consumed("logits", 0, 1)
    events.records_produced("probabilities", 0, 1)
    events.in_flight(1, 1)
    events.lag("logits", 0, 1, 0.1)
    events.progressed(1.0)
    events.committed({}, 0.1)
    assert lines(capsys) == []


EXAMPLE: Final = {"reason": "nan", "detail": "element 3", "topic": "logits", "partition": 0, "offset": 41}


def test_the_first_dead_letters_are_told_at_once_with_one_of_them(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert clock.now
    configure("info", "json")
    LogEvents().dead_letters_produced({"nan": 2, "empty": 1}, [EXAMPLE])
    (line,) = lines(capsys)
    assert (line["level"], line["event"], line["nan"], line["empty"]) == ("warning", "dead letters", 2, 1)
    assert line["example"] == EXAMPLE


@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(0, 8), st.dictionaries(st.sampled_from(["nan", "empty"]), st.integers(1, 9)))))
def test_dead_letters_are_summed_up_and_told_rarely_and_in_full(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str], bursts: list[tuple[float, dict[str, int]]]
) -> None:
    configure("info", "json")
    events = LogEvents()
    told_at: list[float] = []
    told, produced = 0, 0
    # The last burst comes after a pause, when all that has not been told yet is due.
    for passed, records in [*bursts, (QUIET_SECONDS + 1, {"nan": 1})]:
        clock.now += passed
        events.dead_letters_produced(records, [EXAMPLE])
        produced += sum(records.values())
        for line in lines(capsys):
            told += line.get("nan", 0) + line.get("empty", 0)
            told_at.append(clock.now)
    assert told == produced
    assert all(later - earlier >= QUIET_SECONDS for earlier, later in pairwise(told_at))


def test_waiting_for_the_broker_is_told_rarely_for_each_operation(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("info", "json")
    events = LogEvents()
    for _ in range(5):
        for operation in ("commit", "produce"):
            events.retried(operation, TimeoutError("no answer"))
        clock.now += QUIET_SECONDS / 4
    told = lines(capsys)
    assert [line["operation"] for line in told] == ["commit", "produce", "commit", "produce"]
    assert {line["error"] for line in told} == {"TimeoutError: no answer"}
    assert {line["level"] for line in told} == {"warning"}


def test_dead_letters_do_not_silence_other_events(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert clock.now
    configure("info", "json")
    events = LogEvents()
    events.dead_letters_produced({"nan": 1}, [EXAMPLE])
    events.retried("commit", TimeoutError())
    events.dead_letters_produced({"nan": 1}, [EXAMPLE])
    events.stopping("SIGTERM")
    assert [line["event"] for line in lines(capsys)] == ["dead letters", "waiting for the broker", "stopping"]


def test_dead_letters_that_were_not_told_yet_are_told_when_the_service_stops(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("info", "json")
    events = LogEvents()
    events.dead_letters_produced({"nan": 1}, [EXAMPLE])
    clock.now += 1
    events.dead_letters_produced({"nan": 1000}, [EXAMPLE])
    events.stopped("drained")
    assert sum(line.get("nan", 0) for line in lines(capsys)) == 1001


def test_retries_between_two_lines_are_told_as_a_sum(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("info", "json")
    events = LogEvents()
    for _ in range(7):
        events.retried("commit", TimeoutError())
    clock.now += QUIET_SECONDS
    events.retried("commit", TimeoutError())
    first, second = lines(capsys)
    assert {6, 7} & set(second.values())  # those left out, without or with the one of this line
    assert first != second
