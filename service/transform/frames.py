"""The records of record batches as columns: where in their bytes keys, values and headers lie.

A record is: its length, attributes, timestamp delta, offset delta, the key's length, the key, the
value's length, the value, the number of headers, the headers. See "Record" in Kafka's documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from service.transform import varints
from service.transform.record_batch import CorruptBatchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from service.transform.record_batch import Buffer, RecordBatch

    Bytes = NDArray[np.uint8]
    Integers = NDArray[np.int64]

# So many records are looked at one by one (3 us each) rather than by columns (70 us, and 0.05 each).
FEW: Final = 24
# How far a record with a length of two (three) bytes reaches, by the first of them; the next byte counts 64
# each (the last one 8192). Looking it up is what makes the only loop over single records cheap (0.1 us each).
_REACH_2: Final = tuple(((byte & 0x7F) >> 1) + 2 for byte in range(256))
_REACH_3: Final = tuple(((byte & 0x7F) >> 1) + 3 for byte in range(256))


class Record(NamedTuple):
    """One record.

    Attributes:
        offset: of the input partition.
        timestamp: Unix milliseconds, -1 for none.
        key: `None` for none.
        value: `None` for none.
        headers: names and values; names that are not UTF-8 have surrogates in them.
    """

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True, slots=True)
class Frames:
    """Where the parts of records lie in `data`; all other arrays have shape (records,) and dtype int64.

    Attributes:
        data: shape (bytes,), uint8.
        offsets: of the input partition.
        timestamps: Unix milliseconds, -1 for none.
        keys: where the length of the key begins.
        value_tags: where the key ends and the length of the value begins.
        values: where the value begins.
        lengths: bytes of the value, -1 for none.
        headers: where the number of headers begins.
        ends: where the record ends.
    """

    data: Bytes
    offsets: Integers
    timestamps: Integers
    keys: Integers
    value_tags: Integers
    values: Integers
    lengths: Integers
    headers: Integers
    ends: Integers

    def __len__(self) -> int:
        """How many records."""
        return len(self.offsets)

    @classmethod
    def of(cls, batches: Sequence[RecordBatch]) -> Frames:
        """Find the records of batches, of whatever partitions, one batch after another.

        Raises:
            CorruptBatchError: they are not what the batch says.
        """
        joined = batches[0].records if len(batches) == 1 else b"".join([batch.records for batch in batches])
        data = np.frombuffer(joined, np.uint8)
        try:
            if sum([batch.count for batch in batches]) <= FEW:
                return cls._singly(joined, data, batches)
            return cls._guessed(joined, data, batches) or cls._located(data, _begins(joined, batches), batches)
        except IndexError:
            raise CorruptBatchError("a record reaches beyond its batch") from None

    @classmethod
    def _guessed(cls, joined: Buffer, data: Bytes, batches: Sequence[RecordBatch]) -> Frames | None:
        """By columns, if in each batch all lengths take as many bytes as the first one's; they mostly do.

        That each record ends where the next one begins proves it, by induction.
        """
        guesses: list[int] = []
        try:
            for start, _, count in _places(batches):
                guesses += _guess(joined, start, count)
            begins = np.array(guesses, np.int64)
            found = cls._located(data, begins, batches)
        except (IndexError, CorruptBatchError):
            return None
        return found if np.array_equal(found.ends[:-1], begins[1:]) and found.ends[-1] == len(data) else None

    @classmethod
    def _singly(cls, joined: Buffer, data: Bytes, batches: Sequence[RecordBatch]) -> Frames:
        """Record by record, which numpy is too slow to begin with for a few."""
        rows: list[tuple[int, ...]] = []
        for batch, (start, stop, count) in zip(batches, _places(batches), strict=True):
            append_time, begin = batch.append_time, start
            for _ in range(count):
                length, attributes = varints.decode(joined, begin)
                end = attributes + length
                stamp, following = varints.decode(joined, attributes + 1)
                offset, keys = varints.decode(joined, following)
                length, key = varints.decode(joined, keys)
                value_tag = key + max(length, 0)
                length, value = varints.decode(joined, value_tag)
                headers = value + max(length, 0)
                if not value_tag < headers < end <= stop or (headers + 1 == end and joined[headers]):
                    raise CorruptBatchError("a record does not end where its headers do")
                timestamp = varints.wrapped(batch.base_timestamp + stamp) if append_time is None else append_time
                rows.append(
                    (
                        varints.wrapped(batch.base_offset + offset),
                        timestamp,
                        keys,
                        value_tag,
                        value,
                        length,
                        headers,
                        end,
                    )
                )
                begin = end
            if begin != stop:
                raise CorruptBatchError(f"the batch does not consist of {count} records")
        try:
            return cls(data, *np.array(rows, np.int64).reshape(-1, 8).T.copy())
        except OverflowError:
            raise CorruptBatchError("a number is too large") from None

    @classmethod
    def _located(cls, data: Bytes, begins: Integers, batches: Sequence[RecordBatch]) -> Frames:
        """By columns."""
        counts = [batch.count for batch in batches]
        length, at = varints.read(data, begins)
        ends = at + length
        timestamps, at = varints.read(data, at + 1)  # behind the attributes, which mean nothing yet
        offsets, keys = varints.read(data, at)
        length, key = varints.read(data, keys)
        value_tags = key + np.maximum(length, 0)
        lengths, values = varints.read(data, value_tags)
        offsets += np.repeat([batch.base_offset for batch in batches], counts)
        timestamps += np.repeat([batch.base_timestamp for batch in batches], counts)
        if any(batch.append_time is not None for batch in batches):
            set_by_broker = np.repeat([batch.append_time is not None for batch in batches], counts)
            append_times = np.repeat([batch.max_timestamp for batch in batches], counts)
            timestamps = np.where(set_by_broker, append_times, timestamps)
        headers = values + np.maximum(lengths, 0)
        # In this order, and not so far apart that their sum has no place in 64 bits.
        ordered = (keys < value_tags) & (values <= headers) & (headers < ends)
        if not ordered.all() or data[ends - 1][headers + 1 == ends].any():
            raise CorruptBatchError("a record does not end where its headers do")
        return cls(data, offsets, timestamps, keys, value_tags, values, lengths, headers, ends)

    def select(self, some: Any) -> Frames:
        """The records that an index of numpy's selects; the data are the same."""
        return Frames(
            self.data,
            self.offsets[some],
            self.timestamps[some],
            self.keys[some],
            self.value_tags[some],
            self.values[some],
            self.lengths[some],
            self.headers[some],
            self.ends[some],
        )

    def value_bytes(self, start: int, stop: int) -> int:
        """Bytes of some of the records' values."""
        return int(np.maximum(self.lengths[start:stop], 0).sum())

    def key(self, position: int) -> bytes | None:
        """The key of one record."""
        length, start = varints.decode(self.data.data, int(self.keys[position]))
        return None if length < 0 else self.data[start : start + length].tobytes()

    def value(self, position: int) -> bytes | None:
        """The value of one record."""
        start, length = int(self.values[position]), int(self.lengths[position])
        return None if length < 0 else self.data[start : start + length].tobytes()

    def record(self, position: int) -> Record:
        """One record as an object."""
        headers = self.data[int(self.headers[position]) : int(self.ends[position])].tobytes()
        return Record(
            int(self.offsets[position]),
            int(self.timestamps[position]),
            self.key(position),
            self.value(position),
            () if headers == b"\0" else tuple(_headers(headers)),
        )


def _places(batches: Sequence[RecordBatch]) -> Iterator[tuple[int, int, int]]:
    """Where the records of each batch begin and end when they are joined, and how many they are."""
    start = 0
    for batch in batches:
        stop = start + len(batch.records)
        yield start, stop, batch.count
        start = stop


def _begins(joined: Buffer, batches: Sequence[RecordBatch]) -> Integers:
    """Where each record of each batch begins.

    Raises:
        CorruptBatchError: a batch does not consist of as many records as it says.
    """
    begins: list[int] = []
    for start, stop, count in _places(batches):
        begins += _any_bytes(joined, start, stop, count)
    return np.array(begins, np.int64)


def _guess(data: Buffer, start: int, count: int) -> list[int]:
    """Where the records of a batch begin if all their lengths take as many bytes as the first one's."""
    if not count:
        return []
    size = varints.decode(data, start)[1] - start
    if size == 2:
        return _two_bytes(data, start, count)
    if size == 3:
        return _three_bytes(data, start, count)
    raise IndexError(size)


def _two_bytes(data: Buffer, at: int, count: int) -> list[int]:
    reach = _REACH_2
    return [at, *[at := at + reach[data[at]] + (data[at + 1] << 6) for _ in range(count - 1)]]


def _three_bytes(data: Buffer, at: int, count: int) -> list[int]:
    reach = _REACH_3
    return [
        at,
        *[at := at + reach[data[at]] + ((data[at + 1] & 0x7F) << 6) + (data[at + 2] << 13) for _ in range(count - 1)],
    ]


def _any_bytes(data: Buffer, at: int, end: int, count: int) -> list[int]:
    """Where each record begins, whatever their lengths.

    Raises:
        CorruptBatchError: the batch does not consist of so many records.
    """
    begins = []
    try:
        for _ in range(count):
            begins.append(at)
            length, at = varints.decode(data, at)
            at += max(length, 0)
    except IndexError:
        at = -1
    if at != end:
        raise CorruptBatchError(f"the batch does not consist of {count} records")
    return begins


def _headers(data: bytes) -> list[tuple[str, bytes | None]]:
    """Names and values, from the number of headers on."""
    try:
        count, at = varints.decode(data, 0)
        found: list[tuple[str, bytes | None]] = []
        for _ in range(count):
            length, at = varints.decode(data, at)
            name = data[at : at + length]
            at += length
            length, at = varints.decode(data, at)
            found.append((name.decode("utf-8", "surrogateescape"), None if length < 0 else data[at : at + length]))
            at += max(length, 0)
    except IndexError:
        raise CorruptBatchError("a header reaches beyond its record") from None
    return found
