"""Messages of one shape: which bytes they share, where they differ, what their output looks like.

The structural bytes of a message (keys, tags, lengths, `dtype`, `shape`, `model`) decide how it is
read and answered. Payload bytes (the numbers, the value of `id`, any text of a given length) do
not. So once one message is understood, every message that equals it in the structural bytes is
understood too, and its output differs from the first one's in the payload alone.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from service.transform.general import Message, Tensor, apply_edits
from service.transform.spans import Walker, container, text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

# Beyond this the compare costs more than it saves, and learning would be slow.
MAX_STRUCTURE: Final = 4096
_DECISIVE_FIELDS: Final = frozenset({b"model", b"dtype", b"shape"})


@dataclass(frozen=True, slots=True)
class Part:
    """Structural bytes on one side of the tensor.

    Attributes:
        span: where in the message.
        pattern: their values, shape (bytes,), uint8.
        mask: 1 bits where the pattern must be met.
    """

    span: slice
    pattern: Bytes
    mask: Bytes

    def met_by(self, records: Bytes) -> NDArray[np.bool_]:
        """Whether each row of shape (records, length) has these bytes."""
        different = (records[:, self.span] ^ self.pattern) & self.mask
        met: NDArray[np.bool_] = np.bitwise_or.reduce(different, axis=1) == 0
        return met


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes that pass through: `source` of the message, `target` of the output."""

    source: slice
    target: slice


@dataclass(frozen=True, slots=True)
class Layout:
    """One shape of message.

    Attributes:
        tensor: where the numbers lie, the same for all.
        parts: the structural bytes before and after it.
        template: an output, shape (bytes,), uint8, with all bytes in place that do not vary.
        copies: payload bytes to take over from the message.
        numbers: where in the output the probabilities lie.
    """

    tensor: Tensor
    parts: tuple[Part, ...]
    template: Bytes
    copies: tuple[Copy, ...]
    numbers: slice

    def met_by(self, records: Bytes) -> NDArray[np.bool_]:
        """Which rows of shape (records, length) are messages of this layout."""
        met = np.ones(len(records), np.bool_)
        for part in self.parts:
            met &= part.met_by(records)
        source = self.tensor.source
        if source is not None and source.tag is not None:
            met &= source.tags_match(records[:, self.tensor.start : self.tensor.stop])
        return met


def learn(data: bytes, message: Message) -> Layout | None:
    """The layout of a message that `general.parse` has understood, or `None` where it has none.

    A list that mixes encodings has none: its numbers need not lie where another's do.
    """
    tensor = message.tensor
    if tensor.source is None or len(data) - (tensor.stop - tensor.start) > MAX_STRUCTURE:
        return None
    mask = _structural(data, tensor)
    content = np.frombuffer(data, np.uint8)
    parts = tuple(
        Part(span, content[span], mask[span])
        for span in (slice(0, tensor.start), slice(tensor.stop, len(data)))
        if mask[span].any()
    )
    blank = tensor.target.blank(tensor.rows * tensor.classes)
    template = np.frombuffer(apply_edits(data, message.edits, blank), np.uint8)
    copies: list[Copy] = []
    numbers = slice(0, 0)
    done = at = 0
    for edit in message.edits:
        copies += _copy(mask, done, edit.start, at)
        at += edit.start - done
        width = len(blank) if edit.replacement is None else len(edit.replacement)
        if edit.replacement is None:
            numbers = slice(at, at + width)
        at += width
        done = edit.stop
    copies += _copy(mask, done, len(data), at)
    return Layout(tensor, parts, template, tuple(copies), numbers)


def _copy(mask: Bytes, start: int, stop: int, at: int) -> Iterable[Copy]:
    """The bytes between the first and the last in `start:stop` that may vary."""
    varying = np.flatnonzero(mask[start:stop] != 0xFF)
    if len(varying):
        first, last = int(varying[0]), int(varying[-1]) + 1
        yield Copy(slice(start + first, start + last), slice(at + first, at + last))


def _structural(data: bytes, tensor: Tensor) -> Bytes:
    """A mask over the message, 1 bits where it decides how the message is read."""
    mask = np.full(len(data), 0xFF, np.uint8)
    header = container(data, 0)
    if header is None or header[0] == "array":
        return mask
    walker = Walker(data)
    payloads: list[tuple[int, int]] = []
    _, count, value = header
    for _ in range(count):
        key = value
        value = walker.skip(key, 1)
        end = walker.skip(value, 1)
        # The tensor's numbers are no part of the structure; what decides how to read it is, wholly.
        if not key < tensor.start <= end and text(data, key, value) not in _DECISIVE_FIELDS:
            walker.skip(value, 1, payloads=payloads)
        value = end
    for start, stop in payloads:
        mask[start:stop] = 0
        if start == stop:  # the value is in the tag itself
            mask[start - 1] = _fixint_mask(data[start - 1])
    return mask


def _fixint_mask(tag: int) -> int:
    if tag <= 0x7F:
        return 0x80
    return 0xE0 if tag >= 0xE0 else 0xFF


class Layouts:
    """The layouts met lately, by message length: least recently used ones are forgotten."""

    def __init__(self, capacity: int = 1024, per_length: int = 8) -> None:
        """Keep layouts of `capacity` lengths, `per_length` of each."""
        self._capacity = capacity
        self._per_length = per_length
        self._by_length: OrderedDict[int, list[Layout]] = OrderedDict()

    def of_length(self, length: int) -> list[Layout]:
        """The layouts of messages of `length` bytes, most recently used first."""
        known = self._by_length.get(length)
        if known is None:
            return []
        self._by_length.move_to_end(length)
        return list(known)

    def use(self, length: int, layout: Layout) -> None:
        """Note that messages of `length` bytes have met `layout`."""
        known = self._by_length.setdefault(length, [])
        if known and known[0] is layout:
            return
        known[:] = [layout, *(other for other in known if other is not layout)][: self._per_length]
        self._by_length.move_to_end(length)
        if len(self._by_length) > self._capacity:
            self._by_length.popitem(last=False)
