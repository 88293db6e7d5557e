"""Arrays to arrays: the stable softmax, with results that depend on each row alone.

probability_i = exp((z_i - max z) / T) / sum_j exp((z_j - max z) / T)

The same logits give the same bits in whatever company they come: the memory layout and the order in
which a row is summed follow from the number of classes alone.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

# Below this many classes a class-major array is faster, 20 times for few classes; above it a row-major one
# (softmax as a multiple of np.exp, in blocks of the size below: 2.3 against 2.6 at 500 classes, 2.6 against
# 2.3 at 1000).
CLASS_MAJOR_BELOW: Final = 768

# Columns of a row-major array that numpy sums in one go, in the order of its vector lanes: few
# enough that the error stays within a few roundings even where there are four lanes only.
SUMMED_AT_ONCE: Final = 128

# Classes of a class-major array that are added one after another; more would round too often, and from
# 8 on numpy would add a single row's by pairs.
ADDED_IN_SEQUENCE: Final = 7

# Numbers that numpy's inner loops should run over at least, since each begins with 20 ns: a class of
# few records is handled together with the next ones (2.3 instead of 3.1 times np.exp at 256 classes).
INNER_LOOP: Final = 2048
# Of fewer records, repeating the operand would cost more than it saves.
FEW_RECORDS: Final = 64

# Elements handled at once: a float32 block and its bytes then stay near the core, and numpy's and
# Python's cost of a block does not show.
BLOCK_ELEMENTS: Final = 1 << 17

# numpy expands an operand that is broadcast along rows shorter than half of its buffer (8192) row by
# row; with a buffer shorter than the rows it uses it as it is (0.10 instead of 0.18 ns an element).
_BUFFER: Final = 512


@contextmanager
def arithmetic() -> Iterator[None]:
    """How numpy is to compute here: quietly, since values are judged apart, and without expanding operands."""
    with np.errstate(all="ignore"):
        np.setbufsize(_BUFFER)  # undone by errstate, which restores numpy's whole context
        yield


def as_logits(memory: Floats, rows: int, classes: int) -> Floats:
    """View rows * classes contiguous numbers as the array of shape (rows, classes) that is fastest here."""
    if classes < CLASS_MAJOR_BELOW:
        return memory.reshape(classes, rows).T
    return memory.reshape(rows, classes)


def empty_logits(rows: int, classes: int, dtype: np.dtype[Any]) -> Floats:
    """Make an uninitialised array of shape (rows, classes) that the functions here accept."""
    return as_logits(np.empty(rows * classes, dtype), rows, classes)


def distances_in_place(logits: Floats, temperature: float = 1.0) -> NDArray[np.bool_]:
    """Replace logits by (z - max z) / temperature, row by row.

    Args:
        logits: float32 or float64, shape (rows, classes), made by `empty_logits`. -inf is a mask.
        temperature: taken as a number of the logits' dtype.

    Returns:
        Shape (rows,): whether the row has a distribution. A row with NaN, with +inf or of -inf
        only has none; it is then as if its logits were equal.
    """
    divisor = logits.dtype.type(temperature)
    if divisor > 1:
        # The extremes are further apart than the largest number; over the temperature they need not be.
        half = logits.dtype.type(0.5)
        np.multiply(logits, half, out=logits)
        divisor *= half
    highest = _highest(logits)
    valid: NDArray[np.bool_] = np.isfinite(highest)
    if not np.logical_and.reduce(valid):
        logits[~valid] = 0
        highest[~valid] = 0
    _combine(np.subtract, logits, highest)
    if temperature != 1:
        np.divide(logits, divisor, out=logits)
    return valid


def softmax_of_distances(distances: Floats) -> Floats:
    """Replace what `distances_in_place` made by probabilities.

    Returns:
        Shape (rows,): the sum of the exponentials that each row was divided by.
    """
    np.exp(distances, out=distances)
    total = sum_of_classes(distances)
    _combine(np.divide, distances, total)
    return total


def sum_of_classes(values: Floats) -> Floats:
    """Sum each row of shape (rows, classes), made by `empty_logits`, in an order that depends on classes alone.

    `np.add.reduce` would not do: it adds one after another across rows but by pairs within a row,
    so that a row alone has other bits, and up to 100 times the error.
    """
    return _by_folding(values.T) if values.shape[1] < CLASS_MAJOR_BELOW else _by_chunks(values)


def _by_folding(parts: Floats) -> Floats:
    """Sum the classes, shape (classes, rows): up to sevenths of them onto each other until one is left."""
    classes, rows = parts.shape
    while classes > 1:
        kept = -(-classes // ADDED_IN_SEQUENCE)
        even = classes // kept * kept
        folded = np.add.reduce(parts[:even].reshape(-1, kept * rows), axis=0).reshape(kept, rows)
        if even < classes:
            remains = folded[: classes - even]
            np.add(remains, parts[even:], out=remains)
        parts, classes = folded, kept
    first: Floats = parts[0]
    return first


def _by_chunks(values: Floats) -> Floats:
    """Sum chunks of the row-major `values`, then the sums of the chunks, with numpy's vectorised inner loop."""
    rows, classes = values.shape
    while classes > SUMMED_AT_ONCE:
        size = -(-classes // -(-classes // SUMMED_AT_ONCE))  # as even as can be: often nothing remains
        whole = classes // size
        covered = whole * size
        sums = np.empty((rows, whole + (covered < classes)), values.dtype)
        np.einsum("ijk->ij", values[:, :covered].reshape(rows, whole, size), out=sums[:, :whole])
        if covered < classes:
            np.einsum("ij->i", values[:, covered:], out=sums[:, whole])
        values, classes = sums, sums.shape[1]
    total: Floats = np.einsum("ij->i", values)
    return total


def _highest(logits: Floats) -> Floats:
    """The highest of each row of shape (rows, classes)."""
    rows, classes = logits.shape
    abreast = _classes_abreast(rows, classes)
    if abreast == 1:
        reduced: Floats = np.maximum.reduce(logits, axis=1)
        return reduced
    parts, even = logits.T, classes // abreast * abreast
    folded = np.maximum.reduce(parts[:even].reshape(-1, abreast * rows), axis=0).reshape(abreast, rows)
    if even < classes:
        remains = folded[: classes - even]
        np.maximum(remains, parts[even:], out=remains)
    highest: Floats = np.maximum.reduce(folded, axis=0)
    return highest


def _combine(operation: np.ufunc, values: Floats, by_row: Floats) -> None:
    """Replace values, shape (rows, classes), by operation(values, by_row), which has one number for each row."""
    rows, classes = values.shape
    abreast = _classes_abreast(rows, classes)
    if abreast == 1:
        operation(values, by_row[:, None], out=values)
        return
    parts, even = values.T, classes // abreast * abreast
    wide = parts[:even].reshape(-1, abreast * rows)
    operation(wide, np.concatenate((by_row,) * abreast), out=wide)
    if even < classes:
        operation(parts[even:], by_row, out=parts[even:])


@lru_cache(maxsize=4096)
def _classes_abreast(rows: int, classes: int) -> int:
    """How many classes of a class-major array numpy should take for one; 1 for a row-major one.

    As many as fill an inner loop; better a few more or less, if then none remain.
    """
    enough = INNER_LOOP // rows
    if classes >= CLASS_MAJOR_BELOW or rows < FEW_RECORDS or enough < 2:
        return 1
    near = range(min(enough * 3 // 2, classes), enough // 2, -1)
    return next((abreast for abreast in near if classes % abreast == 0), min(enough, classes))
