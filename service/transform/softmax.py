"""Arrays to arrays: the stable softmax, with results that depend on each row alone.

probability_i = exp((z_i - max z) / T) / sum_j exp((z_j - max z) / T)

The same logits give the same bits in whatever company they come: the memory layout and the order in
which a row is summed follow from the number of classes alone.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

# Below this many classes a class-major array is faster, 20 times for few classes; above it a
# row-major one (softmax as a multiple of np.exp: 2.7 against 2.9 at 400 classes, 3.1 against 2.5 at 1000).
CLASS_MAJOR_BELOW: Final = 448

# Columns of a row-major array that numpy sums in one go, in the order of its vector lanes: few
# enough that the error stays within a few roundings even where there are four lanes only.
SUMMED_AT_ONCE: Final = 128

# Classes of a class-major array that are added one after another; more would round too often.
ADDED_IN_SEQUENCE: Final = 8

# Numbers that numpy's inner loops should run over at least, since each begins with 20 ns: a class of
# few records is handled together with the next ones (2.7 instead of 3.1 times np.exp at 256 classes).
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


def softmax_in_place(logits: Floats) -> NDArray[np.bool_]:
    """Replace logits by probabilities, row by row: `distances_in_place`, then `softmax_of_distances`."""
    with arithmetic():
        valid = distances_in_place(logits)
        softmax_of_distances(logits)
    return valid


def sum_of_classes(values: Floats) -> Floats:
    """Sum each row of shape (rows, classes), made by `empty_logits`, in an order that depends on classes alone.

    `np.add.reduce` would not do: it adds one after another across rows but by pairs within a row,
    so that a row alone has other bits, and up to 100 times the error.
    """
    return _by_folding(values.T) if values.shape[1] < CLASS_MAJOR_BELOW else _by_chunks(values)


def _by_folding(parts: Floats) -> Floats:
    """Sum the classes, shape (classes, rows): eighths of many onto each other, then halves of the rest."""
    classes, rows = parts.shape
    while classes >= ADDED_IN_SEQUENCE**2:  # so that an eighth has room for what remains
        each = classes // ADDED_IN_SEQUENCE
        even = each * ADDED_IN_SEQUENCE
        # At least 8 numbers side by side: numpy adds a single column by pairs.
        folded = np.add.reduce(parts[:even].reshape(ADDED_IN_SEQUENCE, -1), axis=0).reshape(each, rows)
        folded[: classes - even] += parts[even:]
        parts, classes = folded, each
    while classes > 1:
        half = classes // 2
        folded = parts[:half] + parts[half : 2 * half]
        if classes % 2:
            folded[0] += parts[classes - 1]
        parts, classes = folded, half
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
    abreast = _classes_abreast(logits)
    classes, rows = logits.shape[1], logits.shape[0]
    if abreast == 1 or classes < 2 * abreast:
        reduced: Floats = np.maximum.reduce(logits, axis=1)
        return reduced
    parts, even = logits.T, classes // abreast * abreast
    folded = np.maximum.reduce(parts[:even].reshape(-1, abreast * rows), axis=0).reshape(abreast, rows)
    highest: Floats = np.maximum.reduce(np.concatenate([folded, parts[even:]]), axis=0)
    return highest


def _combine(operation: np.ufunc, values: Floats, by_row: Floats) -> None:
    """Replace values, shape (rows, classes), by operation(values, by_row), which has one number for each row."""
    abreast = _classes_abreast(values)
    if abreast == 1:
        operation(values, by_row[:, None], out=values)
        return
    parts, even = values.T, values.shape[1] // abreast * abreast
    wide = parts[:even].reshape(-1, abreast * len(by_row))
    operation(wide, np.concatenate([by_row] * abreast), out=wide)
    operation(parts[even:], by_row, out=parts[even:])


def _classes_abreast(values: Floats) -> int:
    """How many classes of a class-major array numpy should take for one; 1 for a row-major one."""
    rows, classes = int(values.shape[0]), int(values.shape[1])
    if classes >= CLASS_MAJOR_BELOW or rows < FEW_RECORDS:
        return 1
    return max(1, min(INNER_LOOP // rows, classes))
