"""Finding the record for whose sake the broker refused a batch."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
from aiokafka import errors

from service.errors import BrokerUnusableError
from service.streaming.faults import refusal_by_broker
from service.streaming.records import Reduction

if TYPE_CHECKING:
    from aiokafka import TopicPartition

    from service.streaming.outgoing import Batch
    from service.streaming.records import Part
    from service.transform.refusals import InvalidMessage


class Culprits:
    """Knows which records are sent one by one, which are guilty, and whose dead letters must give way.

    A refused batch is cut into single records; a record refused alone becomes a dead letter; a dead
    letter refused alone leaves what stands in its way behind. Each step takes a new producer.
    """

    def __init__(self, output: str) -> None:
        """Suspect nobody; `output` is the topic of the outputs."""
        self._output = output
        self._suspects: dict[TopicPartition, int] = {}
        self._guilty: defaultdict[TopicPartition, dict[int, InvalidMessage]] = defaultdict(dict)
        self._reductions: defaultdict[TopicPartition, dict[int, Reduction]] = defaultdict(dict)

    def blame(self, partition: TopicPartition, batch: Batch, error: BaseException) -> None:
        """Note that a batch of inputs of `partition` was refused.

        Raises:
            BrokerUnusableError: not even what is left of a dead letter is accepted.
        """
        self._suspects[partition] = max(batch.last + 1, self._suspects.get(partition, 0))
        if batch.builder.record_count() > 1:
            return
        if batch.topic == self._output:
            self._guilty[partition][batch.first] = refusal_by_broker(error)
            return
        untimed = isinstance(error, errors.InvalidTimestampError)
        before = self._reductions[partition].get(batch.first, Reduction())
        if before.untimed if untimed else before.bare:
            raise BrokerUnusableError(
                f"{batch.topic} refuses the dead letter of {partition.topic}-{partition.partition} @{batch.first}"
                f" in every form: {type(error).__name__}",
                "See the limits and the clean-up policy of topics.dead_letter",
            ) from error
        self._reductions[partition][batch.first] = Reduction(before.untimed or untimed, before.bare or not untimed)

    def singly_until(self, partition: TopicPartition) -> int:
        """Records before this offset are sent one by one."""
        return self._suspects.get(partition, -1)

    def mark(self, part: Part) -> None:
        """Turn the guilty records of a part into refusals."""
        part.reductions = self._reductions.get(part.partition, {})
        guilty = self._guilty.get(part.partition)
        if not guilty:
            return
        offsets = part.frames.offsets[part.start : part.stop]
        for position in np.flatnonzero(np.isin(offsets, list(guilty))).tolist():
            part.refusals[part.start + position] = guilty[int(offsets[position])]

    def acquit(self, partition: TopicPartition, end: int) -> None:
        """All up to the offset `end` is delivered: nothing in it needs to be remembered."""
        known: list[dict[int, Any]] = [self._guilty.get(partition, {}), self._reductions.get(partition, {})]
        for offsets in known:
            for offset in [offset for offset in offsets if offset <= end]:
                del offsets[offset]
        if self._suspects.get(partition, -1) <= end + 1:
            self._suspects.pop(partition, None)

    def forget(self) -> None:
        """No partition is ours any more."""
        self._suspects.clear()
        self._guilty.clear()
        self._reductions.clear()
