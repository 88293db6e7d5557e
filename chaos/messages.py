"""Messages that follow from their number, so that every answer can be checked without remembering the question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# One in so many is invalid. A prime, so that they reach all partitions.
INVALID_EVERY: Final = 97
REASONS: Final = ("nan", "malformed_msgpack", "missing_logits", "not_numeric")
# Of bare tensors, which have no fields.
BARE_REASONS: Final = ("nan", "malformed_msgpack", "empty", "not_numeric")
# Some carry a header, which must come back.
HEADER_EVERY: Final = 7
MOST_CLASSES: Final = 30
FIRST_TIMESTAMP_MS: Final = 1_700_000_000_000
# The probabilities of float32 logits are right to about 1e-7.
TOLERANCE: Final = 1e-5

Headers = list[tuple[str, bytes]]


def reason(number: int, *, bare: bool = False) -> str | None:
    """Why the message of this number must be refused; `None` for a valid one."""
    reasons = BARE_REASONS if bare else REASONS
    return None if number % INVALID_EVERY else reasons[number // INVALID_EVERY % len(reasons)]


def key(number: int) -> bytes:
    """Its key, by which it is known again even where its value is damaged."""
    return b"%d" % number


def timestamp_ms(number: int) -> int:
    """Its timestamp, Unix milliseconds."""
    return FIRST_TIMESTAMP_MS + number


def headers(number: int) -> Headers:
    """Its headers."""
    return [] if number % HEADER_EVERY else [("trace", b"t%d" % number)]


def value(number: int, *, bare: bool = False) -> bytes:
    """Its value: a map with an id, or the bare logits, whose answer can be read by another service as logits again."""
    scores: list[Any] = logits(number).tolist()
    why = reason(number, bare=bare)
    if why == "missing_logits":
        return _pack({"id": number}, number)
    if why == "nan":
        scores = [*scores, float("nan")]
    elif why == "empty":
        scores = []
    elif why == "not_numeric":
        scores = ["one"]
    packed = _pack(scores if bare else {"id": number, "logits": scores}, number)
    return packed[:-1] if why == "malformed_msgpack" else packed


def logits(number: int) -> NDArray[np.float64]:
    """Its logits: representable as float32, different for each number in number and values."""
    classes = np.arange(1 + number % MOST_CLASSES)
    return ((number * 2654435761 + (classes + 1) * 40503 * (number + 1)) % 65521) / 8192.0 - 4.0


def fault_of_output(
    number: int, found: bytes | None, found_headers: Sequence[tuple[str, bytes]] | None, *, bare: bool = False
) -> str | None:
    """What is wrong with an output that claims to answer this number; `None` if nothing is.

    That of bare logits has passed through two services, one after the other.
    """
    try:
        output = msgpack.unpackb(found or b"")
    except ValueError as error:
        return f"no msgpack: {error}"
    if bare and isinstance(output, list):
        output = {"id": number, "probabilities": output}
    if not isinstance(output, dict) or output.keys() != {"id", "probabilities"} or output["id"] != number:
        return f"not the answer: {str(output)[:80]}"
    expected = _softmax(_softmax(logits(number))) if bare else _softmax(logits(number))
    probabilities = np.asarray(output["probabilities"])
    # Not np.allclose, which takes five times as long; NaN is near nothing.
    if probabilities.shape != expected.shape or not np.abs(probabilities - expected).max() <= TOLERANCE:
        return f"other probabilities: {str(output)[:80]}"
    if list(found_headers or ()) != headers(number):
        return f"other headers: {found_headers}"
    return None


def fault_of_dead_letter(
    number: int,
    found: bytes | None,
    found_headers: Sequence[tuple[str, bytes]] | None,
    coordinates: tuple[int, int] | None,
    *,
    bare: bool = False,
) -> str | None:
    """What is wrong with a dead letter of this number, stored in the input at (partition, offset)."""
    told = {name: text.decode() for name, text in found_headers or ()}
    if found != value(number, bare=bare):
        return "another value"
    if (why := told.get("softmax-error-reason")) != reason(number, bare=bare):
        return f"reason {why}, not {reason(number, bare=bare)}"
    if coordinates is not None:
        partition, offset = coordinates
        if (told.get("softmax-error-partition"), told.get("softmax-error-offset")) != (str(partition), str(offset)):
            return f"coordinates {told.get('softmax-error-partition')}@{told.get('softmax-error-offset')}"
    return None


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(scores - scores.max())
    probabilities: NDArray[np.float64] = powers / powers.sum()
    return probabilities


def _pack(message: object, number: int) -> bytes:
    packed: bytes = msgpack.packb(message, use_single_float=number % 2 == 0)
    return packed
