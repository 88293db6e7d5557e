"""Any message, one at a time: its output, or precisely why it is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from service.transform.answer import answer
from service.transform.columnar import transform_block
from service.transform.refusals import InvalidMessage, Reason

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from service.transform.columnar import Workspace
    from service.transform.message import Head, Message

    Bytes = NDArray[np.uint8]


def transform_one(message: Message, workspace: Workspace, sample: list[NDArray[Any]] | None = None) -> bytes:
    """Turn one message into its output.

    To be called within `softmax.arithmetic`.

    Args:
        message: which.
        workspace: to work in.
        sample: gets some of the distributions, as in `columnar.Outputs`.

    Raises:
        InvalidMessage: `nan`, `positive_infinity`, `all_masked`, `unknown_model`.
    """
    laid_out = answer(message)
    record = _as_record(message.data)
    outputs = _as_record(bytearray(laid_out.template(message.data)))
    loose = [head.tensor.loose for head in message.heads]
    result = transform_block(laid_out, record, outputs, workspace, loose=loose, sampled=sample is not None)
    if result.valid is not None:
        _refuse_values(message)
    if message.selected.refused:
        raise InvalidMessage(Reason.UNKNOWN_MODEL, "no profile has the name that the message gives its model")
    if sample is not None:
        sample += result.sample
    length = None if result.lengths is None else int(result.lengths[0])
    return bytes(result.content[0, :length])


def _as_record(content: bytes | bytearray) -> Bytes:
    return np.frombuffer(content, np.uint8).reshape(1, -1)


def _refuse_values(message: Message) -> NoReturn:
    refusals = [_refusal(message, head) for head in message.heads]
    raise min((refusal for refusal in refusals if refusal), key=lambda refusal: refusal.precedence)


def _refusal(message: Message, head: Head) -> InvalidMessage | None:
    tensor = head.tensor
    if tensor.loose is not None:
        numbers = tensor.loose.reshape(tensor.shape)
    elif tensor.source is not None:
        numbers = tensor.source.elements.values(tensor.source.numbers(_as_record(message.data)))[0]
    else:
        raise AssertionError(tensor)
    for reason, faulty, name in (
        (Reason.NAN, np.isnan(numbers), "NaN"),
        (Reason.POSITIVE_INFINITY, np.isposinf(numbers), "+infinity"),
    ):
        if faulty.any():
            index = tuple(map(int, np.unravel_index(int(faulty.argmax()), tensor.shape)))
            which = f"logit {_told(index)} of {_told(tensor.shape)}"
            return InvalidMessage(reason, f"{which} is {name}", tensor.place(index))
    masked = np.isneginf(numbers)
    masked[..., [index for index in message.selected.profile.masked if index < tensor.classes]] = True
    rows = masked.all(axis=-1)
    if not rows.any():
        return None
    row = tuple(map(int, np.unravel_index(int(rows.argmax()), rows.shape))) if rows.shape else ()
    which = f"row {_told(row)}: " if row else ""
    return InvalidMessage(Reason.ALL_MASKED, f"{which}all {tensor.classes} logits are masked", tensor.place((*row, 0)))


def _told(index: tuple[int, ...]) -> str:
    return str(index[0]) if len(index) == 1 else str(list(index))
