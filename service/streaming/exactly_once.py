"""Exactly-once: outputs, dead letters and offsets in transactions, one producer for each input partition.

Whoever initialises a partition's producer ends the transactions of whoever did so before. That, and not the group's
word, is the lease on the partition; only then is the committed offset final, and only from there on is anything read.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Final

from aiokafka import errors

from service.errors import BrokerUnusableError
from service.streaming.delivery import Delivery
from service.streaming.faults import Fault, fault_of
from service.streaming.offsets import committed_offset, end_of_log
from service.streaming.startup import describe
from service.streaming.transactions import NotStored, Transactions, transactional_id

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from aiokafka import TopicPartition

    from service.streaming.delivery import Means
    from service.streaming.outgoing import Batch
    from service.streaming.progress import Ticket
    from service.streaming.records import Part, Summary

# Before a lease is asked for again. Two members that both believe a partition theirs take it from each other until the
# group has spoken: at random, so that one of them gets something done meanwhile.
BACKOFF_SECONDS: Final = (0.1, 0.6)


class TaintedError(errors.KafkaError):  # type: ignore[misc]  # aiokafka is not typed
    """A transaction has succeeded, but not at the first try: see `Transactions.tainted`."""

    retriable = True


@dataclass(slots=True)
class _Work:
    """A part to be delivered.

    Attributes:
        ticket: its place in the progress.
        first: the offset of its first record.
        assembled: its outputs, if they have been built already.
        part: itself, if it is still needed: it holds the whole micro-batch.
        summary: what is to be told of it, if it is not.
    """

    ticket: Ticket
    first: int
    assembled: Sequence[Batch] | None
    part: Part | None
    summary: Summary | None

    @classmethod
    def of(cls, part: Part, ticket: Ticket, assembled: Sequence[Batch] | None) -> _Work:
        """The work that a part makes."""
        if assembled is None or part.refusals:
            return cls(ticket, part.first_offset, assembled, part, None)
        return cls(ticket, part.first_offset, assembled, None, part.summary())


class ExactlyOnce(Delivery):
    """Delivers transformed records in transactions; each partition's run one after the other, beside the others'."""

    transactional = True
    finds_beginnings = True

    def __init__(self, means: Means) -> None:
        """Connect nothing yet."""
        super().__init__(means)
        self._lanes: dict[TopicPartition, Lane] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._stamps = count()
        self._fatal: BaseException | None = None

    async def start(self) -> None:
        """Nothing is needed before the first assignment: each partition has its own producer."""

    async def deliver(self, parts: Sequence[Part]) -> None:
        """Hand a micro-batch over; each part waits for its partition's next transaction."""
        while not self.failed and self._full():
            await self._wait_for_move(1)
        if self.failed or self._draining:
            return
        # No await from here on: a drain must see the whole micro-batch or nothing of it.
        for part in parts:
            self._culprits.mark(part)
        assembled = self._outgoing.assembled(parts, self._culprits.singly_until)
        for part in parts:
            if part.stamp == self.stamp(part.partition):
                self._lanes[part.partition].add(_Work.of(part, self._begin(part), assembled.get(part)))
        self._observer.in_flight(self.progress.records, self.progress.size)

    async def recover(self) -> None:
        """Raise what a partition could not recover from by itself."""
        if self._fatal is not None:
            raise self._fatal

    async def commit(self) -> None:
        """Let idle partitions store how far the consumer has come past what is no record: markers of transactions."""
        for lane in self._lanes.values():
            lane.store_position()

    async def topics_have_grown(self) -> None:
        """Each assignment makes new producers, which look at the topics themselves."""

    def hold(self, assigned: Collection[TopicPartition]) -> None:
        """Partitions have been assigned: get the lease on each before anything is read from it."""
        self._drop_lanes()
        self._forget()
        self.holding = True
        for partition in assigned:
            self._consumer.pause(partition)
            self._lanes[partition] = Lane(self, partition)

    def let_go(self) -> None:
        """The partitions are no longer ours; open transactions are left for the next holder to end."""
        self._drop_lanes()
        self._forget()
        self.holding = False

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - the budget is the caller's
        """Close the producers."""
        self._drop_lanes()
        if self._closing:
            await asyncio.wait(self._closing, timeout=timeout)

    @property
    def failed(self) -> bool:
        """Whether a partition could not recover by itself."""
        return self._fatal is not None

    def stamp(self, partition: TopicPartition) -> int:
        """A number that changes whenever records taken from a partition before no longer count."""
        lane = self._lanes.get(partition)
        return -1 if lane is None else lane.stamp

    def _busy(self) -> bool:
        return any(lane.busy for lane in self._lanes.values())

    def _drop_lanes(self) -> None:
        for lane in self._lanes.values():
            lane.dropped = True
            closing = asyncio.create_task(lane.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        self._lanes.clear()

    # --- what a lane asks for -------------------------------------------------------------------

    def new_stamp(self) -> int:
        """Another number than all before."""
        return next(self._stamps)

    def cannot_go_on(self, error: BaseException) -> None:
        """A lane has ended, and not because the partition is no longer ours."""
        self._fatal = self._fatal or error
        self._moved.set()

    def transactions(self, partition: TopicPartition) -> Transactions:
        """A producer for a partition, not yet started."""
        return Transactions(self._settings, partition, self._outgoing.max_batch_bytes)

    async def beginning(self, partition: TopicPartition) -> tuple[int, bool]:
        """Where to read a partition from, and whether that is stored already.

        Raises:
            errors.KafkaError: Kafka cannot tell now.
            TimeoutError: it does not answer.
        """
        offset = await committed_offset(self._consumer, self._settings.kafka.group_id, partition)
        if offset is not None:
            return offset, True
        timeout_ms = self._settings.kafka.request_timeout_ms
        start = self._settings.delivery.start_offset
        return await end_of_log(self._consumer, partition, start, timeout_ms), False

    def go_to(self, partition: TopicPartition, offset: int) -> None:
        """Read a partition from there on, if it is ours."""
        if partition in self._consumer.assignment():
            self._consumer.seek(partition, offset)
            self.progress.jump(partition, offset)
            self._consumer.resume(partition)

    def go_back(self, partition: TopicPartition, error: BaseException) -> None:
        """Forget what is under way of a partition, and read nothing more of it for now."""
        self._observer.producer_replaced(error)
        position = self.progress.position(partition)
        if partition in self._consumer.assignment():
            self._consumer.pause(partition)
            if position is not None:  # what is fetched and not read would keep its broker from being asked for more
                self._consumer.seek(partition, position)
        if position is not None:
            self.progress.jump(partition, position)
        self._moved.set()

    def batches(self, work: _Work, transactions: Transactions) -> Iterator[Batch]:
        """The batches of a part."""
        part = work.part
        if part is None:
            yield from work.assembled or ()
            return
        new_batch = self._outgoing.new_builder if self._whole_batches else transactions.new_batch
        singly_until = self._culprits.singly_until(part.partition)
        yield from self._outgoing.batches(part, new_batch, singly_until, work.assembled)

    def done(self, works: Sequence[_Work], sent: Sequence[Batch]) -> None:
        """A transaction with these parts has been committed."""
        for work in works:
            self._finish(work.ticket)
            summary = work.summary or (work.part.summary(payloads=self._show_payloads) if work.part else None)
            if summary is not None:
                self._report(summary, [batch for batch in sent if work.first <= batch.first < work.ticket.next_offset])
        self._moved.set()

    def stored(self, partition: TopicPartition, offset: int, seconds: float) -> None:
        """A transaction with a partition's offset has been committed, which took so long."""
        self._observer.transaction_ended("committed")
        self._observer.committed({partition: offset}, seconds)
        self.all_well(partition)

    def aborted(self) -> None:
        """A transaction has failed."""
        self._observer.transaction_ended("aborted")

    def all_well(self, partition: TopicPartition) -> None:
        """Nothing fails on a partition: a failure that comes now is a new one."""
        self._failing_since.pop(partition, None)

    def judge(self, partition: TopicPartition, error: BaseException) -> None:
        """Decide what a failure means for the records in it and for the service.

        Raises:
            BrokerUnusableError: it is final, or has lasted too long.
        """
        cause = error.error if isinstance(error, NotStored) else error
        if isinstance(error, NotStored) and fault_of(cause) is Fault.RECORD:
            self._culprits.blame(partition, error.batch, cause)
        elif fault_of(cause) is Fault.BROKER:
            self._check_deadline(partition, cause)
        elif isinstance(cause, errors.TransactionalIdAuthorizationFailed):
            name = transactional_id(self._settings.kafka.group_id, partition)
            raise BrokerUnusableError(
                f"The user may not use the transactional id {name}",
                f"Grant it Write and Describe on the prefix {self._settings.kafka.group_id}. of transactional ids",
            ) from cause
        else:
            raise BrokerUnusableError(
                f"Kafka refuses what is written: {describe(cause)}",
                "Check the user's rights on topics.output, topics.dead_letter and kafka.group_id",
            ) from cause


class Lane:
    """The transactions of one partition while it is ours.

    Attributes:
        delivery: what it is a part of.
        partition: of the input.
        stamp: of the records that count: they were taken since the partition's position was last decided.
        dropped: the partition is no longer ours, or another lane's. A cancellation that a library swallows does not
            stop it at once, but it may touch nothing any more.
    """

    def __init__(self, delivery: ExactlyOnce, partition: TopicPartition) -> None:
        """Go to work."""
        self.stamp = delivery.new_stamp()
        self.dropped = False
        self.delivery = delivery
        self.partition = partition
        self._queue: deque[_Work] = deque()
        self._running = False
        self._stored = -1
        self._wake = asyncio.Event()
        self._transactions: Transactions | None = None
        self._task = asyncio.create_task(self._run(), name=f"transactions of {partition.topic}-{partition.partition}")
        self._task.add_done_callback(self._ended)

    @property
    def busy(self) -> bool:
        """Whether parts wait, or a transaction runs."""
        return bool(self._queue) or self._running

    def add(self, work: _Work) -> None:
        """Deliver a part in the next transaction."""
        self._queue.append(work)
        self._wake.set()

    def store_position(self) -> None:
        """If nothing is under way: see that the position is stored, also where it has passed no record."""
        if not self.busy:
            self._wake.set()

    async def close(self) -> None:
        """End, however far the transaction is."""
        while not self._task.done():  # once may not be enough: libraries swallow cancellations
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=0.2)
        await self._discard()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self.dropped:
            self.delivery.cannot_go_on(error)

    async def _run(self) -> None:
        """Get the lease; work until something fails; and again.

        Raises:
            BrokerUnusableError: it fails for ever.
        """
        while not self.dropped:
            try:
                await self.take_over()
                await self._work()
            except (NotStored, errors.KafkaError, TimeoutError, OSError) as error:
                if self.dropped:
                    return
                self._queue.clear()
                self.stamp = self.delivery.new_stamp()
                self.delivery.judge(self.partition, error)
                self.delivery.go_back(self.partition, error)
                await self._discard()
                await asyncio.sleep(random.uniform(*BACKOFF_SECONDS))  # noqa: S311 - no secret

    async def take_over(self) -> None:
        """Get the lease, find out what is done, and read on from there."""
        self._transactions = self.delivery.transactions(self.partition)
        await self._transactions.start()
        offset, is_stored = await self.delivery.beginning(self.partition)
        if not is_stored:  # else the next holder might begin elsewhere
            begun = time.monotonic()
            await self._run_transaction(self._transactions, [], offset)
            self.delivery.stored(self.partition, offset, time.monotonic() - begun)
        if self.dropped:
            return
        self._stored = offset
        self.stamp = self.delivery.new_stamp()
        self.delivery.go_to(self.partition, offset)

    async def _work(self) -> None:
        """Run transactions, each with all that has come during the one before."""
        while not self.dropped:
            await self._wake.wait()
            self._wake.clear()
            self._running = True
            try:
                await self._transact()
            finally:
                self._running = False

    async def _transact(self) -> None:
        transactions, begun = self._transactions, time.monotonic()
        if transactions is None:
            raise AssertionError(self.partition)
        works = list(self._queue)
        self._queue.clear()
        offset = works[-1].ticket.next_offset if works else self.delivery.progress.position(self.partition)
        if offset is None or offset == self._stored:
            self.delivery.all_well(self.partition)
            return
        batches = (batch for work in works for batch in self.delivery.batches(work, transactions))
        sent = await self._run_transaction(transactions, batches, offset)
        if self.dropped:
            return
        self._stored = offset
        self.delivery.done(works, sent)
        self.delivery.stored(self.partition, offset, time.monotonic() - begun)
        if transactions.tainted:
            raise TaintedError("a request got no answer")

    async def _run_transaction(self, transactions: Transactions, batches: Iterable[Batch], offset: int) -> list[Batch]:
        try:
            return await transactions.run(batches, offset)
        except BaseException:
            self.delivery.aborted()
            raise

    async def _discard(self) -> None:
        if self._transactions is not None:
            await self._transactions.discard()
            self._transactions = None
