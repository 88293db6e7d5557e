"""Tensors as binary data: a bin with fields beside it, or a map that holds a bin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgpack

from service.transform.dtypes import parse_dtype, respell
from service.transform.refusals import InvalidMessage, Reason
from service.transform.spans import (
    BINS,
    INTEGERS,
    Entry,
    bin_header,
    container,
    entries,
    is_run,
    map_header,
    sized_payload,
    str_object,
    text,
    text_or_bin,
)
from service.transform.tensors import MAX_RANK, Binary, Frame, Grid, Tensor

if TYPE_CHECKING:
    import numpy as np

    from service.transform.dtypes import Elements

# The keys of each kind of tensor map: flag, dtype, further ones.
NUMPY_FLAG: Final = b"nd"
NDARRAY_FLAG: Final = b"__ndarray__"
_DTYPE_KEY: Final = {NUMPY_FLAG: b"type", NDARRAY_FLAG: b"dtype"}
_KEYS: Final = {
    NUMPY_FLAG: frozenset({NUMPY_FLAG, b"type", b"kind", b"shape", b"data"}),
    NDARRAY_FLAG: frozenset({NDARRAY_FLAG, b"dtype", b"shape", b"data"}),
}
_TRUE: Final = b"\xc3"


@dataclass(frozen=True, slots=True)
class Spelling:
    """A dtype as a message spells it.

    Attributes:
        start: where the object begins.
        end: where it ends.
        word: the spelling itself.
        is_bin: whether the object is a bin, not a str.
        elements: what it means.
    """

    start: int
    end: int
    word: bytes
    is_bin: bool
    elements: Elements

    def respelled(self, dtype: np.dtype[Any]) -> bytes | None:
        """The object that names `dtype` in the same manner; `None` where it need not change."""
        word = respell(dtype, self.word)
        if word == self.word:
            return None
        return bin_header(len(word)) + word if self.is_bin else str_object(word)


@dataclass(frozen=True, slots=True)
class TensorMap:
    """A map that holds a bin and tells its dtype and shape; all but those is echoed."""

    message: bytes
    entries: tuple[Entry, ...]
    data: Entry
    spelling: Spelling
    shape: tuple[int, ...]

    def frame(self, dtype: np.dtype[Any]) -> Frame:
        """Lay out the map with its bin blank."""
        blank, grid = Binary(self.shape).frame(dtype)
        respelled = self.spelling.respelled(dtype)
        parts = [map_header(len(self.entries))]
        before = 0
        for entry in self.entries:
            parts.append(self.message[entry.key : entry.value])
            if entry is self.data:
                before = sum(map(len, parts))
                parts.append(blank)
            elif entry.value == self.spelling.start and respelled is not None:
                parts.append(respelled)
            else:
                parts.append(self.message[entry.value : entry.end])
        return Frame(b"".join(parts), grid.moved(before))


def read_bin(data: bytes, value: int, end: int, dtype: Entry | None, shape: Entry | None) -> tuple[Tensor, Spelling]:
    """Understand the bin that fills `value:end`, with the fields that tell its dtype and shape.

    Raises:
        InvalidMessage: `unsupported_dtype`, `shape_mismatch`.
    """
    if dtype is None:
        raise InvalidMessage(Reason.UNSUPPORTED_DTYPE, "logits is a bin and there is no field dtype", value)
    spelling = _spelling(data, dtype, text(data, dtype.value, dtype.end))
    if shape is None:
        raise InvalidMessage(Reason.SHAPE_MISMATCH, "logits is a bin and there is no field shape", value)
    grid = _grid(data, value, end, spelling.elements, _shape(data, shape))
    return Tensor.regular(value, grid, Binary(grid.shape)), spelling


def flag_of(data: bytes, at: int) -> bytes | None:
    """The key that makes the map at `at` a tensor, or `None` where none does."""
    if NUMPY_FLAG not in data:  # neither is the other, which contains it
        return None
    for key, value, _ in entries(data, at):
        name = text_or_bin(data, key, value)
        if name in _KEYS:
            return name
    return None


def read_tensor_map(data: bytes, at: int, flag: bytes) -> Tensor:
    """Understand the map at `at`, in which a key `flag` was met.

    Raises:
        InvalidMessage: `duplicate_field`, `unsupported_encoding`, `unsupported_dtype`,
            `shape_mismatch`.
    """
    found: dict[bytes, Entry] = {}
    unknown: Entry | None = None
    for entry in entries(data, at):
        name = text_or_bin(data, entry.key, entry.value)
        if name is None or name not in _KEYS[flag]:
            unknown = unknown or entry
        elif (first := found.setdefault(name, entry)) is not entry:
            raise InvalidMessage(
                Reason.DUPLICATE_FIELD,
                f"the tensor map's key {name.decode()} stands at bytes {first.key} and {entry.key}",
                entry.key,
            )
    if unknown:
        raise InvalidMessage(
            Reason.UNSUPPORTED_ENCODING,
            f"the tensor map's key at byte {unknown.key} is none of {_listed(_KEYS[flag])}",
            unknown.key,
        )
    mark = found[flag]
    if data[mark.value : mark.end] != _TRUE:
        raise InvalidMessage(
            Reason.UNSUPPORTED_ENCODING,
            f"the tensor map's {flag.decode()} at byte {mark.value} is not true",
            mark.value,
        )
    if b"data" not in found or data[found[b"data"].value] not in BINS:
        raise InvalidMessage(Reason.UNSUPPORTED_ENCODING, f"the tensor map at byte {at} has no data that is a bin", at)
    spelling = _map_dtype(data, at, found, _DTYPE_KEY[flag])
    if b"shape" not in found:
        raise InvalidMessage(Reason.SHAPE_MISMATCH, f"the tensor map at byte {at} has no shape", at)
    bin_entry = found[b"data"]
    grid = _grid(data, bin_entry.value, bin_entry.end, spelling.elements, _shape(data, found[b"shape"]))
    return Tensor.regular(at, grid, TensorMap(data, tuple(found.values()), bin_entry, spelling, grid.shape))


def _map_dtype(data: bytes, at: int, found: dict[bytes, Entry], key: bytes) -> Spelling:
    kind = found.get(b"kind")
    # msgpack-numpy marks structured and object arrays by it: the latter are pickles, which are never loaded.
    if kind and text_or_bin(data, kind.value, kind.end) != b"":
        raise InvalidMessage(Reason.UNSUPPORTED_DTYPE, f"kind at byte {kind.value} is not empty", kind.value)
    entry = found.get(key)
    if entry is None:
        raise InvalidMessage(Reason.UNSUPPORTED_DTYPE, f"the tensor map at byte {at} has no {key.decode()}", at)
    return _spelling(data, entry, text_or_bin(data, entry.value, entry.end))


def _spelling(data: bytes, entry: Entry, word: bytes | None) -> Spelling:
    elements = None if word is None else parse_dtype(word)
    if word is None or elements is None:
        raise InvalidMessage(
            Reason.UNSUPPORTED_DTYPE, f"dtype at byte {entry.value} is none of the supported spellings", entry.value
        )
    return Spelling(entry.value, entry.end, word, data[entry.value] in BINS, elements)


def _shape(data: bytes, entry: Entry) -> tuple[int, ...]:
    _, value, end = entry
    header = container(data, value)
    if header is None or header[0] != "array" or not 1 <= header[1] <= MAX_RANK:
        raise InvalidMessage(
            Reason.SHAPE_MISMATCH, f"shape at byte {value} is no array of 1 to {MAX_RANK} sizes", value
        )
    sizes = msgpack.unpackb(data[value:end]) if is_run(INTEGERS, data, header[2], end) else [-1]
    if min(sizes) < 0:
        raise InvalidMessage(Reason.SHAPE_MISMATCH, f"shape at byte {value} holds something else than sizes", value)
    return tuple(sizes)


def _grid(data: bytes, value: int, end: int, elements: Elements, shape: tuple[int, ...]) -> Grid:
    start, _ = sized_payload(data, value)
    if math.prod(shape) * elements.stride != end - start:
        told = " x ".join(map(str, shape))
        raise InvalidMessage(
            Reason.SHAPE_MISMATCH,
            f"{end - start} bytes are not the {told} numbers of {elements.stride} bytes that are told",
            value,
        )
    return Grid.packed(elements, start, shape)


def _listed(names: frozenset[bytes]) -> str:
    return ", ".join(sorted(name.decode() for name in names))
