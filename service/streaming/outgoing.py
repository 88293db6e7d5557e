"""From transformed records to produce batches: routes, sizes, dead letters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiokafka.partitioner import murmur2

from service.streaming.headers import HeaderPolicy, without_value
from service.streaming.records import Reduction
from service.transform.refusals import InvalidMessage, Reason

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Iterator

    from service.settings import Settings
    from service.streaming.records import Part, Record
    from service.streaming.startup import Topology

    BatchBuilder = Any  # aiokafka's
    Result = tuple[int, Record, bytes | None]  # position in the part, input, output

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

    def __init__(self, settings: Settings, topology: Topology) -> None:
        """Route as the settings say, within what the topics accept."""
        self._partitioning = settings.delivery.partitioning
        self._tombstones = settings.topics.tombstones
        self._output = topology.output
        self._dead_letter = topology.dead_letter
        self._headers = HeaderPolicy(settings.headers.drop, settings.kafka.group_id)
        # How small compression makes a batch only the broker's answer tells.
        compressed = settings.kafka.compression != "none"
        self._output_limit = None if compressed else topology.output.max_message_bytes

    def batches(self, part: Part, new_batch: Callable[[], BatchBuilder], singly_until: int) -> Iterator[Batch]:
        """Build lazily, outputs first: one too large becomes a dead letter.

        Args:
            part: transformed records; its refusals are completed on the way.
            new_batch: makes an empty batch.
            singly_until: records before this offset are sent one by one.
        """
        for partition, results in self._routes(part):
            yield from self._outputs(part, partition, results, new_batch, singly_until)
        if part.refusals:
            yield from self._dead_letters(part, new_batch, singly_until)

    def _routes(self, part: Part) -> Iterator[tuple[int, Iterable[Result]]]:
        """Output partitions and the results that go there."""
        results = zip(range(len(part.records)), part.records, part.outputs, strict=True)
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
        """The one loop over single outputs that aiokafka's public interface asks for: kept lean."""
        topic, limit = self._output.name, self._output_limit
        passed_on = self._headers.passed_on
        careful = part.records[0].offset < singly_until
        builder = new_batch()
        append = builder.append
        empty, untimed = True, False
        first = last = 0
        for position, record, value in results:
            if value is None and not self._forwarded(part, position):
                continue
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
                    part.refusals[position] = InvalidMessage(
                        Reason.OUTPUT_TOO_LARGE, f"the output takes {builder.size()} bytes, {topic} accepts {limit}"
                    )
                    builder = new_batch()
                    append, empty, untimed = builder.append, True, False
            last = record.offset
        if not empty:
            yield Batch(topic, partition, first, last, builder)

    def _forwarded(self, part: Part, position: int) -> bool:
        """Whether a record without output is a tombstone that passes through; it is no refusal then."""
        tombstone = part.refusals[position].reason is Reason.NULL_VALUE
        if not tombstone or self._tombstones != "forward":
            return False
        del part.refusals[position]
        return True

    def _dead_letters(self, part: Part, new_batch: Callable[[], BatchBuilder], singly_until: int) -> Iterator[Batch]:
        topic = self._dead_letter.name
        partition = part.partition.partition % self._dead_letter.partitions
        if self._tombstones == "drop":
            for position in [p for p, refusal in part.refusals.items() if refusal.reason is Reason.NULL_VALUE]:
                del part.refusals[position]
        builder = new_batch()
        first = last = born = 0
        for position in sorted(part.refusals):
            record = part.records[position]
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
        headers = self._headers.of_dead_letter(record, part.refusals[position])
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
