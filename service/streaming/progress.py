"""Which records are done: the contiguous acknowledged prefix of each partition."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

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

    def place(self, partition: TopicPartition, offset: int) -> None:
        """Reading the partition begins at `offset`; later calls change nothing."""
        self._done.setdefault(partition, offset)

    def jump(self, partition: TopicPartition, offset: int) -> None:
        """There is nothing to deliver before `offset`; what is under way before it no longer counts."""
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
        """Forget what is under way; it will be read again from the acknowledged prefix."""
        self._under_way.clear()
        self.records = self.size = 0

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """The partitions are no longer ours."""
        self.give_up()
        for partition in partitions:
            self._done.pop(partition, None)
            self._committed.pop(partition, None)
