"""Records between the consumer and the producer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiokafka import TopicPartition

    from service.transform.refusals import InvalidMessage


class Record(Protocol):
    """What aiokafka's consumer returns. Timestamps are Unix milliseconds."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class Reduction:
    """What a dead letter leaves behind because its topic refused it whole.

    Attributes:
        untimed: its own timestamp; it carries the time of sending.
        bare: its value, headers and a long or missing key.
    """

    untimed: bool = False
    bare: bool = False


@dataclass(slots=True)
class Part:
    """Consecutive records of one partition and what became of each.

    Attributes:
        partition: the input partition.
        records: in order.
        outputs: by position; `None` for a refused record.
        models: by position, the name of the model profile; meaningless for a refused record.
        refusals: by position.
        size: bytes of the records' values.
        reductions: by offset, what dead letters must leave behind.
    """

    partition: TopicPartition
    records: Sequence[Record]
    outputs: Sequence[bytes | None]
    models: Sequence[str]
    refusals: dict[int, InvalidMessage]
    size: int
    reductions: dict[int, Reduction] = field(default_factory=dict)

    @classmethod
    def of(cls, partition: TopicPartition, records: Sequence[Record]) -> Part:
        """Records that nothing has become of yet."""
        return cls(partition, records, [], [], {}, size_of(records))


def size_of(records: Sequence[Record]) -> int:
    """Bytes of the records' values."""
    return sum([len(record.value) for record in records if record.value is not None])
