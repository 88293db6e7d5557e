"""What a profile asks of logits: probabilities, and what is told beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from service.transform.profiles import Output
from service.transform.softmax import distances_in_place, softmax_of_distances, sum_of_classes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from service.transform.profiles import Profile

    Floats = NDArray[np.floating[Any]]

# Sorting whole rows costs more than looking for the largest few from about here on.
_SELECT_FROM: Final = 512
# No exponential of float32 or float64 below this differs from 0.
_VANISHES: Final = -800.0


@dataclass(slots=True)
class Distributions:
    """Distributions of many rows; what the profile does not ask for is `None`.

    Attributes:
        valid: shape (rows,), whether the row has a distribution; all else is meaningless where not.
        probabilities: shape (rows, classes).
        log_probabilities: shape (rows, classes), natural logarithms, -inf where masked.
        predicted: shape (rows,), the first of the highest logits.
        confidence: shape (rows,), the probability of the predicted class.
        entropy: shape (rows,), in nats.
        margin: shape (rows,), between the two highest probabilities; 1 for one class.
        top: shape (rows, k), classes by descending logit, ties by lower index.
        top_probabilities: shape (rows, k).
    """

    valid: NDArray[np.bool_]
    probabilities: Floats
    log_probabilities: Floats | None = None
    predicted: NDArray[np.intp] | None = None
    confidence: Floats | None = None
    entropy: Floats | None = None
    margin: Floats | None = None
    top: NDArray[np.intp] | None = None
    top_probabilities: Floats | None = None


def confidence_and_entropy(probabilities: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How sure distributions are.

    Args:
        probabilities: shape (rows, classes).

    Returns:
        The highest probability of each row, and its entropy -sum p log p in nats; both of shape (rows,).
    """
    rows = probabilities.astype(np.float64)
    # 0 log 0 is 0: the logarithm of the least number there is, times 0.
    entropy = -np.einsum("ij,ij->i", rows, np.log(np.maximum(rows, np.finfo(np.float64).tiny)))
    return rows.max(axis=1), np.maximum(entropy, 0)


def distribute(logits: Floats, profile: Profile) -> Distributions:
    """Make distributions of logits, shape (rows, classes), made by `empty_logits`; they are overwritten.

    To be called within `softmax.arithmetic`.
    """
    unmasked_valid = _mask(logits, profile.masked) if profile.masked else None
    top = _highest(logits, profile.top_k) if profile.top_k else None
    predicted = logits.argmax(axis=1) if profile.needs_predicted else None
    valid = distances_in_place(logits, profile.temperature)
    if unmasked_valid is not None:
        valid &= unmasked_valid
    distances = logits.copy(order="K") if profile.needs_distances else None
    total = softmax_of_distances(logits)
    made = Distributions(valid, logits, predicted=predicted, top=top)
    if predicted is not None:
        made.confidence = logits[np.arange(len(logits)), predicted]
        made.margin = _margin(logits, predicted) if profile.wants(Output.MARGIN) else None
    if top is not None:
        made.top_probabilities = logits[np.arange(len(logits))[:, None], top]
    if distances is not None:
        _from_distances(made, distances, total)
    return made


def _mask(logits: Floats, masked: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """Force classes to -inf; tell which rows have neither NaN nor +inf there, which would go unseen."""
    columns = [index for index in masked if index < logits.shape[1]]
    if not columns:
        return None
    hidden = logits[:, columns]
    logits[:, columns] = -np.inf
    legal: NDArray[np.bool_] = np.all(hidden < np.inf, axis=1)
    return legal


def _from_distances(made: Distributions, distances: Floats, total: Floats) -> None:
    """Logarithms from x - log(sum exp x), entropy from log(sum) - sum p x, with x the distances."""
    logarithm = np.log(total)
    made.log_probabilities = distances - logarithm[:, None]
    weighted = np.multiply(made.probabilities, np.maximum(distances, _VANISHES, out=distances), out=distances)
    made.entropy = logarithm - sum_of_classes(weighted)


def _margin(probabilities: Floats, predicted: NDArray[np.intp]) -> Floats:
    if probabilities.shape[1] == 1:
        return np.ones(len(probabilities), probabilities.dtype)
    others = probabilities.copy(order="K")
    rows = np.arange(len(others))
    others[rows, predicted] = -1
    margin: Floats = probabilities[rows, predicted] - np.maximum.reduce(others, axis=1)
    return margin


def _highest(logits: Floats, wanted: int) -> NDArray[np.intp]:
    """The `wanted` highest of each row, or all, descending, ties by lower index."""
    rows, classes = logits.shape
    wanted = min(wanted, classes)
    if classes < _SELECT_FROM:
        return np.argsort(-logits, axis=1, kind="stable")[:, :wanted]
    found = np.empty((rows, wanted), np.intp)
    for row, target in zip(logits, found, strict=True):
        least = np.partition(row, classes - wanted)[classes - wanted]
        candidates = np.flatnonzero(row >= least)
        if len(candidates) < wanted:  # NaN among them: the row has no distribution anyway
            candidates = np.arange(classes)
        target[:] = candidates[np.argsort(-row[candidates], kind="stable")[:wanted]]
    return found
