"""Many records of one kind at once: bytes to probabilities to bytes, a column at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from service.transform.distributions import Distributions, distribute
from service.transform.softmax import BLOCK_ELEMENTS, as_logits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from service.transform.answer import Answer, Part
    from service.transform.layout import Layout

    Bytes = NDArray[np.uint8]
    Mark = Callable[[str], object]

# Records decoded in one go: a class-major array takes one number of each record at a time, whose
# cache lines must still be there for the next class (0.35 instead of 0.70 ns a number at 100 classes).
DECODED_AT_ONCE: Final = 256
# Of each block so many rows at most are a part of the sample, and so many numbers: a microsecond's work.
SAMPLED_ROWS: Final = 8
SAMPLED_NUMBERS: Final = 2048


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of some records.

    Attributes:
        content: shape (records, width), uint8; the workspace's, until its next use.
        lengths: shape (records,), how many bytes of each row are the output's; `None` where all are.
        valid: shape (records,), whether the record's values have distributions; its output is
            meaningless where not. `None` where all have.
        sample: of each tensor, a few of the distributions, shape (rows, classes); empty if none was asked for.
    """

    content: Bytes
    lengths: NDArray[np.intp] | None
    valid: NDArray[np.bool_] | None
    sample: Sequence[NDArray[Any]] = ()


class Workspace:
    """Memory that is used again: fresh memory of this size costs as much to map as to fill."""

    def __init__(self) -> None:
        """Start with none."""
        self._numbers = np.empty(0, np.uint8)
        self._canvas = np.empty(0, np.uint8)
        self._painted: Layout | None = None
        self._painted_rows = 0

    def logits(self, rows: int, classes: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array of shape (rows, classes) that `softmax` accepts, uninitialised."""
        needed = rows * classes * dtype.itemsize
        if self._numbers.nbytes < needed:
            self._numbers = np.empty(needed, np.uint8)
        return as_logits(self._numbers[:needed].view(dtype), rows, classes)

    def canvas(self, layout: Layout, records: int) -> Bytes:
        """Outputs of so many records of `layout`, shape (records, width): its template in every row.

        Numbers and copied bytes may be those of earlier records.
        """
        width = len(layout.template)
        needed = records * width
        if self._canvas.nbytes < needed:
            self._canvas = np.empty(needed, np.uint8)
            self._painted = None
        whole = self._canvas[: self._canvas.nbytes // width * width].reshape(-1, width)
        if self._painted is not layout:
            self._painted, self._painted_rows = layout, 0
        if self._painted_rows < records:
            whole[self._painted_rows : records] = layout.template
            self._painted_rows = records
        return whole[:records]


def transform_columns(
    records: Bytes, layout: Layout, workspace: Workspace, mark: Mark = str, *, sampled: bool = False
) -> Iterator[Outputs]:
    """Transform records that have met `layout`, block by block.

    To be called within `softmax.arithmetic`.

    Args:
        records: shape (records, length), uint8, C-contiguous.
        layout: theirs.
        workspace: to work in.
        mark: called with `decode`, `softmax` or `encode` when a stretch of it ends.
        sampled: whether some of the distributions are wanted as numbers too.

    Yields:
        The outputs of the next records.
    """
    numbers = len(records) * sum(math.prod(part.shape) for part in layout.answer.parts)
    # An odd number: where a power of two separates a record's numbers, they displace each other in the cache.
    step = -(-len(records) // -(-numbers // BLOCK_ELEMENTS)) | 1
    for start in range(0, len(records), step):
        block = records[start : start + step]
        outputs = workspace.canvas(layout, len(block))
        for copy in layout.copies:
            outputs[:, copy.target] = block[:, copy.source]
        yield transform_block(layout.answer, block, outputs, workspace, mark, sampled=sampled)


def transform_block(  # noqa: PLR0913 - all that a block needs
    answer: Answer,
    records: Bytes,
    outputs: Bytes,
    workspace: Workspace,
    mark: Mark = str,
    loose: Sequence[NDArray[Any] | None] = (),
    *,
    sampled: bool = False,
) -> Outputs:
    """Transform records of one kind.

    To be called within `softmax.arithmetic`.

    Args:
        answer: how they are answered.
        records: shape (records, length), uint8.
        outputs: shape (records, width), uint8: all but the numbers is written already.
        workspace: to work in.
        mark: as in `transform_columns`.
        loose: of each tensor without regular places, its numbers, for a single record.
        sampled: as in `transform_columns`.
    """
    count = len(records)
    made: list[Distributions] = []
    for index, part in enumerate(answer.parts):
        logits = _decode(part, records, workspace, loose[index] if loose else None)
        mark("decode")
        made.append(distribute(logits, answer.profile))
        mark("softmax")
        if part.target is not None:
            part.target.numbers(outputs)[...] = logits.reshape(count, *part.shape)
        mark("encode")
    valid = _valid(made, count)
    sample = [_some(distributions) for distributions in made] if sampled else ()
    if not answer.appended:
        return Outputs(outputs, None, valid, sample)
    appendix, lengths = answer.appendix(made, count).packed()
    whole = np.concatenate([outputs, appendix], axis=1)
    mark("encode")
    return Outputs(whole, None if lengths is None else lengths + outputs.shape[1], valid, sample)


def _some(distributions: Distributions) -> NDArray[Any]:
    """A few rows, evenly spread, that have a distribution; copied out of the workspace."""
    probabilities = distributions.probabilities
    rows, classes = probabilities.shape
    wanted = min(SAMPLED_ROWS, max(1, SAMPLED_NUMBERS // classes))
    step = -(-rows // wanted)
    some: NDArray[Any] = probabilities[::step][distributions.valid[::step]]
    return some


def _valid(made: Sequence[Distributions], count: int) -> NDArray[np.bool_] | None:
    """Which records have a distribution in every row of every tensor; `None`, nearly always, for all."""
    if all(np.logical_and.reduce(distributions.valid) for distributions in made):
        return None
    by_record = [distributions.valid.reshape(count, -1) for distributions in made]
    valid: NDArray[np.bool_] = np.all(np.concatenate(by_record, axis=1), axis=1)
    return valid


def _decode(part: Part, records: Bytes, workspace: Workspace, loose: NDArray[Any] | None) -> NDArray[Any]:
    count, classes = len(records), part.shape[-1]
    logits = workspace.logits(count * math.prod(part.shape[:-1]), classes, part.computed_in)
    # Distributions of one record are rows of their own; only the view of the bytes knows records.
    by_record = logits.reshape(count, *part.shape)
    if part.source is None:
        if loose is None:
            raise AssertionError(part)
        by_record[0] = loose.reshape(part.shape)
        return logits
    numbers, values = part.source.numbers(records), part.source.elements.values
    for start in range(0, count, DECODED_AT_ONCE):
        some = slice(start, start + DECODED_AT_ONCE)
        by_record[some] = values(numbers[some])
    return logits
