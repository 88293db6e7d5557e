"""Which records are done: the contiguous acknowledged prefix of each partition."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiokafka import TopicPartition


@dataclass(slots=True, eq=False)
class Ticket:
    """Consecutive records of a partition under way to the broker.

    Attributes:
        partition: where they came from.
        next_offset: the offset after the last of them.
        records: how many.
        size: bytes of their values.
        begun_at: when they were handed over, monotonic seconds.
        done: all of them are acknowledged.
    """

    partition: TopicPartition
    next_offset: int
    records: int
    size: int
    begun_at: float
    done: bool = False


class Progress:
    """Counts what is under way and knows what may be committed."""

    def __init__(self) -> None:
        """Begin with no partition."""
        self._under_way: dict[TopicPartition, deque[Ticket]] = {}
        self._done: dict[TopicPartition, int] = {}
        self._committed: dict[TopicPartition, int] = {}
        # The offset after the last record that has left the consumer, and its timestamp.
        self._taken: dict[TopicPartition, tuple[int, int]] = {}
        self.records = 0
        self.size = 0

    def begin(self, ticket: Ticket) -> None:
        """Records are handed over, in the partition's order."""
        self._under_way.setdefault(ticket.partition, deque()).append(ticket)
        self.records += ticket.records
        self.size += ticket.size

    def finish(self, ticket: Ticket) -> None:
        """All outputs and dead letters of a ticket are acknowledged; one given up meanwhile is ignored."""
        ticket.done = True
        queue = self._under_way.get(ticket.partition)
        while queue and queue[0].done:
            first = queue.popleft()
            self._done[first.partition] = first.next_offset
            self.records -= first.records
            self.size -= first.size

    def take(self, partition: TopicPartition, first: int, next_offset: int, timestamp: int) -> None:
        """Records from `first` up to `next_offset` have left the consumer: they are ours to deliver.

        Args:
            partition: where they come from.
            first: where reading the partition begins, if these are its first ones.
            next_offset: the offset after the last of them.
            timestamp: the last one's, Unix milliseconds.
        """
        self._done.setdefault(partition, first)
        self._taken[partition] = (next_offset, timestamp)

    def pass_over(self, partition: TopicPartition, position: int) -> None:
        """The consumer stands at `position`; what it passed without returning it is done.

        Transaction markers and aborted records are no records to deliver. Unless they count as
        done once all before them is, lag never reaches 0 behind a transactional producer.
        """
        done = self._done.get(partition)
        taken, timestamp = self._taken.get(partition, (done, 0))
        if taken == done and (done is None or position > done):
            self._done[partition] = position
            if partition in self._taken:
                self._taken[partition] = (position, timestamp)

    def last_timestamp(self, partition: TopicPartition) -> int:
        """The timestamp of the last record taken, Unix milliseconds; 0 if there was none."""
        return self._taken.get(partition, (0, 0))[1]

    def jump(self, partition: TopicPartition, offset: int) -> None:
        """There is nothing to deliver before `offset`; what is under way before it no longer counts."""
        self._taken.pop(partition, None)
        for ticket in self._under_way.pop(partition, ()):
            self.records -= ticket.records
            self.size -= ticket.size
        self._done[partition] = offset

    def position(self, partition: TopicPartition) -> int | None:
        """The offset up to which all is acknowledged, if any was since the assignment."""
        return self._done.get(partition)

    def committable(self) -> dict[TopicPartition, int]:
        """Offsets that have moved since the last commit."""
        return {tp: offset for tp, offset in self._done.items() if self._committed.get(tp) != offset}

    def committed(self, offsets: dict[TopicPartition, int]) -> None:
        """These offsets are stored."""
        self._committed.update(offsets)

    def oldest(self) -> Ticket | None:
        """The ticket under way for longest."""
        return min((queue[0] for queue in self._under_way.values() if queue), key=lambda t: t.begun_at, default=None)

    def give_up(self) -> None:
        """Forget what is under way; it will be read again, once the consumer has gone back (`jump`)."""
        self._under_way.clear()
        self.records = self.size = 0

    def forget(self) -> None:
        """No partition is ours any more."""
        self.give_up()
        self._done.clear()
        self._committed.clear()
        self._taken.clear()
