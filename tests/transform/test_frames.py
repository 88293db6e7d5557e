"""Records as columns: what was written into batches is found, one by one and by columns, and damage is told."""

from __future__ import annotations

import tracemalloc
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.transform import frames as module
from service.transform.frames import FEW, Frames, Record
from service.transform.record_batch import CorruptBatchError, RecordBatch, encode_record

NOW: Final = 1_700_000_000_000
LOG_APPEND_TIME: Final = 0x08

lengths = st.integers(0, 20) | st.sampled_from([55, 64, 120, 8100, 8192, 8300])
contents = st.none() | lengths.map(bytes) | st.binary(max_size=20)
# Any bytes: Kafka does not look at names.
names = st.binary(max_size=4).map(lambda name: name.decode("utf-8", "surrogateescape"))
stamps = st.integers(NOW - 9000, NOW + 9000) | st.just(-1) | st.integers(0, 1 << 42)
headers = st.just(()) | st.lists(st.tuples(names, contents), max_size=3).map(tuple)
stores = st.lists(st.tuples(st.integers(1, 3), stamps, contents, contents, headers), max_size=2 * FEW)
batches_of_records = st.lists(
    st.tuples(st.integers(0, 1 << 40), stamps, st.none() | stamps.filter(lambda s: s >= 0), stores),
    min_size=1,
    max_size=5,
)
Store = list[tuple[int, int, bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]]


def batch_of(base: int, base_time: int, append_time: int | None, store: Store) -> tuple[RecordBatch, list[Record]]:
    """A batch whose offsets have gaps, and what is in it."""
    offset, content, expected = -1, [], []
    for gap, stamp, key, value, some_headers in store:
        offset += gap
        content.append(encode_record(stamp - base_time, offset, key, value, some_headers))
        expected.append(Record(base + offset, stamp if append_time is None else append_time, key, value, some_headers))
    attributes = 0 if append_time is None else LOG_APPEND_TIME
    highest = append_time if append_time is not None else max((each[1] for each in store), default=-1)
    return RecordBatch(base, offset + 1, attributes, base_time, highest, len(store), b"".join(content)), expected


def found_in(batches: list[RecordBatch]) -> list[Record]:
    frames = Frames.of(batches)
    return [frames.record(position) for position in range(len(frames))]


@pytest.mark.parametrize("few", [0, 1 << 30], ids=["by columns", "one by one"])
@given(given_batches=batches_of_records)
def test_all_records_are_found_either_way(few: int, given_batches: list[Any]) -> None:
    """Keys, values and headers of any kind and length, gaps in the offsets, times set by the broker, empty batches."""
    pairs = [batch_of(*each) for each in given_batches]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FEW", few)
        assert found_in([batch for batch, _ in pairs]) == [record for _, some in pairs for record in some]


@given(batches_of_records)
def test_the_columns_are_the_same_either_way(given_batches: list[Any]) -> None:
    batches = [batch_of(*each)[0] for each in given_batches]
    found = []
    for few in (0, 1 << 30):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "FEW", few)
            frames = Frames.of(batches)
            found.append([getattr(frames, name).tolist() for name in Frames.__dataclass_fields__])
    assert found[0] == found[1]


@given(batches_of_records, st.data())
def test_some_of_the_records_can_be_selected(given_batches: list[Any], data: Any) -> None:
    frames = Frames.of([batch_of(*each)[0] for each in given_batches])
    wanted = np.array(data.draw(st.lists(st.booleans(), min_size=len(frames), max_size=len(frames))), np.bool_)
    some = frames.select(wanted)
    assert [some.record(i) for i in range(len(some))] == [frames.record(int(i)) for i in np.flatnonzero(wanted)]
    assert some.value_bytes(0, len(some)) == sum(len(frames.value(int(i)) or b"") for i in np.flatnonzero(wanted))


def of_lengths(*wanted: int) -> RecordBatch:
    """A batch of records that take so many bytes each behind their lengths."""
    content = b""
    for offset, length in enumerate(wanted):
        records = (encode_record(0, offset, None, bytes(length - less), ()) for less in (6, 7, 8, 9))
        content += next(record for record in records if length_of(record) == length)
    return RecordBatch(0, len(wanted) - 1, 0, NOW, NOW, len(wanted), content)


def length_of(record: bytes) -> int:
    """What the record says that it is long."""
    length = shift = 0
    for byte in record:
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return length >> 1


@pytest.mark.parametrize("length", [8, 60, 63, 64, 65, 128, 8190, 8191, 8192, 9000, 70_000])
def test_many_records_of_one_length_are_found(length: int) -> None:
    """Lengths of one, two and three bytes."""
    batch = of_lengths(*[length] * (FEW + 8))
    frames = Frames.of([batch])
    assert len(frames) == FEW + 8
    assert set(np.diff(frames.ends).tolist()) == {len(batch.records) // (FEW + 8)}


@pytest.mark.parametrize("odd", [8, 63, 64, 8191, 8192])
@pytest.mark.parametrize("at", [0, 5, FEW + 7])
def test_one_record_of_another_length_among_many_is_found(odd: int, at: int) -> None:
    wanted = [200] * (FEW + 8)
    wanted[at] = odd
    frames = Frames.of([of_lengths(*wanted)])
    assert [frames.record(i).offset for i in range(len(frames))] == list(range(FEW + 8))


def test_a_guess_that_ends_with_the_batch_by_chance_is_not_believed() -> None:
    """Lengths of one byte that were taken for two may lead astray and still end in the right place."""
    for seed in range(200):
        random = np.random.default_rng(seed)
        wanted = [72, *random.choice([8, 20, 63, 64, 72], FEW + 20).tolist()]
        frames = Frames.of([of_lengths(*wanted)])
        assert [frames.record(i).offset for i in range(len(frames))] == list(range(len(wanted)))


# Damage


@given(batches_of_records.filter(lambda some: any(each[3] for each in some)), st.data())
@example([(0, NOW, None, [(1, NOW, b"k", b"v", ())] * (FEW + 1))], None)
def test_damaged_records_are_refused_or_understood_and_nothing_else(given_batches: list[Any], data: Any) -> None:
    """A checksum may be right and the producer wrong."""
    pairs = [batch_of(*each)[0] for each in given_batches]
    batch = next(pair for pair in pairs if pair.count)
    content = bytearray(batch.records)
    if data is not None:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        content = content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]
    for few in (0, 1 << 30):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "FEW", few)
            try:
                frames = Frames.of([RecordBatch(0, 9, 0, NOW, NOW, batch.count, bytes(content))])
                assert (frames.ends <= len(content)).all()
                for position in range(len(frames)):
                    frames.record(position)
            except CorruptBatchError:
                continue


@pytest.mark.parametrize("count", [1, FEW, FEW + 1, 1 << 20, (1 << 31) - 1])
def test_a_batch_with_fewer_records_than_it_says_is_refused_without_room_for_them(count: int) -> None:
    batch = RecordBatch(0, 0, 0, NOW, NOW, count, b"")
    tracemalloc.start()
    try:
        with pytest.raises(CorruptBatchError):
            Frames.of([batch])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("spare", [b"\0", b"\x0e" + bytes(7), bytes(200)])
def test_more_bytes_than_records_are_refused(spare: bytes) -> None:
    for count in (2, FEW + 5):
        whole = of_lengths(*[72] * count)
        with pytest.raises(CorruptBatchError):
            Frames.of([RecordBatch(0, count - 1, 0, NOW, NOW, count, bytes(whole.records) + spare)])
