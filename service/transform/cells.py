"""msgpack objects of many records at once: columns of bytes, some rows of which may be shorter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from service.transform.dtypes import list_answer
from service.transform.spans import array_header

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Cells:
    """One stretch of bytes for each record.

    Attributes:
        content: shape (records, width).
        kept: shape (records, width), which bytes are the record's own; `None` where all are.
    """

    content: Bytes
    kept: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        """Number of records."""
        return len(self.content)

    def packed(self) -> tuple[Bytes, NDArray[np.intp] | None]:
        """The bytes of each record moved to the front of its row, and how many they are (`None`: all)."""
        if self.kept is None:
            return self.content, None
        lengths = np.count_nonzero(self.kept, axis=1)
        front = np.arange(self.content.shape[1]) < lengths[:, None]
        moved = np.zeros_like(self.content)
        moved[front] = self.content[self.kept]
        return moved, lengths


def same(records: int, content: bytes) -> Cells:
    """The same bytes for every record."""
    return Cells(np.broadcast_to(np.frombuffer(content, np.uint8), (records, len(content))))


def floats(values: NDArray[Any], dtype: np.dtype[Any]) -> Cells:
    """Numbers, shape (records, count), each with its tag as `dtype`, float32 or float64."""
    elements = list_answer(dtype)
    content = np.empty((*values.shape, elements.stride), np.uint8)
    content[..., 0] = elements.tag
    content[..., 1:] = np.ascontiguousarray(values, elements.dtype)[..., None].view(np.uint8)
    return Cells(content.reshape(len(values), -1))


def integers(values: NDArray[np.intp]) -> Cells:
    """Integers from 0 to 2**32 - 1, shape (records, count), each in its shortest form."""
    flat = values.reshape(-1)
    if not flat.size or int(flat.max()) < 0x80:
        return Cells(values.astype(np.uint8).reshape(len(values), -1))
    forms = np.searchsorted([0x7F, 0xFF, 0xFFFF], flat)
    payload = flat.astype(">u4")[:, None].view(np.uint8)
    content = np.empty((len(flat), 5), np.uint8)
    content[:, 0] = np.choose(forms, [flat, 0xCC, 0xCD, 0xCE])
    # The payload's last 1, 2 or 4 bytes follow the tag; those of higher places are not kept.
    content[:, 1:] = payload
    size = np.array([0, 1, 2, 4])[forms]
    kept = np.arange(4) >= 4 - size[:, None]
    kept = np.concatenate([np.ones((len(flat), 1), np.bool_), kept], axis=1)
    return Cells(content.reshape(len(values), -1), kept.reshape(len(values), -1))


def objects(chosen: Sequence[bytes]) -> Cells:
    """One ready object for each record."""
    lengths = np.fromiter(map(len, chosen), np.intp, len(chosen))
    width = int(lengths.max(initial=0))
    content = np.frombuffer(b"".join([one.ljust(width, b"\0") for one in chosen]), np.uint8)
    kept = np.arange(width) < lengths[:, None]
    return Cells(content.reshape(len(chosen), width), None if kept.all() else kept)


def beside(parts: Sequence[Cells]) -> Cells:
    """The records' bytes one after another."""
    content = np.concatenate([part.content for part in parts], axis=1)
    if all(part.kept is None for part in parts):
        return Cells(content)
    kept = [np.ones(part.content.shape, np.bool_) if part.kept is None else part.kept for part in parts]
    return Cells(content, np.concatenate(kept, axis=1))


def regrouped(cells: Cells, records: int) -> Cells:
    """Cells of every `len(cells) / records` rows joined, as the cells of one record."""
    content = cells.content.reshape(records, -1)
    return Cells(content, None if cells.kept is None else cells.kept.reshape(records, -1))


def nested(rows: Cells, shape: tuple[int, ...]) -> Cells:
    """Cells of single rows, as many per record as `shape` has, as arrays of arrays of that shape."""
    for size in reversed(shape):
        inner = regrouped(rows, len(rows) // size)
        rows = beside([same(len(inner), array_header(size)), inner])
    return rows
