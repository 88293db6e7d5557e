"""Instruments that take a micro-batch at a time, and render themselves for Prometheus.

prometheus-client observes one value at a time under a lock. Here a micro-batch of latencies goes
into a histogram with one `searchsorted` and one `bincount`, and a custom collector renders it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from itertools import accumulate
from operator import add
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from prometheus_client.core import CounterMetricFamily, Exemplar, GaugeMetricFamily, HistogramMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

# Counting so many values one by one is quicker than beginning with numpy.
FEW: Final = 16
PREFIX: Final = "softmax_"


def cap_bounds(cap: int, factor: int) -> tuple[float, ...]:
    """Bounds growing by `factor`, with exact ones at cap - 1 and cap: "it was full" is one subtraction."""
    growing = []
    bound = 1
    while bound < cap - 1:
        growing.append(bound)
        bound *= factor
    return (*growing, max(cap - 1, 0), cap)


class Histogram:
    """Counts per bucket for each set of labels.

    Attributes:
        name: as exposed.
        help: what it means.
        labels: their names.
        bounds: upper bounds of the buckets, ascending, without +Inf.
    """

    kind: Final = "histogram"

    def __init__(self, name: str, help_text: str, bounds: Sequence[float], labels: Sequence[str] = ()) -> None:
        """Make a histogram with these upper bounds, ascending and without +Inf."""
        self.name, self.help, self.labels = PREFIX + name, help_text, tuple(labels)
        self.bounds = [float(bound) for bound in bounds]
        self._names = [*map(repr, self.bounds), "+Inf"]
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._exemplars: dict[tuple[tuple[str, ...], int], Exemplar] = {}
        if not labels:
            self._counts[()] = [0] * len(self._names)

    def observe(self, value: float, *labels: str) -> None:
        """Count one value."""
        self._of(labels)[bisect_left(self.bounds, value)] += 1
        self._sums[labels] += float(value)

    def observe_all(self, values: NDArray[np.float64], *labels: str, counts: NDArray[np.int64] | None = None) -> None:
        """Count many values at once, each as often as `counts` says, or once."""
        buckets = self._of(labels)
        if counts is None and len(values) <= FEW:
            for value in values.tolist():
                self.observe(value, *labels)
            return
        found = np.bincount(np.searchsorted(self.bounds, values), counts, minlength=len(buckets))
        buckets[:] = map(add, buckets, found.astype(np.int64).tolist())
        self._sums[labels] += float(values.sum() if counts is None else values @ counts)

    def exemplify(self, value: float, at: float, example: Mapping[str, str], *labels: str) -> None:
        """Show where a value of its bucket came from.

        Args:
            value: one that has been observed.
            at: when, Unix seconds.
            example: labels of the exemplar, as `trace_id`.
            labels: of the histogram.
        """
        self._exemplars[labels, bisect_left(self.bounds, value)] = Exemplar(dict(example), value, at)

    def counts(self) -> dict[tuple[str, ...], tuple[list[int], float]]:
        """By labels, how many values are in each bucket (not cumulated), and their sum."""
        return {labels: (list(counts), self._sums[labels]) for labels, counts in list(self._counts.items())}

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Render for the registry."""
        family = HistogramMetricFamily(self.name, self.help, labels=self.labels)
        for labels, counts in list(self._counts.items()):
            family.add_metric(labels, list(self._buckets(labels, counts)), self._sums[labels])
        yield family

    def _buckets(self, labels: tuple[str, ...], counts: Iterable[int]) -> Iterator[Any]:
        for bucket, (name, count) in enumerate(zip(self._names, accumulate(counts), strict=True)):
            exemplar = self._exemplars.get((labels, bucket))
            yield (name, count) if exemplar is None else (name, count, exemplar)

    def _of(self, labels: tuple[str, ...]) -> list[int]:
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = [0] * len(self._names)
        return counts


class Values:
    """A counter or gauge for each set of labels.

    Attributes:
        name: as exposed, but for the suffix `_total` of a counter.
        help: what it means.
        labels: their names.
        kind: `counter` or `gauge`.
    """

    def __init__(
        self,
        family: type[CounterMetricFamily | GaugeMetricFamily],
        name: str,
        help_text: str,
        labels: Sequence[str] = (),
        known: Iterable[str] = (),
    ) -> None:
        """Make a metric.

        Args:
            family: counter or gauge.
            name: without the prefix.
            help_text: what it means.
            labels: their names; a metric without labels begins at 0.
            known: values of the only label that begin at 0 too: the first increase of a counter that was not
                there before is invisible to Prometheus.
        """
        self._family, self.name, self.help, self.labels = family, PREFIX + name, help_text, tuple(labels)
        self.kind: Final = "counter" if family is CounterMetricFamily else "gauge"
        begin = [(value,) for value in known] if labels else [()]
        self._values: defaultdict[tuple[str, ...], float] = defaultdict(float, dict.fromkeys(begin, 0.0))

    def add(self, amount: float, *labels: str) -> None:
        """Count."""
        self._values[labels] += amount

    def set(self, value: float, *labels: str) -> None:
        """Replace the value."""
        self._values[labels] = value

    def values(self) -> dict[tuple[str, ...], float]:
        """The values by labels."""
        return dict(self._values)

    def total(self) -> float:
        """The sum over all labels."""
        return sum(self._values.values())

    def clear(self) -> None:
        """Forget all sets of labels."""
        self._values.clear()

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Render for the registry."""
        family = self._family(self.name, self.help, labels=self.labels)
        for labels, value in list(self._values.items()):
            family.add_metric(labels, value)
        yield family
