"""Named events with empty bodies; who wants to know overrides them.

Events are emitted per micro-batch, never per record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray


class Observer:
    """Everything worth watching. Times are seconds, sizes bytes unless a name says otherwise."""

    def started(self, facts: Mapping[str, object]) -> None:
        """The service is connected; `facts` are worth a line in the log."""

    def stopping(self, why: str) -> None:
        """No new records are taken; those under way are finished."""

    def stopped(self, how: str) -> None:
        """The service has ended its work: `drained` or what was left."""

    def batch_taken(self, batch: int, parts: int, waited: float, parents: Sequence[str]) -> None:
        """The worker has taken a micro-batch, numbered in ascending order.

        Args:
            batch: its number.
            parts: of how many partitions it has records; each is acknowledged by itself.
            waited: seconds since its first record came.
            parents: what some of its records' headers `traceparent` say, if traces are asked for.
        """

    def batch_transformed(self, batch: int, records: int) -> None:
        """All records of a micro-batch are transformed; it is about to be handed over."""

    def part_acknowledged(self, batch: int, topic: str, partition: int, records: int) -> None:
        """All outputs and dead letters of a micro-batch's records of one input partition are acknowledged."""

    def batch_closed(self, records: int, size: int, waited: float, closed_by: str) -> None:
        """A micro-batch was closed, by `records`, `bytes`, `delay`, `idle` or `drain`."""

    def stage_ended(self, stage: str, seconds: float) -> None:
        """A micro-batch went through a stage.

        `wait` for more records, `layout`, `decode`, `softmax`, `encode`, `general` for what is transformed one by one,
        `assemble` into record batches and wait for a place; and, of each partition in it, `deliver` until all is
        acknowledged.
        """

    def records_consumed(self, topic: str, partition: int, records: int) -> None:
        """Records were read."""

    def records_transformed(self, path: str, records: int) -> None:
        """Records were transformed on the `columnar` or the `general` path."""

    def records_produced(self, topic: str, partition: int, records: int) -> None:
        """Outputs were acknowledged by the broker."""

    def dead_letters_produced(self, records: Mapping[str, int], examples: Sequence[Mapping[str, object]]) -> None:
        """Dead letters were acknowledged.

        Args:
            records: how many by reason.
            examples: `reason`, `detail`, `topic`, `partition` and `offset` of the first few; with
                `http.show_payloads` also `payload`, the beginning of the value in hex.
        """

    def outputs_acknowledged(
        self, batch: int, model: str, latencies: NDArray[np.float64], counts: NDArray[np.int64] | None = None
    ) -> None:
        """How old the records of a micro-batch were when their outputs were acknowledged; negative under clock skew.

        Args:
            batch: its number.
            model: of the records.
            latencies: seconds.
            counts: how many records had each; `None` for one each.
        """

    def predicted(self, model: str, confidence: NDArray[np.float64], entropy: NDArray[np.float64]) -> None:
        """Of a sample of the distributions made: the highest probability, and the entropy in nats."""

    def in_flight(self, records: int, size: int) -> None:
        """What has been taken and is not yet acknowledged."""

    def lag(self, topic: str, partition: int, records: int, seconds: float) -> None:
        """How far the partition's position is behind its last stable offset."""

    def progressed(self, at: float) -> None:
        """Records were acknowledged at this Unix time."""

    def committed(self, offsets: Mapping[Any, int], seconds: float) -> None:
        """Progress was committed, which took so long; with exactly-once the whole transaction."""

    def transaction_ended(self, outcome: str) -> None:
        """A transaction was `committed` or, for all that is known, `aborted`."""

    def assigned(self, partitions: Sequence[Any]) -> None:
        """A rebalance ended with these partitions."""

    def revoked(self, partitions: Sequence[Any], drained: bool) -> None:  # noqa: FBT001 - an event's fact
        """A rebalance takes these partitions; `drained`: all that was under way was finished first."""

    def retried(self, operation: str, error: BaseException) -> None:
        """A broker's fault is being waited out."""

    def producer_replaced(self, error: BaseException) -> None:
        """A batch failed for good; the service goes back to the last acknowledged records."""

    def offset_lost(self, topic: str, partition: int, offset: int, policy: str) -> None:
        """The next record had fallen off the log."""

    def seam_unfit(self, version: str) -> None:
        """Whole batches were asked for, but are not known to work with this version of aiokafka."""

    def stalled(self, seconds: float, stacks: str) -> None:
        """Records wait, the broker answers and nothing has moved for that long."""


class Observers(Observer):
    """Tells several observers."""

    def __init__(self, *observers: Observer) -> None:
        """Tell these, in this order."""
        for name in vars(Observer):
            if not name.startswith("_"):
                # Who overrides nothing hears nothing: events come thousands of times a second.
                setattr(self, name, _fan_out([getattr(o, name) for o in observers if _listens(o, name)]))


def _listens(observer: Observer, name: str) -> bool:
    return name in vars(observer) or getattr(type(observer), name) is not getattr(Observer, name)


def _fan_out(listeners: list[Any]) -> Any:
    if len(listeners) == 1:
        return listeners[0]

    def tell(*args: object, **kwargs: object) -> None:
        for listener in listeners:
            listener(*args, **kwargs)

    return tell
