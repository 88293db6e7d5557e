"""Tensors: where their numbers lie in a message, and the container that they leave in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np

from service.transform.dtypes import binary_answer, list_answer
from service.transform.spans import array_header, bin_header

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from service.transform.dtypes import Elements
    from service.transform.refusals import InvalidMessage

    Bytes = NDArray[np.uint8]

MAX_RANK: Final = 4


@dataclass(frozen=True, slots=True)
class Grid:
    """Numbers at regular places in a message.

    Attributes:
        elements: how each is stored.
        start: where the first one's tag is, or the first itself where there are no tags.
        shape: of the tensor; the classes last.
        strides: bytes from one to the next along each axis.
    """

    elements: Elements
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def packed(cls, elements: Elements, start: int, shape: tuple[int, ...]) -> Grid:
        """Numbers one after another, in C order."""
        strides = [elements.stride]
        for size in reversed(shape[1:]):
            strides.append(strides[-1] * size)
        return cls(elements, start, shape, tuple(reversed(strides)))

    def moved(self, by: int) -> Grid:
        """The same numbers `by` bytes further on."""
        return Grid(self.elements, self.start + by, self.shape, self.strides)

    def numbers(self, records: Bytes) -> NDArray[Any]:
        """View the numbers of messages, shape (records, bytes), as shape (records, *shape)."""
        return self._view(records, self.elements.dtype, self.elements.offset)

    def number_bytes(self, records: Bytes) -> Bytes:
        """View the numbers' bytes, shape (records, *shape, bytes of a number)."""
        size = self.elements.dtype.itemsize
        shape = (len(records), *self.shape, size)
        strides = (records.strides[0], *self.strides, 1)
        return np.ndarray(shape, np.uint8, records.data, self.start + self.elements.offset, strides)

    def tags(self, records: Bytes) -> Bytes:
        """View the numbers' tags, shape (records, *shape)."""
        return self._view(records, np.dtype(np.uint8), 0)

    def _view(self, records: Bytes, dtype: np.dtype[Any], offset: int) -> NDArray[Any]:
        shape = (len(records), *self.shape)
        strides = (records.strides[0], *self.strides)
        return np.ndarray(shape, dtype, records.data, self.start + offset, strides)


class Frame(NamedTuple):
    """A container with the places of its numbers still blank.

    Attributes:
        template: its bytes, headers and tags written.
        grid: where the numbers go.
    """

    template: bytes
    grid: Grid


class Container(Protocol):
    """What a tensor leaves in: the same kind of object that it came in."""

    def frame(self, dtype: np.dtype[Any]) -> Frame:
        """Lay it out for numbers of float32 or float64."""


@dataclass(frozen=True, slots=True)
class NestedArrays:
    """msgpack arrays of arrays of numbers."""

    shape: tuple[int, ...]

    def frame(self, dtype: np.dtype[Any]) -> Frame:
        """Lay out the arrays, their headers in shortest form."""
        elements = list_answer(dtype)
        blank = bytes([elements.tag or 0]) + bytes(dtype.itemsize)
        template = array_header(self.shape[-1]) + blank * self.shape[-1]
        strides = [elements.stride]
        start = len(template) - len(blank) * self.shape[-1]
        for size in reversed(self.shape[:-1]):
            header = array_header(size)
            strides.append(len(template))
            start += len(header)
            template = header + template * size
        return Frame(template, Grid(elements, start, self.shape, tuple(reversed(strides))))


@dataclass(frozen=True, slots=True)
class Binary:
    """A msgpack bin of numbers in C order."""

    shape: tuple[int, ...]

    def frame(self, dtype: np.dtype[Any]) -> Frame:
        """Lay out the bin, its header in shortest form."""
        size = math.prod(self.shape) * dtype.itemsize
        header = bin_header(size)
        return Frame(header + bytes(size), Grid.packed(binary_answer(dtype), len(header), self.shape))


@dataclass(frozen=True, slots=True)
class Tensor:
    """Logits as they lie in a message.

    Attributes:
        at: the byte of the message where the tensor begins.
        shape: rank 1 to 4, the classes last.
        source: where the numbers lie; `None` where they have no regular places.
        loose: then the numbers themselves, float64, shape (rows * classes,); else `None`.
        computed_in: float32 or float64.
        answered_in: float32 or float64, unless the profile forces one.
        container: what the probabilities leave in.
        fault: why the numbers are none, to be told after the number of classes has been judged.
    """

    at: int
    shape: tuple[int, ...]
    source: Grid | None
    loose: NDArray[np.float64] | None
    computed_in: np.dtype[Any]
    answered_in: np.dtype[Any]
    container: Container
    fault: InvalidMessage | None = None

    @property
    def classes(self) -> int:
        """Numbers on the last axis."""
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """Distributions in the tensor."""
        return math.prod(self.shape[:-1])

    @classmethod
    def regular(cls, at: int, source: Grid, container: Container) -> Tensor:
        """A tensor whose numbers lie on a grid."""
        elements = source.elements
        return cls(at, source.shape, source, None, elements.computed_in, elements.answered_in, container)

    def place(self, index: Sequence[int]) -> int | None:
        """The byte where the number at `index` stands, if the numbers lie on a grid."""
        if self.source is None:
            return None
        return self.source.start + sum(i * stride for i, stride in zip(index, self.source.strides, strict=True))
