"""Outputs into record batches: what aiokafka reads back are the inputs with other values, cut where they should be."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pytest
from aiokafka.record.default_records import DefaultRecordBatch
from hypothesis import given
from hypothesis import strategies as st

from service.transform import assembly as module
from service.transform.assembly import Assembled, Block, assemble
from service.transform.byte_rows import copy, groups, put_prefixes
from service.transform.frames import Frames, Record
from service.transform.record_batch import CODECS, HEADER_BYTES, RecordBatch, encode_record

NOW: Final = 1_700_000_000_000
ENDLESS: Final = 1 << 30
WAYS: Final = pytest.mark.parametrize("few", [0, ENDLESS], ids=["by columns", "one by one"])

keys = st.none() | st.binary(max_size=3) | st.integers(0, 90).map(bytes)
headers = st.just(()) | st.lists(st.tuples(st.text(max_size=3), st.none() | st.binary(max_size=3)), max_size=2).map(
    tuple
)
stamps = st.integers(NOW - 70, NOW + 9000) | st.just(-1) | st.integers(0, 1 << 42)
# What becomes of a record: it is refused, leaves without a value, or belongs to one of three blocks.
fates = st.sampled_from(["refused", "empty", 0, 1, 2])
inputs = st.lists(st.tuples(stamps, keys, headers, fates, st.integers(0, 9)), min_size=1, max_size=70)
WIDTHS: Final = (7, 70, 9)


def frames_of(given_inputs: list[Any]) -> Frames:
    content = [
        encode_record(stamp, 2 * offset, key, b"input", some_headers)
        for offset, (stamp, key, some_headers, *_) in enumerate(given_inputs)
    ]
    return Frames.of([RecordBatch(100, 2 * len(content), 0, 0, 0, len(content), b"".join(content))])


def outputs_of(given_inputs: list[Any]) -> tuple[list[Block], np.ndarray[Any, Any], dict[int, bytes | None]]:
    """Blocks of two constant widths and one of varying lengths, the empty ones, and the values by position."""
    blocks, values = [], dict[int, bytes | None]()
    for which, width in enumerate(WIDTHS):
        positions = [position for position, each in enumerate(given_inputs) if each[3] == which]
        if not positions:
            continue
        content = np.array([[position % 251] * width for position in positions], np.uint8)
        lengths = np.array([given_inputs[position][4] for position in positions]) if which == 2 else None
        blocks.append(Block(np.array(positions), content, lengths, "default"))
        values |= dict(zip(positions, blocks[-1].values(), strict=True))
    empty = [position for position, each in enumerate(given_inputs) if each[3] == "empty"]
    values |= dict.fromkeys(empty)
    return blocks, np.array(empty, np.int64), values


def assembled(few: int, *arguments: Any) -> list[Assembled]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FEW", few)
        return list(assemble(*arguments))


def read_back(batches: list[Assembled]) -> list[Record]:
    found = []
    for one in batches:
        batch = DefaultRecordBatch(bytes(one.batch.sealed()))
        assert batch.validate_crc()
        records = list(batch)
        assert [record.offset for record in records] == list(range(one.batch.count))
        assert (batch.base_offset, batch.last_offset_delta) == (0, len(records) - 1)
        assert batch.first_timestamp == records[0].timestamp
        assert batch.max_timestamp == max(record.timestamp for record in records)
        found += [Record(-1, record.timestamp, record.key, record.value, tuple(record.headers)) for record in records]
    return found


@WAYS
@given(given_inputs=inputs, begins=st.sets(st.integers(1, 70)), limit=st.integers(100, 3000) | st.just(ENDLESS))
def test_each_output_has_its_inputs_key_time_and_headers_around_its_value(
    few: int, given_inputs: list[Any], begins: set[int], limit: int
) -> None:
    """In the inputs' order; batches begin where they must and stay within the limit."""
    frames = frames_of(given_inputs)
    blocks, empty, values = outputs_of(given_inputs)
    starts = sorted(begin for begin in {0, *begins} if begin < len(given_inputs))
    batches = assembled(few, frames, blocks, empty, starts, limit)
    assert read_back(batches) == [
        Record(-1, given_inputs[position][0], given_inputs[position][1], values[position], given_inputs[position][2])
        for position in sorted(values)
    ]
    covered = [position for one in batches for position in range(one.first, one.last + 1) if position in values]
    assert covered == sorted(values)
    for one in batches:
        assert one.first in values
        assert one.last in values
        assert not any(one.first < start <= one.last for start in starts)
        assert one.batch.count == sum(position in values for position in range(one.first, one.last + 1))
        assert len(one.batch) <= limit or one.batch.count == 1


@given(given_inputs=inputs, limit=st.integers(100, 3000) | st.just(ENDLESS))
def test_the_bytes_are_the_same_either_way(given_inputs: list[Any], limit: int) -> None:
    frames = frames_of(given_inputs)
    blocks, empty, _ = outputs_of(given_inputs)
    found = [
        [(one.first, one.last, bytes(one.batch.sealed())) for one in assembled(few, frames, blocks, empty, [0], limit)]
        for few in (0, ENDLESS)
    ]
    assert found[0] == found[1]


@WAYS
@pytest.mark.parametrize("codec", range(len(CODECS)), ids=CODECS)
def test_outputs_leave_compressed(few: int, codec: int) -> None:
    given_inputs = [(NOW, b"key", (), 1, 0)] * 60
    blocks, empty, values = outputs_of(given_inputs)
    batches = assembled(few, frames_of(given_inputs), blocks, empty, [0], ENDLESS, codec)
    assert [record.value for record in read_back(batches)] == list(values.values())
    plain = assembled(few, frames_of(given_inputs), blocks, empty, [0], ENDLESS)
    assert (len(batches[0].batch) < len(plain[0].batch)) is (codec > 0)


@WAYS
def test_where_nothing_leaves_there_is_no_batch(few: int) -> None:
    given_inputs = [(NOW, None, (), "refused", 0)] * 3
    assert assembled(few, frames_of(given_inputs), [], np.array([], np.int64), [0], ENDLESS) == []


@WAYS
@pytest.mark.parametrize("spare", [-1, 0, 40])
def test_batches_are_as_full_as_the_bound_of_a_record_allows(few: int, spare: int) -> None:
    """What a record may take at most is known before the cut; no batch is cut much earlier."""
    given_inputs = [(NOW, b"k", (), 1, 0)] * 50
    blocks, empty, _ = outputs_of(given_inputs)
    frames = frames_of(given_inputs)
    whole = len(assembled(few, frames, blocks, empty, [0], ENDLESS)[0].batch)
    most = HEADER_BYTES + 50 * (WIDTHS[1] + len(b"k") + 2 + 25)
    assert whole < most
    batches = assembled(few, frames, blocks, empty, [0], most + spare)
    assert len(batches) == (2 if spare < 0 else 1)


@pytest.mark.parametrize("size", [1 << 14, 1 << 21])
@WAYS
def test_long_values_are_framed_too(few: int, size: int) -> None:
    frames = frames_of([(NOW, b"k", (), 0, 0), (NOW + 1, None, (), 0, 0)])
    block = Block(np.array([0, 1]), np.full((2, size), 7, np.uint8), None, "default")
    found = read_back(assembled(few, frames, [block], np.array([], np.int64), [0], ENDLESS))
    assert [record.value for record in found] == [bytes([7]) * size] * 2


# Rows


@given(st.lists(st.integers(0, 70_000), max_size=50))
def test_groups_hold_each_index_once_ascending(values: list[int]) -> None:
    array = np.array(values, np.int64)
    everything = np.arange(len(values))
    found = {value: everything[index].tolist() for value, index in groups(array)}
    assert found == {value: [i for i, each in enumerate(values) if each == value] for value in set(values)}


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(0, 3))
def test_bytes_of_any_sizes_are_copied(given_sizes: list[int], room: int) -> None:
    sizes = np.array(given_sizes, np.int64)
    data = np.arange(250, dtype=np.uint8)
    begins = np.arange(len(sizes)) * 10
    ends = np.cumsum(sizes + room)
    target = np.full(int(ends[-1]) + 1, 255, np.uint8)
    copy(target, ends - sizes, data, begins, sizes)
    expected = b"".join(b"\xff" * room + data[10 * i : 10 * i + size].tobytes() for i, size in enumerate(given_sizes))
    assert target.tobytes() == expected + b"\xff"


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6)), min_size=1, max_size=20))
def test_prefixes_never_touch_what_lies_behind_the_end(parts: list[tuple[int, int]]) -> None:
    """Each row's own bytes are there; between them and the end anything may be, and nothing else is touched."""
    sizes = np.array([size for size, _ in parts])
    ends = np.cumsum([size + room for size, room in parts])
    at = ends - [size + room for size, room in parts]
    rows = np.tile(np.arange(1, 6, dtype=np.uint8), (len(parts), 1))
    target = np.zeros(int(ends[-1]) + 1, np.uint8)
    put_prefixes(target, at, rows, sizes, ends)
    for start, size in zip(at.tolist(), sizes.tolist(), strict=True):
        assert target[start : start + size].tolist() == list(range(1, size + 1))
    assert target[-1] == 0
