"""Arrays to arrays: the stable softmax, with results that depend on each row alone.

probability_i = exp(z_i - max z) / sum_j exp(z_j - max z)

The same logits give the same bits in whatever company they come: the memory layout is chosen by the
number of classes alone, and the sum is made by folding halves onto each other, whose order numpy
cannot choose. Folding is also what keeps the sum accurate: an error of log2(classes) roundings at
worst, where adding one after another makes as many as there are classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

# Below this many classes a class-major array is faster, 20 times for few classes; above it a
# row-major one (softmax as a multiple of np.exp: 2.6 against 3.1 at 400 classes, 3.5 against 2.7 at 1000).
CLASS_MAJOR_BELOW: Final = 512

# From here on the fold of a row-major array leaves the last few columns to numpy: short rows are slow.
NARROW: Final = 16

# Elements handled at once: a float32 block and its bytes then stay in a core's second-level cache.
BLOCK_ELEMENTS: Final = 1 << 16


def empty_logits(rows: int, classes: int, dtype: np.dtype[Any]) -> Floats:
    """Make an uninitialised array of shape (rows, classes) that `softmax_in_place` accepts."""
    if classes < CLASS_MAJOR_BELOW:
        return np.empty((classes, rows), dtype).T
    return np.empty((rows, classes), dtype)


def softmax_in_place(logits: Floats) -> NDArray[np.bool_]:
    """Replace logits by probabilities, row by row.

    Args:
        logits: float32 or float64, shape (rows, classes), made by `empty_logits`. -inf is a mask:
            its probability is exactly 0.

    Returns:
        Shape (rows,): whether the row has a distribution. A row with NaN, with +inf or of -inf
        only has none; its content is then meaningless.
    """
    highest = np.maximum.reduce(logits, axis=1)
    valid: NDArray[np.bool_] = np.isfinite(highest)
    if not valid.all():
        logits[~valid] = 0
        highest[~valid] = 0
    # The distance between the extremes of float32 overflows to -inf, whose exponential is the right 0.
    with np.errstate(over="ignore"):
        np.subtract(logits, highest[:, None], out=logits)
    np.exp(logits, out=logits)
    np.divide(logits, _sum_of_classes(logits)[:, None], out=logits)
    return valid


def _sum_of_classes(values: Floats) -> Floats:
    """Sum each row of shape (rows, classes), made by `empty_logits`, by folding halves."""
    classes = values.shape[1]
    class_major = classes < CLASS_MAJOR_BELOW
    if classes == 1:
        return values[:, 0]
    parts = values.T if class_major else values
    enough = 1 if class_major else NARROW
    while classes > enough:
        half = classes // 2
        if class_major:
            folded = parts[:half] + parts[half : 2 * half]
            if classes % 2:
                folded[0] += parts[classes - 1]
        else:
            folded = parts[:, :half] + parts[:, half : 2 * half]
            if classes % 2:
                folded[:, 0] += parts[:, classes - 1]
        parts, classes = folded, half
    total: Floats = parts[0] if class_major else np.add.reduce(parts, axis=1)
    return total
