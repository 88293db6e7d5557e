"""Taking records from the consumer: when, from where on, and how many at once."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from aiokafka import errors

from service.errors import BrokerUnusableError, LostProgressError
from service.streaming.batching import BatchPolicy, Window
from service.streaming.faults import is_final, raise_if_final
from service.streaming.offsets import committed_offset, end_of_log
from service.streaming.records import Part
from service.streaming.seam import Rewritten
from service.transform.frames import Frames
from service.transform.record_batch import CorruptBatchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from aiokafka import AIOKafkaConsumer, TopicPartition

    from service.observability.events import Observer
    from service.settings import Settings
    from service.streaming.delivery import Delivery
    from service.streaming.seam import Fetched

    Polled = dict[TopicPartition, list[Fetched]]

# An idle poll is a waiting future; how long it waits matters only to the checks between two polls.
IDLE_POLL_MS: Final = 500

# What takes longer to transform than an answer to a fetch takes to come. The client library asks for more in a task of
# its own, within so many turns of the event loop; without them it had to wait until the transform gave way, and half of
# all time no fetch was under way (10 classes: 1.09 times the rate, the median of seven pairs of runs from 0.89 to 1.27;
# with 100 and 1000 classes no difference is to be seen).
WORTH_FETCHING_AHEAD_BYTES: Final = 64 << 10
TURNS_UNTIL_FETCHING: Final = 4


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Records that are transformed together.

    Attributes:
        frames: the records.
        parts: which of them are whose partition's.
        waited: seconds since the first of them came.
        closed_by: what closed the batch.
    """

    frames: Frames
    parts: list[Part]
    waited: float
    closed_by: str


class Poller:
    """Polls the consumer and cuts what has come into micro-batches."""

    def __init__(
        self,
        settings: Settings,
        consumer: AIOKafkaConsumer,
        delivery: Delivery,
        observer: Observer,
        *,
        whole_batches: bool,
    ) -> None:
        """Take nothing yet; then whole batches if the consumer returns such, else records."""
        self._whole_batches = whole_batches
        batch = settings.batch
        self._policy = BatchPolicy(batch.max_records, batch.max_bytes, batch.max_delay_ms / 1000)
        self._settings = settings
        self._consumer = consumer
        self._delivery = delivery
        self._observer = observer
        self._waiting: asyncio.Task[None] | None = None
        self._failing_since: float | None = None

    async def micro_batches(self) -> Iterator[MicroBatch]:
        """Poll until the window closes (with no delay asked for: what has arrived), and cut it."""
        gathered: Polled = {}
        stamps: dict[TopicPartition, int] = {}
        window = Window(self._policy)
        while window.closed_by(time.monotonic()) is None:
            remaining = window.remaining(time.monotonic())
            timeout_ms = IDLE_POLL_MS if remaining is None else max(1, int(remaining * 1000))
            polled = await self._poll(timeout_ms, self._policy.max_records - window.records)
            for partition, batches in polled.items():
                stamp = self._delivery.stamp(partition)
                if stamps.setdefault(partition, stamp) != stamp:
                    # Assigned anew or gone back meanwhile: what was gathered before is read again.
                    gathered[partition], stamps[partition] = [], stamp
                last = batches[-1]
                self._delivery.progress.take(
                    partition, batches[0].position, last.next_offset, last.max_timestamp
                )  # fmt: skip
                gathered.setdefault(partition, []).extend(batches)
                window.add(sum(b.count for b in batches), sum(b.size for b in batches), time.monotonic())
            if self._delivery.failed or (not polled and remaining is None):
                break
        if window.size >= WORTH_FETCHING_AHEAD_BYTES:
            for _ in range(TURNS_UNTIL_FETCHING):
                await asyncio.sleep(0)
        now = time.monotonic()
        gathered = {tp: batches for tp, batches in gathered.items() if stamps[tp] == self._delivery.stamp(tp)}
        return self._cut(gathered, stamps, window.waited(now), window.closed_by(now) or "drain")

    def interrupt(self) -> None:
        """Cancel the task that polls, if it is waiting for records.

        A poll during a rebalance outlasts its timeout. Nothing is lost by cancelling it: records
        leave the consumer only in the step that returns them.
        """
        if self._waiting is not None:
            self._waiting.cancel()

    async def _poll(self, timeout_ms: int, max_records: int) -> Polled:
        self._waiting = asyncio.current_task()
        try:
            if self._whole_batches:  # what has been fetched is bounded by the sizes of fetches
                whole: Polled = await self._consumer.getmany(timeout_ms=timeout_ms)
                polled = whole
            else:
                single = await self._consumer.getmany(timeout_ms=timeout_ms, max_records=max_records)
                polled = {partition: [Rewritten(records)] for partition, records in single.items()}
        except errors.NoOffsetForPartitionError as error:
            await self._begin(error.args[0])
        except errors.OffsetOutOfRangeError as error:
            await self._begin_anew(error.args[0])
        except errors.KafkaError as error:
            # Other partitions' records may have left the consumer in the call that raised this.
            self._delivery.holding &= not is_final(error)
            raise_if_final(error)
            await self._wait_out(error)
        except UnicodeDecodeError as error:
            self._delivery.holding = False
            raise BrokerUnusableError(
                f"A record of the input topic has a header name that is not UTF-8: {error.object[:64]!r}",
                "The client library cannot read it; remove it, or move the group's offset past it",
            ) from error
        else:
            self._failing_since = None
            return polled
        finally:
            self._waiting = None
        return {}

    async def _wait_out(self, error: errors.KafkaError) -> None:
        """Bear with a fault of the broker, but not for ever."""
        now, limit = time.monotonic(), self._settings.delivery.retry_deadline_ms / 1000
        self._failing_since = self._failing_since or now
        if now - self._failing_since > limit:
            raise BrokerUnusableError(
                f"Nothing could be read from Kafka for {limit:.0f} s: {type(error).__name__}: {error}",
                "See the brokers; delivery.retry_deadline_ms is the limit",
            ) from error
        self._observer.retried("consume", error)
        await asyncio.sleep(0.5)

    def _cut(
        self, polled: Polled, stamps: Mapping[TopicPartition, int], waited: float, closed_by: str
    ) -> Iterator[MicroBatch]:
        """Find the records of what was polled, and cut them where the policy says so."""
        queue = deque((partition, batch) for partition, batches in polled.items() for batch in batches)
        while queue:
            taken: list[tuple[TopicPartition, Fetched]] = []
            records = size = 0
            while queue and records < self._policy.max_records and size < self._policy.max_bytes:
                taken.append(queue.popleft())
                records += taken[-1][1].count
                size += taken[-1][1].size
            frames, parts = self._read(taken, stamps)
            if records <= self._policy.max_records and size <= self._policy.max_bytes:
                why = "records" if records == self._policy.max_records else "bytes"
                yield MicroBatch(frames, parts, waited, why if queue else closed_by)
                continue
            for start, stop, why in self._policy.cuts(np.maximum(frames.lengths, 0)):
                last = stop == len(frames)
                piece = frames.select(slice(start, stop))
                mine = [cut for part in parts if (cut := part.cut(piece, start, stop, last=last))]
                yield MicroBatch(piece, mine, waited, why if queue or not last else closed_by)

    def _read(
        self, taken: Sequence[tuple[TopicPartition, Fetched]], stamps: Mapping[TopicPartition, int]
    ) -> tuple[Frames, list[Part]]:
        """The records of batches that follow one another by partition, without those before the position."""
        try:
            read = [batch.read() for _, batch in taken]
            frames = Frames.of(read)
        except CorruptBatchError as error:
            self._delivery.holding = False
            where = ", ".join(f"{p.topic}-{p.partition} @{batch.position}" for p, batch in taken[:8])
            raise BrokerUnusableError(
                f"A record batch cannot be read: {error} (among {where})", "Move the group's offset past it"
            ) from error
        counts = [batch.count for batch in read]
        if any(batch.position > whole.base_offset for (_, batch), whole in zip(taken, read, strict=True)):
            wanted = frames.offsets >= np.repeat([batch.position for _, batch in taken], counts)
            owners = np.repeat(np.arange(len(taken)), counts)[wanted]
            counts = np.bincount(owners, minlength=len(taken)).tolist()
            frames = frames.select(wanted)
        parts: list[Part] = []
        start = 0
        for (partition, batch), count in zip(taken, counts, strict=True):
            if not parts or parts[-1].partition != partition:
                parts.append(Part(partition, frames, start, start, batch.next_offset, stamps[partition]))
            start += count
            parts[-1].stop, parts[-1].next_offset = start, batch.next_offset
        for part in parts:
            part.size = frames.value_bytes(part.start, part.stop)
            self._observer.records_consumed(part.partition.topic, part.partition.partition, len(part))
        return frames, parts

    async def _begin(self, partition: TopicPartition) -> None:
        """Find out where to begin on a partition that seems to have no commit."""
        if self._delivery.finds_beginnings:
            await asyncio.sleep(0.2)
            return  # the consumer asks again, unless that has been decided meanwhile
        stamp = self._delivery.stamp(partition)
        try:
            offset = await committed_offset(self._consumer, self._settings.kafka.group_id, partition)
            if offset is None:
                offset = await self._end_of_log(partition, self._settings.delivery.start_offset)
        except (errors.KafkaError, TimeoutError) as error:
            raise_if_final(error)
            self._observer.retried("offset_fetch", error)
            await asyncio.sleep(0.2)
            return  # the consumer asks again
        self._go_to(partition, offset, stamp)

    async def _begin_anew(self, lost: dict[TopicPartition, int]) -> None:
        """Decide what to do where the next record has fallen off the log."""
        policy = self._settings.delivery.on_offset_lost
        for partition, offset in lost.items():
            stamp = self._delivery.stamp(partition)
            if not await self._is_lost(partition, offset):
                continue
            self._observer.offset_lost(partition.topic, partition.partition, offset, policy)
            if policy == "stop":
                raise LostProgressError(
                    f"Offset {offset} of {partition.topic}-{partition.partition} is no longer in the log",
                    "Records may be missing; to go on, set delivery.on_offset_lost to earliest or latest",
                )
            try:
                self._go_to(partition, await self._end_of_log(partition, policy), stamp)
            except (errors.KafkaError, TimeoutError) as error:
                self._observer.retried("offset_fetch", error)

    async def _is_lost(self, partition: TopicPartition, offset: int) -> bool:
        """Whether the offset is out of the log: a report may be of an earlier assignment, or a replica's."""
        if partition not in self._consumer.assignment():
            return False
        try:
            first, end = [await self._end_of_log(partition, which) for which in ("earliest", "latest")]
        except (errors.KafkaError, TimeoutError) as error:
            self._observer.retried("offset_fetch", error)
            return False  # the consumer reports it again
        return not first <= offset <= end

    async def _end_of_log(self, partition: TopicPartition, which: str) -> int:
        return await end_of_log(self._consumer, partition, which, self._settings.kafka.request_timeout_ms)

    def _go_to(self, partition: TopicPartition, offset: int, stamp: int) -> None:
        """Read on from `offset`, if nothing else has been decided about the partition since it had that stamp."""
        if stamp == self._delivery.stamp(partition) and partition in self._consumer.assignment():
            self._consumer.seek(partition, offset)
            self._delivery.progress.jump(partition, offset)
