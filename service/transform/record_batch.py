"""Kafka's record-batch format, version 2: the header, the checksum, the compression.

The format is described in Kafka's documentation under "Record Batch". All integers are big-endian;
the checksum covers everything behind it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import cramjam
from crc32c import crc32c

from service.transform.varints import encode

if TYPE_CHECKING:
    from collections.abc import Sequence

Buffer = bytes | bytearray | memoryview

# Base offset, length, leader epoch, format, checksum, attributes, last offset delta, base and highest
# timestamp, producer id and epoch, base sequence, number of records.
HEADER: Final = struct.Struct(">qiibIhiqqqhii")
HEADER_BYTES: Final = HEADER.size
FORMAT: Final = 2
# The length counts what stands behind it.
_BEFORE_LENGTH: Final = 12
_CHECKSUM: Final = slice(17, 21)
_CHECKED_FROM: Final = 21
_NOBODY: Final = (-1, -1, -1)

CODEC_BITS: Final = 0x07
LOG_APPEND_TIME_BIT: Final = 0x08
TRANSACTIONAL_BIT: Final = 0x10
CONTROL_BIT: Final = 0x20
CODECS: Final = ("none", "gzip", "snappy", "lz4", "zstd")

# Java clients write snappy in blocks behind this header (snappy-java's stream).
_SNAPPY_STREAM: Final = b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1)
_SNAPPY_BLOCK: Final = 32 * 1024
_SNAPPY_LENGTH: Final = struct.Struct(">I")


class CorruptBatchError(ValueError):
    """Bytes that are no record batch, or whose checksum is wrong."""


@dataclass(slots=True)
class RecordBatch:
    """A record batch that has been read.

    Attributes:
        base_offset: its first record's offset, or what it was before compaction.
        last_offset_delta: the last offset that it covers is this much higher.
        attributes: the bits of codec, timestamp type, transaction and control.
        base_timestamp: what its records' timestamps are relative to, Unix milliseconds.
        max_timestamp: the highest of them; the time of appending where that counts.
        count: how many records.
        records: their bytes, decompressed.
    """

    base_offset: int
    last_offset_delta: int
    attributes: int
    base_timestamp: int
    max_timestamp: int
    count: int
    records: Buffer

    @property
    def append_time(self) -> int | None:
        """The timestamp of all its records if the broker has set it, else `None`."""
        return self.max_timestamp if self.attributes & LOG_APPEND_TIME_BIT else None


class Header(NamedTuple):
    """The fields of a batch's header, in their order; see Kafka's documentation."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    checksum: int
    attributes: int
    last_offset_delta: int
    base_timestamp: int
    max_timestamp: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    records: int

    @classmethod
    def at(cls, raw: Buffer, start: int = 0) -> Header:
        """Read it; `raw` must hold `HEADER_BYTES` from `start` on."""
        return cls._make(HEADER.unpack_from(raw, start))

    @property
    def next_offset(self) -> int:
        """The offset after the last one that the batch covers."""
        return self.base_offset + self.last_offset_delta + 1


def checksum_right(raw: memoryview, header: Header) -> bool:
    """Whether the bytes of a batch are those that were written."""
    return crc32c(raw[_CHECKED_FROM:]) == header.checksum


def read(raw: memoryview, header: Header | None = None) -> RecordBatch:
    """Read a whole record batch, whose header may be known already; its checksum is looked at elsewhere.

    Raises:
        CorruptBatchError: it is none, or cannot be decompressed.
    """
    if len(raw) < HEADER_BYTES:
        raise CorruptBatchError(f"{len(raw)} bytes are too few for a record batch")
    known = header or Header.at(raw)
    if known.magic != FORMAT or known.length != len(raw) - _BEFORE_LENGTH or known.records < 0:
        there = len(raw) - _BEFORE_LENGTH
        raise CorruptBatchError(f"format {known.magic}, {known.length} bytes announced, {there} there")
    codec = known.attributes & CODEC_BITS
    records = raw[HEADER_BYTES:]
    return RecordBatch(
        known.base_offset,
        known.last_offset_delta,
        known.attributes,
        known.base_timestamp,
        known.max_timestamp,
        known.records,
        decompress(records, codec) if codec else records,
    )


def encode_record(
    timestamp_delta: int,
    offset_delta: int,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes | None]],
) -> bytes:
    """One record as it stands in a batch, relative to the batch's base timestamp and offset."""
    parts = [b"\0", encode(timestamp_delta), encode(offset_delta), *_nullable(key), *_nullable(value)]
    parts.append(encode(len(headers)))
    for name, content in headers:
        parts += [*_nullable(name.encode("utf-8", "surrogateescape")), *_nullable(content)]
    body = b"".join(parts)
    return encode(len(body)) + body


def _nullable(content: bytes | None) -> tuple[bytes, bytes]:
    return (encode(-1), b"") if content is None else (encode(len(content)), content)


class FinishedBatch:
    """A record batch that is ready to be written, but for the producer's state.

    Attributes:
        count: how many records.
        base_timestamp: what their timestamps are relative to, Unix milliseconds.
        max_timestamp: the highest of them.
    """

    def __init__(self, room: memoryview, count: int, base_timestamp: int, max_timestamp: int, codec: int = 0) -> None:
        """Finish records, shape of `room`: `HEADER_BYTES` to be filled in, then the records' bytes."""
        self.count = count
        self.base_timestamp = base_timestamp
        self.max_timestamp = max_timestamp
        self._codec = codec
        self._raw = room
        if codec:
            self._raw = memoryview(bytearray(HEADER_BYTES) + compress(room[HEADER_BYTES:], codec))

    def __len__(self) -> int:
        """Bytes of the whole batch."""
        return len(self._raw)

    def sealed(self, producer: tuple[int, int, int] = _NOBODY, *, transactional: bool = False) -> memoryview:
        """The whole batch with its header; valid until the next call.

        Args:
            producer: its id, epoch and the sequence number of the first record.
            transactional: whether the batch belongs to the producer's transaction.
        """
        raw = self._raw
        attributes = self._codec | (TRANSACTIONAL_BIT if transactional else 0)
        times = self.base_timestamp, self.max_timestamp
        length = len(raw) - _BEFORE_LENGTH
        HEADER.pack_into(
            raw, 0, 0, length, -1, FORMAT, 0, attributes, self.count - 1, *times, *producer, self.count
        )  # fmt: skip
        raw[_CHECKSUM] = crc32c(raw[_CHECKED_FROM:]).to_bytes(4, "big")
        return raw


def decompress(data: memoryview, codec: int) -> Buffer:
    """Undo one of `CODECS`.

    Raises:
        CorruptBatchError: it is unknown or the data are damaged.
    """
    try:
        match CODECS[codec]:
            case "none":
                return data
            case "gzip":
                return bytes(cramjam.gzip.decompress(data))
            case "snappy":
                return _undo_snappy(data)
            case "lz4":
                return bytes(cramjam.lz4.decompress(data))
            case _:
                return bytes(cramjam.zstd.decompress(data))
    except (IndexError, cramjam.DecompressionError, struct.error) as error:
        raise CorruptBatchError(f"cannot decompress (codec {codec}): {error}") from error


def compress(data: memoryview, codec: int) -> bytes:
    """Apply one of `CODECS`, so that Kafka's other clients can undo it."""
    match CODECS[codec]:
        case "none":
            return bytes(data)
        case "gzip":
            return bytes(cramjam.gzip.compress(data))
        case "snappy":
            blocks = (data[start : start + _SNAPPY_BLOCK] for start in range(0, len(data), _SNAPPY_BLOCK))
            parts = [bytes(cramjam.snappy.compress_raw(block)) for block in blocks]
            return _SNAPPY_STREAM + b"".join(_SNAPPY_LENGTH.pack(len(part)) + part for part in parts)
        case "lz4":
            # Kafka's reader takes independent blocks only.
            compressor = cramjam.lz4.Compressor(content_checksum=False, block_linked=False)
            compressor.compress(bytes(data))
            return bytes(compressor.finish())
        case _:
            return bytes(cramjam.zstd.compress(data))


def _undo_snappy(data: memoryview) -> bytes:
    if data[:8] != _SNAPPY_STREAM[:8]:
        return bytes(cramjam.snappy.decompress_raw(data))
    parts, at = [], len(_SNAPPY_STREAM)
    while at < len(data):
        (length,) = _SNAPPY_LENGTH.unpack_from(data, at)
        at += _SNAPPY_LENGTH.size
        parts.append(bytes(cramjam.snappy.decompress_raw(data[at : at + length])))
        at += length
    return b"".join(parts)
