"""Distributions for people: an output message as bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


def read_output(value: bytes) -> tuple[str, dict[str, NDArray[np.float64]]]:
    """What an output says: a name for it (its `id`) and its probabilities.

    Returns:
        The name, empty if there is none, and by head the probabilities, shape (rows, classes); the
        only head of most messages is the empty name.

    Raises:
        ValueError: it is no output of the service, or one without probabilities.
    """
    try:
        message: Any = msgpack.unpackb(value, strict_map_key=False, unicode_errors="replace")
        message = _with_text_keys(message) if isinstance(message, dict) else message
        if not isinstance(message, dict) or ("probabilities" not in message and _is_tensor_map(message)):
            return "", {"": _rows(message)}
        probabilities = message["probabilities"]
        if isinstance(probabilities, bytes):
            probabilities = {"data": probabilities, "dtype": message["dtype"], "shape": message["shape"]}
        elif isinstance(probabilities, dict):
            probabilities = _with_text_keys(probabilities)
            if not _is_tensor_map(probabilities):
                heads = {name: _rows(head) for name, head in probabilities.items()}
                return str(message.get("id", "")), heads
        return str(message.get("id", "")), {"": _rows(probabilities)}
    except (KeyError, IndexError, TypeError, ValueError, msgpack.UnpackException) as error:
        raise ValueError("not an output with probabilities") from error


def _with_text_keys(fields: dict[Any, Any]) -> dict[str, Any]:
    return {key.decode(errors="replace") if isinstance(key, bytes) else str(key): fields[key] for key in fields}


def _is_tensor_map(fields: dict[str, Any]) -> bool:
    return "nd" in fields or "__ndarray__" in fields


def _array(tensor: Any) -> NDArray[Any]:
    if not isinstance(tensor, dict):
        return np.asarray(tensor, np.float64)
    fields = _with_text_keys(tensor)
    spelling = fields.get("type", fields.get("dtype"))
    name = spelling.decode() if isinstance(spelling, bytes) else str(spelling)
    dtype = "<f4" if name.endswith(("f4", "32")) else "<f8"
    return np.frombuffer(fields["data"], dtype).reshape([int(size) for size in fields["shape"]])


def _rows(probabilities: Any) -> NDArray[np.float64]:
    """Any rank as rows of the last axis."""
    table = np.asarray(_array(probabilities), np.float64)
    return table.reshape(-1, table.shape[-1])


def bar(share: float, width: int) -> str:
    """A bar of `width` cells for a share from 0 to 1, exact to an eighth of a cell."""
    eighths = round(share * width * 8)
    return (_EIGHTHS[8] * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip().ljust(width)


def lines(row: NDArray[np.float64], most: int, width: int = 24) -> Iterator[str]:
    """The `most` likeliest classes of one distribution, likeliest first."""
    for index in np.argsort(-row, kind="stable")[:most].tolist():
        yield f"{index:>6}  {bar(float(row[index]), width)} {row[index]:.4f}"
    if len(row) > most:
        rest = float(np.sort(row)[: len(row) - most].sum())
        yield f"  + {len(row) - most} more classes, {rest:.4f} together"
