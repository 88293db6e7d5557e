"""The two hooks into aiokafka through which whole record batches pass, and what stands in for them.

aiokafka's public interface makes an object of each record that is read, and wants one for each that
is written: more work than all of ours. Its consumer reads batches through the classes `MemoryRecords`
and `PartitionRecords` of `aiokafka.consumer.fetcher`; here they hand out each batch as one
pseudo-record, while aiokafka goes on deciding about positions, transactions and control batches. Its
producer asks whatever `send_batch` is given for a few methods; here that is a finished batch.

Both rest on how a version is written, so `install` looks whether it is one that was tested. An option
of aiokafka's for raw batches would make this module needless.
"""

from __future__ import annotations

import struct
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol

import aiokafka
from aiokafka import errors
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.memory_records import MemoryRecords

from service.streaming import wire
from service.transform import record_batch
from service.transform.record_batch import HEADER_BYTES, FinishedBatch, Header, RecordBatch
from service.transform.varints import wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


TESTED: Final = frozenset({"0.14.0"})

_LENGTH: Final = struct.Struct(">i")
_LENGTH_AT: Final = 8
_BEFORE_LENGTH: Final = 12
_FORMAT: Final = 16
# Batches of the formats before are shorter than a header of today's.
_LEAST_BYTES: Final = 17

# Consumers of other parts of the process, and of other libraries, go on getting records.
_wanted: ContextVar[bool] = ContextVar("whole batches wanted", default=False)
_PartitionRecords: Final[Any] = fetcher.PartitionRecords


class Fetched(Protocol):
    """A record batch as the consumer hands it out.

    Attributes:
        position: the first offset that is wanted of it.
        next_offset: the offset after the last one that it covers.
        max_timestamp: the highest of its records', Unix milliseconds.
        count: how many records it has, those before `position` among them.
        size: its bytes, as they have come.
    """

    @property
    def position(self) -> int: ...  # noqa: D102
    @property
    def next_offset(self) -> int: ...  # noqa: D102
    @property
    def max_timestamp(self) -> int: ...  # noqa: D102
    @property
    def count(self) -> int: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102

    def read(self) -> RecordBatch:
        """Find its records.

        Raises:
            CorruptBatchError: they are not there.
        """
        ...


def install() -> bool:
    """Put the hooks in place; tell whether this version of aiokafka is one that they are known to fit."""
    if aiokafka.__version__ not in TESTED:
        return False
    wire.install()
    fetcher.MemoryRecords = _memory_records
    fetcher.PartitionRecords = _partition_records
    return True


@contextmanager
def whole_batches() -> Iterator[None]:
    """Consumers that are started in here return a `WholeBatch` where others return a record."""
    token = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(token)


def _memory_records(raw: bytes) -> Any:
    return _Batches(raw) if _wanted.get() else MemoryRecords(bytes(raw))


def _partition_records(*args: Any) -> Any:
    return (_BatchesOfPartition if _wanted.get() else _PartitionRecords)(*args)


class WholeBatch:
    """A batch in place of a record; see `Fetched`."""

    __slots__ = ("_header", "_raw", "count", "max_timestamp", "next_offset", "offset", "position", "size")

    def __init__(self, raw: memoryview, header: Header) -> None:
        """Stand for all its records."""
        self._raw = raw
        self._header = header
        self.next_offset = header.next_offset
        self.offset = self.next_offset - 1
        self.position = -1
        self.max_timestamp = header.max_timestamp
        self.count = header.records
        self.size = len(raw)

    def read(self) -> RecordBatch:
        """See `Fetched`."""
        return record_batch.read(self._raw, self._header)


class _Batches:
    """Stands in for `MemoryRecords`: the batches in the answer to a fetch, the last of which may be cut off."""

    def __init__(self, raw: bytes) -> None:
        self._raw = memoryview(raw)
        self._at = 0
        self._end = self._end_of(0)

    def size_in_bytes(self) -> int:
        return len(self._raw)

    def has_next(self) -> bool:
        return self._end > 0

    def next_batch(self) -> Any:
        raw = self._raw[self._at : self._end]
        self._at = self._end
        self._end = self._end_of(self._at)
        if raw[_FORMAT] != record_batch.FORMAT:  # of before Kafka 0.11
            return MemoryRecords(bytes(raw)).next_batch()
        if len(raw) < HEADER_BYTES:
            raise errors.CorruptRecordException(f"a record batch of {len(raw)} bytes")
        header = Header.at(raw)
        if header.attributes & record_batch.CONTROL_BIT:
            return DefaultRecordBatch(bytes(raw))
        return _Batch(raw, header)

    def _end_of(self, start: int) -> int:
        """Where the batch that begins there ends; -1 if it is not there as a whole."""
        if start + _LEAST_BYTES > len(self._raw):
            return -1
        (length,) = _LENGTH.unpack_from(self._raw, start + _LENGTH_AT)
        end = start + _BEFORE_LENGTH + int(length)
        return end if end <= len(self._raw) else -1


class _Batch:
    """Stands in for `DefaultRecordBatch`: what `PartitionRecords` asks of one that holds data."""

    __slots__ = ("_header", "_raw", "base_offset", "is_transactional", "next_offset", "producer_id")

    is_control_batch = False

    def __init__(self, raw: memoryview, header: Header) -> None:
        self._raw = raw
        self._header = header
        self.base_offset = header.base_offset
        self.is_transactional = bool(header.attributes & record_batch.TRANSACTIONAL_BIT)
        self.next_offset = header.next_offset
        self.producer_id = header.producer_id

    def validate_crc(self) -> bool:
        return record_batch.checksum_right(self._raw, self._header)

    def __iter__(self) -> Iterator[WholeBatch]:
        # Compaction may leave a batch without records.
        return iter([WholeBatch(self._raw, self._header)] if self._header.records else [])


class _BatchesOfPartition(_PartitionRecords):  # type: ignore[misc]  # aiokafka is not typed
    def _consumer_record(self, tp: Any, record: Any) -> Any:
        if not isinstance(record, WholeBatch):
            return Rewritten([super()._consumer_record(tp, record)])
        record.position = self.next_fetch_offset
        return record


class Rewritten:
    """Records as a batch again; see `Fetched`."""

    def __init__(self, records: Sequence[Any]) -> None:
        """Take consecutive records of aiokafka's consumer, at least one."""
        # Kafka's first format had no timestamps.
        self._timestamps = [-1 if record.timestamp is None else record.timestamp for record in records]
        self.position = records[0].offset
        self.next_offset = records[-1].offset + 1
        self.max_timestamp = max(self._timestamps)
        self.count = len(records)
        self.size = sum([len(record.value) for record in records if record.value is not None])
        self._records = records

    def read(self) -> RecordBatch:
        """See `Fetched`."""
        base, base_time = self.position, self._timestamps[0]
        content = [
            record_batch.encode_record(
                wrapped(timestamp - base_time), record.offset - base, record.key, record.value, record.headers
            )
            for record, timestamp in zip(self._records, self._timestamps, strict=True)
        ]
        covered = self.next_offset - 1 - base
        return RecordBatch(base, covered, 0, base_time, self.max_timestamp, self.count, b"".join(content))


class FinishedBuilder:
    """Passes a finished batch off as aiokafka's `BatchBuilder`."""

    def __init__(self, batch: FinishedBatch, *, transactional: bool = False) -> None:
        """Hand `batch` over when asked."""
        self._batch = batch
        self._transactional = transactional
        self._producer = (-1, -1, -1)

    def close(self) -> None:
        """It is."""

    def closed(self) -> bool:
        """Nothing can be added."""
        return True

    def size(self) -> int:
        """Bytes of the batch."""
        return len(self._batch)

    def record_count(self) -> int:
        """How many records."""
        return self._batch.count

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        self._producer = (producer_id, producer_epoch, base_sequence)

    def _build(self) -> memoryview:
        return self._batch.sealed(self._producer, transactional=self._transactional)


class RecordBuilder:
    """Collects single records for a batch, as aiokafka's `BatchBuilder` does; header names may be any bytes."""

    def __init__(self, limit: int, codec: int = 0, *, transactional: bool = False) -> None:
        """Take `limit` bytes before compression, or a single record."""
        self._limit = limit
        self._codec = codec
        self._transactional = transactional
        self._content = bytearray(HEADER_BYTES)
        self._timestamps: list[int] = []
        self._finished: FinishedBuilder | None = None

    def append(self, *, timestamp: int | None, key: bytes | None, value: bytes | None, headers: Any) -> bool | None:
        """Add a record, without a timestamp as of now; `None` if it does not fit."""
        stamp = int(time.time() * 1000) if timestamp is None else timestamp
        base = self._timestamps[0] if self._timestamps else stamp
        record = record_batch.encode_record(wrapped(stamp - base), len(self._timestamps), key, value, headers)
        if self._timestamps and len(self._content) + len(record) > self._limit:
            return None
        self._content += record
        self._timestamps.append(stamp)
        return True

    def size(self) -> int:
        """Bytes so far, before compression."""
        return len(self._content)

    def record_count(self) -> int:
        """How many records so far."""
        return len(self._timestamps)

    def close(self) -> None:
        """Finish the batch; nothing can be added any more."""
        times = self._timestamps[0], max(self._timestamps)
        batch = FinishedBatch(memoryview(self._content), len(self._timestamps), *times, self._codec)
        self._finished = FinishedBuilder(batch, transactional=self._transactional)

    def closed(self) -> bool:
        """Whether it is finished."""
        return self._finished is not None

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        self._sealing._set_producer_state(producer_id, producer_epoch, base_sequence)  # noqa: SLF001 - the same role

    def _build(self) -> memoryview:
        return self._sealing._build()  # noqa: SLF001 - the same role

    @property
    def _sealing(self) -> FinishedBuilder:
        if self._finished is None:
            raise AssertionError
        return self._finished
