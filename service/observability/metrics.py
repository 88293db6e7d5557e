"""The only file that knows Prometheus: events become metrics.

prometheus-client observes one value at a time under a lock. Here a micro-batch of latencies goes
into a histogram with one `searchsorted` and one `bincount`, and a custom collector renders it.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections import defaultdict
from itertools import accumulate
from operator import add
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector

from service.observability.events import Observer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

# Counting so many values one by one is quicker than beginning with numpy.
FEW: Final = 16
PREFIX: Final = "softmax_"

# An exact bound at each latency objective on offer: 0.05, 0.1, 0.25, 0.5 and 1 s.
LATENCY_BOUNDS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 30,
)  # fmt: skip
STAGE_BOUNDS: Final = (
    0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10,
)  # fmt: skip
LOOP_LAG_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5)


def cap_bounds(cap: int, factor: int) -> tuple[float, ...]:
    """Bounds growing by `factor`, with exact ones at cap - 1 and cap: "it was full" is one subtraction."""
    growing = []
    bound = 1
    while bound < cap - 1:
        growing.append(bound)
        bound *= factor
    return (*growing, max(cap - 1, 0), cap)


class Histogram:
    """Counts per bucket for each set of labels."""

    def __init__(self, name: str, help_text: str, bounds: Sequence[float], labels: Sequence[str] = ()) -> None:
        """Make a histogram with these upper bounds, ascending and without +Inf."""
        self._name, self._help, self._labels = PREFIX + name, help_text, labels
        self._bounds = [float(bound) for bound in bounds]
        self._names = [*map(repr, self._bounds), "+Inf"]
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        if not labels:
            self._counts[()] = [0] * len(self._names)

    def observe(self, value: float, *labels: str) -> None:
        """Count one value."""
        self._of(labels)[bisect_left(self._bounds, value)] += 1
        self._sums[labels] += float(value)

    def observe_all(self, values: NDArray[np.float64], *labels: str) -> None:
        """Count many values at once."""
        counts = self._of(labels)
        if len(values) <= FEW:
            for value in values.tolist():
                self.observe(value, *labels)
            return
        found = np.bincount(np.searchsorted(self._bounds, values), minlength=len(counts)).tolist()
        counts[:] = map(add, counts, found)
        self._sums[labels] += float(values.sum())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Render for the registry."""
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        for labels, counts in list(self._counts.items()):
            family.add_metric(labels, list(zip(self._names, accumulate(counts), strict=True)), self._sums[labels])
        yield family

    def _of(self, labels: tuple[str, ...]) -> list[int]:
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * len(self._names)
        return counts


class Values:
    """A counter or gauge for each set of labels."""

    def __init__(
        self,
        family: type[CounterMetricFamily | GaugeMetricFamily],
        name: str,
        help_text: str,
        labels: Sequence[str] = (),
    ) -> None:
        """Make a metric; one without labels begins at 0."""
        self._family, self._name, self._help, self._labels = family, PREFIX + name, help_text, labels
        self._values: defaultdict[tuple[str, ...], float] = defaultdict(float)
        if not labels:
            self._values[()] = 0.0

    def add(self, amount: float, *labels: str) -> None:
        """Count."""
        self._values[labels] += amount

    def set(self, value: float, *labels: str) -> None:
        """Replace the value."""
        self._values[labels] = value

    def clear(self) -> None:
        """Forget all sets of labels."""
        self._values.clear()

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Render for the registry."""
        family = self._family(self._name, self._help, labels=self._labels)
        for labels, value in list(self._values.items()):
            family.add_metric(labels, value)
        yield family


class Metrics(Observer, Collector):
    """Turns events into metrics."""

    def __init__(self, versions: Mapping[str, str], max_records: int, max_bytes: int) -> None:
        """Begin at zero.

        Args:
            versions: of the libraries, for `softmax_build_info`.
            max_records: `batch.max_records`.
            max_bytes: `batch.max_bytes`.
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
        self.batches = Values(counter, "batches", "Micro-batches by what closed them", ("closed_by",))
        self.consumed = Values(counter, "records_consumed", "Records read", by_partition)
        self.produced = Values(counter, "records_produced", "Outputs acknowledged", by_partition)
        self.records = Values(counter, "records", "Records by the way they took", ("path",))
        self.dead_letters = Values(counter, "dead_letters", "Dead letters acknowledged", ("reason",))
        self.retries = Values(counter, "retries", "Waits for a broker that could not serve", ("operation",))
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
        self._versions = dict(versions)
        self.registry = CollectorRegistry()
        self.registry.register(self)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)

    def collect(self) -> Iterator[Any]:
        """Render everything for the registry."""
        build = InfoMetricFamily(PREFIX + "build", "Versions in use")
        build.add_metric((), {"python": platform.python_version(), **self._versions})
        yield build
        for metric in vars(self).values():
            if isinstance(metric, Histogram | Values):
                yield from metric.collect()

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

    def dead_letters_produced(self, records: Mapping[str, int], example: Mapping[str, object]) -> None:  # noqa: ARG002
        """See `Observer`."""
        for reason, count in records.items():
            self.dead_letters.add(count, reason)

    def outputs_acknowledged(self, model: str, latencies: NDArray[np.float64]) -> None:
        """See `Observer`."""
        self.clock_skew.add(int(np.count_nonzero(latencies < 0)))
        self.end_to_end_latency.observe_all(np.maximum(latencies, 0), model)

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
