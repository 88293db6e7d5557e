"""Kafka's integers of variable length: zigzag, seven bits a byte, the low ones first; single and by columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Integers = NDArray[np.int64]

LONGEST: Final = 10
# The commonest ones, encoded.
_SHORT: Final = tuple(bytes([2 * value]) for value in range(64))
# A zigzag number below _EDGES[i] takes at most i + 1 bytes.
_EDGES: Final = np.array([1 << 7 * size for size in range(1, LONGEST)], np.uint64)
_BITS: Final = 64


def encode(value: int) -> bytes:
    """One integer of at most 64 bits."""
    if 0 <= value < len(_SHORT):
        return _SHORT[value]
    rest = (value << 1) ^ (value >> 63)
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def decode(data: Sequence[int], at: int) -> tuple[int, int]:
    """The integer that begins at `at`, and where the next thing begins.

    Raises:
        IndexError: it reaches beyond the data, or is longer than any.
    """
    byte = data[at]
    at += 1
    if byte < 0x80:  # mostly
        return (byte >> 1) ^ -(byte & 1), at
    value, shift = byte & 0x7F, 7
    while shift < _BITS:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            value &= (1 << _BITS) - 1
            return (value >> 1) ^ -(value & 1), at
        shift += 7
    raise IndexError(shift)


def read(data: Bytes, at: Integers) -> tuple[Integers, Integers]:
    """The integers that begin at each of `at`, and where they end; both of its shape.

    Raises:
        IndexError: one reaches beyond the data, or is longer than any.
    """
    byte = data[at]
    value = (byte & 0x7F).astype(np.uint64)
    following = at + 1
    longer = np.flatnonzero(byte & 0x80)
    shift = 7
    while len(longer):
        if shift > _BITS:
            raise IndexError(shift)
        byte = data[following[longer]]
        value[longer] |= (byte & 0x7F).astype(np.uint64) << np.uint64(shift)
        following[longer] += 1
        longer = longer[byte > 0x7F]
        shift += 7
    return (value >> np.uint64(1)).view(np.int64) ^ -(value & np.uint64(1)).view(np.int64), following


def sizes(values: Integers) -> Integers:
    """How many bytes each integer takes."""
    size: Any = np.searchsorted(_EDGES, _zigzag(values), side="right") + 1
    return np.asarray(size, np.int64)


def rows(values: Integers, size: Integers) -> Bytes:
    """Each integer in a row, shape (values, longest); only its first `size` bytes are its own."""
    rest, longest = _zigzag(values), int(size.max())
    out = np.empty((len(values), longest), np.uint8)
    for place in range(longest):
        out[:, place] = rest & np.uint64(0x7F)
        if place + 1 < longest:
            out[:, place] |= (size > place + 1).astype(np.uint8) << 7
            rest >>= np.uint64(7)
    return out


def wrapped(value: int) -> int:
    """The integer of 64 bits that is left of a sum, as Kafka's own arithmetic has it."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _zigzag(values: Integers) -> NDArray[np.uint64]:
    return ((values << 1) ^ (values >> 63)).view(np.uint64)
