"""Distributions for people: an output message as bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


def read_output(value: bytes) -> tuple[str, NDArray[np.float64]]:
    """What an output says: a name for it (its `id`) and its probabilities, shape (rows, classes).

    Raises:
        ValueError: it is no output of the service.
    """
    try:
        message: Any = msgpack.unpackb(value, strict_map_key=False, unicode_errors="replace")
        if isinstance(message, list):
            return "", _rows(message)
        probabilities = message["probabilities"]
        if isinstance(probabilities, bytes):
            width = 4 if str(message["dtype"]).endswith(("4", "32")) and "64" not in message["dtype"] else 8
            flat = np.frombuffer(probabilities, f"<f{width}")
            probabilities = flat.reshape([int(size) for size in message["shape"]])
        return str(message.get("id", "")), _rows(probabilities)
    except (KeyError, IndexError, TypeError, ValueError, msgpack.UnpackException) as error:
        raise ValueError("not an output of the service") from error


def _rows(probabilities: Any) -> NDArray[np.float64]:
    """Any rank as rows of the last axis."""
    table = np.asarray(probabilities, np.float64)
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
