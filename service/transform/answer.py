"""The output of a message, laid out: what is the same for all messages of its kind, and what is computed."""

from __future__ import annotations

from collections.abc import Callable  # noqa: TC003 - the table of functions is annotated with it
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from service.transform import cells
from service.transform.cells import Cells
from service.transform.profiles import Output
from service.transform.spans import array_header, map_header, str_object

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from service.transform.distributions import Distributions
    from service.transform.message import Head, Message, Outer
    from service.transform.profiles import Profile
    from service.transform.tensors import Frame, Grid

    Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Edit:
    """Bytes `start:stop` of the message leave as `replacement`."""

    start: int
    stop: int
    replacement: bytes


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor's way from the message to the output.

    Attributes:
        key: of the head, a whole msgpack object; empty where there are no heads.
        shape: of the tensor.
        source: where its logits lie in the message; `None` where they have no regular places.
        computed_in: float32 or float64.
        answered_in: float32 or float64.
        target: where its probabilities lie in the output; `None` if they do not leave.
        logarithms: the container that its log-probabilities leave in; `None` if they do not.
    """

    key: bytes
    shape: tuple[int, ...]
    source: Grid | None
    computed_in: np.dtype[Any]
    answered_in: np.dtype[Any]
    target: Grid | None
    logarithms: Frame | None


@dataclass(frozen=True, slots=True)
class Answer:
    """How messages of one kind are answered.

    Attributes:
        profile: theirs.
        parts: their tensors.
        edits: where the output differs from the message, in order, before the appended fields.
        appended: the fields that follow.
    """

    profile: Profile
    parts: tuple[Part, ...]
    edits: tuple[Edit, ...]
    appended: tuple[Output, ...]

    def template(self, data: bytes) -> bytes:
        """The message with its edits made and the probabilities blank."""
        pieces: list[bytes] = []
        done = 0
        for edit in self.edits:
            pieces += [data[done : edit.start], edit.replacement]
            done = edit.stop
        pieces.append(data[done:])
        return b"".join(pieces)

    def appendix(self, distributions: Sequence[Distributions], records: int) -> Cells:
        """The appended fields of records whose tensors were distributed so."""
        pieces: list[Cells] = []
        for output in self.appended:
            opening = str_object(output.encode())
            if self.parts[0].key:
                opening += map_header(len(self.parts))
            for part, made in zip(self.parts, distributions, strict=True):
                pieces.append(cells.same(records, opening + part.key))
                pieces.append(_field(output, part, made, self.profile, records))
                opening = b""
        return cells.beside(pieces)


def answer(message: Message) -> Answer:
    """Lay out the output of a message."""
    profile, outer = message.selected.profile, message.outer
    leaves = (Output.PROBABILITIES,) if outer is None else tuple(map(Output, profile.outputs))
    tensors = [head.tensor for head in message.heads]
    dtypes = [profile.answered_in(tensor.answered_in) for tensor in tensors]
    frames = [tensor.container.frame(dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)]
    value, offsets = _value(message.heads, frames)
    if outer is None:
        edits, at = [Edit(0, len(message.data), value)], 0
    else:
        edits = _edits(outer, value, leaves, dtypes[0])
        at = outer.logits.value + sum(
            len(edit.replacement) - (edit.stop - edit.start) for edit in edits if edit.stop <= outer.logits.value
        )
    parts = tuple(
        Part(
            key=head.key,
            shape=head.tensor.shape,
            source=head.tensor.source,
            computed_in=head.tensor.computed_in,
            answered_in=dtype,
            target=frame.grid.moved(at + offset) if Output.PROBABILITIES in leaves else None,
            logarithms=frame if Output.LOG_PROBABILITIES in leaves else None,
        )
        for head, dtype, frame, offset in zip(message.heads, dtypes, frames, offsets, strict=True)
    )
    return Answer(profile, parts, tuple(edits), tuple(name for name in leaves if name is not Output.PROBABILITIES))


def _value(heads: Sequence[Head], frames: Sequence[Frame]) -> tuple[bytes, list[int]]:
    """The whole value of the field, and where in it each frame begins."""
    value = map_header(len(heads)) if heads[0].key else b""
    offsets = []
    for head, frame in zip(heads, frames, strict=True):
        value += head.key
        offsets.append(len(value))
        value += frame.template
    return value, offsets


def _edits(outer: Outer, value: bytes, leaves: Sequence[Output], dtype: np.dtype[Any]) -> list[Edit]:
    """What changes in the map around the tensor."""
    logits, count = outer.logits, outer.count - 1 + len(leaves)
    edits = []
    if Output.PROBABILITIES in leaves:
        edits.append(Edit(logits.key, logits.value, str_object(Output.PROBABILITIES.encode())))
        edits.append(Edit(logits.value, logits.end, value))
    else:
        edits.append(Edit(logits.key, logits.end, b""))
    if outer.binary and {Output.PROBABILITIES, Output.LOG_PROBABILITIES}.isdisjoint(leaves):
        # What would tell the dtype and shape of nothing goes too.
        edits += [Edit(field.key, field.end, b"") for field in (outer.binary.dtype, outer.binary.shape)]
        count -= 2
    elif outer.binary and (respelled := outer.binary.spelling.respelled(dtype)):
        edits.append(Edit(outer.binary.spelling.start, outer.binary.spelling.end, respelled))
    edits.append(Edit(0, outer.body, map_header(count)))
    return sorted(edits, key=lambda edit: edit.start)


def _field(output: Output, part: Part, made: Distributions, profile: Profile, records: int) -> Cells:
    if part.logarithms is not None and output is Output.LOG_PROBABILITIES:
        template, grid = part.logarithms
        content = np.empty((records, len(template)), np.uint8)
        content[:] = np.frombuffer(template, np.uint8)
        grid.numbers(content)[...] = _present(made.log_probabilities).reshape(records, *part.shape)
        return Cells(content)
    return cells.nested(_ROWS[output](part, made, profile), part.shape[:-1])


def _predicted(_part: Part, made: Distributions, _profile: Profile) -> Cells:
    return cells.integers(_present(made.predicted)[:, None])


def _label(_part: Part, made: Distributions, profile: Profile) -> Cells:
    return cells.objects([profile.packed_labels[index] for index in _present(made.predicted).tolist()])


def _confidence(part: Part, made: Distributions, _profile: Profile) -> Cells:
    return cells.floats(_present(made.confidence)[:, None], part.answered_in)


def _entropy(part: Part, made: Distributions, _profile: Profile) -> Cells:
    return cells.floats(_present(made.entropy)[:, None], part.answered_in)


def _margin(part: Part, made: Distributions, _profile: Profile) -> Cells:
    return cells.floats(_present(made.margin)[:, None], part.answered_in)


def _top_k(part: Part, made: Distributions, profile: Profile) -> Cells:
    top = _present(made.top)
    rows, k = top.shape
    columns = {b"indices": cells.integers(top)}
    if profile.packed_labels:
        chosen = cells.objects([profile.packed_labels[index] for index in top.reshape(-1).tolist()])
        columns[b"labels"] = cells.regrouped(chosen, rows)
    columns[b"probabilities"] = cells.floats(_present(made.top_probabilities), part.answered_in)
    pieces = [cells.same(rows, map_header(len(columns)))]
    for name, column in columns.items():
        pieces += [cells.same(rows, str_object(name) + array_header(k)), column]
    return cells.beside(pieces)


_ROWS: Final[dict[Output, Callable[[Part, Distributions, Profile], Cells]]] = {
    Output.PREDICTED: _predicted,
    Output.LABEL: _label,
    Output.CONFIDENCE: _confidence,
    Output.ENTROPY: _entropy,
    Output.MARGIN: _margin,
    Output.TOP_K: _top_k,
}


def _present(values: NDArray[Any] | None) -> NDArray[Any]:
    if values is None:
        raise AssertionError("the profile asked for a field and its numbers were not made")
    return values
