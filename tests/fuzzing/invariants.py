"""What must hold whatever a record's value is: one input of the fuzzer, judged.

An input is a few control bytes, which choose the profiles, the limits and the company, and a message.
What is expected is read from the messages by msgpack alone, never by the code under test.
"""

from __future__ import annotations

import dataclasses
import random
import re
import tracemalloc
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np

from service.transform import columnar
from service.transform import pipeline as pipelines
from service.transform.layout import Layouts
from service.transform.pipeline import CHUNK_BYTES, Limits, Pipeline
from service.transform.profiles import Output, Profile, Profiles
from service.transform.softmax import BLOCK_ELEMENTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from service.transform.refusals import InvalidMessage

    # An output and the model that it was made for, or a refusal's reason, detail and place.
    Verdict = tuple[bytes, str] | tuple[str, str, int | None]
    Record = tuple[bytes | None, bytes | None]

CONTROL: Final = 8
# The control byte of a batch with many copies of the message.
CROWD: Final = 0xFF
# The longest message: beyond the classes from which other ways of summing and sorting are taken.
LONGEST: Final = 2048
# So many inputs are answered by the same long-lived pipelines; they are what a finding may depend on.
LIFETIME: Final = 2048
# Memory is measured in one of so many runs, and oftener where a message may claim to hold much.
MEMORY_EVERY: Final = 1000
CLAIMS_EVERY: Final = 10

_LABELS: Final = ("a", "\N{LATIN SMALL LETTER E WITH ACUTE}" * 20, "x" * 300)
_ALL: Final = tuple(Output)
_UNNAMED: Final = tuple(output for output in Output if output is not Output.LABEL)
_SCALARS: Final = (Output.PREDICTED, Output.CONFIDENCE, Output.ENTROPY, Output.MARGIN, Output.TOP_K)
_NAMED: Final = {
    "a": Profile(classes=2, outputs=(Output.CONFIDENCE, Output.PROBABILITIES)),
    "b": Profile(masked=(0, 2), top_k=2, outputs=(Output.TOP_K, Output.ENTROPY, Output.PROBABILITIES)),
    "\N{LATIN SMALL LETTER E WITH ACUTE}": Profile(temperature=float(np.finfo(np.float32).tiny), masked=(2, 500)),
    "a-name-of-some-length": Profile(labels=_LABELS[:2], outputs=(Output.LABEL, Output.PROBABILITIES)),
}


@dataclass(frozen=True)
class Setting:
    """Profiles to transform by, as they were given."""

    default: Profile = dataclasses.field(default_factory=Profile)
    models: Mapping[str, Profile] = dataclasses.field(default_factory=dict)
    strict: bool = False

    def profiles(self) -> Profiles:
        return Profiles(self.models, default=self.default, strict=self.strict)

    def profile(self, model: str) -> Profile:
        return self.models.get(model, self.default)


SETTINGS: Final = (
    Setting(),
    Setting(Profile(outputs=_UNNAMED, top_k=3)),
    Setting(Profile(outputs=_SCALARS, top_k=1000)),
    Setting(Profile(outputs=(Output.LOG_PROBABILITIES,))),
    Setting(Profile(outputs=(Output.LOG_PROBABILITIES, Output.PROBABILITIES), dtype="float64")),
    Setting(Profile(temperature=0.5, masked=(0, 2, 7), dtype="float32")),
    Setting(Profile(labels=_LABELS, outputs=_ALL, top_k=2)),
    Setting(Profile(temperature=float(np.finfo(np.float32).max), outputs=_UNNAMED, top_k=600)),
    Setting(models=_NAMED),
    Setting(models=_NAMED, strict=True),
)
LIMITS: Final = (
    Limits(1 << 20, 1 << 20),
    Limits(1 << 20, 300),
    Limits(1 << 20, 4),
    Limits(64, 1 << 20),
)
HEADERS: Final = (
    *(None, b"a", b"b", b"\xc3\xa9", b"a-name-of-some-length"),
    *(b"default", b"of-no-profile", b"\xff\xfe", b""),
)
_NEIGHBOURS: Final[tuple[bytes | None, ...]] = (
    None,
    b"",
    b"\xc1",
    b"\x93\xca\x3f\x80\x00\x00\xca\x00\x00\x00\x00\xca\xbf\x80\x00\x00",
    b"\x92\xca\x7f\xc0\x00\x00\xca\x3f\x80\x00\x00",
    b"\x81\xa6logits\x93\x01\x02\x03",
    b"\x82\xa6logits\x92\xcb" + b"\x3f" * 8 + b"\xcb" + b"\x40" * 8 + b"\xa5model\xa1b",
    b"\x83\xa6logits\xc4\x06abcdef\xa5dtype\xa8bfloat16\xa5shape\x91\x03",
    b"\x84\xc4\x02nd\xc3\xc4\x04type\xc4\x03<f2\xc4\x05shape\x92\x02\x02\xc4\x04data\xc4\x08abcdefgh",
    b"\x81\xa6logits\x82\xa1a\x92\x01\x02\x02\x93\xca\x00\x00\x00\x00\x05\xca\x40\x00\x00\x00",
)
# Where the columnar path cuts, which a few small messages would not fill.
_BLOCKS: Final = (
    (columnar, "BLOCK_ELEMENTS", BLOCK_ELEMENTS, 16),
    (pipelines, "CHUNK_BYTES", CHUNK_BYTES, 256),
)
# Messages with room in them, of as many bytes as the two that come first tell.
_FILLED: Final = (
    (b"\x82\xa6logits\x92\xca\x3f\x80\0\0\xca\0\0\0\0\xa2id\xda", b""),
    (b"\x81\xa6logits\xdc", b""),
    (b"\x83\xa6logits\xc5", b"\xa5dtype\xa3|u1\xa5shape\x91\xcd??"),
    (b"\x82\xa1x\xc5", b"\xa6logits\x91\xcb\x40\0\0\0\0\0\0\0"),
)


class Fault(Exception):  # noqa: N818 - it is the service's, not this program's
    """Something that must hold does not.

    Attributes:
        kind: which; the same for all inputs that show the same.
    """

    def __init__(self, kind: str, told: str = "") -> None:
        super().__init__(f"{kind}: {told}" if told else kind)
        self.kind = kind


@dataclass(frozen=True)
class Case:
    """An input, understood.

    Attributes:
        setting: which of `SETTINGS`.
        limits: which of `LIMITS`.
        record: the message, and the value of its header `model`.
        batch: records to transform together; the message is among them at least twice.
        narrow: whether few records fill the columnar path's blocks.
        cramped: whether the long-lived pipeline keeps forgetting layouts.
    """

    setting: int
    limits: int
    record: tuple[bytes, bytes | None]
    batch: list[Record]
    narrow: bool
    cramped: bool

    @classmethod
    def of(cls, data: bytes) -> Case:
        control, message = data[:CONTROL].ljust(CONTROL, b"\0"), data[CONTROL:]
        setting, header, limits, company, ways, *_ = control
        chance = random.Random(control)  # noqa: S311 - the same input means the same case
        record = (message, HEADERS[header % len(HEADERS)])
        batch: list[Record] = [record] * (16 if company == CROWD else 2)
        others = [_varied(message, chance) for _ in range(company & 3)]
        others += 2 * [_of_length(len(message), chance) for _ in range(company >> 2 & 3)]
        batch += [(other, record[1]) for other in others]
        neighbours = [chance.choice(_NEIGHBOURS) for _ in range(company >> 4 & 3)]
        batch += [(other, chance.choice(HEADERS) if header & 0x80 else record[1]) for other in neighbours]
        chance.shuffle(batch)
        return cls(setting % len(SETTINGS), limits % len(LIMITS), record, batch, bool(ways & 1), bool(ways & 2))

    def pipeline(self) -> Pipeline:
        """A fresh one."""
        return Pipeline(LIMITS[self.limits], SETTINGS[self.setting].profiles())

    @contextmanager
    def blocks(self) -> Iterator[None]:
        """How the columnar path cuts meanwhile."""
        for module, name, width, narrow in _BLOCKS:
            if name not in vars(module):
                raise AttributeError(name, module)
            vars(module)[name] = narrow if self.narrow else width
        try:
            yield
        finally:
            for module, name, width, _ in _BLOCKS:
                vars(module)[name] = width


def _varied(message: bytes, chance: random.Random) -> bytes:
    """A message of the same length that may or may not be of the same kind."""
    varied = bytearray(message)
    for _ in range(chance.randint(1, 4) if message else 0):
        varied[chance.randrange(len(varied))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.choice(message)))
    return bytes(varied)


def _of_length(length: int, chance: random.Random) -> bytes:
    """An acceptable message of this length, if there is one: records of one length are looked at together."""
    beginning, end = chance.choice(_FILLED)
    room = length - len(beginning) - 2 - len(end)
    if room < 1:
        return bytes(length)
    told = room.to_bytes(2, "big")
    return beginning + told + bytes([chance.randrange(0x80)]) * room + end.replace(b"??", told)


class Examiner:
    """Judges inputs, and keeps what lives on from one to the next."""

    def __init__(self) -> None:
        self.trail: list[bytes] = []
        self._pipelines: dict[tuple[int, int, bool], Pipeline] = {}
        self._neighbours: dict[tuple[int, int, Record], Verdict] = {}
        self._seen = 0

    def examine(self, data: bytes) -> None:
        """Judge one input.

        Raises:
            Fault: what must hold does not.
        """
        if len(self.trail) >= LIFETIME:
            self.trail.clear()
            self._pipelines.clear()
        self.trail.append(data)
        case = Case.of(data)
        with case.blocks(), warnings.catch_warnings():
            warnings.simplefilter("error")
            self._judge(case)
        if self._seen % (CLAIMS_EVERY if _CLAIM.search(data) else MEMORY_EVERY) == 0:
            _check_memory(case)
        self._seen += 1

    def _judge(self, case: Case) -> None:
        alone = {record: self._alone(case, record) for record in dict.fromkeys(case.batch)}
        expected = [alone[record] for record in case.batch]
        compare("in a batch of a fresh pipeline", expected, transformed(case.pipeline(), case.batch))
        pipeline = self._long_lived(case)
        compare("in a batch of a long-lived pipeline", expected, transformed(pipeline, case.batch))
        compare("alone in a long-lived pipeline", [alone[case.record]], transformed(pipeline, [case.record]))

    def _alone(self, case: Case, record: Record) -> Verdict:
        """The record's verdict where it is the only one that its pipeline ever sees."""
        key = (case.setting, case.limits, record)
        if key in self._neighbours:
            return self._neighbours[key]
        (verdict,) = transformed(case.pipeline(), [record])
        _check(case, record, verdict)
        if record[0] in _NEIGHBOURS:
            self._neighbours[key] = verdict
        return verdict

    def _long_lived(self, case: Case) -> Pipeline:
        key = (case.setting, case.limits, case.cramped)
        if key not in self._pipelines:
            pipeline = case.pipeline()
            if case.cramped:
                pipeline._core = dataclasses.replace(pipeline._core, layouts=Layouts(max_bytes=1 << 16, per_key=2))
            self._pipelines[key] = pipeline
        return self._pipelines[key]


def transformed(pipeline: Pipeline, batch: Sequence[Record]) -> list[Verdict]:
    """What becomes of each record of a batch; only refusals may come of it, and they say nothing of the payload."""
    values, models = [value for value, _ in batch], [model for _, model in batch]
    try:
        outcome = pipeline.transform(values, models)
    except Exception as error:
        raise Fault(f"{type(error).__name__} leaves the pipeline", str(error)) from error
    if not len(outcome.outputs) == len(outcome.models) == len(batch):
        raise Fault("not as many outcomes as records")
    verdicts: list[Verdict] = []
    for position, output in enumerate(outcome.outputs):
        refusal = outcome.refusals.pop(position, None)
        if (output is None) is (refusal is None):
            raise Fault("a record is not either answered or refused", f"{output!r}, {refusal!r}")
        if output is not None:
            verdicts.append((output, outcome.models[position]))
        elif refusal is not None:
            verdicts.append((str(refusal.reason), refusal.detail, refusal.at))
            _check_detail(batch[position], refusal)
    if outcome.refusals:
        raise Fault("a refusal of no record", str(list(outcome.refusals)))
    return verdicts


def compare(where: str, expected: Sequence[Verdict], found: Sequence[Verdict]) -> None:
    """Require equal verdicts, byte for byte."""
    for position, (one, other) in enumerate(zip(expected, found, strict=True)):
        if one != other:
            raise Fault(f"another verdict {where}", f"record {position}: alone {_told(one)}, there {_told(other)}")


def _told(verdict: Verdict) -> str:
    return " ".join(part.hex() if isinstance(part, bytes) else str(part) for part in verdict)


# --- refusals ---------------------------------------------------------------------------------

# What a detail may say although the message says it too.
_OWN_WORDS: Final = re.compile(
    r"\b[0-9]+\b|limits\.max_(?:classes|message_bytes)|__ndarray__|" + "|".join(f"{output}" for output in Output)
)
_WINDOW: Final = 8


def _check_detail(record: Record, refusal: InvalidMessage) -> None:
    value, model = record
    at, detail, size = refusal.at, refusal.detail, len(value or b"")
    if at is not None and not 0 <= at <= size:
        raise Fault(f"{refusal.reason} at a place beyond the message", f"{at} of {size}")
    if len(detail) > 300 or not detail.isascii() or not detail.isprintable():
        raise Fault(f"the detail of {refusal.reason} is not short and printable", repr(detail))
    for said in _OWN_WORDS.split(detail):
        for start in range(len(said) - _WINDOW + 1):
            window = said[start : start + _WINDOW].encode()
            if window in (value or b"") or window in (model or b""):
                raise Fault(f"the detail of {refusal.reason} holds payload", repr(detail))


# --- answers ----------------------------------------------------------------------------------

_NARROW: Final = frozenset({b"<f4", b"float32", b"FP32"})
_WIDE: Final = frozenset({b"<f8", b"float64", b"FP64"})


def _check(case: Case, record: Record, verdict: Verdict) -> None:
    """Judge one record's own verdict."""
    message = record[0]
    if len(verdict) > 2 or message is None:
        return
    output, model = verdict
    if not isinstance(output, bytes):
        raise TypeError(output)
    unpacker = _unpacker(output)
    try:
        unpacker.skip()
        whole = unpacker.tell() == len(output)
    except Exception as error:
        raise Fault("an output is not msgpack", str(error)) from error
    if not whole:
        raise Fault("an output is more than one object", output.hex())
    profile = SETTINGS[case.setting].profile(model)
    if len(output) > (most := _longest_output(message, profile)):
        raise Fault("an output is too long", f"{len(output)} bytes of {len(message)}, at most {most}")
    fields = _texts(output) if _is_map(output) and b"logits" in _texts(message) else None
    if fields is None:
        _check_tensor(output, profile, {})
    elif Output.PROBABILITIES in profile.outputs:
        if b"probabilities" not in fields:
            raise Fault("an output has no probabilities", output.hex())
        _check_tensor(fields[b"probabilities"], profile, fields)


def _longest_output(message: bytes, profile: Profile) -> int:
    """Every byte may be a number of its own, a row of its own, and part of a head's name that each field repeats."""
    header, number = 5, 9
    label = max((len(label.encode()) + 3 for label in profile.labels), default=0)
    words = {Output.LABEL: label, Output.TOP_K: header + label + len("indices, labels, probabilities") + 4 * header}
    added = sum(1 + 4 * header + number + words.get(Output(output), 0) for output in profile.outputs)
    return 256 + (1 + number + 4 * header + added) * len(message)


def _check_tensor(value: bytes, profile: Profile, beside: Mapping[bytes, bytes]) -> None:
    """The probabilities in a tensor of any encoding, or in each of a map of heads."""
    if not _is_map(value):
        if value[0] in {0xC4, 0xC5, 0xC6}:
            _check_bin(value, beside.get(b"dtype"), beside.get(b"shape"), profile)
        else:
            _check_list(value, profile)
        return
    fields = _texts(value, bins=True)
    for flag, dtype in ((b"nd", b"type"), (b"__ndarray__", b"dtype")):
        if flag in fields:
            _check_bin(fields.get(b"data"), fields.get(dtype), fields.get(b"shape"), profile)
            return
    for _, head in _pairs(value):
        if _is_map(head) and not {b"nd", b"__ndarray__"} & set(_texts(head, bins=True)):
            raise Fault("a head of an output is no tensor", value.hex())
        _check_tensor(head, profile, {})


def _check_list(value: bytes, profile: Profile) -> None:
    unpacker, tag = _unpacker(value), value[0]
    while 0x90 <= tag <= 0x9F or tag in {0xDC, 0xDD}:
        unpacker.read_array_header()
        tag = value[unpacker.tell()]
    if tag not in {0xCA, 0xCB}:
        raise Fault("a list of probabilities holds something else", value.hex())
    try:
        rows = np.array(msgpack.unpackb(value), np.float64)
    except ValueError as error:
        raise Fault("a list of probabilities is ragged", str(error)) from error
    _check_rows(rows.reshape(-1, rows.shape[-1]), profile, wide=tag == 0xCB)


def _check_bin(value: bytes | None, dtype: bytes | None, shape: bytes | None, profile: Profile) -> None:
    if value is None or dtype is None or shape is None:
        raise Fault("binary probabilities lack dtype or shape")
    word, sizes, payload = (msgpack.unpackb(part, raw=True) for part in (dtype, shape, value))
    if word not in _NARROW | _WIDE:
        raise Fault("binary probabilities are of a strange dtype", repr(word))
    numbers = np.frombuffer(payload, "<f8" if word in _WIDE else "<f4")
    if int(np.prod(sizes)) != len(numbers):
        raise Fault("binary probabilities are not of their shape", f"{len(numbers)} numbers, {sizes}")
    _check_rows(numbers.reshape(-1, sizes[-1]), profile, wide=word in _WIDE)


def _check_rows(rows: np.ndarray[Any, np.dtype[Any]], profile: Profile, *, wide: bool) -> None:
    # Forced to float64, numbers may have been computed in float32.
    eps = float(np.finfo(np.float64 if wide and profile.dtype is None else np.float32).eps)
    if not ((rows >= 0) & (rows <= 1)).all():
        raise Fault("a probability is not from 0 to 1")
    surplus = np.abs(rows.astype(np.longdouble).sum(axis=1) - 1).max(initial=0)
    if surplus > 4 * eps * (1 + rows.shape[1] / 10_000):
        raise Fault("probabilities do not sum to 1", f"{rows.shape[1]} classes, off by {float(surplus / eps):.2f} eps")


def _unpacker(data: bytes) -> msgpack.Unpacker:
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    return unpacker


def _is_map(data: bytes) -> bool:
    return 0x80 <= data[0] <= 0x8F or data[0] in {0xDE, 0xDF}


def _pairs(data: bytes) -> list[tuple[bytes, bytes]]:
    """The entries of the map `data`, keys and values as they stand; none if it is no map."""
    unpacker, found = _unpacker(data), []
    for _ in range(unpacker.read_map_header() if _is_map(data) else 0):
        key = unpacker.tell()
        unpacker.skip()
        value = unpacker.tell()
        unpacker.skip()
        found.append((data[key:value], data[value : unpacker.tell()]))
    return found


def _texts(data: bytes, *, bins: bool = False) -> dict[bytes, bytes]:
    """The values of the map `data` whose keys are str, the first of each name."""
    tags = {*range(0xA0, 0xC0), 0xD9, 0xDA, 0xDB} | ({0xC4, 0xC5, 0xC6} if bins else set())
    found: dict[bytes, bytes] = {}
    for key, value in _pairs(data):
        if key[0] in tags:
            found.setdefault(msgpack.unpackb(key, raw=True), value)
    return found


# --- memory -----------------------------------------------------------------------------------

# Tags of lengths, counts and sizes of four bytes and more.
_CLAIM: Final = re.compile(rb"[\xc6\xc9\xce\xcf\xd2\xd3\xdb\xdd\xdf]")
# Each of msgpack's parsers takes a buffer of a mebibyte, whatever it is fed; a few live at once.
_BASE_MEMORY: Final = 8 << 20
_MEMORY_PER_BYTE: Final = 4


def _check_memory(case: Case) -> None:
    """What records make the pipeline allocate is a small multiple of their size, however much they claim to hold."""
    for what, batch in (("a record", [case.record]), ("a batch", case.batch)):
        pipeline = case.pipeline()
        tracemalloc.start()
        try:
            transformed(pipeline, batch)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        outputs = sum(_longest_output(value or b"", SETTINGS[case.setting].default) for value, _ in batch)
        if peak > _BASE_MEMORY + _MEMORY_PER_BYTE * outputs:
            raise Fault(f"{what} takes too much memory", f"{peak} bytes, for outputs of at most {outputs}")
