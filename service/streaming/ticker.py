"""What happens by the clock: commits, lag, and the search for what is stuck."""

from __future__ import annotations

import asyncio
import io
import time
from typing import TYPE_CHECKING, Final

from aiokafka import errors

from service.errors import BrokerUnusableError
from service.streaming.clients import bounded
from service.streaming.faults import raise_if_final
from service.streaming.offsets import end_of_log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiokafka import AIOKafkaConsumer, TopicPartition

    from service.observability.events import Observer
    from service.settings import Settings
    from service.streaming.delivery import Delivery

TICK_SECONDS: Final = 0.25
# A known position is there at once; one that must be asked for first can wait until the next tick.
POSITION_MS: Final = 50


class _Since:
    """How long a value has been the same."""

    def __init__(self) -> None:
        self._value: object = None
        self._at = time.monotonic()

    def seconds(self, value: object, *, renew: bool = False) -> float:
        """Seconds since `value` was last another one, or since the last `renew`."""
        if renew or value != self._value:
            self._value, self._at = value, time.monotonic()
        return time.monotonic() - self._at


class Ticker:
    """Looks at the consumer and the delivery four times a second.

    Attributes:
        stalled_for: seconds for which records have waited and nothing has moved although the
            broker answers; 0 while all is well.
        caught_up: all that lay in our partitions when they became ours is delivered.
    """

    def __init__(
        self,
        settings: Settings,
        consumer: AIOKafkaConsumer,
        delivery: Delivery,
        observer: Observer,
        *,
        until_caught_up: bool,
    ) -> None:
        """Look at nothing yet; whether all is caught up, only if asked to."""
        self._until_caught_up = until_caught_up
        self.stalled_for = 0.0
        self.caught_up = asyncio.Event()
        self._settings = settings
        self._consumer = consumer
        self._delivery = delivery
        self._observer = observer
        # Where the log of each partition ended when it was first looked at in this epoch.
        self._goals: dict[TopicPartition, int] = {}
        self._goals_epoch = -1

    async def run(self) -> None:
        """Tick for ever.

        Raises:
            BrokerUnusableError: the broker has been silent past the deadline.
        """
        moved, heard = _Since(), _Since()
        interval = self._settings.delivery.commit_interval_ms / 1000
        next_commit = time.monotonic() + interval
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._delivery.check_stuck()
            if not self._delivery.holding:
                continue  # in a rebalance the consumer still tells the old partitions and positions
            if time.monotonic() >= next_commit:
                await self._commit()
                next_commit = time.monotonic() + interval
            behind = await self._follow_positions()
            partitions = sorted(self._consumer.assignment())
            positions = [(tp, self._delivery.progress.position(tp)) for tp in partitions]
            answers = [self._consumer.last_poll_timestamp(tp) for tp in partitions]
            self._check_silence(heard.seconds((positions, answers), renew=not partitions))
            await self._check_stall(moved.seconds(positions, renew=not behind))
            if self._until_caught_up and await self._goals_reached(partitions):
                self.caught_up.set()

    async def _goals_reached(self, partitions: Sequence[TopicPartition]) -> bool:
        epoch = self._delivery.epoch
        if epoch != self._goals_epoch:
            self._goals, self._goals_epoch = {}, epoch
        try:
            for partition in partitions:
                if partition not in self._goals:
                    timeout_ms = self._settings.kafka.request_timeout_ms
                    self._goals[partition] = await end_of_log(self._consumer, partition, "latest", timeout_ms)
        except (errors.KafkaError, TimeoutError):
            return False  # asked again at the next tick
        if epoch != self._delivery.epoch or not self._delivery.holding:
            return False
        done = self._delivery.progress.position
        return all((done(partition) or 0) >= self._goals[partition] for partition in partitions)

    async def _commit(self) -> None:
        try:
            await self._delivery.commit()
        except (errors.KafkaError, TimeoutError) as error:
            # A rebalance or a coordinator that moves; the next attempt or the drain will tell.
            raise_if_final(error)
            self._observer.retried("commit", error)

    async def _follow_positions(self) -> int:
        """Report each partition's lag; return their sum."""
        progress = self._delivery.progress
        total = 0
        for partition in self._consumer.assignment():
            stamp = self._delivery.stamp(partition)
            try:
                standing = await bounded(self._consumer.position(partition), POSITION_MS)
            except (errors.KafkaError, TimeoutError):
                standing = None
            if not self._delivery.holding:
                break  # these partitions may be others' by now
            if standing is None or stamp != self._delivery.stamp(partition):
                continue  # a position that was gone back from must not pass for done
            progress.pass_over(partition, standing)
            end = self._consumer.last_stable_offset(partition)
            position = progress.position(partition)
            if end is None or position is None:
                continue
            lag = max(0, end - position)
            total += lag
            timestamp = progress.last_timestamp(partition)
            age = max(0.0, time.time() - timestamp / 1000) if lag and timestamp > 0 else 0.0
            self._observer.lag(partition.topic, partition.partition, lag, age)
        return total

    def _check_silence(self, seconds: float) -> None:
        """An idle service, too, notices that its broker is gone: fetches are answered every half second."""
        limit = self._settings.delivery.retry_deadline_ms / 1000
        if seconds > limit:
            raise BrokerUnusableError(
                f"Kafka has answered nothing for {limit:.0f} s",
                "See the brokers; delivery.retry_deadline_ms is the limit",
            )

    async def _check_stall(self, seconds: float) -> None:
        """A restart cures a stall only if the broker is well: ask it.

        First `/livez` tells, with the stacks in the log; who does not look there is left after twice the time.

        Raises:
            BrokerUnusableError: nothing moves, and nobody has ended this process for it.
        """
        if seconds <= self._settings.http.stall_seconds:
            self.stalled_for = 0.0
            return
        partitions = list(self._consumer.assignment())
        try:
            await bounded(self._consumer.end_offsets(partitions), self._settings.kafka.request_timeout_ms)
        except (errors.KafkaError, TimeoutError):
            self.stalled_for = 0.0
            return
        if not self.stalled_for:
            self._observer.stalled(seconds, _stacks())
        self.stalled_for = seconds
        if seconds > 2 * self._settings.http.stall_seconds:
            raise BrokerUnusableError(
                f"Nothing has moved for {seconds:.0f} s although records wait and Kafka answers",
                "Start again, and report the stacks in the log",
            )


def _stacks() -> str:
    """The stacks of all tasks."""
    out = io.StringIO()
    for task in asyncio.all_tasks():
        task.print_stack(limit=8, file=out)
    return out.getvalue()
