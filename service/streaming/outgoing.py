"""From transformed records to produce batches: routes, sizes, dead letters."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from aiokafka.partitioner import murmur2

from service.streaming.headers import HeaderPolicy, without_value
from service.streaming.records import Reduction
from service.streaming.seam import FinishedBuilder, RecordBuilder
from service.transform.assembly import assemble
from service.transform.record_batch import CODECS
from service.transform.refusals import InvalidMessage, Reason

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from aiokafka import TopicPartition

    from service.settings import Settings
    from service.streaming.records import Part
    from service.streaming.startup import Topology
    from service.transform.frames import Record

    BatchBuilder = Any  # aiokafka's, or one of seam.py
    Result = tuple[int, Record, bytes | None]  # position, input, output

# Larger produce batches gain nothing.
MAX_BATCH_BYTES: Final = 1 << 20
# What Kafka writes for "no timestamp"; aiokafka's builder takes it for "no record yet", and the
# second record's timestamp for the first one's.
NO_TIMESTAMP: Final = -1
# A longer key stays behind where a dead letter must be small.
SHORT_KEY: Final = 1024


@dataclass(slots=True)
class Batch:
    """A produce batch.

    Attributes:
        topic: where it goes.
        partition: of that topic.
        first: offset of the first input in it.
        last: offset of the last.
        builder: its content.
        future: its acknowledgement, once it is queued.
    """

    topic: str
    partition: int
    first: int
    last: int
    builder: BatchBuilder
    future: asyncio.Future[object] | None = None


class Outgoing:
    """Builds the produce batches of a part: outputs in order, dead letters in order."""

    def __init__(self, settings: Settings, topology: Topology, *, whole_batches: bool, transactional: bool) -> None:
        """Route as the settings say, within what the topics accept; as `whole_batches` where the seam allows it."""
        self._transactional = transactional
        self._whole_batches = whole_batches
        self._partitioning = settings.delivery.partitioning
        self._tombstones = settings.topics.tombstones
        self._output = topology.output
        self._dead_letter = topology.dead_letter
        self._headers = HeaderPolicy(settings.headers.drop, settings.kafka.group_id)
        self._codec = CODECS.index(settings.kafka.compression)
        # How small compression makes a batch only the broker's answer tells.
        self._output_limit = None if self._codec else topology.output.max_message_bytes
        limits = (topic.max_message_bytes for topic in (topology.output, topology.dead_letter))
        self.max_batch_bytes = min(MAX_BATCH_BYTES, *limits)

    def assembled(
        self, parts: Sequence[Part], singly_until: Callable[[TopicPartition], int]
    ) -> dict[Part, list[Batch]]:
        """Build the outputs of those parts of a micro-batch that need no look at single records.

        Args:
            parts: transformed records; their refusals are completed on the way.
            singly_until: tells before which offset of a partition records are sent one by one.
        """
        plain = [part for part in parts if part.first_offset >= singly_until(part.partition) and self._is_plain(part)]
        if not plain:
            return {}
        made: dict[Part, list[Batch]] = {part: [] for part in plain}
        frames, begins = plain[0].frames, [part.start for part in plain]
        empty = np.array([position for part in plain for position in self._pass_tombstones(part)], np.int64)
        blocks = plain[0].blocks
        if len(plain) < len(parts):
            blocks = [block.some(part.mine(block)) for part in plain for block in part.blocks]
        for one in assemble(frames, blocks, empty, begins, self.max_batch_bytes, self._codec):
            part = plain[bisect_right(begins, one.first) - 1]
            if self._output_limit is not None and len(one.batch) > self._output_limit:  # a single record
                part.refusals[one.first] = self._too_large(len(one.batch))
                continue
            offsets = int(frames.offsets[one.first]), int(frames.offsets[one.last])
            builder = FinishedBuilder(one.batch, transactional=self._transactional)
            made[part].append(Batch(self._output.name, part.partition.partition, *offsets, builder))
        return made

    def batches(
        self, part: Part, new_batch: Callable[[], BatchBuilder], singly_until: int, assembled: Sequence[Batch] | None
    ) -> Iterator[Batch]:
        """Build lazily, outputs first: one too large becomes a dead letter.

        Args:
            part: transformed records; its refusals are completed on the way.
            new_batch: makes an empty batch.
            singly_until: records before this offset are sent one by one.
            assembled: the outputs if they have been built already.
        """
        if assembled is None:
            for partition, results in self._routes(part):
                yield from self._outputs(part, partition, results, new_batch, singly_until)
        else:
            yield from assembled
        if part.refusals:
            yield from self._dead_letters(part, new_batch, singly_until)

    def new_builder(self) -> RecordBuilder:
        """An empty batch for single records."""
        return RecordBuilder(self.max_batch_bytes, self._codec, transactional=self._transactional)

    def _is_plain(self, part: Part) -> bool:
        """Whether each output goes to its input's partition and carries all its headers."""
        return (
            self._whole_batches
            and len(part) > 0
            and self._partitioning == "same"
            and self._headers.all_pass(part.frames, part.start, part.stop)
        )

    def _pass_tombstones(self, part: Part) -> list[int]:
        """Positions of the records without value that pass through; they are no refusals then."""
        if self._tombstones != "forward":
            return []
        positions = [p for p, refusal in part.refusals.items() if refusal.reason is Reason.NULL_VALUE]
        for position in positions:
            del part.refusals[position]
        return positions

    def _too_large(self, size: int) -> InvalidMessage:
        name, limit = self._output.name, self._output.max_message_bytes
        return InvalidMessage(Reason.OUTPUT_TOO_LARGE, f"the output takes {size} bytes, {name} accepts {limit}")

    def _routes(self, part: Part) -> Iterator[tuple[int, Iterable[Result]]]:
        """Output partitions and the results that go there."""
        outputs, forwarded = part.outputs(), set(self._pass_tombstones(part))
        results = (
            (position, part.record(position), outputs.get(position))
            for position in range(part.start, part.stop)
            if (position in outputs and position not in part.refusals) or position in forwarded
        )
        if self._partitioning == "same":
            yield part.partition.partition, results
            return
        routes: dict[int, list[Result]] = {}
        for result in results:
            # Without a key there is nothing to hash: such records stay together with their partition.
            key = result[1].key
            target = part.partition.partition if key is None else murmur2(key) & 0x7FFFFFFF
            routes.setdefault(target % self._output.partitions, []).append(result)
        yield from routes.items()

    def _outputs(
        self,
        part: Part,
        partition: int,
        results: Iterable[Result],
        new_batch: Callable[[], BatchBuilder],
        singly_until: int,
    ) -> Iterator[Batch]:
        """The loop over single outputs: where they part ways, lose headers, or pass by the public interface."""
        topic, limit = self._output.name, self._output_limit
        passed_on = self._headers.passed_on
        careful = part.first_offset < singly_until
        builder = new_batch()
        append = builder.append
        empty, untimed = True, False
        first = last = 0
        for position, record, value in results:
            headers = passed_on(record.headers) if record.headers else []
            timestamp = record.timestamp
            apart = (careful and record.offset < singly_until) or (untimed and timestamp != NO_TIMESTAMP)
            if (apart and not empty) or append(
                timestamp=timestamp, key=record.key, value=value, headers=headers
            ) is None:  # fmt: skip
                yield Batch(topic, partition, first, last, builder)
                builder = new_batch()
                append, empty = builder.append, True
                append(timestamp=timestamp, key=record.key, value=value, headers=headers)
            if empty:
                first, empty, untimed = record.offset, False, timestamp == NO_TIMESTAMP
                if limit is not None and builder.size() > limit:
                    part.refusals[position] = self._too_large(builder.size())
                    builder = new_batch()
                    append, empty, untimed = builder.append, True, False
            last = record.offset
        if not empty:
            yield Batch(topic, partition, first, last, builder)

    def _dead_letters(self, part: Part, new_batch: Callable[[], BatchBuilder], singly_until: int) -> Iterator[Batch]:
        topic = self._dead_letter.name
        partition = part.partition.partition % self._dead_letter.partitions
        if self._tombstones == "drop":
            for position in [p for p, refusal in part.refusals.items() if refusal.reason is Reason.NULL_VALUE]:
                del part.refusals[position]
        builder = new_batch()
        first = last = born = 0
        for position in sorted(part.refusals):
            record = part.record(position)
            letter = self._dead_letter_of(record, part, position, new_batch)
            apart = record.offset < singly_until or born == NO_TIMESTAMP != letter["timestamp"]
            if (apart and builder.record_count() > 0) or builder.append(**letter) is None:
                yield Batch(topic, partition, first, last, builder)
                builder = new_batch()
                builder.append(**letter)
            if builder.record_count() == 1:
                first, born = record.offset, letter["timestamp"]
            last = record.offset
        if builder.record_count():
            yield Batch(topic, partition, first, last, builder)

    def _dead_letter_of(
        self, record: Record, part: Part, position: int, new_batch: Callable[[], BatchBuilder]
    ) -> dict[str, Any]:
        """A dead letter; one that its topic would refuse even alone leaves its value, or all its bulk, behind."""
        reduction = part.reductions.get(record.offset, Reduction())
        headers = self._headers.of_dead_letter(part.partition, record, part.refusals[position])
        letter = {
            "timestamp": None if reduction.untimed else record.timestamp,
            "key": record.key,
            "value": record.value,
            "headers": headers,
        }
        if not reduction.bare and self._accepts(letter, new_batch):
            return letter
        letter |= {"value": None, "headers": without_value(headers, record.value)}
        if not reduction.bare and self._accepts(letter, new_batch):
            return letter
        key = record.key if record.key and len(record.key) <= SHORT_KEY else b"%d" % record.offset
        ours = [header for header in headers if header not in record.headers]
        return letter | {"key": key, "headers": without_value(ours, record.value)}

    def _accepts(self, letter: dict[str, Any], new_batch: Callable[[], BatchBuilder]) -> bool:
        alone = new_batch()
        alone.append(**letter)
        return bool(alone.size() <= self._dead_letter.max_message_bytes)
