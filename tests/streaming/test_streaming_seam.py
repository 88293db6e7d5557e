"""The hooks into aiokafka: what its own classes make of the same bytes, batch by batch instead of record by record."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import aiokafka
import pytest
from aiokafka import TopicPartition, conn, errors
from aiokafka.consumer import fetcher
from aiokafka.producer.message_accumulator import MessageBatch
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from service.streaming import seam, wire
from service.transform.frames import Frames, Record
from service.transform.record_batch import CODECS, HEADER_BYTES, FinishedBatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PARTITION: Final = TopicPartition("logits", 3)
NOW: Final = 1_700_000_000_000
READ_UNCOMMITTED: Final = 0
READ_COMMITTED: Final = 1
CONTROL: Final = 0x20
ABORT, COMMIT = 0, 1


def patched(raw: bytearray, fmt: str, at: int, value: int) -> bytes:
    """A batch with another field in its header, and the checksum for it."""
    struct.pack_into(fmt, raw, at, value)
    struct.pack_into(">I", raw, 17, crc32c(bytes(raw[21:])))
    return bytes(raw)


def batch(base: int, count: int, *, producer: int = -1, codec: int = 0, covers: int = 0) -> bytes:
    """Records at every second offset; of a transaction if a producer is given; covering more offsets than they have."""
    transactional = producer >= 0
    builder = DefaultRecordBatchBuilder(2, codec, int(transactional), producer, 0 if transactional else -1, 0, 1 << 20)
    for index in range(count):
        value = b"value %d" % (base + 2 * index)
        builder.append(2 * index, NOW + index, b"%d" % index, value, [("h", b"x")] * (index % 2))
    raw = bytearray(builder.build())
    struct.pack_into(">q", raw, 0, base)
    return patched(raw, ">i", 23, max(2 * count - 2, covers - 1))


def empty(base: int, covers: int) -> bytes:
    """What compaction leaves of a batch whose records have all been replaced."""
    raw = bytearray(batch(base, 1)[:HEADER_BYTES])
    struct.pack_into(">i", raw, 8, HEADER_BYTES - 12)
    struct.pack_into(">i", raw, 23, covers - 1)
    return patched(raw, ">i", 57, 0)


def marker(base: int, producer: int, kind: int) -> bytes:
    """The end of a transaction."""
    builder = DefaultRecordBatchBuilder(2, 0, 1, producer, 0, -1, 1 << 20)
    builder.append(0, NOW, struct.pack(">hh", 0, kind), struct.pack(">hi", 0, 0), [])
    raw = bytearray(builder.build())
    struct.pack_into(">q", raw, 0, base)
    attributes = int.from_bytes(raw[21:23], "big") | CONTROL
    return patched(raw, ">h", 21, attributes)


def of_old(magic: int, base: int) -> bytes:
    """A record as Kafka wrote it before 0.11."""
    builder = LegacyRecordBatchBuilder(magic, 0, 1 << 20)
    builder.append(base, NOW, b"key", b"old %d" % base)
    return bytes(builder.build())


def through(classes: Any, raw: bytes, position: int, aborted: Sequence[tuple[int, int]], isolation: int) -> Any:
    """What a consumer gets out of the answer to a fetch, and where it would go on."""
    memory, of_partition = classes
    # Neither key nor value is deserialised; checksums are looked at.
    records = of_partition(PARTITION, memory(raw), list(aborted), position, None, None, 1, isolation)
    return list(records), records.next_fetch_offset


OURS: Final = (seam._Batches, seam._BatchesOfPartition)
THEIRS: Final = (MemoryRecords, seam._PartitionRecords)


def ours(raw: bytes, position: int = 0, aborted: Any = (), isolation: int = READ_COMMITTED) -> tuple[list[Record], int]:
    fetched, following = through(OURS, raw, position, aborted, isolation)
    found: list[Record] = []
    for one in fetched:
        frames = Frames.of([one.read()])
        records = [frames.record(index) for index in range(len(frames))]
        assert one.count == len(records)
        assert one.max_timestamp >= max(record.timestamp for record in records)
        found += [record for record in records if record.offset >= one.position]
    if fetched:
        assert fetched[-1].next_offset <= following
    return found, following


def theirs(
    raw: bytes, position: int = 0, aborted: Any = (), isolation: int = READ_COMMITTED
) -> tuple[list[Record], int]:
    found, following = through(THEIRS, raw, position, aborted, isolation)
    return [Record(each.offset, each.timestamp, each.key, each.value, each.headers) for each in found], following


@pytest.mark.parametrize("position", range(41))
def test_a_position_anywhere_in_the_batches_is_where_reading_begins(position: int) -> None:
    """Between records and in the gap behind a batch's last record, too."""
    raw = batch(0, 5) + batch(10, 3, covers=12) + empty(22, 8) + batch(30, 5)
    assert ours(raw, position) == theirs(raw, position)


@pytest.mark.parametrize("isolation", [READ_UNCOMMITTED, READ_COMMITTED])
@pytest.mark.parametrize("aborted", [[], [(7, 0)], [(8, 12)], [(7, 0), (8, 12)], [(7, 50)]])
def test_transactions_are_kept_and_left_out_as_aiokafka_does(aborted: list[tuple[int, int]], isolation: int) -> None:
    """Two producers whose transactions interleave, markers of both kinds, a batch without a transaction between."""
    raw = b"".join(
        [
            batch(0, 3, producer=7),
            batch(6, 2),
            batch(12, 3, producer=8),
            marker(20, 7, ABORT),
            batch(21, 2, producer=7),
            marker(30, 8, ABORT if (8, 12) in aborted else COMMIT),
            marker(31, 7, COMMIT),
            batch(40, 1),
            marker(50, 9, COMMIT),
        ]
    )
    assert ours(raw, 0, aborted, isolation) == theirs(raw, 0, aborted, isolation)
    assert ours(raw, 0, aborted, isolation)[1] == 51


@pytest.mark.parametrize("codec", range(len(CODECS)), ids=CODECS)
def test_compressed_batches_pass_whole(codec: int) -> None:
    raw = batch(0, 20, codec=codec) + batch(50, 2, codec=codec)
    assert ours(raw, 11) == theirs(raw, 11)


@pytest.mark.parametrize("magic", [0, 1])
def test_records_of_old_formats_are_rewritten(magic: int) -> None:
    parts = of_old(magic, 0), of_old(magic, 1), batch(2, 2)
    expected = [record for part in parts for record in theirs(part)[0]]  # aiokafka reads one format at a time
    if magic == 0:  # which had no timestamps
        expected[:2] = [record._replace(timestamp=-1) for record in expected[:2]]
    assert ours(b"".join(parts)) == (expected, 5)


def test_the_last_batch_may_be_cut_off_anywhere() -> None:
    """A broker fills its answer to the byte."""
    whole, last = batch(0, 2), batch(4, 30)
    for cut in range(len(last)):
        assert ours(whole + last[:cut]) == theirs(whole + last[:cut]) == (theirs(whole)[0], 3)
        assert seam._Batches(last[:cut]).size_in_bytes() == cut
        assert not seam._Batches(last[:cut]).has_next()


def test_a_wrong_checksum_is_the_error_that_aiokafka_raises() -> None:
    raw = bytearray(batch(0, 2))
    raw[-1] ^= 1
    for classes in (OURS, THEIRS):
        with pytest.raises(errors.CorruptRecordException):
            through(classes, bytes(raw), 0, (), READ_COMMITTED)


def test_a_batch_shorter_than_its_header_is_corrupt() -> None:
    raw = bytearray(batch(0, 1))[:40]
    struct.pack_into(">i", raw, 8, 28)
    with pytest.raises(errors.CorruptRecordException):
        ours(bytes(raw))


# Who gets batches


@pytest.fixture
def hooks() -> Iterator[None]:
    before = fetcher.MemoryRecords, fetcher.PartitionRecords
    of_connections = conn.READER_LIMIT, conn.AIOKafkaProtocol, conn.io, conn.AIOKafkaConnection._handle_frame
    encoders = [request.encode for request in wire._PRODUCE_REQUESTS]
    yield
    fetcher.MemoryRecords, fetcher.PartitionRecords = before
    conn.READER_LIMIT, conn.AIOKafkaProtocol, conn.io, conn.AIOKafkaConnection._handle_frame = of_connections
    for request, encoder in zip(wire._PRODUCE_REQUESTS, encoders, strict=True):
        request.encode = encoder


@pytest.mark.usefixtures("hooks")
def test_only_consumers_that_are_started_for_it_get_whole_batches() -> None:
    assert seam.install()
    arguments = (None, 0, None, None, True, READ_COMMITTED)

    def taken() -> list[Any]:
        return list(fetcher.PartitionRecords(PARTITION, fetcher.MemoryRecords(batch(0, 3)), *arguments))

    with seam.whole_batches():
        assert [type(each) for each in taken()] == [seam.WholeBatch]
    assert [type(each).__name__ for each in taken()] == ["ConsumerRecord"] * 3


@pytest.mark.usefixtures("hooks")
def test_an_untested_version_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fetcher.MemoryRecords = before = object()
    monkeypatch.setattr(aiokafka, "__version__", "0.14.1")
    assert not seam.install()
    assert fetcher.MemoryRecords is before


def test_the_version_that_is_installed_is_one_that_is_tested() -> None:
    """Else all other tests here would be of another library."""
    assert aiokafka.__version__ in seam.TESTED


headers = st.lists(st.tuples(st.text(max_size=4), st.none() | st.binary(max_size=4)), max_size=2)
rows = st.lists(
    st.tuples(st.integers(-1, 1 << 42), st.none() | st.binary(max_size=9), st.none() | st.binary(max_size=9), headers),
    min_size=1,
    max_size=9,
)


@given(rows, st.integers(0, 1 << 50), st.integers(1, 3))
def test_single_records_of_the_public_interface_become_a_batch_again(
    given_rows: list[Any], base: int, step: int
) -> None:
    """With gaps between their offsets as they were."""
    received = [
        SimpleNamespace(offset=base + step * index, timestamp=stamp, key=key, value=value, headers=tuple(some))
        for index, (stamp, key, value, some) in enumerate(given_rows)
    ]
    fetched = seam.Rewritten(received)
    frames = Frames.of([fetched.read()])
    assert [frames.record(index) for index in range(len(frames))] == [
        Record(each.offset, each.timestamp, each.key, each.value, each.headers) for each in received
    ]
    assert (fetched.position, fetched.next_offset, fetched.count) == (base, received[-1].offset + 1, len(received))


@given(rows)
def test_builders_serve_aiokafkas_accumulator(given_rows: list[Any]) -> None:
    """It closes them, numbers them, asks for their bytes as often as it sends them."""
    builder = seam.RecordBuilder(1 << 20)
    for stamp, key, value, some in given_rows:
        assert builder.append(timestamp=stamp, key=key, value=value, headers=some)
    builder.close()
    finished = FinishedBatch(memoryview(bytearray(builder._build())), len(given_rows), given_rows[0][0], 0)
    for one in (builder, seam.FinishedBuilder(finished)):
        assert one.closed()
        one._set_producer_state(5, 6, 7)
        for _ in range(2):
            found = DefaultRecordBatch(bytes(one._build()))
            assert found.validate_crc()
            assert (found.producer_id, found.producer_epoch, found.base_sequence) == (5, 6, 7)
            assert [(r.timestamp, r.key, r.value, r.headers) for r in found] == given_rows
        assert one.record_count() == len(given_rows)
        assert one.size() == len(one._build())


async def test_aiokafkas_message_batch_takes_a_finished_one() -> None:
    builder = seam.RecordBuilder(1 << 20)
    builder.append(timestamp=NOW, key=None, value=b"v", headers=[])
    builder.close()
    message = MessageBatch(PARTITION, builder, 10, 0)
    message.set_producer_state(1, 2, 3)
    assert message.record_count == 1
    assert not message.is_empty()
    assert DefaultRecordBatch(bytes(message.get_data_buffer())).producer_id == 1
    message.drain_ready()
    message.done_noack()


def test_a_builder_is_full_at_its_limit_but_takes_one_record_of_any_size() -> None:
    builder = seam.RecordBuilder(HEADER_BYTES + 30)
    assert builder.append(timestamp=NOW, key=None, value=bytes(100), headers=[])
    assert builder.append(timestamp=NOW, key=None, value=b"", headers=[]) is None
    assert builder.record_count() == 1
    assert builder.size() > HEADER_BYTES + 100
