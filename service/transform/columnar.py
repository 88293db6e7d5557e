"""Many records of one layout at once: bytes to probabilities to bytes, a column at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from service.transform.softmax import BLOCK_ELEMENTS, empty_logits, softmax_in_place

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from service.transform.layout import Layout

    Bytes = NDArray[np.uint8]


def transform_columns(
    records: Bytes, layout: Layout, mark: Callable[[str], object] = str
) -> tuple[Bytes, NDArray[np.bool_]]:
    """Transform records that have met `layout`.

    Args:
        records: shape (records, length), uint8.
        layout: their layout.
        mark: called with `decode`, `softmax` or `encode` when a stretch of it ends.

    Returns:
        The outputs, shape (records, output length), uint8, and, shape (records,), whether each
        record's values have a distribution; the output of one that has none is meaningless.
    """
    numbers = layout.numbers
    outputs = np.empty((len(records), layout.output_length), np.uint8)
    outputs[:, : numbers.start] = layout.template[: numbers.start]
    outputs[:, numbers.stop :] = layout.template[numbers.start :]
    for copy in layout.copies:
        outputs[:, copy.target] = records[:, copy.source]
    tensor = layout.tensor
    block = max(1, BLOCK_ELEMENTS // (tensor.rows * tensor.classes))
    valid = np.empty(len(records), np.bool_)
    for start in range(0, len(records), block):
        rows = slice(start, start + block)
        valid[rows] = _transform_block(records[rows], outputs[rows], layout, mark)
    return outputs, valid


def _transform_block(
    records: Bytes, outputs: Bytes, layout: Layout, mark: Callable[[str], object]
) -> NDArray[np.bool_]:
    tensor = layout.tensor
    if tensor.source is None:
        raise AssertionError(layout)
    count = len(records)
    numbers = tensor.source.read(records[:, tensor.start : tensor.stop])
    if tensor.rows > 1:
        # Distributions of one record are rows of their own; only the view of the bytes knows records.
        numbers = numbers.reshape(count * tensor.rows, tensor.classes)
    logits = empty_logits(count * tensor.rows, tensor.classes, tensor.computed_in)
    logits[...] = numbers
    mark("decode")
    valid = softmax_in_place(logits)
    mark("softmax")
    tensor.target.write(outputs[:, layout.numbers], logits.reshape(count, -1))
    mark("encode")
    whole: NDArray[np.bool_] = np.all(valid.reshape(count, tensor.rows), axis=1)
    return whole
