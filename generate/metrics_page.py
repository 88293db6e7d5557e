"""`docs/metrics.md`: every metric as the code has it, how to use it, and a query to begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from service.observability.metrics import CLOSED_BY, OPERATIONS, OUTCOMES, PATHS, Metrics
from service.observability.status import STAGES
from service.transform.refusals import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.observability.instruments import Histogram, Values


class Use(NamedTuple):
    """What a metric is good for.

    Attributes:
        advice: when to look at it, and what to conclude.
        query: PromQL to begin with.
    """

    advice: str
    query: str


# By the metric's name without the prefix; a test sees that none is missing and that each query is understood.
USES: Final = {
    "end_to_end_latency_seconds": Use(
        "What users feel: until the output is acknowledged, from the timestamp that the producer gave the record. It "
        "includes what the record waited in the topic. Bounds stand exactly at 0.05, 0.1, 0.25, 0.5 and 1 s, so that "
        "the share within such an objective is exact.",
        "histogram_quantile(0.99, sum by (le, model) (rate(softmax_end_to_end_latency_seconds_bucket[5m])))",
    ),
    "clock_skew_records_total": Use(
        "Not 0: the producers' clocks are ahead of this machine's, and latencies are too small by that much.",
        "rate(softmax_clock_skew_records_total[5m])",
    ),
    "stage_duration_seconds": Use(
        "Where a micro-batch's time goes. `assemble` that grows with `deliver` is back pressure: the broker is slow. "
        "`general` that is not small: records take the slow way, see `records_total`.",
        "sum by (stage) (rate(softmax_stage_duration_seconds_sum[5m]))",
    ),
    "batch_records": Use(
        "How many records share the cost of a micro-batch. Bounds stand at `batch.max_records` and one less: the "
        "difference of the last two counts the full ones.",
        "rate(softmax_batch_records_sum[5m]) / rate(softmax_batch_records_count[5m])",
    ),
    "batch_bytes": Use(
        "The same in bytes of values; the bounds end at `batch.max_bytes`.",
        "rate(softmax_batch_bytes_sum[5m]) / rate(softmax_batch_bytes_count[5m])",
    ),
    "batch_wait_seconds": Use(
        "What `batch.max_delay_ms` costs in latency.",
        "histogram_quantile(0.9, sum by (le) (rate(softmax_batch_wait_seconds_bucket[5m])))",
    ),
    "batches_total": Use(
        "`idle` means that records are taken as they come; `records` or `bytes` that there are always more: the service "
        "works at its capacity, and lag decides whether that is enough.",
        "sum by (closed_by) (rate(softmax_batches_total[5m]))",
    ),
    "records_consumed_total": Use(
        "What comes in. A partition that stays behind the others has an idle or a dead producer, or a skewed key.",
        "sum by (topic, partition) (rate(softmax_records_consumed_total[5m]))",
    ),
    "records_produced_total": Use(
        "What is done: outputs that the broker has acknowledged (with exactly-once: committed).",
        "sum(rate(softmax_records_produced_total[5m]))",
    ),
    "records_total": Use(
        "A producer that changed its format shows here first: `general` records are understood one by one, at a "
        "hundredth of the speed.",
        'sum(rate(softmax_records_total{path="general"}[5m])) / sum(rate(softmax_records_total[5m]))',
    ),
    "dead_letters_total": Use(
        "Refused records by reason; what each means is in [delivery](delivery.md#dead-letters). All reasons are there "
        "from the start at 0, so that the first one is seen.",
        "sum by (reason) (increase(softmax_dead_letters_total[1h]))",
    ),
    "retries_total": Use(
        "The broker could not serve and was waited for: now and then it is a moved leader, for long it is an outage.",
        "sum by (operation) (rate(softmax_retries_total[5m]))",
    ),
    "transactions_total": Use(
        "With exactly-once. Aborted ones are repeated; readers of committed records never see them.",
        'sum(rate(softmax_transactions_total{outcome="aborted"}[5m]))',
    ),
    "rebalances_total": Use(
        "One for each instance that comes or goes. More: members time out, see `kafka.session_timeout_ms`.",
        "increase(softmax_rebalances_total[15m])",
    ),
    "offsets_lost_total": Use(
        "Not 0: records were deleted before they were read. Retention is too short for the lag that there was.",
        "increase(softmax_offsets_lost_total[15m]) > 0",
    ),
    "consumer_lag_records": Use(
        "Records that wait, up to the last stable offset: what is in an open transaction upstream does not count. Only of "
        "partitions that this instance serves.",
        "sum by (topic) (softmax_consumer_lag_records)",
    ),
    "consumer_lag_seconds": Use(
        "The same as an age, which is easier to judge: it is what the latency will be.",
        "max by (topic, partition) (softmax_consumer_lag_seconds)",
    ),
    "in_flight_records": Use("Taken and not yet acknowledged.", "softmax_in_flight_records"),
    "in_flight_bytes": Use(
        "Near `limits.in_flight_bytes`: the broker acknowledges too slowly, and reading waits for it.",
        "softmax_in_flight_bytes",
    ),
    "assigned_partitions": Use(
        "0 on an instance that is ready: there are more instances than partitions.",
        "sum(softmax_assigned_partitions)",
    ),
    "last_progress_timestamp_seconds": Use(
        "Old is bad only while there is lag.",
        "time() - softmax_last_progress_timestamp_seconds",
    ),
    "event_loop_lag_seconds": Use(
        "Late turns make late heartbeats and probes. Over 0.1 s: the processor is starved, or something blocks.",
        "histogram_quantile(0.99, sum by (le) (rate(softmax_event_loop_lag_seconds_bucket[5m])))",
    ),
    "prediction_confidence": Use(
        "A model's outputs change their nature: it drifts, or what it is fed does. A sample of a few records, at most "
        "twenty times a second; off with `metrics.predictions: false`.",
        "rate(softmax_prediction_confidence_sum[1h]) / rate(softmax_prediction_confidence_count[1h])",
    ),
    "prediction_entropy": Use(
        "The same seen by the whole distribution. K equally likely classes have log K nats.",
        "rate(softmax_prediction_entropy_sum[1h]) / rate(softmax_prediction_entropy_count[1h])",
    ),
    "ready": Use("What `/readyz` answers.", "sum by (job) (softmax_ready)"),
    "build_info": Use("Which versions run; 1 always.", "count by (version) (softmax_build_info)"),
}
# What the values of a label can be, where that is a closed list.
VALUES: Final = {
    "stage": STAGES,
    "closed_by": CLOSED_BY,
    "path": PATHS,
    "operation": OPERATIONS,
    "outcome": OUTCOMES,
    "reason": tuple(reason.value for reason in Reason),
}
MAX_RECORDS, MAX_BYTES = 16384, 4 << 20


def text() -> str:
    """The page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Metrics"
    yield ""
    yield "<!-- Made by scripts/generate from the code. -->"
    yield ""
    yield (
        "`/metrics` answers in Prometheus's text format, or as OpenMetrics to who asks for it (then, with traces, latency "
        "buckets carry exemplars). Base units; counters end in `_total`. Histograms have the series `_bucket`, `_sum`, "
        "`_count`. Beside these stand the process's (`process_*`) and Python's (`python_*`) own."
    )
    yield ""
    yield (
        "No label's values come from messages without a bound: `model` is the name of a configured profile, and `default` "
        "for all others. Dashboards and alerts that use them are in `deploy/`; what to do about an alert is in the "
        "[runbook](runbook.md)."
    )
    yield ""
    yield "| metric | type | labels | meaning |"
    yield "|---|---|---|---|"
    metrics = list(Metrics({}, MAX_RECORDS, MAX_BYTES).instruments())
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "–"
        yield f"| [`{exposed(metric)}`](#{exposed(metric)}) | {metric.kind} | {labels} | {metric.help} |"
    yield "| [`softmax_build_info`](#softmax_build_info) | info | `version`, `python`, `numpy`, `aiokafka` | Versions in use |"
    for metric in metrics:
        yield from _section(metric)
    yield from _use("softmax_build_info", USES["build_info"])


def exposed(metric: Histogram | Values) -> str:
    """The metric's name as Prometheus knows it."""
    return metric.name + ("_total" if metric.kind == "counter" else "")


def _section(metric: Histogram | Values) -> Iterator[str]:
    name = exposed(metric)
    yield from _use(name, USES[name.removeprefix("softmax_")])
    for label in metric.labels:
        if label in VALUES:
            yield ""
            yield f"`{label}` is one of {', '.join(f'`{value}`' for value in VALUES[label])}."


def _use(name: str, use: Use) -> Iterator[str]:
    yield ""
    yield f"## {name}"
    yield ""
    yield use.advice
    yield ""
    yield "```promql"
    yield use.query
    yield "```"
