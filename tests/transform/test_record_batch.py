"""Kafka's record batches: ours and aiokafka's read each other's, and damage is told."""

from __future__ import annotations

import struct
from typing import Any, Final

import cramjam
import pytest
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from service.transform.record_batch import (
    CODECS,
    HEADER,
    HEADER_BYTES,
    CorruptBatchError,
    FinishedBatch,
    Header,
    checksum_right,
    decompress,
    encode_record,
    read,
)

NOW: Final = 1_700_000_000_000
SNAPPY: Final = CODECS.index("snappy")

texts = st.text(max_size=6)
contents = st.none() | st.binary(max_size=300)
# Timestamp, key, value, headers.
records = st.lists(
    st.tuples(
        st.integers(-1, 1 << 42),
        contents,
        contents,
        st.lists(st.tuples(texts, contents), max_size=3),
    ),
    min_size=1,
    max_size=20,
)
Records = list[tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]]


def theirs(some: Records, codec: int = 0) -> bytes:
    """A batch by aiokafka's builder."""
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 30)
    for offset, (timestamp, key, value, headers) in enumerate(some):
        builder.append(offset, timestamp, key, value, headers)
    return bytes(builder.build())


def finished(some: Records, codec: int = 0) -> FinishedBatch:
    """A batch by ours."""
    base = some[0][0]
    content = [encode_record(each[0] - base, offset, *each[1:]) for offset, each in enumerate(some)]
    room = bytearray(HEADER_BYTES) + b"".join(content)
    return FinishedBatch(memoryview(room), len(some), base, max(stamp for stamp, *_ in some), codec)


def ours(some: Records, codec: int = 0) -> bytes:
    return bytes(finished(some, codec).sealed())


def read_by_aiokafka(raw: bytes) -> Records:
    batch = DefaultRecordBatch(raw)
    assert batch.validate_crc()
    return [(record.timestamp, record.key, record.value, record.headers) for record in batch]


@given(records.filter(lambda some: some[0][0] >= 0))  # aiokafka takes -1 in front for "no record yet"
def test_uncompressed_batches_are_aiokafkas_byte_for_byte(some: Records) -> None:
    assert ours(some) == theirs(some)


@pytest.mark.parametrize("codec", range(len(CODECS)), ids=CODECS)
@given(some=records)
def test_each_reads_what_the_other_wrote(codec: int, some: Records) -> None:
    raw = ours(some, codec)
    assert read_by_aiokafka(raw) == some
    if some[0][0] >= 0:
        batch = read(memoryview(theirs(some, codec)))
        assert bytes(batch.records) == bytes(read(memoryview(ours(some))).records)
        assert (batch.count, batch.base_timestamp, batch.base_offset) == (len(some), some[0][0], 0)
        assert batch.max_timestamp == max(stamp for stamp, *_ in some)
        assert batch.last_offset_delta == len(some) - 1
        assert batch.append_time is None


@pytest.mark.parametrize("transactional", [False, True])
@given(some=records, producer=st.integers(0, 1 << 60), epoch=st.integers(0, 1 << 14), sequence=st.integers(0, 1 << 30))
def test_the_producers_state_is_sealed_in_and_can_be_replaced(
    *, transactional: bool, some: Records, producer: int, epoch: int, sequence: int
) -> None:
    batch = finished(some)
    batch.sealed((7, 7, 7))
    raw = bytes(batch.sealed((producer, epoch, sequence), transactional=transactional))
    found = DefaultRecordBatch(raw)
    assert found.validate_crc()
    assert (found.producer_id, found.producer_epoch, found.base_sequence) == (producer, epoch, sequence)
    assert found.is_transactional is transactional
    assert len(raw) == len(batch)
    assert read_by_aiokafka(raw) == some


def test_where_the_broker_sets_the_time_it_is_that_of_all_records() -> None:
    fields = list(HEADER.unpack_from(ours([(NOW, None, b"a", [])])))
    fields[5] |= 0x08
    fields[8] = NOW + 5
    raw = HEADER.pack(*fields) + ours([(NOW, None, b"a", [])])[HEADER_BYTES:]
    assert read(memoryview(raw)).append_time == NOW + 5


def test_snappy_without_the_stream_of_java_clients_is_read_too() -> None:
    """Clients on librdkafka write one raw block."""
    content = b"probabilities" * 99
    assert decompress(memoryview(bytes(cramjam.snappy.compress_raw(content))), SNAPPY) == content


# Damage


@given(records, st.data())
def test_a_changed_byte_behind_the_checksum_is_noticed(some: Records, data: Any) -> None:
    raw = bytearray(ours(some))
    assert checksum_right(memoryview(raw), Header.at(raw))
    at = data.draw(st.integers(17, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    assert not checksum_right(memoryview(raw), Header.at(raw))


@given(records, st.data())
def test_a_batch_that_is_cut_off_is_none(some: Records, data: Any) -> None:
    raw = ours(some)
    cut = raw[: data.draw(st.integers(0, len(raw) - 1))]
    with pytest.raises(CorruptBatchError):
        read(memoryview(cut))


@pytest.mark.parametrize(("field", "value"), [(1, 0), (1, 1 << 30), (3, 1), (3, 3), (12, -1)])
def test_a_header_that_promises_something_else_is_refused(field: int, value: int) -> None:
    raw = ours([(NOW, b"k", b"v", [])])
    fields = list(HEADER.unpack_from(raw))
    fields[field] = value
    with pytest.raises(CorruptBatchError):
        read(memoryview(HEADER.pack(*fields) + raw[HEADER_BYTES:]))


@pytest.mark.parametrize("codec", [*range(1, len(CODECS)), 5, 6, 7])
@given(content=st.binary(max_size=60))
def test_what_no_codec_has_written_is_refused(codec: int, content: bytes) -> None:
    """Or understood by chance; nothing else may come out."""
    try:
        decompress(memoryview(content), codec)
    except CorruptBatchError:
        return
    assert codec < len(CODECS)


@pytest.mark.parametrize("length", [0, 5, 1 << 31, (1 << 32) - 1])
def test_a_snappy_stream_may_not_promise_more_than_there_is(length: int) -> None:
    stream = b"\x82SNAPPY\x00" + struct.pack(">iiI", 1, 1, length) + b"abc"
    with pytest.raises(CorruptBatchError):
        decompress(memoryview(stream), SNAPPY)
