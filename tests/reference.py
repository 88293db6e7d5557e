"""The specification's transform, written slowly and plainly: what a message must become, or why it is refused.

Nothing here uses the code under test, nor numpy, nor a msgpack library. A message is read into nodes that remember
their bytes. Structure that leaves is given as exact bytes, each number as a value of 60 digits with a tolerance.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field, replace
from decimal import localcontext
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from plain_msgpack import Node, RefusedError, header, nodes, read, text
from plain_softmax import EXACTLY, SUM_TOLERANCE, WIDTHS, Distribution, Number

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Result = TypeVar("Result")

REASONS: Final = (
    "null_value", "too_large", "malformed_msgpack", "trailing_bytes", "too_deep", "extension_type", "duplicate_field",
    "missing_logits", "unsupported_encoding", "unsupported_dtype", "shape_mismatch", "ragged", "empty",
    "too_many_classes", "unexpected_classes", "not_numeric", "nan", "positive_infinity", "all_masked", "unknown_model",
)  # fmt: skip
HIGHEST_RANK: Final = 4


@dataclass(frozen=True)
class Limits:
    """The settings that refuse by size."""

    max_message_bytes: int = 1 << 20
    max_classes: int = 1 << 20


@dataclass(frozen=True)
class Profile:
    """What is wanted of one model's messages; field by field as the service's own."""

    temperature: float = 1.0
    classes: int | None = None
    labels: tuple[str, ...] = ()
    masked: tuple[int, ...] = ()
    top_k: int | None = None
    outputs: tuple[str, ...] = ("probabilities",)
    dtype: str | None = None


@dataclass(frozen=True)
class Profiles:
    """The profiles by the names of their models, and what the rest gets."""

    models: Mapping[str, Profile] = field(default_factory=dict)
    default: Profile = Profile()
    strict: bool = False

    def known(self, name: str | None) -> bool:
        return name is None or name in self.models or name == "default"

    def profile(self, name: str | None) -> Profile:
        return self.default if name is None else self.models.get(name, self.default)


@dataclass(frozen=True)
class Refusal:
    """The message is refused, for this reason."""

    reason: str


@dataclass(frozen=True)
class Expected:
    """The message is answered with these bytes and numbers, one after another."""

    parts: tuple[bytes | Number, ...]


# Dtypes


@dataclass(frozen=True)
class Dtype:
    """A dtype as it was spelled.

    Attributes:
        family: `code` and `name` are numpy's, `protocol` the Open Inference Protocol's.
        kind: `f`, `i`, `u`, or `b` for bfloat16.
        size: bytes of one number.
        order: `>` or `<`.
    """

    family: str
    kind: str
    size: int
    order: str = "<"

    def numbers(self, payload: bytes) -> list[float]:
        """The numbers of a bin, in the width that they are computed in."""
        if self.kind == "b":
            pairs = struct.iter_unpack("2s", payload)
            return [number for (pair,) in pairs for number in struct.unpack("<f", b"\0\0" + pair)]
        letter = "..e.f...d"[self.size] if self.kind == "f" else ".bh.i...q"[self.size]
        letter = letter.upper() if self.kind == "u" else letter
        return [float(number) for (number,) in struct.iter_unpack(self.order + letter, payload)]

    @property
    def computed(self) -> str:
        return "float32" if self.kind == "b" or (self.kind == "f" and self.size < 8) else "float64"


_SIZES: Final = [("f", size) for size in (2, 4, 8)] + [(kind, size) for kind in "iu" for size in (1, 2, 4, 8)]
_NAMES: Final = {"f": ("float", "FP"), "i": ("int", "INT"), "u": ("uint", "UINT")}
DTYPES: Final[dict[str, Dtype]] = {
    **{f"{order}{kind}{size}": Dtype("code", kind, size, order) for kind, size in _SIZES if size > 1 for order in "<>"},
    **{f"|{kind}1": Dtype("code", kind, 1) for kind in "iu"},
    **{f"{_NAMES[kind][0]}{8 * size}": Dtype("name", kind, size) for kind, size in _SIZES},
    **{f"{_NAMES[kind][1]}{8 * size}": Dtype("protocol", kind, size) for kind, size in _SIZES},
    "bfloat16": Dtype("name", "b", 2),
    "BF16": Dtype("protocol", "b", 2),
}
_LEAVING: Final = {
    "float32": {"code": b"<f4", "name": b"float32", "protocol": b"FP32"},
    "float64": {"code": b"<f8", "name": b"float64", "protocol": b"FP64"},
}


def spelled(node: Node | None) -> Dtype:
    """The dtype that a str or bin names."""
    dtype = None if node is None or node.payload is None else DTYPES.get(node.payload.decode("latin-1"))
    if dtype is None:
        raise RefusedError("unsupported_dtype")
    return dtype


def respelled(node: Node, leaving: str) -> bytes:
    """The value that names the dtype which leaves: as it was if that is the same, else anew in its manner."""
    wanted = _LEAVING[leaving][spelled(node).family]
    return node.raw if node.payload == wanted else header(node.kind, len(wanted)) + wanted


# Tensors


class TensorMap(NamedTuple):
    """The keys of T4 or T5: the flag, the dtype and all."""

    flag: bytes
    dtype: bytes
    keys: frozenset[bytes]


T4: Final = TensorMap(b"nd", b"type", frozenset([b"nd", b"type", b"kind", b"shape", b"data"]))
T5: Final = TensorMap(b"__ndarray__", b"dtype", frozenset([b"__ndarray__", b"data", b"dtype", b"shape"]))


@dataclass(frozen=True)
class Tensor:
    """Logits, and what the answer needs to know of where they stood.

    Attributes:
        node: the tensor's object: an array, a bin, or the map of T4 or T5.
        dtype: the object that names the dtype, if any does.
        values: in C order; `None` for what is no number.
        computed: the dtype to compute in.
        wide: whether the answer is float64 unless a dtype is forced.
    """

    node: Node
    dtype: Node | None
    shape: tuple[int, ...]
    values: list[float | None]
    computed: str
    wide: bool

    @property
    def rows(self) -> list[list[float]]:
        """The logits of each distribution, when all are numbers."""
        numbers = [value for value in self.values if value is not None]
        return [numbers[start : start + self.shape[-1]] for start in range(0, len(numbers), self.shape[-1])]


def _is_text(node: Node, words: bytes) -> bool:
    return node.kind == "str" and node.value == words


def _is_tensor_map(node: Node) -> bool:
    return node.kind == "map" and any(key.payload in {b"nd", b"__ndarray__"} for key, _ in node.pairs)


def _refuse_extensions(node: Node) -> None:
    if any(inner.kind == "ext" for inner in nodes(node)):
        raise RefusedError("extension_type")


def _rank(node: Node) -> int:
    """How deep arrays nest in arrays; no message nests over 64 deep here."""
    return 1 + max((_rank(child) for child in node.children if child.kind == "array"), default=0)


def list_tensor(node: Node) -> Tensor:
    """T1 and T2."""
    if _rank(node) > HIGHEST_RANK:
        raise RefusedError("shape_mismatch")
    shape, level = [], [node]
    while any(inner.kind == "array" for inner in level):
        lengths = {len(inner.children) if inner.kind == "array" else None for inner in level}
        if len(lengths) > 1:
            raise RefusedError("ragged")
        shape.append(len(level[0].children))
        level = [child for inner in level for child in inner.children]
    kinds = {element.kind for element in level}
    computed = "float32" if kinds == {"float32"} else "float64"
    values = [_number(element) for element in level]
    return Tensor(node, None, tuple(shape), values, computed, "float64" in kinds)


def _number(node: Node) -> float | None:
    value = node.value if node.kind != "bool" else None
    return float(value) if isinstance(value, int | float) else None


def binary_tensor(node: Node, data: Node, dtype: Node | None, shape: Node | None) -> Tensor:
    """What T3, T4 and T5 have in common."""
    meaning = spelled(dtype)
    assert data.payload is not None
    sizes = _sizes(shape)
    if meaning.size * math.prod(sizes) != len(data.payload):
        raise RefusedError("shape_mismatch")
    wide = meaning.kind == "f" and meaning.size == 8
    return Tensor(node, dtype, sizes, list(meaning.numbers(data.payload)), meaning.computed, wide)


def _sizes(shape: Node | None) -> tuple[int, ...]:
    elements = shape.children if shape is not None and shape.kind == "array" else []
    sizes = tuple(element.value for element in elements if element.kind == "int" and isinstance(element.value, int))
    if not 1 <= len(elements) <= HIGHEST_RANK or len(sizes) < len(elements) or min(sizes) < 0:
        raise RefusedError("shape_mismatch")
    return sizes


def bin_tensor(node: Node, message: Node) -> Tensor:
    """T3."""
    dtypes, shapes = _named(message, b"dtype"), _named(message, b"shape")
    if len(dtypes) > 1 or len(shapes) > 1:
        raise RefusedError("duplicate_field")
    dtype = next((value for value in dtypes if value.kind == "str"), None)
    return binary_tensor(node, node, dtype, next(iter(shapes), None))


def map_tensor(node: Node) -> Tensor:
    """T4 and T5."""
    names = [key.payload for key, _ in node.pairs]
    entries = dict(zip(names, node.children[1::2], strict=True))
    encoding = T4 if b"nd" in entries else T5
    if any(names.count(name) > 1 for name in encoding.keys):
        raise RefusedError("duplicate_field")
    flag, data = entries[encoding.flag], entries.get(b"data")
    if not encoding.keys.issuperset(entries) or flag.value is not True or data is None or data.kind != "bin":
        raise RefusedError("unsupported_encoding")
    kind = entries.get(b"kind")
    if kind is not None and kind.payload != b"":
        raise RefusedError("unsupported_dtype")
    return binary_tensor(node, data, entries.get(encoding.dtype), entries.get(b"shape"))


def one_tensor(node: Node, message: Node | None) -> Tensor:
    """Any tensor but T6; T3 has its dtype and shape in the message.

    Raises:
        RefusedError: it is no tensor.
    """
    _refuse_extensions(node)
    if node.kind == "array":
        return list_tensor(node)
    if _is_tensor_map(node):
        return map_tensor(node)
    if node.kind == "bin" and message is not None:
        return bin_tensor(node, message)
    raise RefusedError("unsupported_encoding")


def _named(message: Node, name: bytes) -> list[Node]:
    return [value for key, value in message.pairs if _is_text(key, name)]


# Judging


def judge(tensor: Tensor, limits: Limits, profile: Profile) -> None:
    """Refuse a tensor of the wrong size, and then one without a distribution in each row."""
    classes = tensor.shape[-1]
    _refuse_if("empty", 0 in tensor.shape)
    _refuse_if("too_many_classes", classes > limits.max_classes)
    _refuse_if("unexpected_classes", profile.classes not in {None, classes})
    _refuse_if("unexpected_classes", len(profile.labels) not in {0, classes})
    _refuse_if("not_numeric", None in tensor.values)
    rows = tensor.rows
    _refuse_if("nan", any(math.isnan(value) for row in rows for value in row))
    _refuse_if("positive_infinity", any(value == math.inf for row in rows for value in row))
    _refuse_if("all_masked", any(max(masked(row, profile)) == -math.inf for row in rows))


def masked(row: Sequence[float], profile: Profile) -> list[float]:
    return [-math.inf if at in profile.masked else value for at, value in enumerate(row)]


def _refuse_if(reason: str, fault: object) -> None:
    if fault:
        raise RefusedError(reason)


def earliest(attempts: Sequence[Callable[[], Result]]) -> list[Result]:
    """Make all attempts, and refuse for the reason that comes first in the list.

    Raises:
        RefusedError: some of them were refused.
    """
    results, reasons = [], []
    for attempt in attempts:
        try:
            results.append(attempt())
        except RefusedError as refused:
            reasons.append(refused.reason)
    if reasons:
        raise RefusedError(min(reasons, key=REASONS.index))
    return results


# Answering

Parts = list["bytes | Number"]


def nested(shape: Sequence[int], leaves: Sequence[Parts]) -> Parts:
    """Arrays in arrays around the leaves, as the shape says; a rank of none is the one leaf."""
    if not shape:
        return leaves[0]
    step = len(leaves) // shape[0]
    parts: Parts = [header("array", shape[0])]
    for start in range(0, len(leaves), step):
        parts += nested(shape[1:], leaves[start : start + step])
    return parts


def contained(tensor: Tensor, numbers: list[Number]) -> Parts:
    """Numbers in the container that the logits stood in."""
    if tensor.node.kind == "array":
        return nested(tensor.shape, [[number] for number in numbers])
    untagged = [replace(number, tagged=False) for number in numbers]
    data: Parts = [header("bin", sum(number.length for number in untagged)), *untagged]
    if tensor.node.kind == "bin":
        return data
    parts: Parts = [header("map", len(tensor.node.pairs))]
    for key, value in tensor.node.pairs:
        parts.append(key.raw)
        if key.payload == b"data":
            parts += data
        else:
            parts.append(respelled(value, numbers[0].width.name) if value is tensor.dtype else value.raw)
    return parts


def _top_k(row: Distribution, profile: Profile) -> Parts:
    assert profile.top_k is not None
    best = row.order[: profile.top_k]
    count = header("array", len(best))
    parts: Parts = [header("map", 3 if profile.labels else 2)]
    parts += [text("indices"), count, *(header("int", at) for at in best)]
    if profile.labels:
        parts += [text("labels"), count, *(text(profile.labels[at]) for at in best)]
    return [*parts, text("probabilities"), count, *(row.probability(at) for at in best)]


_OF_A_ROW: Final[dict[str, Callable[[Distribution, Profile], Parts]]] = {
    "predicted": lambda row, _: [header("int", row.order[0])],
    "label": lambda row, profile: [text(profile.labels[row.order[0]])],
    "confidence": lambda row, _: [row.confidence()],
    "entropy": lambda row, _: [row.entropy()],
    "margin": lambda row, _: [row.margin()],
    "top_k": _top_k,
}


@dataclass(frozen=True)
class Answer:
    """The tensors of a message, by the names of their heads if they have such, and the profile."""

    heads: list[tuple[bytes | None, Tensor]]
    profile: Profile

    def leaving(self, tensor: Tensor) -> str:
        return self.profile.dtype or ("float64" if tensor.wide else "float32")

    @cached_property
    def rows(self) -> list[list[Distribution]]:
        """The distributions of each tensor."""
        return [self._rows(tensor) for _, tensor in self.heads]

    def _rows(self, tensor: Tensor) -> list[Distribution]:
        computed, leaving = WIDTHS[tensor.computed], WIDTHS[self.leaving(tensor)]
        logits = [masked(row, self.profile) for row in tensor.rows]
        return [Distribution.of(row, self.profile.temperature, computed, leaving) for row in logits]

    def output(self, name: str) -> Parts:
        """The value of one of the outputs."""
        if self.heads[0][0] is None:
            return self._of_tensor(name, self.heads[0][1], self.rows[0])
        parts: Parts = [header("map", len(self.heads))]
        for (head, tensor), rows in zip(self.heads, self.rows, strict=True):
            assert head is not None
            parts += [head, *self._of_tensor(name, tensor, rows)]
        return parts

    def _of_tensor(self, name: str, tensor: Tensor, rows: list[Distribution]) -> Parts:
        if name == "probabilities":
            return contained(tensor, [number for row in rows for number in row.all_probabilities()])
        if name == "log_probabilities":
            return contained(tensor, [number for row in rows for number in row.log_probabilities()])
        return nested(tensor.shape[:-1], [_OF_A_ROW[name](row, self.profile) for row in rows])

    def message(self, message: Node) -> Parts:
        """The fields that stay, in their places, and those that are added."""
        fields: list[Parts] = []
        for key, value in message.pairs:
            fields += self._field(key, value)
        added = [name for name in self.profile.outputs if name != "probabilities"]
        fields += [[text(name), *self.output(name)] for name in added]
        return [header("map", len(fields)), *(part for parts in fields for part in parts)]

    def _field(self, key: Node, value: Node) -> list[Parts]:
        outputs, tensor = self.profile.outputs, self.heads[0][1]
        if _is_text(key, b"logits"):
            return [[text("probabilities"), *self.output("probabilities")]] if "probabilities" in outputs else []
        if tensor.node.kind == "bin" and (_is_text(key, b"dtype") or _is_text(key, b"shape")):
            if not {"probabilities", "log_probabilities"} & set(outputs):
                return []
            if value is tensor.dtype:
                return [[key.raw, respelled(value, self.leaving(tensor))]]
        return [[key.raw, value.raw]]


def _model(message: Node | None, model_header: bytes | None) -> str | None:
    """The name of the model: the field's if it is one text, else the header's."""
    fields = [] if message is None else _named(message, b"model")
    texts = [value.value for value in fields if value.kind == "str" and len(fields) == 1]
    for candidate in (*texts, model_header):
        try:
            if isinstance(candidate, bytes):
                return candidate.decode()
        except UnicodeDecodeError:
            continue
    return None


@dataclass(frozen=True)
class _Judge:
    """One message under its profile."""

    limits: Limits
    profile: Profile

    def tensor(self, node: Node, message: Node | None) -> Tensor:
        tensor = one_tensor(node, message)
        judge(tensor, self.limits, self.profile)
        return tensor

    def heads(self, node: Node, message: Node) -> list[tuple[bytes | None, Tensor]]:
        """The tensors that `logits` is."""
        if node.kind != "map" or _is_tensor_map(node):
            return [(None, self.tensor(node, message))]
        _refuse_if("empty", not node.pairs)
        tensors = earliest([partial(self.tensor, head, None) for _, head in node.pairs])
        return [(name.raw, tensor) for (name, _), tensor in zip(node.pairs, tensors, strict=True)]

    def message(self, message: Node) -> Parts:
        logits = _named(message, b"logits")
        attempts: list[Callable[[], object]] = [partial(self.heads, node, message) for node in logits]
        attempts.append(partial(self._judge_fields, message, logits))
        earliest(attempts)
        return Answer(self.heads(logits[0], message), self.profile).message(message)

    def _judge_fields(self, message: Node, logits: list[Node]) -> None:
        _refuse_if("duplicate_field", len(logits) > 1)
        _refuse_if("duplicate_field", any(_named(message, name.encode()) for name in self.profile.outputs))
        _refuse_if("missing_logits", not logits)


def expect(value: bytes | None, model_header: bytes | None, limits: Limits, profiles: Profiles) -> Refusal | Expected:
    """What must become of a record's value, given the value of its header `model`."""
    try:
        with localcontext(EXACTLY):
            return Expected(tuple(_transformed(value, model_header, limits, profiles)))
    except RefusedError as refused:
        return Refusal(refused.reason)


def _transformed(value: bytes | None, model_header: bytes | None, limits: Limits, profiles: Profiles) -> Parts:
    if value is None:
        raise RefusedError("null_value")
    _refuse_if("too_large", len(value) > limits.max_message_bytes)
    root = read(value)
    is_message = root.kind == "map" and (_named(root, b"logits") or not _is_tensor_map(root))
    name = _model(root if is_message else None, model_header)
    judging = _Judge(limits, profiles.profile(name))
    if is_message:
        parts = judging.message(root)
    else:
        parts = Answer([(None, judging.tensor(root, None))], judging.profile).output("probabilities")
    _refuse_if("unknown_model", profiles.strict and not profiles.known(name))
    return parts


# Comparing


def agrees(output: bytes, expected: Expected) -> str | None:
    """The first thing in which an output differs from what it must be, `None` if it is right."""
    with localcontext(EXACTLY):
        return _difference(output, expected) or _unfit_row(output, expected)


def _difference(output: bytes, expected: Expected) -> str | None:
    place = 0
    for part in expected.parts:
        length = len(part) if isinstance(part, bytes) else part.length
        found = output[place : place + length]
        if isinstance(part, bytes):
            if found != part:
                return f"at byte {place} stands {found.hex()}, not {part.hex()}"
        elif (number := part.read(found)) is None:
            return f"at byte {place} stands {found.hex()}, not a number of the type {part.width.name}"
        elif not part.accepts(number):
            return f"at byte {place} stands {number!r}, not {part.value:.17g} within {part.tolerance:.3g}"
        place += length
    return None if place == len(output) else f"{len(output) - place} bytes follow"


def _unfit_row(output: bytes, expected: Expected) -> str | None:
    """A row of probabilities that do not sum to 1, or of which another is above that of the highest logit."""
    rows: dict[Distribution, list[float]] = {}
    place = 0
    for part in expected.parts:
        length = len(part) if isinstance(part, bytes) else part.length
        if isinstance(part, Number) and part.row is not None:
            number = part.read(output[place : place + length])
            assert number is not None
            rows.setdefault(part.row, []).append(number)
        place += length
    for row, numbers in rows.items():
        if abs(math.fsum(numbers) - 1) > SUM_TOLERANCE:
            return f"a row sums to {math.fsum(numbers)!r}"
        if max(numbers) > numbers[row.order[0]]:
            return f"class {row.order[0]} has the highest logit, but not the highest probability"
    return None
