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
# All layouts together: a thousand and more of everyday messages.
MAX_REMEMBERED: Final = 4 << 20
# What a layout takes beside its bytes.
ENTRY_BYTES: Final = 2048
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
        template: an output without its numbers, shape (bytes,), uint8.
        copies: payload bytes to take over from the message.
        numbers: where in the output the probabilities lie.
    """

    tensor: Tensor
    parts: tuple[Part, ...]
    template: Bytes
    copies: tuple[Copy, ...]
    numbers: slice

    @property
    def output_length(self) -> int:
        """Bytes of an output."""
        return len(self.template) + int(self.numbers.stop - self.numbers.start)

    @property
    def size(self) -> int:
        """Bytes that the layout takes, about."""
        return ENTRY_BYTES + len(self.template) + 2 * sum(len(part.mask) for part in self.parts)

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
        # Copies, lest a layout keep the whole message that it was learnt from.
        Part(span, content[span].copy(), mask[span].copy())
        for span in (slice(0, tensor.start), slice(tensor.stop, len(data)))
        if mask[span].any()
    )
    width = tensor.rows * tensor.classes * tensor.target.stride
    template = np.frombuffer(apply_edits(data, message.edits, b""), np.uint8)
    copies: list[Copy] = []
    numbers = slice(0, 0)
    done = at = 0
    for edit in message.edits:
        copies += _copy(mask, done, edit.start, at)
        at += edit.start - done
        if edit.replacement is None:
            numbers = slice(at, at + width)
        at += width if edit.replacement is None else len(edit.replacement)
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
    payloads: list[tuple[int, int, int]] = []
    _, count, value = header
    for _ in range(count):
        key = value
        value = walker.skip(key, 1)
        end = walker.skip(value, 1)
        # The tensor's numbers are no part of the structure; what decides how to read it is, wholly.
        if not key < tensor.start <= end and text(data, key, value) not in _DECISIVE_FIELDS:
            walker.skip(value, 1, payloads=payloads)
        value = end
    for tag, start, stop in payloads:
        mask[start:stop] = 0
        mask[tag] = _tag_mask(data[tag])
    return mask


def _tag_mask(tag: int) -> int:
    """Fixints have their value in the tag's low bits."""
    if tag <= 0x7F:
        return 0x80
    return 0xE0 if tag >= 0xE0 else 0xFF


class Layouts:
    """The layouts met lately, by message length: the least recently used are forgotten first."""

    def __init__(self, max_bytes: int = MAX_REMEMBERED, per_length: int = 8) -> None:
        """Keep `max_bytes` in all, `per_length` layouts of messages of one length."""
        self._max_bytes = max_bytes
        self._per_length = per_length
        self._by_length: OrderedDict[int, list[Layout]] = OrderedDict()
        self._bytes = 0

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
        before = _size(known)
        known[:] = [layout, *(other for other in known if other is not layout)][: self._per_length]
        self._bytes += _size(known) - before
        self._by_length.move_to_end(length)
        while self._bytes > self._max_bytes:
            _, forgotten = self._by_length.popitem(last=False)
            self._bytes -= _size(forgotten)


def _size(layouts: list[Layout]) -> int:
    return sum(layout.size for layout in layouts)
