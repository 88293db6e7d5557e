"""What the service makes of a message, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from service.transform.binaries import NUMPY_FLAG, flag_of
from service.transform.layout import learn
from service.transform.message import parse
from service.transform.pipeline import Pipeline
from service.transform.spans import ARRAYS, BINS, entries, text_or_bin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.transform.message import Head, Message
    from service.transform.pipeline import Limits
    from service.transform.profiles import Profiles
    from service.transform.refusals import InvalidMessage
    from service.transform.tensors import Tensor

_ROW: Final = 16
_KINDS: Final = {
    None: "integers that are their own tags", 0xCA: "float32", 0xCB: "float64",
    0xCC: "uint8", 0xCD: "uint16", 0xCE: "uint32", 0xCF: "uint64",
    0xD0: "int8", 0xD1: "int16", 0xD2: "int32", 0xD3: "int64",
}  # fmt: skip


def explain(data: bytes, model: bytes | None, limits: Limits, profiles: Profiles) -> tuple[bool, Iterator[str]]:
    """Tell whether a message is accepted, and in lines how it is understood, or where it is at fault.

    Args:
        data: the message.
        model: what the record's header `model` would say.
        limits: as set.
        profiles: as set.
    """
    outcome = Pipeline(limits, profiles).transform([data], [model])
    refusal = outcome.refusals.get(0)
    if refusal is not None:
        return False, _refused(data, refusal)
    output = outcome.outputs[0]
    if output is None:
        raise AssertionError(data)
    return True, _accepted(parse(data, model, profiles, limits.max_classes), output)


def _accepted(message: Message, output: bytes) -> Iterator[str]:
    yield f"accepted, {len(message.data)} bytes"
    heads = message.heads
    if heads[0].key:
        yield _line("encoding", f"T6: a map of {len(heads)} heads")
        for head in heads:
            yield f"  head {_name(head)}"
            yield from ("  " + line for line in _tensor(message, head.tensor))
    else:
        yield from _tensor(message, heads[0].tensor)
    selected = message.selected
    yield _line("profile", f"{selected.name} (outputs: {', '.join(selected.profile.outputs)})")
    layout = learn(message)
    if layout is None:
        yield _line("path", "general: one at a time, since the numbers have no regular places")
    else:
        structural = sum(int((stretch.mask != 0).sum()) for stretch in layout.stretches)
        yield _line("path", f"columnar with others of its layout, which is {structural} structural bytes")
    yield _line("output", f"{len(output)} bytes{_fields(output)}")


def _tensor(message: Message, tensor: Tensor) -> Iterator[str]:
    yield _line("encoding", _encoding(message, tensor))
    width = message.selected.profile.answered_in(tensor.answered_in)
    yield _line("dtype", f"{_stored(tensor)}; computed in {tensor.computed_in}, leaves as {width}")
    rows = "1 distribution" if tensor.rows == 1 else f"{tensor.rows} distributions"
    yield _line("shape", f"{list(tensor.shape)}: {rows} over {tensor.classes} classes")


def _encoding(message: Message, tensor: Tensor) -> str:
    tag = message.data[tensor.at]
    if tag in ARRAYS:
        kind = "T1: an array of numbers" if len(tensor.shape) == 1 else f"T2: arrays nested {len(tensor.shape)} deep"
    elif tag in BINS:
        kind = "T3: a bin beside dtype and shape"
    elif flag_of(message.data, tensor.at) == NUMPY_FLAG:
        kind = "T4: msgpack-numpy's map"
    else:
        kind = "T5: a map marked __ndarray__"
    return f"{'bare ' if message.outer is None else ''}{kind}, at byte {tensor.at}"


def _stored(tensor: Tensor) -> str:
    if tensor.source is None:
        return "numbers of several kinds"
    elements = tensor.source.elements
    if elements.bfloat16:
        return "bfloat16"
    if elements.tagged:
        return _KINDS[elements.tag]
    order = ", big-endian" if elements.dtype.str[0] == ">" else ""
    return f"{elements.dtype.name}{order}"


def _name(head: Head) -> str:
    name = text_or_bin(head.key, 0, len(head.key))
    return head.key.hex() if name is None else name.decode(errors="backslashreplace")


def _fields(output: bytes) -> str:
    if output[0] in ARRAYS:
        return ""
    found = entries(output)
    names = [text_or_bin(output, key, value) for key, value, _ in found]
    return ": " + ", ".join("?" if name is None else name.decode(errors="backslashreplace") for name in names)


def _refused(data: bytes, refusal: InvalidMessage) -> Iterator[str]:
    yield f"refused: {refusal.reason}"
    yield f"  {refusal.detail}"
    if refusal.at is None or not data:
        return
    at = min(refusal.at, len(data))
    row = at // _ROW * _ROW
    for start in range(max(0, row - _ROW), min(len(data), row + 2 * _ROW), _ROW):
        yield f"  {start:>8} | {data[start : start + _ROW].hex(' ')}"
        if start == row:
            yield f"  {'':>8} | {'   ' * (at - row)}^^ here"
    if at == len(data) and at == row:
        yield f"  {at:>8} | ^^ here"


def _line(what: str, said: str) -> str:
    return f"  {what:<9} {said}"
