"""msgpack arrays of numbers, nested up to four deep, as tensors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from service.transform.dtypes import FLOAT32, FLOAT64, Elements, listed_elements
from service.transform.refusals import InvalidMessage, Reason
from service.transform.spans import (
    ARRAYS,
    FLOAT32_AND_ARRAYS,
    NUMBERS,
    NUMBERS_AND_ARRAYS,
    NUMBERS_AND_ARRAYS_BUT_FLOAT64,
    container,
    is_run,
    nests_deeper,
    parser,
)
from service.transform.tensors import MAX_RANK, Grid, NestedArrays, Tensor

if TYPE_CHECKING:
    from msgpack import Unpacker
    from numpy.typing import NDArray

_BYTE: Final = np.dtype(np.uint8)


def read_array(data: bytes, start: int, end: int) -> Tensor:
    """Understand the array that fills `start:end` of a well-formed message.

    Raises:
        InvalidMessage: `shape_mismatch` (rank over 4), `ragged`. An element that is no number is
            the tensor's `fault`.
    """
    grid = _grid(data, start, end)
    if grid is not None:
        return Tensor.regular(start, grid, NestedArrays(grid.shape))
    survey = _Survey(data, start, end)
    survey.run()
    float32 = is_run(FLOAT32_AND_ARRAYS, data, start, end)
    float64 = not is_run(NUMBERS_AND_ARRAYS_BUT_FLOAT64, data, start, end)
    return Tensor(
        at=start,
        shape=survey.shape,
        source=None,
        loose=survey.numbers() if survey.fault is None else None,
        computed_in=FLOAT32 if float32 else FLOAT64,
        answered_in=FLOAT64 if float64 else FLOAT32,
        container=NestedArrays(survey.shape),
        fault=survey.fault,
    )


def _grid(data: bytes, start: int, end: int) -> Grid | None:
    """The places of the numbers, where all arrays of one level and all numbers are stored alike."""
    headers: list[tuple[int, int]] = []
    shape: list[int] = []
    pos = start
    while pos < end and data[pos] in ARRAYS:
        header = container(data, pos)
        if header is None or not header[1] or len(shape) == MAX_RANK:
            return None
        headers.append((pos, header[2]))
        shape.append(header[1])
        pos = header[2]
    elements = listed_elements(data[pos])
    if elements is None:
        return None
    strides = [elements.stride]
    for (begin, body), size in zip(reversed(headers), reversed(shape), strict=True):
        strides.append(body - begin + size * strides[-1])
    if strides.pop() != end - start:
        return None
    grid = Grid(elements, pos, tuple(shape), tuple(reversed(strides)))
    return grid if _is_uniform(data, grid, headers) else None


def _is_uniform(data: bytes, grid: Grid, headers: list[tuple[int, int]]) -> bool:
    """Whether every number has its tag and every inner array the header of the first of its level."""
    # Most lists are of rank 1: one slice and one count are ten times as fast as numpy there.
    if len(headers) == 1 and grid.elements.tag is not None:
        tags = data[grid.start : grid.start + grid.shape[0] * grid.elements.stride : grid.elements.stride]
        return tags.count(grid.elements.tag) == grid.shape[0]
    record = np.frombuffer(data, _BYTE).reshape(1, -1)
    for level, (begin, body) in enumerate(headers[1:], 1):
        same_level = Grid(
            Elements(_BYTE), begin, (*grid.shape[:level], body - begin), (*grid.strides[:level], 1)
        ).numbers(record)
        if not (same_level == np.frombuffer(data[begin:body], _BYTE)).all():
            return False
    return bool(grid.elements.tags_right(grid.tags(record)).all())


class _Survey:
    """A walk over arrays that are not uniform, element by element.

    Attributes:
        shape: of the arrays, as the first of each level tells it.
        fault: the first element that is neither an array nor a number.
    """

    def __init__(self, data: bytes, start: int, end: int) -> None:
        self._data = data
        self._start = start
        self._end = end
        self._packed = bytearray()  # the numbers of all rows, one after another
        self.shape = self._first_path()
        self.fault: InvalidMessage | None = None

    def run(self) -> None:
        """Look at every element.

        Raises:
            InvalidMessage: `shape_mismatch`, `ragged`.
        """
        data, start, end = self._data, self._start, self._end
        numeric = is_run(NUMBERS_AND_ARRAYS, data, start, end)
        if nests_deeper(data[start:end], MAX_RANK) if numeric else self._rank() > MAX_RANK:
            raise InvalidMessage(Reason.SHAPE_MISMATCH, f"arrays at byte {start} nest more than {MAX_RANK} deep", start)
        if len(self.shape) == 1 and is_run(NUMBERS, data, (body := _body(data, start)), end):
            self._packed += data[body:end]
        else:
            self._walk(parser(memoryview(data)[start:]), 0)

    def numbers(self) -> NDArray[np.float64]:
        """All numbers in order, read one by one: a list of Python objects would take 32 bytes for each of theirs."""
        return np.fromiter(parser(bytes(self._packed)), np.float64, math.prod(self.shape))

    def _first_path(self) -> tuple[int, ...]:
        shape: list[int] = []
        pos = self._start
        while pos < self._end and self._data[pos] in ARRAYS and 0 not in shape:
            header = container(self._data, pos)
            if header is None:
                raise AssertionError(pos)
            _, count, pos = header
            shape.append(count)
        return tuple(shape)

    def _rank(self) -> int:
        """How deep arrays nest directly in each other; maps are not looked into."""
        unpacker = parser(memoryview(self._data)[self._start :])
        remaining = [1]
        deepest = 0
        while remaining:
            if not remaining[-1]:
                remaining.pop()
                continue
            remaining[-1] -= 1
            if self._data[self._start + unpacker.tell()] in ARRAYS:
                remaining.append(unpacker.read_array_header())
                deepest = max(deepest, len(remaining) - 1)
            else:
                unpacker.skip()
        return deepest

    def _walk(self, unpacker: Unpacker, level: int) -> None:
        """Walk over the array that begins where the parser stands; recurses at most four deep."""
        begin = self._start + unpacker.tell()
        count = unpacker.read_array_header()
        if count != self.shape[level]:
            raise self._ragged(begin, f"has {count} elements where others have {self.shape[level]}")
        innermost = level == len(self.shape) - 1
        body = self._start + unpacker.tell()
        for index in range(count):
            at = self._start + unpacker.tell()
            tag = self._data[at]
            if (tag in ARRAYS) is innermost:
                raise self._ragged(begin, "mixes arrays with other elements, or nests unlike the others")
            if not innermost:
                self._walk(unpacker, level + 1)
                continue
            if self.fault is None and listed_elements(tag) is None:
                self.fault = InvalidMessage(Reason.NOT_NUMERIC, f"element {index} at byte {at} is not a number", at)
            unpacker.skip()
        if innermost:
            self._packed += self._data[body : self._start + unpacker.tell()]

    def _ragged(self, at: int, how: str) -> InvalidMessage:
        return InvalidMessage(Reason.RAGGED, f"the array at byte {at} {how}", at)


def _body(data: bytes, start: int) -> int:
    header = container(data, start)
    if header is None:
        raise AssertionError(start)
    return header[2]
