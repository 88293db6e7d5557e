"""What the peers of which only the framework differs share: a softmax for each message, or one for many."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

# Before numpy is imported: idle BLAS threads would only take time from these loops. The service does the same.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import msgpack
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

# Each is a Python object while its array is made. To keep those of a whole batch of long messages alive costs more in
# cache misses than stacking saves.
LOGITS_AT_ONCE: Final = 16_384


def softmax_one(value: bytes) -> bytes:
    """One message."""
    message = msgpack.unpackb(value)
    logits = np.array(message["logits"], dtype=np.float32)
    exponentials = np.exp(logits - logits.max())
    probabilities = exponentials / exponentials.sum()
    packed: bytes = msgpack.packb({"id": message["id"], "probabilities": probabilities.tolist()}, use_single_float=True)
    return packed


def softmax_each(values: Sequence[bytes]) -> list[bytes]:
    """One message after the other."""
    return [softmax_one(value) for value in values]


class StackedSoftmax:
    """Many messages in one array; one after the other where they differ in length."""

    def __init__(self) -> None:
        """Make the packer, whose buffer is large: one is made for each message otherwise."""
        self._pack = msgpack.Packer(use_single_float=True).pack

    def __call__(self, values: Sequence[bytes]) -> list[bytes]:
        """Transform a batch."""
        step = max(1, LOGITS_AT_ONCE // max(1, len(msgpack.unpackb(values[0])["logits"])))
        return [
            output
            for start in range(0, len(values), step)
            for output in self._transform_some(values[start : start + step])
        ]

    def _transform_some(self, values: Sequence[bytes]) -> list[bytes]:
        messages: list[dict[str, Any]] = [msgpack.unpackb(value) for value in values]
        if len({len(message["logits"]) for message in messages}) != 1:
            return softmax_each(values)
        matrix = np.array([message["logits"] for message in messages], dtype=np.float32)
        matrix -= matrix.max(axis=1, keepdims=True)
        np.exp(matrix, out=matrix)
        matrix /= matrix.sum(axis=1, keepdims=True)
        pack = self._pack
        return [
            pack({"id": message["id"], "probabilities": row})
            for message, row in zip(messages, matrix.tolist(), strict=True)
        ]
