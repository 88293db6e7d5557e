"""Records between the consumer and the producer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from heapq import nsmallest
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiokafka import TopicPartition
    from numpy.typing import NDArray

    from service.transform.assembly import Block
    from service.transform.frames import Frames, Record
    from service.transform.refusals import InvalidMessage


# Of so many dead letters of a part the coordinates are told, and so much of their values, if that is allowed.
EXAMPLES: Final = 5
PAYLOAD_BYTES: Final = 128
# Counting the timestamps of so few records takes longer than it saves.
FEW: Final = 16


class Received(Protocol):
    """A record as aiokafka's consumer returns it. Timestamps are Unix milliseconds."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class Reduction:
    """What a dead letter leaves behind because its topic refused it whole.

    Attributes:
        untimed: its own timestamp; it carries the time of sending.
        bare: its value, headers and a long or missing key.
    """

    untimed: bool = False
    bare: bool = False


@dataclass(slots=True, eq=False)
class Part:
    """Consecutive records of one partition and what became of each; positions are those of the micro-batch.

    Attributes:
        partition: the input partition.
        frames: the records of the whole micro-batch.
        start: position of the first record.
        stop: position after the last one.
        next_offset: the offset after the last one that is done with these records.
        stamp: the delivery's for the partition when they were taken; with another one they no longer count.
        batch: the number of their micro-batch.
        size: bytes of the records' values.
        blocks: the outputs of the whole micro-batch.
        refusals: of this part's records, by position.
        reductions: by offset, what dead letters must leave behind.
    """

    partition: TopicPartition
    frames: Frames
    start: int
    stop: int
    next_offset: int
    stamp: int
    batch: int = 0
    size: int = 0
    blocks: Sequence[Block] = ()
    refusals: dict[int, InvalidMessage] = field(default_factory=dict)
    reductions: dict[int, Reduction] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many records."""
        return self.stop - self.start

    @property
    def first_offset(self) -> int:
        """The first record's offset."""
        return int(self.frames.offsets[self.start]) if len(self) else self.next_offset

    def cut(self, frames: Frames, start: int, stop: int, *, last: bool) -> Part | None:
        """What of these records lies in `frames`, which are those from `start` up to `stop`, the last ones or not."""
        first, end = max(self.start, start), min(self.stop, stop)
        if first >= end and not (last and len(self) == 0):
            return None
        next_offset = self.next_offset if end == self.stop else int(self.frames.offsets[end - 1]) + 1
        size = self.frames.value_bytes(first, end)
        start, stop = first - start, max(end, first) - start
        return Part(self.partition, frames, start, stop, next_offset, self.stamp, self.batch, size)

    def record(self, position: int) -> Record:
        """One record as an object."""
        return self.frames.record(position)

    def outputs(self) -> dict[int, bytes]:
        """The outputs as single objects, by position."""
        found: dict[int, bytes] = {}
        for block in self.blocks:
            some = self.mine(block)
            mine = block.some(some)
            found.update(zip(mine.positions.tolist(), mine.values(), strict=True))
        return found

    def summary(self, *, payloads: bool = False) -> Summary:
        """What is to be told of the part once it is delivered; of dead letters, if allowed, what they hold too."""
        born: dict[str, list[NDArray[Any]]] = {}
        for block in self.blocks:
            positions = block.positions[self.mine(block)]
            if self.refusals:  # a broker may have refused what had an output
                positions = positions[~np.isin(positions, list(self.refusals))]
            if len(positions):
                born.setdefault(block.model, []).append(self.frames.timestamps[positions])
        return Summary(
            self.partition,
            self.batch,
            len(self),
            {model: count_timestamps(np.concatenate(stamps)) for model, stamps in born.items()},
            Counter(refusal.reason.value for refusal in self.refusals.values()),
            [self._example(position, payloads=payloads) for position in nsmallest(EXAMPLES, self.refusals)],
        )

    def _example(self, position: int, *, payloads: bool) -> dict[str, object]:
        refusal = self.refusals[position]
        example: dict[str, object] = {
            "reason": refusal.reason.value,
            "detail": refusal.detail,
            "topic": self.partition.topic,
            "partition": self.partition.partition,
            "offset": int(self.frames.offsets[position]),
        }
        value = self.frames.record(position).value if payloads else None
        return example if value is None else {**example, "payload": value[:PAYLOAD_BYTES].hex()}

    def mine(self, block: Block) -> slice:
        """Which of a block's values are of this part."""
        positions = block.positions
        if positions[0] >= self.start and positions[-1] < self.stop:
            return slice(None)
        first, end = np.searchsorted(positions, [self.start, self.stop])
        return slice(int(first), int(end))


@dataclass(frozen=True, slots=True)
class Summary:
    """What is to be told of a part once it is delivered; small enough to be kept until then.

    Attributes:
        partition: the input partition.
        batch: the number of the micro-batch.
        records: how many there are.
        timestamps: of the records that were answered, by model, see `count_timestamps`.
        reasons: how many dead letters for each.
        examples: the first of the dead letters, see `Observer.dead_letters_produced`.
    """

    partition: TopicPartition
    batch: int
    records: int
    timestamps: dict[str, tuple[NDArray[np.int64], NDArray[np.int64] | None]]
    reasons: Counter[str]
    examples: list[dict[str, object]]


def count_timestamps(stamps: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Count the records of each millisecond, of which there are few: their latencies cost a third then.

    Args:
        stamps: Unix milliseconds in any order, -1 where a record has none.

    Returns:
        Timestamps, and how many records have each; `None` for one each, where counting would gain nothing.
    """
    if len(stamps) <= FEW:
        return stamps[stamps >= 0], None
    first = stamps.min()
    if first < 0:
        return count_timestamps(stamps[stamps >= 0])
    if stamps.max() - first >= len(stamps):
        return stamps, None
    counts = np.bincount(stamps - first)
    present = np.flatnonzero(counts)
    return present + first, counts[present]
