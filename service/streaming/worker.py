"""The loop: poll, transform, deliver; and how it begins and ends."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
from aiokafka import ConsumerRebalanceListener, TopicPartition, errors
from aiokafka import __version__ as aiokafka_version

from service.errors import BrokerAwayError, BrokerUnusableError, LostProgressError
from service.streaming import seam
from service.streaming.at_least_once import AtLeastOnce
from service.streaming.clients import bounded, close, make_consumer
from service.streaming.delivery import Means
from service.streaming.exactly_once import ExactlyOnce
from service.streaming.headers import model_of, trace_parents
from service.streaming.polling import MicroBatch, Poller
from service.streaming.refusal_limits import RefusalLimits
from service.streaming.startup import describe, examine, unusable
from service.streaming.ticker import Ticker
from service.transform.distributions import confidence_and_entropy
from service.transform.pipeline import Messages

if TYPE_CHECKING:
    from collections.abc import Awaitable, Collection, Coroutine, Iterator

    from numpy.typing import NDArray

    from service.observability.events import Observer
    from service.settings import Settings
    from service.streaming.delivery import Delivery
    from service.streaming.startup import Topology
    from service.transform.frames import Frames
    from service.transform.pipeline import Pipeline, Work

T = TypeVar("T")

# The event loop sends heartbeats and answers probes: work goes on to its next step after this long at most, ...
SLICE_SECONDS: Final = 0.005
# ... and messages of more bytes that are understood one by one (up to a second for a hostile megabyte) go to a thread,
# which takes 0.1 ms to begin and gives way to the loop every 5 ms.
LIGHT_BYTES: Final = 16 << 10

# However little is in a micro-batch, it costs a millisecond with its requests. Where several records come at once, the
# next ones may gather for a moment (5,000 messages a second without linger, two cores: half of them within 10 to 30 ms
# instead of 40 to 400); after fewer records there is no rest, so that single ones never wait.
SEVERAL: Final = 4
LITTLE_BYTES: Final = 64 << 10
REST_SECONDS: Final = 0.002


SECONDS_BETWEEN_STARTS: Final = 0.5

# Of a micro-batch every so often some distributions are looked at as numbers, for the metrics (some 200 us each time, a
# hundred times a second more than a percent of ten classes' throughput).
SECONDS_BETWEEN_SAMPLES: Final = 0.05


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

    def __init__(
        self, settings: Settings, pipeline: Pipeline, observer: Observer, *, until_caught_up: bool = False
    ) -> None:
        """Connect nothing yet; stop by itself when all that was there at the start is delivered, if asked to."""
        self._settings = settings
        self._until_caught_up = until_caught_up
        self._pipeline = pipeline
        self._observer = observer
        self._stopping = asyncio.Event()
        self._joined = False
        self._connected: _Connected | None = None
        self._input_has_grown = False
        self._batches = count()
        self._sample_due = 0.0 if settings.metrics.predictions else math.inf
        self._traced = settings.tracing.endpoint is not None
        # aiokafka would log an error of a callback and forget it; here it ends the service.
        self._callback_failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Work until `stop` is called.

        Raises:
            ServiceError: with the exit code, why it could not go on or finish.
        """
        if not await self._unless_stopping(self._startup()):
            return
        main = asyncio.create_task(self._main_loop(), name="main loop")
        ticker = asyncio.create_task(self._parts.ticker.run(), name="ticker")
        stopping = asyncio.create_task(self._stopping.wait(), name="stop signal")
        caught_up = asyncio.create_task(self._parts.ticker.caught_up.wait(), name="caught up")
        ends: list[asyncio.Future[Any]] = [main, ticker, self._callback_failed, stopping, caught_up]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                if end.done():
                    end.result()
            if caught_up.done():
                self.stop("caught up")
        finally:
            stopping.cancel()
            caught_up.cancel()
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
        seconds = self._parts.ticker.stalled_for
        why = f"nothing has moved for {seconds:.0f} s although records wait" if seconds else "running"
        return Health(ready=True, stalled=seconds > 0, why=why)

    # --- records ------------------------------------------------------------------------------

    async def _main_loop(self) -> None:
        poller, delivery = self._parts.poller, self._parts.delivery
        while not self._stopping.is_set():
            records = size = 0
            for batch in await poller.micro_batches():
                if delivery.failed:
                    break  # not delivered, not committed: these records are read again
                if not any(part.stamp == delivery.stamp(part.partition) for part in batch.parts):
                    continue
                if self._input_has_grown:
                    await self._look_at_topics_again()
                await self._process(batch)
                records += len(batch.frames)
                size += sum(part.size for part in batch.parts)
            await delivery.recover()
            if records >= SEVERAL and size < LITTLE_BYTES:
                await asyncio.sleep(REST_SECONDS)

    async def _process(self, batch: MicroBatch) -> None:
        """Transform a micro-batch and hand it over."""
        observer, frames = self._observer, batch.frames
        number = next(self._batches)
        observer.batch_closed(len(frames), sum(part.size for part in batch.parts), batch.waited, batch.closed_by)
        observer.batch_taken(number, len(batch.parts), batch.waited, trace_parents(frames) if self._traced else ())
        watch = _Stopwatch()
        messages = Messages(frames.data, frames.values, frames.lengths, self._models(frames))
        work = self._pipeline.begin(messages, watch.mark, sampled=self._sample_is_due())
        await self._finish(work)
        observer.batch_transformed(number, len(frames))
        for part in batch.parts:
            part.batch = number
            part.blocks = work.blocks
            part.refusals = {p: r for p, r in work.refusals.items() if part.start <= p < part.stop}
        self._parts.refusal_limits.check(batch.parts)
        await self._parts.delivery.deliver(batch.parts)
        watch.mark("assemble")
        observer.records_transformed("columnar", work.columnar)
        observer.records_transformed("general", work.general)
        observer.stage_ended("wait", batch.waited)
        for stage, seconds in watch.stages.items():
            observer.stage_ended(stage, seconds)
        self._report_predictions(work)

    def _report_predictions(self, work: Work) -> None:
        """Tell what the sample looks like: numpy's calls cost more than its numbers, so all of a kind at once."""
        alike: dict[tuple[str, int], list[NDArray[Any]]] = {}
        for model, rows in work.sample:
            alike.setdefault((model, rows.shape[1]), []).append(rows)
        for (model, _), some in alike.items():
            self._observer.predicted(model, *confidence_and_entropy(np.concatenate(some)))

    def _sample_is_due(self) -> bool:
        now = time.monotonic()
        due = now >= self._sample_due
        if due:
            self._sample_due = now + SECONDS_BETWEEN_SAMPLES
        return due

    async def _finish(self, work: Work) -> None:
        """Transform, without holding the event loop for long."""
        resumed = time.monotonic()
        for _ in work.by_columns():
            if time.monotonic() - resumed > SLICE_SECONDS:
                await asyncio.sleep(0)
                resumed = time.monotonic()
        if work.bytes_left > LIGHT_BYTES:
            await asyncio.get_running_loop().run_in_executor(None, work.one_by_one)
        else:
            work.one_by_one()

    def _models(self, frames: Frames) -> list[bytes | None] | None:
        """What the header `model` of each record says, if that matters."""
        if not self._pipeline.needs_models:
            return None
        models: list[bytes | None] = [None] * len(frames)
        for position in np.flatnonzero(frames.ends - frames.headers > 1).tolist():
            models[position] = model_of(frames.record(position).headers)
        return models

    # --- group --------------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Finish and commit what is under way before others take over."""
        if not revoked:
            return
        delivery = self._parts.delivery
        drained = False
        try:
            drained = await delivery.drain(self._settings.delivery.drain_timeout_ms / 1000)
            await delivery.commit()
        except (errors.KafkaError, TimeoutError) as error:
            drained = False
            self._observer.retried("commit", error)
        except Exception as error:  # noqa: BLE001 - see _callback_failed
            if not self._callback_failed.done():
                self._callback_failed.set_exception(error)
        finally:
            delivery.let_go()
        self._observer.revoked(sorted(revoked), drained)

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Begin anew; positions come from the commits, or from the poller."""
        self._parts.delivery.hold(assigned)
        self._parts.refusal_limits.forget()
        self._joined = True
        # The input has got partitions since the start; whether the output has too must be asked before they are served.
        known = self._parts.topology.input.partitions
        self._input_has_grown |= any(partition.partition >= known for partition in assigned)
        self._observer.assigned(sorted(assigned))

    async def _look_at_topics_again(self) -> None:
        """See that the topics still fit each other.

        Raises:
            BrokerUnusableError: they do not, or Kafka cannot tell for too long.
        """
        self._parts.topology = await self._patiently(examine(self._settings) for _ in count())
        await self._parts.delivery.topics_have_grown()
        self._input_has_grown = False

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
        if not task.cancelled():
            task.result()
            return True
        if not self._stopping.is_set():
            raise BrokerUnusableError("Connecting to Kafka was interrupted", "Start again")
        return False

    async def _startup(self) -> None:
        self._connected = await self._patiently(self._connect() for _ in count())
        topology = self._connected.topology
        self._connected.consumer.subscribe([topology.input.name], listener=self)
        self._observer.started(
            {
                "group": self._settings.kafka.group_id,
                "input": f"{topology.input.name} ({topology.input.partitions} partitions)",
                "output": f"{topology.output.name} ({topology.output.partitions} partitions)",
                "dead_letter": topology.dead_letter.name,
                "guarantee": self._settings.delivery.guarantee,
            }
        )

    async def _patiently(self, attempts: Iterator[Awaitable[T]]) -> T:
        """Wait for a broker that is away at the start as long as for one that goes away later.

        Raises:
            BrokerUnusableError: it stays away, or something is wrong that no waiting cures.
        """
        deadline = time.monotonic() + self._settings.delivery.retry_deadline_ms / 1000
        for attempt in attempts:
            try:
                return await attempt
            except BrokerAwayError as error:
                if time.monotonic() > deadline:
                    raise
                self._observer.retried("connect", error)
                await asyncio.sleep(SECONDS_BETWEEN_STARTS)
        raise AssertionError

    async def _connect(self) -> _Connected:
        topology = await examine(self._settings)
        connected = _Connected(self._settings, topology, self._observer, until_caught_up=self._until_caught_up)
        try:
            await connected.start()
        except BaseException:
            await connected.close()
            raise
        return connected

    async def _shutdown(self, main: asyncio.Task[None], ticker: asyncio.Task[None]) -> None:
        """Finish what is under way within the drain budget, store the progress, leave.

        Raises:
            LostProgressError: not all could be finished, and no other error has said why.
        """
        deadline = time.monotonic() + self._settings.delivery.drain_timeout_ms / 1000
        delivery = self._parts.delivery
        self._parts.poller.interrupt()
        if not main.done():
            await asyncio.wait({main}, timeout=deadline - time.monotonic())
        failed = any(task.done() and not task.cancelled() and task.exception() for task in (main, ticker))
        left_running = {task for task in (main, ticker) if not task.done()}
        while left_running:  # once may not be enough: libraries swallow cancellations
            for task in left_running:
                task.cancel()
            _, left_running = await asyncio.wait(left_running, timeout=0.2)
        drained = await delivery.drain(max(0.0, deadline - time.monotonic()))
        left = delivery.progress.records
        problem = "" if drained else f"{left} records were not acknowledged within delivery.drain_timeout_ms"
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + max(0.5, deadline - time.monotonic())):
                await delivery.commit()
        except (errors.KafkaError, TimeoutError) as error:
            problem = problem or f"The last progress was not stored: {describe(error)}"
        await self._parts.close()
        self._observer.stopped(problem or "drained")
        if problem and not failed:
            raise LostProgressError(problem, "The records will be read again")

    @property
    def _parts(self) -> _Connected:
        if self._connected is None:
            raise RuntimeError("the worker has not been started")
        return self._connected


class _Connected:
    """What a worker has once the topics are known."""

    def __init__(self, settings: Settings, topology: Topology, observer: Observer, *, until_caught_up: bool) -> None:
        self.topology = topology
        self.consumer = make_consumer(settings)
        self._whole_batches = settings.kafka.whole_batches and seam.install()
        if settings.kafka.whole_batches and not self._whole_batches:
            observer.seam_unfit(aiokafka_version)
        whole = self._whole_batches
        guarantee = ExactlyOnce if settings.delivery.guarantee == "exactly_once" else AtLeastOnce
        self.delivery: Delivery = guarantee(Means(settings, topology, self.consumer, observer, whole))
        self.poller = Poller(settings, self.consumer, self.delivery, observer, whole_batches=whole)
        self.refusal_limits = RefusalLimits(settings)
        self.ticker = Ticker(settings, self.consumer, self.delivery, observer, until_caught_up=until_caught_up)
        self._timeout_ms = settings.kafka.request_timeout_ms

    async def start(self) -> None:
        await self.delivery.start()
        try:
            with seam.whole_batches() if self._whole_batches else nullcontext():
                await bounded(self.consumer.start(), self._timeout_ms)
        except (errors.KafkaError, TimeoutError) as error:
            raise unusable("Cannot start a consumer", "Check the user's rights on kafka.group_id", error) from error

    async def close(self) -> None:
        await close(self.consumer, 5)
        await self.delivery.stop(5)


class _Stopwatch:
    """Sums up the time between marks by stage."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._last = time.monotonic()

    def mark(self, stage: str) -> None:
        now = time.monotonic()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._last
        self._last = now
