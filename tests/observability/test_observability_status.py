"""The status document: figures of the last seconds that agree with the metrics they are made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.observability import status as status_module
from service.observability.metrics import LATENCY_BOUNDS, Metrics
from service.observability.status import LAST_DEAD_LETTERS, WINDOW_SECONDS, Counts, Status


@dataclass
class Health:
    """What the service says of itself."""

    ready: bool = True
    stalled: bool = False
    why: str = "running"


class Clocked:
    """A status whose seconds the test counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
        self.now = 1000.0
        clock = SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now + 1e9)
        monkeypatch.setattr(status_module, "time", clock)
        self.metrics = Metrics({"version": "1"}, 100, 1000, ["nan", "empty"])
        self.health = Health()
        self.status = Status(self.metrics, {"version": "1", "group": "g"}, settings, lambda: self.health)

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            self.status.tick()

    @property
    def document(self) -> dict[str, Any]:
        """As who asks for it reads it."""
        found: dict[str, Any] = json.loads(json.dumps(self.status.document(), allow_nan=False))
        return found


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> Clocked:
    return Clocked(monkeypatch, kafka={"group_id": "g"})


def test_at_the_start_there_is_nothing_to_tell(clocked: Clocked) -> None:
    document = clocked.document
    assert document["throughput"] == {
        "records_per_second": 0,
        "dead_letters_per_second": 0,
        "consumed_per_second": 0,
        "history": [],
    }
    assert document["latency"] == {"count": 0, "p50": None, "p90": None, "p99": None, "p999": None, "models": {}}
    assert document["stages"] == document["partitions"] == document["dead_letters"]["last"] == []
    assert document["batches"]["mean_records"] is None
    assert document["predictions"] == document["dead_letters"]["by_reason"] == {}
    assert document["settings"] == {"kafka": {"group_id": "g"}}
    assert document["service"] == {"version": "1", "group": "g"}


def test_rates_are_of_the_window_and_not_of_all_times(clocked: Clocked) -> None:
    clocked.metrics.records_produced("out", 0, 10_000)
    clocked.wait(WINDOW_SECONDS + 5)
    clocked.metrics.records_produced("out", 0, 50)
    clocked.metrics.records_produced("out", 1, 150)
    clocked.metrics.records_consumed("in", 1, 300)
    clocked.metrics.dead_letters_produced({"nan": 100}, [])
    document = clocked.document
    assert document["totals"] == {"consumed": 300, "produced": 10_200, "dead_letters": 100}
    assert document["window_seconds"] == WINDOW_SECONDS
    assert document["throughput"]["records_per_second"] == 20
    assert document["throughput"]["consumed_per_second"] == 30
    assert document["throughput"]["dead_letters_per_second"] == 10
    clocked.wait(WINDOW_SECONDS + 1)
    assert clocked.document["throughput"]["records_per_second"] == 0


def test_the_history_tells_each_second(clocked: Clocked) -> None:
    for records in (5, 0, 7):
        clocked.metrics.records_produced("out", 0, records)
        clocked.wait(1)
    history = clocked.document["throughput"]["history"]
    assert [point["records_per_second"] for point in history] == [5, 0, 7]
    assert [point["age_seconds"] for point in history] == [2, 1, 0]


def test_it_is_bounded_however_long_the_service_runs(clocked: Clocked) -> None:
    clocked.wait(1000)
    for number in range(100):
        clocked.status.dead_letters_produced({"nan": 1}, [{"reason": "nan", "offset": number}])
    document = clocked.document
    assert len(document["throughput"]["history"]) == 120
    assert [each["offset"] for each in document["dead_letters"]["last"]] == [*range(99, 99 - LAST_DEAD_LETTERS, -1)]


def test_percentiles_by_model_and_for_all(clocked: Clocked) -> None:
    clocked.metrics.outputs_acknowledged(0, "a", np.full(90, 0.004))
    clocked.metrics.outputs_acknowledged(0, "b", np.full(10, 20.0))
    latency = clocked.document["latency"]
    assert latency["count"] == 100
    assert 0.0025 <= latency["p50"] <= 0.005
    assert 10 <= latency["p99"] <= 30
    assert {model: found["count"] for model, found in latency["models"].items()} == {"a": 90, "b": 10}
    assert 10 <= latency["models"]["b"]["p50"] <= 30


@given(st.lists(st.floats(0, 40), min_size=1, max_size=200), st.floats(0.001, 1))
def test_a_quantile_lies_in_the_bucket_of_the_exact_one(values: list[float], q: float) -> None:
    buckets = np.bincount(np.searchsorted(LATENCY_BOUNDS, values), minlength=len(LATENCY_BOUNDS) + 1).tolist()
    found = Counts(buckets, sum(values)).quantile(q, LATENCY_BOUNDS)
    rank = q * len(values)
    exact = sorted(values)[max(0, int(np.ceil(rank)) - 1)]
    bounds = [0.0, *LATENCY_BOUNDS]
    above = int(np.searchsorted(LATENCY_BOUNDS, exact))
    assert found is not None
    assert bounds[min(above, len(bounds) - 2)] <= found <= bounds[min(above + 1, len(bounds) - 1)] + 1e-12


def test_stages_come_in_the_order_of_the_way(clocked: Clocked) -> None:
    stages = ["commit", "deliver", "wait", "layout", "assemble", "softmax"]
    for stage in stages:
        clocked.metrics.stage_ended(stage, 0.5)
        clocked.metrics.stage_ended(stage, 1.5)
    found = clocked.document["stages"]
    assert [each["stage"] for each in found] == ["wait", "layout", "softmax", "assemble", "deliver", "commit"]
    assert all(each == {**each, "batches": 2, "mean_seconds": 1, "total_seconds": 2} for each in found)


def test_batches_tell_their_sizes_and_what_closed_them(clocked: Clocked) -> None:
    clocked.metrics.batch_closed(3, 30, 0.0, "idle")
    clocked.metrics.batch_closed(100, 1000, 0.0, "records")
    clocked.wait(1)
    batches = clocked.document["batches"]
    assert (batches["mean_records"], batches["mean_bytes"], batches["per_second"]) == (51.5, 515, 2)
    assert {why: n for why, n in batches["closed_by"].items() if n} == {"idle": 1, "records": 1}
    filled = {each["upto"]: each["batches"] for each in batches["records_histogram"] if each["batches"]}
    assert filled == {4: 1, 100: 1}


def test_partitions_are_those_whose_lag_is_known_in_the_order_of_their_numbers(clocked: Clocked) -> None:
    for partition in (10, 9, 2):
        clocked.metrics.lag("in", partition, partition, partition / 2)
        clocked.metrics.records_consumed("in", partition, 5)
    clocked.metrics.records_consumed("in", 77, 5)
    clocked.wait(1)
    partitions = clocked.document["partitions"]
    assert [each["partition"] for each in partitions] == [2, 9, 10]
    assert partitions[0] == {
        "topic": "in", "partition": 2, "lag_records": 2, "lag_seconds": 1, "records_per_second": 5,
    }  # fmt: skip


def test_a_dead_letter_is_shown_with_its_time_and_only_what_it_came_with(clocked: Clocked) -> None:
    example = {"reason": "nan", "detail": "logit 1 is NaN", "topic": "in", "partition": 0, "offset": 17}
    clocked.status.dead_letters_produced({"nan": 2}, [example])
    clocked.metrics.dead_letters_produced({"nan": 2}, [example])
    dead_letters = clocked.document["dead_letters"]
    assert dead_letters == {"by_reason": {"nan": 2}, "last": [{"at": 1e9 + 1000, **example}]}


def test_predictions_are_means_of_the_window(clocked: Clocked) -> None:
    clocked.metrics.predicted("a", np.array([0.25, 0.75]), np.array([1.0, 2.0]))
    assert clocked.document["predictions"] == {"a": {"count": 2, "mean_confidence": 0.5, "mean_entropy": 1.5}}


def test_health_and_counters_are_those_of_the_moment(clocked: Clocked) -> None:
    clocked.health.ready, clocked.health.why = False, "stopping"
    clocked.metrics.in_flight(4, 400)
    clocked.metrics.retried("commit", TimeoutError())
    clocked.metrics.assigned([])
    document = clocked.document
    assert document["health"] == {"ready": False, "stalled": False, "why": "stopping"}
    assert document["in_flight"] == {"records": 4, "bytes": 400}
    assert document["retries"]["commit"] == 1
    assert (document["rebalances"], document["offsets_lost"]) == (1, 0)
