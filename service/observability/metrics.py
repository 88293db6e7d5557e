"""The only file that knows which metrics there are: events become numbers for Prometheus."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from service.observability.events import Observer
from service.observability.instruments import PREFIX, Histogram, Values, cap_bounds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

# An exact bound at each latency objective on offer: 0.05, 0.1, 0.25, 0.5 and 1 s.
LATENCY_BOUNDS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 30,
)  # fmt: skip
STAGE_BOUNDS: Final = (
    0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10,
)  # fmt: skip
LOOP_LAG_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5)
CONFIDENCE_BOUNDS: Final = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
# In nats; the entropy of K equally likely classes is log K: 2.3 for ten, 6.9 for a thousand, 13.8 for a million.
ENTROPY_BOUNDS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14)

CLOSED_BY: Final = ("records", "bytes", "delay", "idle", "drain")
PATHS: Final = ("columnar", "general")
OPERATIONS: Final = ("connect", "consume", "produce", "commit", "offset_fetch")
OUTCOMES: Final = ("committed", "aborted")


class Metrics(Observer, Collector):
    """Turns events into metrics.

    Attributes:
        registry: what is exposed.
        trace_of: the trace of a micro-batch, if there is one, for the exemplars of latencies.
    """

    def __init__(
        self, versions: Mapping[str, str], max_records: int, max_bytes: int, reasons: Sequence[str] = ()
    ) -> None:
        """Begin at zero.

        Args:
            versions: of the libraries, for `softmax_build_info`.
            max_records: `batch.max_records`.
            max_bytes: `batch.max_bytes`.
            reasons: for which a record may be refused.
        """
        counter, gauge = CounterMetricFamily, GaugeMetricFamily
        by_partition = ("topic", "partition")
        self.end_to_end_latency = Histogram(
            "end_to_end_latency_seconds",
            "From a record's timestamp to the acknowledgement of its output",
            LATENCY_BOUNDS,
            ("model",),
        )
        self.clock_skew = Values(counter, "clock_skew_records", "Records acknowledged before their own timestamp")
        self.stage_duration = Histogram(
            "stage_duration_seconds", "Time that a micro-batch spends in a stage", STAGE_BOUNDS, ("stage",)
        )
        self.batch_records = Histogram("batch_records", "Records in a micro-batch", cap_bounds(max_records, 4))
        self.batch_bytes = Histogram("batch_bytes", "Bytes of values in a micro-batch", cap_bounds(max_bytes, 4))
        self.batch_wait = Histogram(
            "batch_wait_seconds", "From a micro-batch's first record to its closing", STAGE_BOUNDS
        )
        self.batches = Values(counter, "batches", "Micro-batches by what closed them", ("closed_by",), CLOSED_BY)
        self.consumed = Values(counter, "records_consumed", "Records read", by_partition)
        self.produced = Values(counter, "records_produced", "Outputs acknowledged", by_partition)
        self.records = Values(counter, "records", "Records by the way they took", ("path",), PATHS)
        self.dead_letters = Values(counter, "dead_letters", "Dead letters acknowledged", ("reason",), reasons)
        self.retries = Values(counter, "retries", "Waits for a broker that could not serve", ("operation",), OPERATIONS)
        self.transactions = Values(
            counter, "transactions", "Transactions by how they ended, with exactly-once", ("outcome",), OUTCOMES
        )
        self.rebalances = Values(counter, "rebalances", "Assignments received from the group")
        self.offsets_lost = Values(counter, "offsets_lost", "Positions that had fallen off the log")
        self.lag_records = Values(gauge, "consumer_lag_records", "Last stable offset minus position", by_partition)
        self.lag_seconds = Values(gauge, "consumer_lag_seconds", "Age of the oldest record not yet taken", by_partition)
        self.in_flight_records = Values(gauge, "in_flight_records", "Records taken and not yet acknowledged")
        self.in_flight_bytes = Values(gauge, "in_flight_bytes", "Their bytes")
        self.assigned_partitions = Values(gauge, "assigned_partitions", "Partitions that this instance serves")
        self.last_progress = Values(
            gauge, "last_progress_timestamp_seconds", "When records were last acknowledged, Unix time"
        )
        self.loop_lag = Histogram("event_loop_lag_seconds", "How late the event loop runs what is due", LOOP_LAG_BOUNDS)
        self.confidence = Histogram(
            "prediction_confidence",
            "Highest probability of a distribution, in a sample of the outputs",
            CONFIDENCE_BOUNDS,
            ("model",),
        )
        self.entropy = Histogram(
            "prediction_entropy",
            "Entropy of a distribution in nats, in a sample of the outputs",
            ENTROPY_BOUNDS,
            ("model",),
        )
        self.ready = Values(gauge, "ready", "1 while records can be taken, as /readyz tells")
        self.trace_of: Callable[[int], str | None] = lambda _: None
        self._versions = dict(versions)
        self.registry = CollectorRegistry()
        self.registry.register(self)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)

    def collect(self) -> Iterator[Any]:
        """Render everything for the registry."""
        build = InfoMetricFamily(PREFIX + "build", "Versions in use")
        build.add_metric((), self._versions)
        yield build
        for metric in self.instruments():
            yield from metric.collect()

    def instruments(self) -> Iterator[Histogram | Values]:
        """All metrics of the service's own, but for `softmax_build_info`."""
        return (metric for metric in vars(self).values() if isinstance(metric, Histogram | Values))

    def batch_closed(self, records: int, size: int, waited: float, closed_by: str) -> None:
        """See `Observer`."""
        self.batch_records.observe(records)
        self.batch_bytes.observe(size)
        self.batch_wait.observe(waited)
        self.batches.add(1, closed_by)

    def stage_ended(self, stage: str, seconds: float) -> None:
        """See `Observer`."""
        self.stage_duration.observe(seconds, stage)

    def records_consumed(self, topic: str, partition: int, records: int) -> None:
        """See `Observer`."""
        self.consumed.add(records, topic, str(partition))

    def records_transformed(self, path: str, records: int) -> None:
        """See `Observer`."""
        self.records.add(records, path)

    def records_produced(self, topic: str, partition: int, records: int) -> None:
        """See `Observer`."""
        self.produced.add(records, topic, str(partition))

    def dead_letters_produced(self, records: Mapping[str, int], examples: Sequence[Mapping[str, object]]) -> None:  # noqa: ARG002
        """See `Observer`."""
        for reason, count in records.items():
            self.dead_letters.add(count, reason)

    def outputs_acknowledged(
        self, batch: int, model: str, latencies: NDArray[np.float64], counts: NDArray[np.int64] | None = None
    ) -> None:
        """See `Observer`."""
        early = latencies < 0
        self.clock_skew.add(int(np.count_nonzero(early) if counts is None else counts[early].sum()))
        self.end_to_end_latency.observe_all(np.maximum(latencies, 0), model, counts=counts)
        trace = self.trace_of(batch)
        if trace is not None and len(latencies):
            slowest = max(0.0, float(latencies.max()))
            self.end_to_end_latency.exemplify(slowest, time.time(), {"trace_id": trace}, model)

    def predicted(self, model: str, confidence: NDArray[np.float64], entropy: NDArray[np.float64]) -> None:
        """See `Observer`."""
        self.confidence.observe_all(confidence, model)
        self.entropy.observe_all(entropy, model)

    def in_flight(self, records: int, size: int) -> None:
        """See `Observer`."""
        self.in_flight_records.set(records)
        self.in_flight_bytes.set(size)

    def lag(self, topic: str, partition: int, records: int, seconds: float) -> None:
        """See `Observer`."""
        self.lag_records.set(records, topic, str(partition))
        self.lag_seconds.set(seconds, topic, str(partition))

    def progressed(self, at: float) -> None:
        """See `Observer`."""
        self.last_progress.set(at)

    def committed(self, offsets: Mapping[Any, int], seconds: float) -> None:  # noqa: ARG002
        """See `Observer`."""
        self.stage_duration.observe(seconds, "commit")

    def transaction_ended(self, outcome: str) -> None:
        """See `Observer`."""
        self.transactions.add(1, outcome)

    def assigned(self, partitions: Sequence[Any]) -> None:
        """See `Observer`."""
        self.rebalances.add(1)
        self.assigned_partitions.set(len(partitions))

    def revoked(self, partitions: Sequence[Any], drained: bool) -> None:  # noqa: ARG002, FBT001 - the event's signature
        """See `Observer`."""
        self.assigned_partitions.set(0)
        # A partition that another instance serves now must not be shown with its last lag for ever.
        self.lag_records.clear()
        self.lag_seconds.clear()

    def retried(self, operation: str, error: BaseException) -> None:  # noqa: ARG002
        """See `Observer`."""
        self.retries.add(1, operation)

    def producer_replaced(self, error: BaseException) -> None:  # noqa: ARG002
        """See `Observer`."""
        self.retries.add(1, "produce")

    def offset_lost(self, topic: str, partition: int, offset: int, policy: str) -> None:  # noqa: ARG002
        """See `Observer`."""
        self.offsets_lost.add(1)
