"""The pure core alone: what a record costs, by classes, encoding, batch size and path, as ratios in one run.

    scripts/bench transform --write-docs

Programs that are compared take turns, A B A B, each long enough to time; a figure is the median of
the rounds. Everything runs in one thread of one process; there is no Kafka in it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np

from benchmarks import machine, report
from service.transform.columnar import Workspace, transform_columns
from service.transform.distributions import distribute
from service.transform.layout import Layout, learn
from service.transform.message import parse
from service.transform.pipeline import CHUNK_BYTES, Limits, Pipeline
from service.transform.profiles import Profile, Profiles
from service.transform.softmax import BLOCK_ELEMENTS, arithmetic, empty_logits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    Program = Callable[[], object]

MOST_CLASSES: Final = 1_000_000
LIMITS: Final = Limits(max_message_bytes=1 << 20, max_classes=MOST_CLASSES)
PLAIN: Final = Profile()
SOFTMAX_BLOCKS: Final = (
    ("float32", 1 << 16, np.float32),
    (f"float32, {BLOCK_ELEMENTS:,} elements", BLOCK_ELEMENTS, np.float32),
    ("float64", 1 << 16, np.float64),
)
CLASSES: Final = (10, 100, 1000)
SOFTMAX_CLASSES: Final = (
    2,
    3,
    5,
    10,
    20,
    50,
    100,
    150,
    200,
    300,
    400,
    500,
    700,
    1000,
    2000,
    5000,
    10_000,
    20_000,
    50_000,
)
BATCH: Final = 1000
BATCH_SIZES: Final = (1, 2, 4, 8, 16, 64, 256, 1000, 4000)
SHARES: Final = (0.0, 0.01, 0.1, 0.5, 1.0)
MICRO: Final = 1e6
RANDOM: Final = np.random.default_rng(7)


class Rounds:
    """Lets programs take turns and keeps the seconds that a call of each took."""

    def __init__(self, rounds: int, seconds: float) -> None:
        """Run each program for about `seconds` in each of the rounds."""
        self._rounds = rounds
        self._seconds = seconds

    def compare(self, programs: Mapping[str, Program]) -> dict[str, float]:
        """The median seconds of one call of each."""
        calls = {name: max(1, int(self._seconds / _timed(program, 2))) for name, program in programs.items()}
        taken: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(self._rounds):
            for name, program in programs.items():
                taken[name].append(_timed(program, calls[name]))
        return {name: statistics.median(times) for name, times in taken.items()}


def _timed(program: Program, calls: int) -> float:
    begun = time.perf_counter()
    for _ in range(calls):
        program()
    return (time.perf_counter() - begun) / calls


def softmax_and_exp(rounds: Rounds) -> list[dict[str, Any]]:
    """Softmax alone beside `np.exp` on the same array."""
    rows = []
    for classes in SOFTMAX_CLASSES:
        row: dict[str, Any] = {"classes": classes}
        for name, elements, dtype in SOFTMAX_BLOCKS:
            logits = empty_logits(max(1, elements // classes), classes, np.dtype(dtype))
            logits[...] = RANDOM.normal(size=logits.shape)
            target = np.empty_like(logits)
            with arithmetic():  # entered once for a micro-batch
                taken = rounds.compare(
                    {
                        # In place, so from the second call on it is the softmax of probabilities: the same work.
                        "softmax": partial(distribute, logits, PLAIN),
                        "exp": partial(np.exp, logits, out=target),
                    }
                )
            row[name] = taken["softmax"] / taken["exp"]
        rows.append(row)
    return rows


def list_messages(classes: int, *, same_length: bool) -> list[bytes]:
    """A micro-batch of lists of float32 with ids that vary, in value only or in length too."""
    bits = [31] * BATCH if same_length else RANDOM.integers(1, 40, BATCH).tolist()
    ids = [int(RANDOM.integers(1 << (one - 1), 1 << one)) for one in bits]
    return [
        _pack({"id": one, "logits": logits.tolist()}) for one, logits in zip(ids, _logits(BATCH, classes), strict=True)
    ]


def columns_and_loop(rounds: Rounds) -> list[dict[str, Any]]:
    """The columnar path, from a matrix of messages to a matrix of outputs, beside the loop over single messages."""
    rows = []
    for classes in CLASSES:
        messages = list_messages(classes, same_length=True)
        layout = _layout(messages[0])
        matrix = np.frombuffer(b"".join(messages), np.uint8).reshape(BATCH, -1)
        logits = np.ascontiguousarray(_logits(BATCH, classes))
        target = np.empty_like(logits)
        whole = {length: list_messages(classes, same_length=length == "same") for length in ("same", "varying")}
        pipeline = Pipeline(LIMITS)
        taken = rounds.compare(
            {
                "loop": partial(loop, messages),
                "columns": partial(columns, matrix, layout, Workspace()),
                "exp": partial(np.exp, logits, out=target),
                "same": partial(pipeline.transform, whole["same"]),
                "varying": partial(pipeline.transform, whole["varying"]),
            }
        )
        rows.append({"classes": classes} | {name: seconds / BATCH * MICRO for name, seconds in taken.items()})
    return rows


def columns(matrix: NDArray[np.uint8], layout: Layout, workspace: Workspace) -> None:
    """Check the layout, decode, softmax, encode, in the pieces that the pipeline makes."""
    step = max(1, CHUNK_BYTES // matrix.shape[1])
    for start in range(0, len(matrix), step):
        chunk = matrix[start : start + step]
        if not layout.met_by_all(chunk):
            raise AssertionError(layout)
        for outputs in transform_columns(chunk, layout, workspace):
            if outputs.valid is not None:
                raise AssertionError(outputs)


def loop(messages: Sequence[bytes]) -> list[bytes]:
    """What one writes first: message by message unpack, numpy, lists, pack."""
    return [_transformed(message) for message in messages]


def _transformed(message: bytes) -> bytes:
    fields = msgpack.unpackb(message)
    logits = np.array(fields.pop("logits"), np.float32)
    exponentials = np.exp(logits - logits.max())
    fields["probabilities"] = (exponentials / exponentials.sum()).tolist()
    return _pack(fields, single=False)


def encodings(rounds: Rounds) -> list[dict[str, Any]]:
    """Each encoding through the whole pipeline: a thousand together, and one alone."""
    rows = []
    for name, make in ENCODINGS.items():
        for classes in CLASSES:
            messages = [_pack(make(logits) | {"id": 1 << 20}) for logits in _logits(BATCH, classes)]
            together, alone = Pipeline(LIMITS), Pipeline(LIMITS)
            taken = rounds.compare(
                {
                    "together": partial(together.transform, messages),
                    "alone": partial(alone.transform, messages[:1]),
                }
            )
            columnar = together.transform(messages).columnar
            rows.append(
                {
                    "encoding": name,
                    "classes": classes,
                    "columnar": columnar / BATCH,
                    "together": taken["together"] / BATCH * MICRO,
                    "alone": taken["alone"] * MICRO,
                }
            )
    return rows


ENCODINGS: Final[dict[str, Callable[[NDArray[np.float32]], dict[str, Any]]]] = {
    "T1 float32": lambda logits: {"logits": logits.tolist()},
    "T1 float64": lambda logits: {"logits": _Double(logits.tolist())},
    "T1 integers of one width": lambda logits: {"logits": (np.abs(logits * 1000).astype(int) + 300).tolist()},
    "T1 mixed": lambda logits: {"logits": [1, *logits.tolist()[1:]]},
    "T2 of 2 rows": lambda logits: {"logits": logits.reshape(2, -1).tolist()},
    "T3 float32": lambda logits: {"logits": logits.tobytes(), "dtype": "float32", "shape": [len(logits)]},
    "T3 float16": lambda logits: {"logits": logits.astype("<f2").tobytes(), "dtype": "<f2", "shape": [len(logits)]},
    "T4 float32": lambda logits: {
        "logits": {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [len(logits)], b"data": logits.tobytes()}
    },
    "T5 float32": lambda logits: {
        "logits": {"__ndarray__": True, "data": logits.tobytes(), "dtype": "<f4", "shape": [len(logits)]}
    },
    "T6 of 2 heads": lambda logits: {"logits": {"a": logits[::2].tolist(), "b": logits[1::2].tolist()}},
}


def batch_sizes(rounds: Rounds) -> list[dict[str, Any]]:
    """What a record costs in batches of various sizes, of equal and of varying lengths."""
    rows = []
    for size in BATCH_SIZES:
        same, varying = (
            (list_messages(100, same_length=same_length) * (1 + size // BATCH))[:size] for same_length in (True, False)
        )
        pipeline = Pipeline(LIMITS)
        taken = rounds.compare(
            {
                "same": partial(pipeline.transform, same),
                "varying": partial(pipeline.transform, varying),
            }
        )
        rows.append({"size": size} | {name: seconds / size * MICRO for name, seconds in taken.items()})
    return rows


def shares(rounds: Rounds) -> list[dict[str, Any]]:
    """What a record costs where some of the batch need the general path."""
    columnar = list_messages(100, same_length=True)
    general = [_pack({"id": 1 << 20, "logits": [1, *logits.tolist()[1:]]}) for logits in _logits(BATCH, 100)]
    rows = []
    for share in SHARES:
        count = round(share * BATCH)
        mixed = [*general[:count], *columnar[count:]]
        batch = [mixed[index] for index in RANDOM.permutation(BATCH)]
        pipeline = Pipeline(LIMITS)
        taken = rounds.compare({"batch": partial(pipeline.transform, batch)})
        outcome = pipeline.transform(batch)
        rows.append({"what": f"{outcome.general / BATCH:.0%}", "microseconds": taken["batch"] / BATCH * MICRO})
    return rows


def profiles(rounds: Rounds) -> list[dict[str, Any]]:
    """What a profile's outputs add, K = 100."""
    labels = tuple(f"class {index}" for index in range(100))
    messages = list_messages(100, same_length=True)
    rows = []
    for name, profile in {
        "probabilities": Profile(),
        "temperature 2": Profile(temperature=2),
        "10 masked": Profile(masked=tuple(range(10))),
        "predicted, confidence": Profile(outputs=("predicted", "confidence")),
        "label, confidence": Profile(outputs=("label", "confidence"), labels=labels),
        "probabilities, entropy, margin": Profile(outputs=("probabilities", "entropy", "margin")),
        "log_probabilities": Profile(outputs=("log_probabilities",)),
        "top_k of 5 with labels": Profile(outputs=("top_k",), top_k=5, labels=labels),
    }.items():
        pipeline = Pipeline(LIMITS, Profiles(default=profile))
        taken = rounds.compare({"batch": partial(pipeline.transform, messages)})
        rows.append({"what": name, "microseconds": taken["batch"] / BATCH * MICRO})
    return rows


class _Double(list[float]):
    """A list whose numbers are packed as float64."""


def _pack(fields: dict[str, Any], *, single: bool = True) -> bytes:
    double = isinstance(fields.get("logits"), _Double)
    packed: bytes = msgpack.packb(fields, use_single_float=single and not double)
    return packed


def _logits(rows: int, classes: int) -> NDArray[np.float32]:
    return RANDOM.normal(size=(rows, classes)).astype(np.float32)


def _layout(message: bytes) -> Layout:
    layout = learn(parse(message, None, Profiles(), MOST_CLASSES))
    if layout is None:
        raise AssertionError(message)
    return layout


# --- report -----------------------------------------------------------------------------------------


def as_markdown(results: Mapping[str, Any]) -> str:
    """The section, in Markdown."""
    about = results["machine"]
    origin = (
        f"Written by `{results['command']}` on {about['date']}: one thread on {about['cores']} cores of"
        f" {about['processor']}, Python {platform.python_version()}, numpy {np.__version__}; load average before:"
        f" {about['load_before']}. Medians of {results['rounds']} rounds. Times are microseconds a record."
    )
    parts = ["**A quick try, not a measurement.**"] if results["quick"] else []
    parts.append(origin)
    for title, table in (
        (SOFTMAX_TITLE, _softmax_table(results["softmax"])),
        (COLUMNS_TITLE, _columns_table(results["columns"])),
        ("**Encodings** through the pipeline:", _encodings_table(results["encodings"])),
        ("**Batch sizes**, T1 float32, K = 100:", _sizes_table(results["batch_sizes"])),
        (SHARES_TITLE, _two_columns("on the general path", "a record of the batch", results["shares"])),
        ("**Profiles**, T1 float32, K = 100:", _two_columns("outputs or setting", "a record", results["profiles"])),
    ):
        parts += [title, table]
    return "\n\n".join(parts)


SOFTMAX_TITLE: Final = (
    "**Softmax alone** as a multiple of `np.exp` on the same array, 65,536 elements a call, and as many as the pipeline"
    " takes at once:"
)
COLUMNS_TITLE: Final = (
    f"**The columnar path**, lists of float32, {BATCH:,} records with ids that vary: “columns” goes from a matrix of"
    " message bytes to a matrix of output bytes (layout, decode, softmax, encode); “pipeline” from a list of bytes"
    " objects to another, with ids of one length or of many; “loop” is `unpackb`, numpy, `tolist`, `packb`, message by"
    " message; “exp” is `np.exp` on the same numbers:"
)
SHARES_TITLE: Final = "**Share on the general path**, T1, K = 100, lists of mixed numbers among lists of float32:"


def _softmax_table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = [name for name, *_ in SOFTMAX_BLOCKS]
    return _table(["K", *names], [[row["classes"], *(f"{row[name]:.2f}" for name in names)] for row in rows])


def _columns_table(rows: Sequence[Mapping[str, Any]]) -> str:
    headings = ["K", "exp", "columns", "pipeline, one length", "pipeline, many", "loop", "loop ÷ columns"]
    names = ("exp", "columns", "same", "varying")
    return _table(
        headings,
        [
            [r["classes"], *(f"{r[name]:.3f}" for name in names), f"{r['loop']:.1f}", f"{r['loop'] / r['columns']:.1f}"]
            for r in rows
        ],
    )


def _encodings_table(rows: Sequence[Mapping[str, Any]]) -> str:
    return _table(
        ["encoding", "K", "columnar", f"in batches of {BATCH:,}", "alone"],
        [
            [r["encoding"], r["classes"], f"{r['columnar']:.0%}", f"{r['together']:.2f}", f"{r['alone']:.0f}"]
            for r in rows
        ],
    )


def _sizes_table(rows: Sequence[Mapping[str, Any]]) -> str:
    return _table(
        ["records", "of one length", "of varying lengths"],
        [[r["size"], f"{r['same']:.2f}", f"{r['varying']:.2f}"] for r in rows],
    )


def _two_columns(what: str, cost: str, rows: Sequence[Mapping[str, Any]]) -> str:
    return _table([what, cost], [[r["what"], f"{r['microseconds']:.2f}"] for r in rows])


def _table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="turns of each program")
    parser.add_argument("--quick", action="store_true", help="does it work? no figures to believe")
    parser.add_argument("--json", type=Path, help="where to keep the figures")
    parser.add_argument("--write-docs", action="store_true", help="write the section in docs/performance.md")
    asked = parser.parse_args()
    rounds = Rounds(1 if asked.quick else asked.rounds, 0.001 if asked.quick else 0.03)
    results: dict[str, Any] = {
        "command": "scripts/bench transform",
        "machine": machine.describe(on_tmpfs=False),
        "rounds": 1 if asked.quick else asked.rounds,
        "quick": asked.quick,
        "softmax": softmax_and_exp(rounds),
        "columns": columns_and_loop(rounds),
        "encodings": encodings(rounds),
        "batch_sizes": batch_sizes(rounds),
        "shares": shares(rounds),
        "profiles": profiles(rounds),
    }
    text = as_markdown(results)
    print(text)
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=2), encoding="utf-8")
    if asked.write_docs:
        report.write_docs("transform", text)


if __name__ == "__main__":
    main()
