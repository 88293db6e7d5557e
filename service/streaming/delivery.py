"""What both guarantees have in common: what is under way, how much of it there may be, and what is told of it."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.errors import BrokerUnusableError
from service.streaming.culprits import Culprits
from service.streaming.outgoing import Outgoing
from service.streaming.progress import Progress, Ticket
from service.streaming.startup import describe

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from aiokafka import AIOKafkaConsumer, TopicPartition

    from service.observability.events import Observer
    from service.settings import Settings
    from service.streaming.outgoing import Batch
    from service.streaming.records import Part, Summary
    from service.streaming.startup import Topology


@dataclass(frozen=True, slots=True)
class Means:
    """What a delivery works with.

    Attributes:
        settings: of the service.
        topology: of the topics.
        consumer: what is delivered comes from it.
        observer: is told.
        whole_batches: whether the seam takes whole batches.
    """

    settings: Settings
    topology: Topology
    consumer: AIOKafkaConsumer
    observer: Observer
    whole_batches: bool


class Delivery(ABC):
    """Delivers transformed records, and knows which are done.

    Attributes:
        transactional: whether it writes in transactions.
        finds_beginnings: whether it decides itself where reading a partition begins.
        progress: what is done and what is under way.
        epoch: changes whenever all records taken before are no longer ours, or are read again.
        holding: partitions are assigned, and no rebalance has taken them.
    """

    transactional: bool
    finds_beginnings: bool

    def __init__(self, means: Means) -> None:
        """Connect nothing yet."""
        self.progress = Progress()
        self.epoch = 0
        self.holding = False
        self._settings = settings = means.settings
        self._topology = topology = means.topology
        self._consumer = means.consumer
        self._observer = means.observer
        self._whole_batches = whole = means.whole_batches
        self._outgoing = Outgoing(settings, topology, whole_batches=whole, transactional=self.transactional)
        self._culprits = Culprits(topology.output.name)
        self._moved = asyncio.Event()
        self._draining = False
        self._show_payloads = settings.http.show_payloads
        # By input partition, or `None` for the connection: since when nothing has succeeded.
        self._failing_since: dict[TopicPartition | None, float] = {}

    @abstractmethod
    async def start(self) -> None:
        """Connect what is needed before the first assignment.

        Raises:
            BrokerUnusableError: it cannot be had within the request timeout.
        """

    @abstractmethod
    async def deliver(self, parts: Sequence[Part]) -> None:
        """Hand a micro-batch over; it is sent and its acknowledgements are waited for in the background.

        Records that are no longer ours, or come while a drain waits, are left: they are not
        committed and will be read again.
        """

    @abstractmethod
    async def recover(self) -> None:
        """If a delivery has failed and has not recovered by itself, see to it.

        Raises:
            BrokerUnusableError: the failure is final or has lasted too long.
        """

    @abstractmethod
    async def commit(self) -> None:
        """Store the progress.

        Raises:
            errors.KafkaError: it was not stored.
            TimeoutError: it was not stored in time.
        """

    @abstractmethod
    def hold(self, assigned: Collection[TopicPartition]) -> None:
        """Partitions have been assigned; all that is known of earlier ones is void."""

    @abstractmethod
    def let_go(self) -> None:
        """The partitions are no longer ours; what is still under way no longer counts."""

    @abstractmethod
    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109 - the budget is the caller's
        """End the producers."""

    @abstractmethod
    async def topics_have_grown(self) -> None:
        """Partitions have been added: let connections that know the topics look at them again."""

    @property
    @abstractmethod
    def failed(self) -> bool:
        """Whether `recover` is called for."""

    @abstractmethod
    def stamp(self, partition: TopicPartition) -> int:
        """A number that changes whenever records taken from a partition before no longer count."""

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109 - the budget is the caller's
        """Take nothing more; wait until all that is under way is delivered; tell whether it was."""
        self._draining = True
        deadline = time.monotonic() + timeout
        while self._busy():
            remaining = deadline - time.monotonic()
            if remaining <= 0 or self.failed:
                return False
            await self._wait_for_move(remaining)
        return True

    def check_stuck(self) -> None:
        """See that the oldest delivery is not older than the deadline.

        Raises:
            BrokerUnusableError: it is.
        """
        oldest = self.progress.oldest()
        limit = self._settings.delivery.retry_deadline_ms / 1000
        if oldest is not None and time.monotonic() - oldest.begun_at > limit:
            raise BrokerUnusableError(
                f"No acknowledgement from Kafka for {limit:.0f} s",
                "See the brokers; delivery.retry_deadline_ms is the limit",
            )

    @abstractmethod
    def _busy(self) -> bool:
        """Whether anything is under way."""

    def _forget(self) -> None:
        self._give_up()
        self.progress.forget()
        self._culprits.forget()
        self._failing_since.clear()
        self._draining = False

    def _give_up(self) -> None:
        self.epoch += 1
        self.progress.give_up()
        self._observer.in_flight(0, 0)
        self._moved.set()

    def _full(self) -> bool:
        """Whether what is in flight leaves no room for more."""
        return self.progress.size > self._settings.limits.in_flight_bytes

    async def _wait_for_move(self, timeout: float) -> None:  # noqa: ASYNC109 - the budget is the caller's
        self._moved.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._moved.wait()
        except TimeoutError:
            return

    def _begin(self, part: Part) -> Ticket:
        ticket = Ticket(part.partition, part.next_offset, len(part), part.size, time.monotonic())
        self.progress.begin(ticket)
        return ticket

    def _finish(self, ticket: Ticket) -> None:
        self._failing_since.pop(ticket.partition, None)
        self.progress.finish(ticket)
        self._observer.stage_ended("deliver", time.monotonic() - ticket.begun_at)
        self._culprits.acquit(ticket.partition, ticket.next_offset - 1)

    def _report(self, summary: Summary, batches: Sequence[Batch]) -> None:
        """Tell of a part that is done, and of its batches."""
        observer, now = self._observer, time.time()
        outputs = [batch for batch in batches if batch.topic == self._topology.output.name]
        for batch in outputs:
            observer.records_produced(batch.topic, batch.partition, batch.builder.record_count())
        if outputs:
            for model, (stamps, counts) in summary.timestamps.items():
                observer.outputs_acknowledged(summary.batch, model, now - stamps / 1000, counts)
        if summary.reasons:
            observer.dead_letters_produced(summary.reasons, summary.examples)
        partition = summary.partition
        observer.part_acknowledged(summary.batch, partition.topic, partition.partition, summary.records)
        observer.progressed(now)
        observer.in_flight(self.progress.records, self.progress.size)

    def _check_deadline(self, partition: TopicPartition | None, error: BaseException) -> None:
        """See that what fails has not failed for too long.

        Raises:
            BrokerUnusableError: it has.
        """
        now = time.monotonic()
        limit = self._settings.delivery.retry_deadline_ms / 1000
        if now - self._failing_since.setdefault(partition, now) > limit:
            raise BrokerUnusableError(
                f"Kafka has taken nothing for {limit:.0f} s: {describe(error)}",
                "See the brokers; delivery.retry_deadline_ms is the limit",
            ) from error


def retrieve(future: asyncio.Future[object]) -> None:
    """Look at a future's exception, which asyncio would otherwise complain about."""
    if not future.cancelled():
        future.exception()
