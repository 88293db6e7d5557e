"""Messages of one kind: which bytes they share, where they differ, what their output looks like.

The structural bytes of a message (keys, tags, lengths, `dtype`, `shape`, `model`, names of heads)
decide how it is read and answered. Payload bytes (the numbers, the value of `id`, any text of a
given length) do not. So once one message is understood, every message that equals it in the
structural bytes is understood too, and its output differs from the first one's in payload alone.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from service.transform.answer import answer
from service.transform.message import DTYPE, MODEL, SHAPE
from service.transform.spans import entries, scalars, text

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from numpy.typing import NDArray

    from service.transform.answer import Answer
    from service.transform.message import Message
    from service.transform.tensors import Grid

    Bytes = NDArray[np.uint8]

# Beyond so many bytes around the tensor, learning would be slow.
MAX_STRUCTURE: Final = 4096
# All layouts together: a thousand and more of everyday messages.
MAX_REMEMBERED: Final = 4 << 20
# Kinds of messages that came alone, so that they are known when they come again.
MAX_SIGHTINGS: Final = 4096
# What a layout takes beside its bytes, and for each of its tensors.
ENTRY_BYTES: Final = 2048
PART_BYTES: Final = 1024
# Bytes over which numpy's cost of a row, 20 ns, does not matter (0.04 -> 0.01 us a record of 70 bytes).
WIDE_ROW: Final = 4096
# Messages that are compared as a whole, in rows without gaps between them.
SHORT_MESSAGE: Final = 2048
# Free bytes that are worth a separate look at what stands before and after them.
GAP: Final = 64


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes of the message among which there are structural ones.

    Attributes:
        span: where in the message.
        pattern: their values, 0 where they are free, shape (bytes,), uint8.
        mask: 1 bits where the pattern must be met.
    """

    span: slice
    pattern: Bytes
    mask: Bytes

    def met_by_all(self, records: Bytes) -> bool:
        """Whether all rows of shape (records, length) have these bytes.

        They do if the bits common to all and the bits of any are those of the pattern: two passes
        that read only, a third of the cost of comparing each row under the mask.
        """
        content = records[:, self.span]
        if len(content) == 1:
            return not ((content[0] ^ self.pattern) & self.mask).any()
        different = _over_rows(np.bitwise_and, content) ^ self.pattern
        different |= _over_rows(np.bitwise_or, content) ^ self.pattern
        different &= self.mask
        return not different.any()

    def met_by(self, records: Bytes) -> NDArray[np.bool_]:
        """Which rows of shape (records, length) have these bytes."""
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
    """One kind of message.

    Attributes:
        model: the name of the profile that applies.
        answer: how its messages are answered.
        stretches: the structural bytes.
        self_tagged: numbers that must be looked at, since each is its own tag.
        template: an output with blank numbers, before the appended fields, shape (bytes,), uint8.
        copies: payload bytes to take over from the message.
    """

    model: str
    answer: Answer
    stretches: tuple[Stretch, ...]
    self_tagged: tuple[Grid, ...]
    template: Bytes
    copies: tuple[Copy, ...]

    @property
    def size(self) -> int:
        """Bytes that the layout takes, about."""
        patterns = sum(len(stretch.mask) for stretch in self.stretches)
        logarithms = sum(len(part.logarithms.template) for part in self.answer.parts if part.logarithms)
        return ENTRY_BYTES + PART_BYTES * len(self.answer.parts) + len(self.template) + logarithms + 2 * patterns

    def met_by_all(self, records: Bytes) -> bool:
        """Whether all rows of shape (records, length) are messages of this layout."""
        return all(stretch.met_by_all(records) for stretch in self.stretches) and all(
            grid.elements.tags_right(grid.tags(records)).all() for grid in self.self_tagged
        )

    def met_by(self, records: Bytes) -> NDArray[np.bool_]:
        """Which rows of shape (records, length) are messages of this layout."""
        met = np.ones(len(records), np.bool_)
        for stretch in self.stretches:
            met &= stretch.met_by(records)
        for grid in self.self_tagged:
            met &= grid.elements.tags_right(grid.tags(records)).reshape(len(records), -1).all(axis=1)
        return met


def learn(message: Message) -> Layout | None:
    """The layout of a message, or `None` where it has none.

    Numbers without regular places need not lie where another message's do; and what an unknown
    model's messages are refused for is told one by one.
    """
    data, outer = message.data, message.outer
    around = 0 if outer is None else len(data) - (outer.logits.end - outer.logits.value)
    sources = [head.tensor.source for head in message.heads]
    grids = [source for source in sources if source is not None]
    if len(grids) < len(sources) or around > MAX_STRUCTURE or message.selected.refused:
        return None
    mask = np.full((1, len(data)), 0xFF, np.uint8)
    for grid in grids:
        grid.number_bytes(mask)[...] = 0
    mask = mask[0]
    if outer is not None:
        _free_payloads(message, mask)
    laid_out = answer(message)
    copies: list[Copy] = []
    done = at = 0
    for edit in laid_out.edits:
        copies += _copy(mask, done, edit.start, at)
        at += edit.start - done + len(edit.replacement)
        done = edit.stop
    copies += _copy(mask, done, len(data), at)
    return Layout(
        model=message.selected.name,
        answer=replace(laid_out, edits=()),  # the template has them
        stretches=tuple(_stretches(np.frombuffer(data, np.uint8), mask)),
        self_tagged=tuple(grid for grid in grids if grid.elements.fixint),
        template=np.frombuffer(laid_out.template(data), np.uint8),
        copies=tuple(copies),
    )


def _stretches(content: Bytes, mask: Bytes) -> Iterable[Stretch]:
    """Cut the structural bytes where many free ones separate them, unless the message is short."""
    if len(mask) <= SHORT_MESSAGE:
        yield Stretch(slice(0, len(mask)), content & mask, mask.copy())
        return
    structural = np.flatnonzero(mask)
    cuts = np.flatnonzero(np.diff(structural) > GAP)
    for first, last in zip(np.r_[0, cuts + 1], np.r_[cuts, len(structural) - 1], strict=True):
        span = slice(int(structural[first]), int(structural[last]) + 1)
        yield Stretch(span, content[span] & mask[span], mask[span].copy())


def _copy(mask: Bytes, start: int, stop: int, at: int) -> Iterable[Copy]:
    """The bytes between the first and the last in `start:stop` that may vary."""
    varying = np.flatnonzero(mask[start:stop] != 0xFF)
    if len(varying):
        first, last = int(varying[0]), int(varying[-1]) + 1
        yield Copy(slice(start + first, start + last), slice(at + first, at + last))


def _over_rows(operation: np.ufunc, content: Bytes) -> Bytes:
    """Reduce shape (rows, bytes) to (bytes,); short rows side by side, lest numpy's cost per row prevail."""
    rows, width = content.shape
    abreast = min(WIDE_ROW // width, rows)
    if abreast > 1 and content.flags.c_contiguous:
        even = rows // abreast * abreast
        wide = operation.reduce(content[:even].reshape(-1, abreast * width), axis=0)
        content = np.concatenate([wide.reshape(abreast, width), content[even:]])
    reduced: Bytes = operation.reduce(content, axis=0)
    return reduced


def _free_payloads(message: Message, mask: Bytes) -> None:
    """Clear the mask where fields beside the tensor hold what does not decide how the message is read."""
    data, outer = message.data, message.outer
    if outer is None:
        raise AssertionError(message)
    decisive = {MODEL, DTYPE, SHAPE} if outer.binary else {MODEL}
    for entry in entries(data):
        if entry == outer.logits or text(data, entry.key, entry.value) in decisive:
            continue
        for tag, start, stop in scalars(data, entry.value, entry.end):
            mask[start:stop] = 0
            mask[tag] = _tag_mask(data[tag])


def _tag_mask(tag: int) -> int:
    """Fixints have their value in the tag's low bits."""
    if tag <= 0x7F:
        return 0x80
    return 0xE0 if tag >= 0xE0 else 0xFF


class Layouts:
    """The layouts met lately, the least recently used forgotten first.

    They are kept by what is known of a message before it is looked at: its length, and the model
    that its header names.
    """

    def __init__(self, max_bytes: int = MAX_REMEMBERED, per_key: int = 8) -> None:
        """Keep `max_bytes` in all, `per_key` layouts of messages with one key."""
        self._max_bytes = max_bytes
        self._per_key = per_key
        self._by_key: OrderedDict[Hashable, list[Layout]] = OrderedDict()
        self._sightings: OrderedDict[Hashable, int] = OrderedDict()
        self._bytes = 0

    def of(self, key: Hashable) -> list[Layout]:
        """The layouts of messages with `key`, most recently used first."""
        known = self._by_key.get(key)
        if known is None:
            return []
        self._by_key.move_to_end(key)
        return list(known)

    def second_sight(self, key: Hashable) -> bool:
        """Whether messages with `key`, none of whose layouts is known, are met for the second time."""
        sightings = self._sightings.pop(key, 0) + 1
        self._sightings[key] = sightings
        if len(self._sightings) > MAX_SIGHTINGS:
            self._sightings.popitem(last=False)
        return sightings == 2

    def use(self, key: Hashable, layout: Layout) -> None:
        """Note that messages with `key` have met `layout`."""
        if layout.size > self._max_bytes // 4:  # it would push out all others
            return
        known = self._by_key.setdefault(key, [])
        if known and known[0] is layout:
            return
        before = _size(known)
        known[:] = [layout, *(other for other in known if other is not layout)][: self._per_key]
        self._bytes += _size(known) - before
        self._by_key.move_to_end(key)
        while self._bytes > self._max_bytes:
            forgotten = self._by_key.popitem(last=False)[1] if len(self._by_key) > 1 else [known.pop()]
            self._bytes -= _size(forgotten)


def _size(layouts: list[Layout]) -> int:
    return sum(layout.size for layout in layouts)
