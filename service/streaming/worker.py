"""The loop: poll, transform, deliver; and what happens around it."""

from __future__ import annotations

import asyncio
import io
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiokafka import ConsumerRebalanceListener, TopicPartition, errors

from service.errors import BrokerUnusableError, LostProgressError
from service.streaming.at_least_once import AtLeastOnce
from service.streaming.batching import BatchPolicy, Window
from service.streaming.clients import bounded, close, make_consumer
from service.streaming.offsets import committed_offset
from service.streaming.records import Part, Record, size_of
from service.streaming.startup import describe, examine

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine

    from aiokafka import AIOKafkaConsumer

    from service.observability.events import Observer
    from service.settings import Settings
    from service.streaming.startup import Topology
    from service.transform.pipeline import Pipeline

    Polled = dict[TopicPartition, list[Record]]

# An idle poll is a waiting future; how long it waits matters only to the checks between two polls.
IDLE_POLL_MS: Final = 500
TICK_SECONDS: Final = 0.25
# A known position is there at once; one that must be asked for first can wait until the next tick.
POSITION_MS: Final = 50


@dataclass(frozen=True, slots=True)
class Health:
    """What the probes want to know.

    Attributes:
        ready: partitions are assigned, or this member waits for some; not draining.
        stalled: records wait, the broker answers, and nothing has moved for too long.
        why: in words.
    """

    ready: bool
    stalled: bool
    why: str


class Worker(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is not typed
    """Consumes, transforms and delivers until it is told to stop."""

    def __init__(self, settings: Settings, pipeline: Pipeline, observer: Observer) -> None:
        """Connect nothing yet."""
        self._settings = settings
        self._pipeline = pipeline
        self._observer = observer
        self._policy = BatchPolicy(
            settings.batch.max_records, settings.batch.max_bytes, settings.batch.max_delay_ms / 1000
        )
        self._stopping = asyncio.Event()
        self._polling: asyncio.Task[None] | None = None
        self._joined = False
        self._revoking = False
        self._stalled_for = 0.0
        self._callback_error: BaseException | None = None
        # By partition: the offset after the last record taken from the consumer, and its timestamp.
        self._taken: dict[TopicPartition, tuple[int, int]] = {}

    async def run(self) -> None:
        """Work until `stop` is called.

        Raises:
            ServiceError: with the exit code, why it could not go on or finish.
        """
        if not await self._unless_stopping(self._startup()):
            return
        main = asyncio.create_task(self._main_loop(), name="main loop")
        ticker = asyncio.create_task(self._tick(), name="ticker")
        stopping = asyncio.create_task(self._stopping.wait(), name="stop signal")
        try:
            await asyncio.wait({main, ticker, stopping}, return_when=asyncio.FIRST_COMPLETED)
            for task in (main, ticker):
                if task.done():
                    task.result()
        finally:
            stopping.cancel()
            await self._shutdown(main, ticker)

    def stop(self, why: str) -> None:
        """Take no more records, finish those under way, leave the group."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._observer.stopping(why)

    @property
    def health(self) -> Health:
        """The state of the moment."""
        if self._stopping.is_set():
            return Health(ready=False, stalled=False, why="stopping")
        if not self._joined:
            return Health(ready=False, stalled=False, why="joining the group")
        stalled = self._stalled_for > self._settings.http.stall_seconds
        why = f"nothing has moved for {self._stalled_for:.0f} s although records wait" if stalled else "running"
        return Health(ready=True, stalled=stalled, why=why)

    # --- life ---------------------------------------------------------------------------------

    async def _unless_stopping(self, step: Coroutine[object, object, None]) -> bool:
        """Run a step of the start; give it up when told to stop."""
        task = asyncio.create_task(step)
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            while not task.done():  # once may not be enough: libraries swallow cancellations
                task.cancel()
                await asyncio.wait({task}, timeout=0.2)
        if task.cancelled():
            await self._close_clients()
            return False
        task.result()
        return True

    async def _startup(self) -> None:
        self._topology: Topology = await examine(self._settings)
        self._consumer: AIOKafkaConsumer = make_consumer(self._settings)
        self._delivery = AtLeastOnce(self._settings, self._topology, self._consumer, self._observer)
        try:
            await self._delivery.start()
            await bounded(self._consumer.start(), self._settings.kafka.request_timeout_ms)
        except (errors.KafkaError, TimeoutError) as error:
            await self._close_clients()
            raise BrokerUnusableError(
                f"Cannot start a consumer: {describe(error)}", "Check the user's rights on kafka.group_id"
            ) from error
        except BaseException:
            await self._close_clients()
            raise
        self._consumer.subscribe([self._topology.input.name], listener=self)
        self._observer.started(
            {
                "group": self._settings.kafka.group_id,
                "input": f"{self._topology.input.name} ({self._topology.input.partitions} partitions)",
                "output": f"{self._topology.output.name} ({self._topology.output.partitions} partitions)",
                "dead_letter": self._topology.dead_letter.name,
                "guarantee": self._settings.delivery.guarantee,
            }
        )

    async def _main_loop(self) -> None:
        while not self._stopping.is_set():
            epoch, polled, window = await self._gather()
            for parts, closed_by in self._micro_batches(polled, window):
                if epoch != self._delivery.epoch or self._revoking or self._delivery.failed:
                    break  # not delivered, not committed: these records are read again
                await self._process(parts, closed_by, window)
            if self._delivery.failed:
                await self._delivery.recover()
                self._taken.clear()

    async def _shutdown(self, main: asyncio.Task[None], ticker: asyncio.Task[None]) -> None:
        """Finish what is under way within the drain budget, store the progress, leave."""
        budget = self._settings.delivery.drain_timeout_ms / 1000
        deadline = time.monotonic() + budget
        if self._polling is not None:
            self._polling.cancel()
        if not main.done():
            await asyncio.wait({main}, timeout=budget)
        for task in (main, ticker):
            task.cancel()
        await asyncio.gather(main, ticker, return_exceptions=True)
        drained = await self._delivery.drain(max(0.0, deadline - time.monotonic()))
        left = self._delivery.progress.records
        problem = await self._last_commit(max(0.5, deadline - time.monotonic()))
        await self._close_clients()
        self._observer.stopped("drained" if drained and not problem else f"{left} records unfinished")
        # An error that is on its way out already says more than the drain that failed because of it.
        if (not drained or problem) and not any(
            t.done() and not t.cancelled() and t.exception() for t in (main, ticker)
        ):
            raise LostProgressError(
                problem or f"{left} records were not acknowledged within delivery.drain_timeout_ms",
                "They will be read again",
            )

    async def _last_commit(self, budget: float) -> str:
        try:
            async with asyncio.timeout(budget):
                await self._delivery.commit()
        except (errors.KafkaError, TimeoutError) as error:
            return f"The last progress was not stored: {describe(error)}"
        return ""

    async def _close_clients(self) -> None:
        if hasattr(self, "_consumer"):
            await close(self._consumer, 5)
        if hasattr(self, "_delivery"):
            await self._delivery.stop(5)

    # --- records ------------------------------------------------------------------------------

    async def _gather(self) -> tuple[int, Polled, Window]:
        """Poll until the window closes; with no delay asked for, what has arrived."""
        gathered: Polled = {}
        window, epoch = Window(self._policy), self._delivery.epoch
        while window.closed_by(time.monotonic()) is None and not self._stopping.is_set():
            remaining = window.remaining(time.monotonic())
            timeout_ms = IDLE_POLL_MS if remaining is None else max(1, int(remaining * 1000))
            polled = await self._poll(timeout_ms, self._policy.max_records - window.records)
            if epoch != self._delivery.epoch:
                # Assigned anew or gone back meanwhile: what was gathered before is read again.
                window, gathered, epoch = Window(self._policy), {}, self._delivery.epoch
            for partition, records in polled.items():
                self._take(partition, records)
                gathered.setdefault(partition, []).extend(records)
                window.add(len(records), size_of(records), time.monotonic())
            if self._delivery.failed or (not polled and remaining is None):
                break
        return epoch, gathered, window

    def _take(self, partition: TopicPartition, records: list[Record]) -> None:
        """Records have left the consumer: from here on they are ours to deliver."""
        self._delivery.progress.place(partition, records[0].offset)
        self._taken[partition] = (records[-1].offset + 1, records[-1].timestamp)
        self._observer.records_consumed(partition.topic, partition.partition, len(records))

    async def _poll(self, timeout_ms: int, max_records: int) -> Polled:
        # A poll during a rebalance outlasts its timeout. As a task of its own it can be cancelled,
        # and nothing is lost: records leave the consumer only in the step that returns them.
        self._polling = asyncio.current_task()
        try:
            return await self._consumer.getmany(timeout_ms=timeout_ms, max_records=max_records)  # type: ignore[no-any-return]
        except errors.NoOffsetForPartitionError as error:
            await self._place(error.args[0])
        except errors.OffsetOutOfRangeError as error:
            await self._replace(error.args[0])
        except errors.KafkaError as error:
            self._raise_if_final(error)
            self._observer.retried("consume", error)
            await asyncio.sleep(0.5)
        finally:
            self._polling = None
        return {}

    def _micro_batches(self, polled: Polled, window: Window) -> list[tuple[list[Part], str]]:
        """Cut what was polled where `batch.max_bytes` says so; with what closed each piece."""
        if not polled:
            return []
        closed_by = window.closed_by(time.monotonic()) or "drain"
        if window.size <= self._policy.max_bytes:
            return [([Part.of(partition, records) for partition, records in polled.items()], closed_by)]
        pieces: list[list[Part]] = [[]]
        room = self._policy.max_bytes
        for partition, records in polled.items():
            start = 0
            for position, record in enumerate(records):
                size = len(record.value or b"")
                if size > room and (pieces[-1] or position > start):
                    if position > start:
                        pieces[-1].append(Part.of(partition, records[start:position]))
                    pieces.append([])
                    start, room = position, self._policy.max_bytes
                room -= size
            pieces[-1].append(Part.of(partition, records[start:]))
        return [(parts, "bytes") for parts in pieces[:-1]] + [(pieces[-1], closed_by)]

    async def _process(self, parts: list[Part], closed_by: str, window: Window) -> None:
        """Transform a micro-batch and hand it over."""
        values = [record.value for part in parts for record in part.records]
        observer = self._observer
        waited = window.waited(time.monotonic())
        observer.batch_closed(len(values), sum(part.size for part in parts), waited, closed_by)
        observer.stage_ended("wait", waited)
        watch = _Stopwatch(observer)
        outcome = self._pipeline.transform(values, watch.mark)
        watch.report()
        observer.records_transformed("columnar", outcome.columnar)
        observer.records_transformed("general", outcome.general)
        start = 0
        for part in parts:
            stop = start + len(part.records)
            part.outputs = outcome.outputs[start:stop]
            part.refusals = {p - start: r for p, r in outcome.refusals.items() if start <= p < stop}
            start = stop
        begun = time.monotonic()
        await self._delivery.deliver(parts)
        observer.stage_ended("deliver", time.monotonic() - begun)

    # --- offsets ------------------------------------------------------------------------------

    async def _place(self, partition: TopicPartition) -> None:
        """Find out where to begin on a partition that seems to have no commit."""
        try:
            offset = await committed_offset(self._consumer, self._settings.kafka.group_id, partition)
            if offset is None:
                offset = await self._end_of_log(partition, self._settings.delivery.start_offset)
        except (errors.KafkaError, TimeoutError) as error:
            self._raise_if_final(error)
            self._observer.retried("offset_fetch", error)
            await asyncio.sleep(0.2)
            return  # the consumer asks again
        self._begin_at(partition, offset)

    async def _replace(self, lost: dict[TopicPartition, int]) -> None:
        """Decide what to do where the next record has fallen off the log."""
        policy = self._settings.delivery.on_offset_lost
        for partition, offset in lost.items():
            self._observer.offset_lost(partition.topic, partition.partition, offset, policy)
            if policy == "stop":
                raise LostProgressError(
                    f"Offset {offset} of {partition.topic}-{partition.partition} is no longer in the log",
                    "Records may be missing; to go on, set delivery.on_offset_lost to earliest or latest",
                )
            try:
                self._begin_at(partition, await self._end_of_log(partition, policy))
            except (errors.KafkaError, TimeoutError) as error:
                self._observer.retried("offset_fetch", error)

    async def _end_of_log(self, partition: TopicPartition, which: str) -> int:
        ask = self._consumer.beginning_offsets if which == "earliest" else self._consumer.end_offsets
        offsets = await bounded(ask([partition]), self._settings.kafka.request_timeout_ms)
        return int(offsets[partition])

    def _begin_at(self, partition: TopicPartition, offset: int) -> None:
        if partition in self._consumer.assignment():
            self._consumer.seek(partition, offset)
            self._delivery.progress.jump(partition, offset)

    def _raise_if_final(self, error: BaseException) -> None:
        if isinstance(error, errors.TopicAuthorizationFailedError):
            raise BrokerUnusableError(f"The user may not read {self._topology.input.name}", "Grant it Read") from error
        if isinstance(error, errors.GroupAuthorizationFailedError):
            raise BrokerUnusableError(
                f"The user may not use group {self._settings.kafka.group_id}", "Grant it Read on the group"
            ) from error
        if isinstance(error, errors.UnsupportedCodecError | errors.CorruptRecordException):
            raise BrokerUnusableError(f"A batch cannot be read: {describe(error)}", "See the topic") from error

    # --- group --------------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Finish and commit what is under way before others take over."""
        if not revoked:
            return
        self._revoking = True
        drained = False
        try:
            drained = await self._delivery.drain(self._settings.delivery.drain_timeout_ms / 1000)
            await self._delivery.commit()
        except (errors.KafkaError, TimeoutError) as error:
            drained = False
            self._observer.retried("commit", error)
        except Exception as error:  # noqa: BLE001 - aiokafka would log and forget it; the loop raises it
            self._callback_error = error
        finally:
            self._delivery.forget(list(revoked))
            self._taken.clear()
            self._revoking = False
        self._observer.revoked(sorted(revoked), drained)

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Note it; positions come from the commits, or from `_place`."""
        self._joined = True
        self._observer.assigned(sorted(assigned))

    # --- time ---------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Commit, look for what is stuck, and show where we are, at regular intervals."""
        next_commit = time.monotonic() + self._settings.delivery.commit_interval_ms / 1000
        moved_at, last = time.monotonic(), None
        heard_at, last_heard = time.monotonic(), None
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self._callback_error is not None:
                raise self._callback_error
            self._delivery.check_stuck()
            if time.monotonic() >= next_commit and not self._revoking:
                await self._commit()
                next_commit = time.monotonic() + self._settings.delivery.commit_interval_ms / 1000
            behind = await self._follow_positions()
            now = [(tp, self._delivery.progress.position(tp)) for tp in sorted(self._consumer.assignment())]
            heard = [(tp, self._consumer.last_poll_timestamp(tp)) for tp, _ in now]
            if not heard or heard != last_heard or now != last:
                heard_at, last_heard = time.monotonic(), heard
            self._check_silence(time.monotonic() - heard_at)
            if now != last or not behind:
                moved_at, last, self._stalled_for = time.monotonic(), now, 0.0
            elif time.monotonic() - moved_at > self._settings.http.stall_seconds:
                await self._suspect_stall(time.monotonic() - moved_at)

    async def _commit(self) -> None:
        try:
            await self._delivery.commit()
        except (errors.KafkaError, TimeoutError) as error:
            # A rebalance or a coordinator that moves; the next attempt or the drain will tell.
            self._raise_if_final(error)
            self._observer.retried("commit", error)

    async def _follow_positions(self) -> int:
        """Report each partition's lag; return their sum."""
        total = 0
        for partition in self._consumer.assignment():
            await self._skip_markers(partition)
            end = self._consumer.last_stable_offset(partition)
            position = self._delivery.progress.position(partition)
            if end is None or position is None:
                continue
            lag = max(0, end - position)
            total += lag
            _, timestamp = self._taken.get(partition, (0, 0))
            age = max(0.0, time.time() - timestamp / 1000) if lag and timestamp > 0 else 0.0
            self._observer.lag(partition.topic, partition.partition, lag, age)
        return total

    async def _skip_markers(self, partition: TopicPartition) -> None:
        """Count transaction markers and aborted records as done once all before them is.

        The consumer passes them without returning anything; unless they are committed, lag never
        reaches 0 behind a transactional producer. A position is past taken records only from the
        step that returns them on, so what is neither taken nor undelivered may be skipped.
        """
        epoch = self._delivery.epoch
        try:
            position = await bounded(self._consumer.position(partition), POSITION_MS)
        except (errors.KafkaError, TimeoutError):
            return
        if epoch != self._delivery.epoch:
            return
        done = self._delivery.progress.position(partition)
        taken = self._taken[partition][0] if partition in self._taken else None
        if done == taken and (done is None or position > done):
            self._delivery.progress.jump(partition, position)
            if taken is not None:
                self._taken[partition] = (position, self._taken[partition][1])

    def _check_silence(self, seconds: float) -> None:
        """An idle service, too, notices that its broker is gone: fetches are answered every half second."""
        limit = self._settings.delivery.retry_deadline_ms / 1000
        if seconds > limit:
            raise BrokerUnusableError(
                f"Kafka has answered nothing for {limit:.0f} s",
                "See the brokers; delivery.retry_deadline_ms is the limit",
            )

    async def _suspect_stall(self, seconds: float) -> None:
        """A restart cures a stall only if the broker is well: ask it."""
        try:
            await bounded(
                self._consumer.end_offsets(list(self._consumer.assignment())), self._settings.kafka.request_timeout_ms
            )
        except (errors.KafkaError, TimeoutError):
            self._stalled_for = 0.0
            return
        if not self._stalled_for:
            self._observer.stalled(seconds, _stacks())
        self._stalled_for = seconds


class _Stopwatch:
    """Sums up the time between marks by stage."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._last = time.monotonic()
        self._stages: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        now = time.monotonic()
        self._stages[stage] = self._stages.get(stage, 0.0) + now - self._last
        self._last = now

    def report(self) -> None:
        for stage, seconds in self._stages.items():
            self._observer.stage_ended(stage, seconds)


def _stacks() -> str:
    """The stacks of all tasks."""
    out = io.StringIO()
    for task in asyncio.all_tasks():
        task.print_stack(limit=8, file=out)
    return out.getvalue()
