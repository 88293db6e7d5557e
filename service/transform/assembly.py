"""From outputs to record batches: the framing of many records at once, cut where topics want it.

An output record has its input's key, timestamp and headers, byte for byte, around another value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from service.transform import byte_rows, varints
from service.transform.record_batch import HEADER_BYTES, FinishedBatch
from service.transform.varints import encode, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from service.transform.frames import Frames
    from service.transform.record_batch import Buffer

    Bytes = NDArray[np.uint8]
    Integers = NDArray[np.int64]

# Bytes of framing at most, whatever a batch begins with: the lengths of record and value, both deltas.
_FRAMING: Final = 5 + 5 + varints.LONGEST + 5
# So many records are framed one by one (3 us each) rather than by columns (140 us, and 0.1 each).
FEW: Final = 48
# Keys of about one length are copied with what follows them, which is written over later.
_SIMILAR_KEYS: Final = 32


@dataclass(frozen=True, slots=True)
class Block:
    """Output values of one kind.

    Attributes:
        positions: of their records, ascending, shape (values,).
        content: shape (values, width), uint8.
        lengths: shape (values,), how many bytes of each row are the value's; `None` where all are.
        model: the name of the profile that applied.
    """

    positions: Integers
    content: Bytes
    lengths: Integers | None
    model: str

    def some(self, which: slice) -> Block:
        """Some of the values."""
        lengths = None if self.lengths is None else self.lengths[which]
        return Block(self.positions[which], self.content[which], lengths, self.model)

    def values(self) -> list[bytes]:
        """The values as single objects."""
        blob, width = self.content.tobytes(), self.content.shape[1]
        begins = range(0, len(blob), width)
        if self.lengths is None:
            return [blob[begin : begin + width] for begin in begins]
        return [blob[b : b + length] for b, length in zip(begins, self.lengths.tolist(), strict=True)]


@dataclass(frozen=True, slots=True)
class Assembled:
    """A record batch and where its records come from.

    Attributes:
        first: position of its first record's input.
        last: position of its last one's.
        batch: the record batch.
    """

    first: int
    last: int
    batch: FinishedBatch


def assemble(
    frames: Frames, blocks: Sequence[Block], empty: Integers, begins: Sequence[int], limit: int, codec: int = 0
) -> Iterator[Assembled]:
    """Make record batches of output values.

    Args:
        frames: the inputs.
        blocks: the values, each input at most in one.
        empty: positions of inputs whose output has no value.
        begins: positions at which another batch must begin, ascending, 0 among them.
        limit: bytes of a batch before compression; a record that exceeds it has a batch of its own.
        codec: index of one of `record_batch.CODECS`.

    Yields:
        Batches in the order of the inputs.
    """
    if len(frames) <= FEW:
        yield from _singly(frames, blocks, empty, begins, limit, codec)
        return
    lengths = np.full(len(frames), -2, np.int64)
    lengths[empty] = -1
    for block in blocks:
        lengths[block.positions] = block.content.shape[1] if block.lengths is None else block.lengths
    kept = np.flatnonzero(lengths > -2)
    if not len(kept):
        return
    lengths = lengths[kept]
    firsts = _cut(frames, kept, lengths, np.searchsorted(kept, begins), limit)
    room, stops = _write(frames, blocks, kept, lengths, firsts)
    timestamps = frames.timestamps[kept]
    ends = [*firsts[1:].tolist(), len(kept)]
    start = 0
    for first, end in zip(firsts.tolist(), ends, strict=True):
        stop = int(stops[end - 1])
        times = int(timestamps[first]), int(timestamps[first:end].max())
        batch = FinishedBatch(room[start:stop], end - first, *times, codec)
        yield Assembled(int(kept[first]), int(kept[end - 1]), batch)
        start = stop


def _singly(
    frames: Frames, blocks: Sequence[Block], empty: Integers, begins: Sequence[int], limit: int, codec: int
) -> Iterator[Assembled]:
    """The same record by record, which numpy is too slow to begin with for a few."""
    values: dict[int, bytes | None] = dict.fromkeys(empty.tolist())
    for block in blocks:
        values.update(zip(block.positions.tolist(), block.values(), strict=True))
    data = frames.data.data
    open_batch: _OpenBatch | None = None
    for position, (stamp, keys, tag, headers, end) in enumerate(
        zip(
            frames.timestamps.tolist(),
            frames.keys.tolist(),
            frames.value_tags.tolist(),
            frames.headers.tolist(),
            frames.ends.tolist(),
            strict=True,
        )
    ):
        if position in begins and open_batch:
            yield open_batch.finish(codec)
            open_batch = None
        if position not in values:
            continue
        value = values[position]
        parts = data[keys:tag], encode(-1 if value is None else len(value)), value or b"", data[headers:end]
        size = tag - keys + len(parts[2]) + end - headers + _FRAMING
        if open_batch and open_batch.reach + size > limit:
            yield open_batch.finish(codec)
            open_batch = None
        open_batch = open_batch or _OpenBatch(position, stamp)
        open_batch.add(position, stamp, parts, size)
    if open_batch:
        yield open_batch.finish(codec)


class _OpenBatch:
    """A batch to which records are added."""

    def __init__(self, first: int, base_timestamp: int) -> None:
        self.reach = HEADER_BYTES
        self._content = bytearray(HEADER_BYTES)
        self._first = self._last = first
        self._base = self._highest = base_timestamp
        self._count = 0

    def add(self, position: int, timestamp: int, parts: Sequence[Buffer], size: int) -> None:
        """Add a record that consists of `parts` from its key on and takes at most `size` bytes."""
        body = b"".join([b"\0", encode(wrapped(timestamp - self._base)), encode(self._count), *parts])
        self._content += encode(len(body))
        self._content += body
        self._last = position
        self._highest = max(self._highest, timestamp)
        self._count += 1
        self.reach += size

    def finish(self, codec: int) -> Assembled:
        batch = FinishedBatch(memoryview(self._content), self._count, self._base, self._highest, codec)
        return Assembled(self._first, self._last, batch)


def _cut(frames: Frames, kept: Integers, lengths: Integers, begins: Integers, limit: int) -> Integers:
    """The indices among `kept` at which batches begin: at `begins`, and wherever one could exceed `limit`."""
    around = frames.value_tags - frames.keys + frames.ends - frames.headers
    reach = np.cumsum(around[kept] + np.maximum(lengths, 0) + _FRAMING)
    firsts: list[int] = []
    for first, end in zip(begins, [*begins[1:], len(kept)], strict=True):
        while first < end:
            firsts.append(int(first))
            before = int(reach[first - 1]) if first else 0
            fitting = int(np.searchsorted(reach, before + limit - HEADER_BYTES, side="right"))
            first = min(max(fitting, first + 1), end)  # noqa: PLW2901 - the loop is over parts, this walks through one
    return np.array(firsts, np.int64)


def _write(
    frames: Frames, blocks: Sequence[Block], kept: Integers, lengths: Integers, firsts: Integers
) -> tuple[memoryview, Integers]:
    """Write all records, with room for a header before those that begin a batch; tell where each ends.

    Field by field from left to right, each for all records: what a row has too much is written over by the next.
    """
    count = len(kept)
    members = np.diff(firsts, append=count)
    stamps = frames.timestamps[kept]
    stamps = stamps - np.repeat(stamps[firsts], members)
    deltas = np.arange(count) - np.repeat(firsts, members)
    keys, headers = frames.keys[kept], frames.headers[kept]
    key_sizes, header_sizes = frames.value_tags[kept] - keys, frames.ends[kept] - headers
    value_sizes = np.maximum(lengths, 0)
    stamp_sizes, delta_sizes, tag_sizes = varints.sizes(stamps), varints.sizes(deltas), varints.sizes(lengths)
    inner = 1 + stamp_sizes + delta_sizes + key_sizes + tag_sizes + value_sizes + header_sizes
    length_sizes = varints.sizes(inner)
    whole = length_sizes + inner
    whole[firsts] += HEADER_BYTES
    ends = np.cumsum(whole)
    room = np.empty(int(ends[-1]), np.uint8)

    def put_numbers(at: Integers, values: Integers, sizes: Integers) -> Integers:
        byte_rows.put_prefixes(room, at, varints.rows(values, sizes), sizes, ends)
        return at + sizes

    at = put_numbers(ends - inner - length_sizes, inner, length_sizes)
    room[at] = 0  # attributes
    at = put_numbers(at + 1, stamps, stamp_sizes)
    at = put_numbers(at, deltas, delta_sizes)
    _copy_keys(frames, keys, key_sizes, room, at, ends)
    at = put_numbers(at + key_sizes, lengths, tag_sizes)
    _put_values(blocks, kept, at, room)
    byte_rows.copy(room, at + value_sizes, frames.data, headers, header_sizes)
    return room.data, ends


def _copy_keys(frames: Frames, keys: Integers, sizes: Integers, room: Bytes, at: Integers, ends: Integers) -> None:
    longest = int(sizes.max())
    if longest <= _SIMILAR_KEYS and int(keys.max()) + longest <= len(frames.data):
        byte_rows.put_prefixes(room, at, byte_rows.take(frames.data, keys, longest), sizes, ends)
    else:
        byte_rows.copy(room, at, frames.data, keys, sizes)


def _put_values(blocks: Sequence[Block], kept: Integers, at: Integers, room: Bytes) -> None:
    for block in blocks:
        places = at[np.searchsorted(kept, block.positions)]
        if block.lengths is None:
            byte_rows.put(room, places, block.content)
            continue
        for length, group in byte_rows.groups(block.lengths):
            byte_rows.put(room, places[group], block.content[group, :length])
