"""Metrics: what is counted, and how Prometheus reads it."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import prometheus_client.exposition
import prometheus_client.openmetrics.exposition
import prometheus_client.openmetrics.parser
import prometheus_client.parser
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.observability.instruments import Histogram, cap_bounds
from service.observability.metrics import (
    CONFIDENCE_BOUNDS,
    ENTROPY_BOUNDS,
    LATENCY_BOUNDS,
    LOOP_LAG_BOUNDS,
    STAGE_BOUNDS,
    Metrics,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client.metrics_core import Metric

# Name, type and labels as documented.
DOCUMENTED: Final = {
    "softmax_end_to_end_latency_seconds": ("histogram", {"model"}),
    "softmax_clock_skew_records_total": ("counter", set()),
    "softmax_stage_duration_seconds": ("histogram", {"stage"}),
    "softmax_batch_records": ("histogram", set()),
    "softmax_batch_bytes": ("histogram", set()),
    "softmax_batch_wait_seconds": ("histogram", set()),
    "softmax_batches_total": ("counter", {"closed_by"}),
    "softmax_records_consumed_total": ("counter", {"topic", "partition"}),
    "softmax_records_produced_total": ("counter", {"topic", "partition"}),
    "softmax_records_total": ("counter", {"path"}),
    "softmax_dead_letters_total": ("counter", {"reason"}),
    "softmax_retries_total": ("counter", {"operation"}),
    "softmax_rebalances_total": ("counter", set()),
    "softmax_offsets_lost_total": ("counter", set()),
    "softmax_consumer_lag_records": ("gauge", {"topic", "partition"}),
    "softmax_consumer_lag_seconds": ("gauge", {"topic", "partition"}),
    "softmax_in_flight_records": ("gauge", set()),
    "softmax_in_flight_bytes": ("gauge", set()),
    "softmax_assigned_partitions": ("gauge", set()),
    "softmax_last_progress_timestamp_seconds": ("gauge", set()),
    "softmax_event_loop_lag_seconds": ("histogram", set()),
    "softmax_transactions_total": ("counter", {"outcome"}),
    "softmax_prediction_confidence": ("histogram", {"model"}),
    "softmax_prediction_entropy": ("histogram", {"model"}),
    "softmax_ready": ("gauge", set()),
    "softmax_build_info": ("info", {"version", "python", "numpy", "aiokafka"}),
}


def make(max_records: int = 100, max_bytes: int = 1000) -> Metrics:
    versions = {"version": "9.8.7", "python": "3", "numpy": "2", "aiokafka": "0.14"}
    return Metrics(versions, max_records, max_bytes, ["nan", "empty"])


def busy() -> Metrics:
    """Metrics that have met every event."""
    metrics = make()
    metrics.started({"group": "g"})
    metrics.assigned([SimpleNamespace(topic="logits", partition=0)])
    metrics.batch_closed(3, 300, 0.25, "records")
    metrics.stage_ended("layout", 0.001)
    metrics.records_consumed("logits", 0, 3)
    metrics.records_transformed("columnar", 2)
    metrics.records_produced("probabilities", 0, 2)
    metrics.dead_letters_produced({"nan": 1}, [{"reason": "nan", "offset": 4}])
    metrics.outputs_acknowledged(0, "default", np.array([0.1, -1.0]))
    metrics.in_flight(3, 300)
    metrics.lag("logits", 0, 5, 1.5)
    metrics.lag('odd "topic"\\\n', 1, 5, 1.5)
    metrics.progressed(1_700_000_000.5)
    metrics.committed({"tp": 1}, 0.1)
    metrics.transaction_ended("committed")
    metrics.predicted("default", np.array([0.5, 0.9]), np.array([1.5, 0.2]))
    metrics.ready.set(1)
    metrics.retried("commit", TimeoutError())
    metrics.producer_replaced(OSError())
    metrics.offset_lost("logits", 0, 17, "stop")
    metrics.loop_lag.observe(0.02)
    metrics.stopping("SIGTERM")
    metrics.stopped("drained")
    return metrics


def value(metrics: Metrics, sample: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(sample, labels)


def prometheus_families(metrics: Metrics) -> list[Metric]:
    text = prometheus_client.exposition.generate_latest(metrics.registry).decode()
    return list(prometheus_client.parser.text_string_to_metric_families(text))


def openmetrics_families(metrics: Metrics) -> list[Metric]:
    text = prometheus_client.openmetrics.exposition.generate_latest(metrics.registry).decode()  # type: ignore[no-untyped-call]
    return list(prometheus_client.openmetrics.parser.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


both_formats = pytest.mark.parametrize("read", [prometheus_families, openmetrics_families])


# --- exposition -------------------------------------------------------------------------------


@both_formats
@pytest.mark.parametrize("state", [make, busy], ids=["idle", "busy"])
def test_both_formats_can_be_parsed_and_say_the_same_as_the_registry(
    state: Callable[[], Metrics], read: Callable[[Metrics], list[Metric]]
) -> None:
    metrics = state()
    parsed = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in read(metrics)
        for sample in family.samples
        if sample.name.startswith("softmax_")
    }
    held = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in metrics.collect()
        for sample in family.samples
    }
    assert parsed == held


@both_formats
def test_every_name_begins_with_ours_or_tells_of_the_process(read: Callable[[Metrics], list[Metric]]) -> None:
    names = [sample.name for family in read(busy()) for sample in family.samples]
    assert all(name.startswith(("softmax_", "process_", "python_")) for name in names), names
    assert {"process_resident_memory_bytes", "python_info"} <= set(names)
    assert any(name.startswith("python_gc_") for name in names)


@both_formats
def test_there_are_no_created_series(read: Callable[[Metrics], list[Metric]]) -> None:
    assert not [s.name for family in read(busy()) for s in family.samples if s.name.endswith("_created")]


def test_counters_end_in_total_and_nothing_else_does() -> None:
    for family in busy().collect():
        ends = {sample.name.endswith("_total") for sample in family.samples}
        assert ends == {family.type == "counter"}, family.name


def test_the_metrics_are_those_documented_with_their_types_and_labels() -> None:
    suffix = {"counter": "_total", "info": "_info"}
    found = {
        family.name + suffix.get(family.type, ""): (
            family.type,
            {label for sample in family.samples for label in sample.labels} - {"le"},
        )
        for family in busy().collect()
    }
    assert found == DOCUMENTED


def test_every_metric_is_explained() -> None:
    assert [family.name for family in busy().collect() if not family.documentation] == []


def test_the_versions_are_in_build_info() -> None:
    (build,) = [family for family in make().collect() if family.type == "info"]
    (sample,) = build.samples
    assert sample.name == "softmax_build_info"
    assert sample.value == 1
    assert sample.labels["version"] == "9.8.7"
    assert set(sample.labels) == {"version", "python", "numpy", "aiokafka"}


@pytest.mark.parametrize(
    "sample",
    [
        "softmax_clock_skew_records_total",
        "softmax_rebalances_total",
        "softmax_offsets_lost_total",
        "softmax_in_flight_records",
        "softmax_assigned_partitions",
        "softmax_batch_records_count",
        "softmax_event_loop_lag_seconds_sum",
    ],
)
def test_what_has_no_labels_is_there_from_the_start_at_zero(sample: str) -> None:
    assert value(make(), sample) == 0


@pytest.mark.parametrize(
    ("sample", "labels"),
    [
        ("softmax_dead_letters_total", {"reason": "empty"}),
        ("softmax_batches_total", {"closed_by": "delay"}),
        ("softmax_records_total", {"path": "general"}),
        ("softmax_retries_total", {"operation": "offset_fetch"}),
        ("softmax_transactions_total", {"outcome": "aborted"}),
    ],
)
def test_what_counts_by_known_labels_is_too_or_the_first_increase_would_be_unseen(
    sample: str, labels: dict[str, str]
) -> None:
    assert value(make(), sample, **labels) == 0


# --- histograms -------------------------------------------------------------------------------

bounds_lists = st.lists(
    st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=12, unique_by=lambda bound: bound + 0.0
).map(sorted)


def rendered(histogram: Histogram) -> dict[tuple[tuple[str, str], ...], tuple[dict[float, float], float, float]]:
    """By labels: the cumulative buckets by bound, the count and the sum."""
    series: dict[tuple[tuple[str, str], ...], tuple[dict[float, float], dict[str, float]]] = {}
    (family,) = histogram.collect()
    for sample in family.samples:
        labels = tuple(sorted((name, each) for name, each in sample.labels.items() if name != "le"))
        buckets, scalars = series.setdefault(labels, ({}, {}))
        if sample.name.endswith("_bucket"):
            buckets[float(sample.labels["le"])] = sample.value
        else:
            scalars[sample.name.rpartition("_")[2]] = sample.value
    return {labels: (buckets, scalars["count"], scalars["sum"]) for labels, (buckets, scalars) in series.items()}


@hypothesis_settings(deadline=None)
@example(bounds=[0.1, 0.25], batches=[[0.1, 0.25, 0.25, 0.3]])
@example(bounds=[1.0], batches=[[], [1.0], [np.nextafter(1.0, 2.0)]])
@given(
    bounds=bounds_lists,
    batches=st.lists(st.lists(st.floats(-2e6, 2e6) | st.integers(-5, 5).map(float), max_size=40), max_size=4),
)
def test_observing_a_batch_counts_as_observing_each_value_would(
    bounds: list[float], batches: list[list[float]]
) -> None:
    histogram = Histogram("h", "help", bounds)
    # Values at the very bounds belong to their buckets: le means less or equal.
    batches = [*batches, bounds]
    for batch in batches:
        histogram.observe_all(np.asarray(batch, np.float64))
    values = [each for batch in batches for each in batch]
    buckets, count, total = rendered(histogram)[()]
    assert buckets == {
        **{bound: sum(each <= bound for each in values) for bound in bounds},
        float("inf"): len(values),
    }
    assert count == len(values)
    assert total == pytest.approx(sum(values), rel=1e-9, abs=1e-3)
    assert list(buckets.values()) == sorted(buckets.values())


@given(bounds=bounds_lists, values=st.lists(st.tuples(st.floats(-2e6, 2e6), st.integers(0, 1 << 40)), max_size=40))
def test_values_that_come_often_count_as_often(bounds: list[float], values: list[tuple[float, int]]) -> None:
    histogram = Histogram("h", "help", bounds)
    some, counts = np.array(values).reshape(-1, 2).T
    histogram.observe_all(some, counts=counts.astype(np.int64))
    buckets, count, total = rendered(histogram)[()]
    assert count == sum(often for _, often in values)
    assert all(buckets[bound] == sum(often for value, often in values if value <= bound) for bound in bounds)
    assert total == pytest.approx(sum(value * often for value, often in values), rel=1e-9, abs=1e-3)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.floats(0, 10), max_size=5)), max_size=8))
def test_sets_of_labels_are_counted_apart(observed: list[tuple[str, list[float]]]) -> None:
    histogram = Histogram("h", "help", [1.0], ["which"])
    for which, values in observed:
        histogram.observe_all(np.asarray(values, np.float64), which)
    found = rendered(histogram)
    assert {dict(labels)["which"]: count for labels, (_, count, _) in found.items()} == {
        which: sum(len(values) for each, values in observed if each == which) for which, _ in observed
    }


def test_a_single_value_can_be_observed_too() -> None:
    histogram = Histogram("h", "help", [1, 2])
    histogram.observe(2)
    histogram.observe(np.float64(5))
    assert rendered(histogram)[()] == ({1.0: 0, 2.0: 1, float("inf"): 2}, 2, 7)


def test_a_histogram_without_labels_shows_empty_buckets_one_with_labels_nothing() -> None:
    assert rendered(Histogram("h", "help", [1]))[()] == ({1.0: 0, float("inf"): 0}, 0, 0)
    assert rendered(Histogram("h", "help", [1], ["which"])) == {}


@pytest.mark.parametrize("bounds", [LATENCY_BOUNDS, STAGE_BOUNDS, LOOP_LAG_BOUNDS, CONFIDENCE_BOUNDS, ENTROPY_BOUNDS])
def test_bounds_ascend_strictly(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


def test_latency_has_an_exact_bound_at_each_objective_and_runs_from_half_a_millisecond_to_30_seconds() -> None:
    assert {0.05, 0.1, 0.25, 0.5, 1} <= set(LATENCY_BOUNDS)
    assert (LATENCY_BOUNDS[0], LATENCY_BOUNDS[-1]) == (0.0005, 30)


@example(1, 4)
@example(2, 4)
@example(3, 4)
@example(6, 4)
@example(16_384, 4)
@given(st.integers(1, 1 << 32), st.integers(2, 10))
def test_the_bounds_of_a_cap_ascend_strictly_to_exactly_cap_less_one_and_cap(cap: int, factor: int) -> None:
    bounds = cap_bounds(cap, factor)
    assert list(bounds) == sorted(set(bounds))
    assert bounds[-2:] == (cap - 1, cap)
    assert all(more <= factor * less for less, more in pairwise(bounds) if less)


@pytest.mark.parametrize("cap", [1, 2, 3, 4, 5, 16_384])
@both_formats
def test_whether_a_batch_was_full_is_one_subtraction(read: Callable[[Metrics], list[Metric]], cap: int) -> None:
    metrics = make(max_records=cap, max_bytes=cap)
    for records in (cap, cap, cap - 1):
        metrics.batch_closed(records, records, 0.0, "records")
    for name in ("softmax_batch_records", "softmax_batch_bytes"):
        (family,) = [family for family in read(metrics) if family.name == name]
        buckets = {
            float(sample.labels["le"]): sample.value for sample in family.samples if sample.name.endswith("_bucket")
        }
        assert buckets[cap] - buckets[cap - 1] == 2


# --- events -----------------------------------------------------------------------------------


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=50), st.booleans())
def test_under_clock_skew_latencies_are_held_at_zero_and_counted(latencies: list[float], counted: bool) -> None:  # noqa: FBT001 - a case
    metrics = make()
    if counted:
        distinct, counts = np.unique(latencies, return_counts=True)
        metrics.outputs_acknowledged(0, "default", distinct, counts)
    else:
        metrics.outputs_acknowledged(0, "default", np.array(latencies))
    negative = sum(each < 0 for each in latencies)
    assert value(metrics, "softmax_clock_skew_records_total") == negative
    name = "softmax_end_to_end_latency_seconds"
    assert value(metrics, f"{name}_count", model="default") == len(latencies)
    expected = sum(max(each, 0.0) for each in latencies)
    assert value(metrics, f"{name}_sum", model="default") == pytest.approx(expected)
    at_most = sum(each <= 0.0005 for each in latencies)
    assert value(metrics, f"{name}_bucket", model="default", le="0.0005") == at_most


def test_the_latencies_that_are_handed_over_are_not_changed() -> None:
    latencies = np.array([-1.0, 1.0])
    make().outputs_acknowledged(0, "default", latencies)
    assert latencies.tolist() == [-1.0, 1.0]


def test_a_closed_batch_is_counted_with_its_size_its_wait_and_its_reason() -> None:
    metrics = make()
    metrics.batch_closed(40, 400, 0.25, "delay")
    metrics.batch_closed(100, 900, 0.0, "records")
    assert value(metrics, "softmax_batch_records_sum") == 140
    assert value(metrics, "softmax_batch_bytes_sum") == 1300
    assert value(metrics, "softmax_batch_wait_seconds_sum") == 0.25
    assert value(metrics, "softmax_batches_total", closed_by="delay") == 1
    assert value(metrics, "softmax_batches_total", closed_by="records") == 1


def test_counters_add_up_by_their_labels() -> None:
    metrics = make()
    for partition, records in ((0, 5), (1, 7), (0, 11)):
        metrics.records_consumed("logits", partition, records)
        metrics.records_produced("probabilities", partition, records)
    metrics.records_transformed("columnar", 20)
    metrics.records_transformed("general", 3)
    metrics.dead_letters_produced({"nan": 2, "empty": 1}, [])
    metrics.dead_letters_produced({"nan": 3}, [])
    assert value(metrics, "softmax_records_consumed_total", topic="logits", partition="0") == 16
    assert value(metrics, "softmax_records_produced_total", topic="probabilities", partition="1") == 7
    assert value(metrics, "softmax_records_total", path="columnar") == 20
    assert value(metrics, "softmax_dead_letters_total", reason="nan") == 5
    assert value(metrics, "softmax_dead_letters_total", reason="empty") == 1


def test_waits_for_the_broker_are_counted_by_operation_and_a_replaced_producer_is_one() -> None:
    metrics = make()
    metrics.retried("commit", TimeoutError())
    metrics.producer_replaced(OSError())
    metrics.producer_replaced(OSError())
    metrics.offset_lost("logits", 0, 4, "earliest")
    assert value(metrics, "softmax_retries_total", operation="commit") == 1
    assert value(metrics, "softmax_retries_total", operation="produce") == 2
    assert value(metrics, "softmax_offsets_lost_total") == 1


def test_transactions_are_counted_by_how_they_ended_and_a_commit_takes_its_time() -> None:
    metrics = make()
    for outcome in ("committed", "aborted", "committed"):
        metrics.transaction_ended(outcome)
    metrics.committed({}, 0.25)
    assert value(metrics, "softmax_transactions_total", outcome="committed") == 2
    assert value(metrics, "softmax_stage_duration_seconds_sum", stage="commit") == 0.25


def test_predictions_are_counted_by_model() -> None:
    metrics = make()
    metrics.predicted("images", np.array([0.5, 0.995]), np.array([0.7, 0.02]))
    assert value(metrics, "softmax_prediction_confidence_sum", model="images") == 1.495
    assert value(metrics, "softmax_prediction_confidence_bucket", model="images", le="0.99") == 1
    assert value(metrics, "softmax_prediction_entropy_count", model="images") == 2


def test_gauges_show_the_last_value() -> None:
    metrics = make()
    for records in (5, 3):
        metrics.in_flight(records, records * 10)
        metrics.lag("logits", 0, records, records / 2)
        metrics.progressed(1_700_000_000.0 + records)
    assert value(metrics, "softmax_in_flight_records") == 3
    assert value(metrics, "softmax_in_flight_bytes") == 30
    assert value(metrics, "softmax_consumer_lag_records", topic="logits", partition="0") == 3
    assert value(metrics, "softmax_consumer_lag_seconds", topic="logits", partition="0") == 1.5
    assert value(metrics, "softmax_last_progress_timestamp_seconds") == 1_700_000_003.0


def test_partitions_that_were_taken_away_are_no_longer_shown_with_their_last_lag() -> None:
    metrics = make()
    partitions: list[Any] = [SimpleNamespace(topic="logits", partition=number) for number in (0, 1)]
    metrics.assigned(partitions)
    assert value(metrics, "softmax_assigned_partitions") == 2
    metrics.lag("logits", 0, 5, 1.0)
    metrics.records_consumed("logits", 0, 9)
    metrics.revoked(partitions, True)  # noqa: FBT003 - the event's signature
    assert value(metrics, "softmax_assigned_partitions") == 0
    assert value(metrics, "softmax_consumer_lag_records", topic="logits", partition="0") is None
    assert value(metrics, "softmax_consumer_lag_seconds", topic="logits", partition="0") is None
    assert value(metrics, "softmax_records_consumed_total", topic="logits", partition="0") == 9
    assert value(metrics, "softmax_rebalances_total") == 1
