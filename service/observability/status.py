"""What the status page shows: figures of the last seconds, and the last dead letters."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from service.observability.events import Observer
from service.observability.instruments import Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from service.observability.http import Health
    from service.observability.instruments import Values
    from service.observability.metrics import Metrics

    Labels = tuple[str, ...]

# Rates and percentiles are of so many seconds; a snapshot is taken each second.
WINDOW_SECONDS: Final = 10
HISTORY_SECONDS: Final = 120
LAST_DEAD_LETTERS: Final = 20
STAGES: Final = ("wait", "layout", "decode", "softmax", "encode", "general", "assemble", "deliver", "commit")
QUANTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


@dataclass(frozen=True, slots=True)
class Counts:
    """Values of a histogram: how many are in each bucket, and their sum."""

    buckets: list[int]
    total: float

    def __len__(self) -> int:
        """How many values."""
        return sum(self.buckets)

    def __sub__(self, before: Counts) -> Counts:
        """What has come since."""
        buckets = [now - then for now, then in zip(self.buckets, before.buckets, strict=True)]
        return Counts(buckets, self.total - before.total)

    def __add__(self, other: Counts) -> Counts:
        """Both together."""
        return Counts([a + b for a, b in zip(self.buckets, other.buckets, strict=True)], self.total + other.total)

    @property
    def mean(self) -> float | None:
        """Of the values; `None` without any."""
        return self.total / len(self) if len(self) else None

    def quantile(self, q: float, bounds: Sequence[float]) -> float | None:
        """Estimate a quantile as PromQL's `histogram_quantile` does: evenly spread within a bucket.

        Args:
            q: between 0 and 1.
            bounds: the buckets' upper bounds without +Inf, whose bucket counts as its lower bound.

        Returns:
            `None` without values.
        """
        rank = q * len(self)
        if not rank:
            return None
        below = 0
        for (lower, upper), count in zip(pairwise([0.0, *bounds]), self.buckets, strict=False):
            if below + count >= rank:
                return lower + (upper - lower) * (rank - below) / count
            below += count
        return bounds[-1]


class Snapshot:
    """All figures at a moment."""

    def __init__(self, metrics: Metrics, at: float) -> None:
        """Take them at this monotonic time."""
        self.at = at
        self._values: dict[int, dict[Labels, float]] = {}
        self._counts: dict[int, dict[Labels, Counts]] = {}
        for metric in metrics.instruments():
            if isinstance(metric, Histogram):
                self._counts[id(metric)] = {labels: Counts(*counts) for labels, counts in metric.counts().items()}
            else:
                self._values[id(metric)] = metric.values()

    def values(self, metric: Values) -> dict[Labels, float]:
        """Of a counter or gauge, by labels."""
        return self._values[id(metric)]

    def counts(self, metric: Histogram) -> dict[Labels, Counts]:
        """Of a histogram, by labels."""
        return self._counts[id(metric)]


@dataclass(frozen=True, slots=True)
class Window:
    """What has come between two moments."""

    first: Snapshot
    last: Snapshot

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.last.at - self.first.at

    def increase(self, metric: Values) -> dict[Labels, float]:
        """Of a counter, by labels."""
        before = self.first.values(metric)
        return {labels: value - before.get(labels, 0) for labels, value in self.last.values(metric).items()}

    def rate(self, metric: Values) -> float:
        """Of a counter over all labels, a second."""
        return self.per_second(sum(self.increase(metric).values()))

    def per_second(self, amount: float) -> float:
        """An amount that has come in this time, a second."""
        return amount / self.seconds if self.seconds else 0.0

    def counts(self, metric: Histogram) -> dict[Labels, Counts]:
        """Of a histogram, by labels."""
        before = self.first.counts(metric)
        none = Counts([0] * (len(metric.bounds) + 1), 0.0)
        return {labels: counts - before.get(labels, none) for labels, counts in self.last.counts(metric).items()}


class Status(Observer):
    """Keeps what the page needs beside the metrics, and makes its document."""

    def __init__(
        self,
        metrics: Metrics,
        service: Mapping[str, object],
        settings: Mapping[str, Any],
        health: Callable[[], Health],
    ) -> None:
        """Begin now.

        Args:
            metrics: where the figures come from.
            service: what there is to say of it: versions, topics, group, guarantee.
            settings: the effective ones, secrets masked.
            health: of the moment.
        """
        self._metrics = metrics
        self._service = dict(service)
        self._settings = dict(settings)
        self._health = health
        self._started = time.monotonic()
        self._dead_letters: deque[dict[str, object]] = deque(maxlen=LAST_DEAD_LETTERS)
        self._snapshots: deque[Snapshot] = deque(maxlen=WINDOW_SECONDS + 1)
        self._history: deque[tuple[float, float]] = deque(maxlen=HISTORY_SECONDS + 1)
        self.tick()

    def tick(self) -> None:
        """Take a snapshot; to be called once a second."""
        snapshot = Snapshot(self._metrics, time.monotonic())
        self._snapshots.append(snapshot)
        self._history.append((snapshot.at, self._metrics.produced.total()))

    def dead_letters_produced(self, records: Mapping[str, int], examples: Sequence[Mapping[str, object]]) -> None:  # noqa: ARG002
        """See `Observer`."""
        self._dead_letters.extendleft({"at": time.time(), **example} for example in examples)

    def document(self) -> dict[str, Any]:
        """What `/status.json` answers: seconds, bytes, records; `null` where there is nothing to tell."""
        health = self._health()
        now = time.monotonic()
        window = Window(self._snapshots[0], Snapshot(self._metrics, now))
        return {
            "time": time.time(),
            "service": self._service,
            "uptime_seconds": now - self._started,
            "health": {"ready": health.ready, "stalled": health.stalled, "why": health.why},
            "window_seconds": window.seconds,
            "totals": {
                "consumed": self._metrics.consumed.total(),
                "produced": self._metrics.produced.total(),
                "dead_letters": self._metrics.dead_letters.total(),
            },
            "throughput": self._throughput(window),
            "latency": self._latency(window),
            "stages": list(self._stages(window)),
            "batches": self._batches(window),
            "paths": _by_label(window.increase(self._metrics.records)),
            "partitions": self._partitions(window),
            "in_flight": {
                "records": self._metrics.in_flight_records.total(),
                "bytes": self._metrics.in_flight_bytes.total(),
            },
            "retries": _by_label(self._metrics.retries.values()),
            "transactions": _by_label(self._metrics.transactions.values()),
            "rebalances": self._metrics.rebalances.total(),
            "offsets_lost": self._metrics.offsets_lost.total(),
            "dead_letters": {
                "by_reason": {r: n for r, n in _by_label(self._metrics.dead_letters.values()).items() if n},
                "last": list(self._dead_letters),
            },
            "predictions": self._predictions(window),
            "settings": self._settings,
        }

    def _throughput(self, window: Window) -> dict[str, Any]:
        now = window.last.at
        return {
            "records_per_second": window.rate(self._metrics.produced),
            "dead_letters_per_second": window.rate(self._metrics.dead_letters),
            "consumed_per_second": window.rate(self._metrics.consumed),
            "history": [
                {"age_seconds": now - at, "records_per_second": (records - before) / (at - since)}
                for (since, before), (at, records) in pairwise(self._history)
                if at > since
            ],
        }

    def _latency(self, window: Window) -> dict[str, Any]:
        metric = self._metrics.end_to_end_latency
        by_model = {labels[0]: counts for labels, counts in window.counts(metric).items() if len(counts)}
        total = Counts([0] * (len(metric.bounds) + 1), 0.0)
        for counts in by_model.values():
            total += counts
        models = {model: _quantiles(counts, metric.bounds) for model, counts in by_model.items()}
        return {**_quantiles(total, metric.bounds), "models": models}

    def _stages(self, window: Window) -> Iterator[dict[str, Any]]:
        found = window.counts(self._metrics.stage_duration)
        for stage in STAGES:
            counts = found.get((stage,))
            if counts is not None and len(counts):
                yield {
                    "stage": stage,
                    "batches": len(counts),
                    "mean_seconds": counts.mean,
                    "total_seconds": counts.total,
                }

    def _batches(self, window: Window) -> dict[str, Any]:
        sizes = window.counts(self._metrics.batch_records)[()]
        bounds: list[float | None] = [*self._metrics.batch_records.bounds, None]
        return {
            "per_second": window.per_second(len(sizes)),
            "mean_records": sizes.mean,
            "mean_bytes": window.counts(self._metrics.batch_bytes)[()].mean,
            "closed_by": _by_label(window.increase(self._metrics.batches)),
            "records_histogram": [
                {"upto": bound, "batches": count} for bound, count in zip(bounds, sizes.buckets, strict=True)
            ],
        }

    def _partitions(self, window: Window) -> list[dict[str, Any]]:
        """Those that are assigned now: lag is told of no others."""
        seconds, consumed = self._metrics.lag_seconds.values(), window.increase(self._metrics.consumed)
        return [
            {
                "topic": topic,
                "partition": int(partition),
                "lag_records": records,
                "lag_seconds": seconds.get((topic, partition), 0.0),
                "records_per_second": window.per_second(consumed.get((topic, partition), 0)),
            }
            for (topic, partition), records in sorted(
                self._metrics.lag_records.values().items(), key=lambda each: (each[0][0], int(each[0][1]))
            )
        ]

    def _predictions(self, window: Window) -> dict[str, Any]:
        entropy = window.counts(self._metrics.entropy)
        return {
            labels[0]: {
                "count": len(counts),
                "mean_confidence": counts.mean,
                "mean_entropy": entropy[labels].mean,
            }
            for labels, counts in window.counts(self._metrics.confidence).items()
            if len(counts)
        }


def _by_label(values: Mapping[Labels, float]) -> dict[str, float]:
    return {labels[0]: value for labels, value in values.items()}


def _quantiles(counts: Counts, bounds: Sequence[float]) -> dict[str, Any]:
    return {"count": len(counts), **{name: counts.quantile(q, bounds) for name, q in QUANTILES.items()}}
