"""`softmax-service transform` and `explain`: the pure core from the command line, without Kafka."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np
import pytest

from service.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable

COMMAND: Final = Path(sys.executable).parent / "softmax-service"
LOGITS: Final = [1.5, -2.5, 0.25]


def run(*arguments: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the installed command."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("SOFTMAX_")}
    given |= {f"SOFTMAX_{name}": value for name, value in environment.items()}
    return subprocess.run([COMMAND, *arguments], input=stdin, capture_output=True, check=False, env=given)  # noqa: S603


def as_json(*messages: object) -> bytes:
    return "\n".join(map(json.dumps, messages)).encode()


def softmax(logits: list[float]) -> list[float]:
    exponentials = np.exp(np.array(logits) - max(logits))
    probabilities: list[float] = (exponentials / exponentials.sum()).tolist()
    return probabilities


def test_json_goes_in_and_comes_out() -> None:
    """One message a line, answered by one line each, other fields as they were."""
    asked = run("transform", "--from", "json", "--to", "json", stdin=as_json({"id": 7, "logits": LOGITS}, LOGITS))
    assert (asked.returncode, asked.stderr) == (ExitCode.DRAINED, b"")
    first, second = map(json.loads, asked.stdout.splitlines())
    assert list(first) == ["id", "probabilities"]
    assert first["probabilities"] == second == pytest.approx(softmax(LOGITS), rel=1e-15)


def test_float32_is_asked_for() -> None:
    """JSON has no float32; `--float32` sends its real numbers as such, and they come back as such."""
    asked = run("transform", "--from", "json", "--float32", stdin=as_json({"logits": LOGITS}))
    assert asked.stdout == msgpack.packb(
        {"probabilities": msgpack.unpackb(asked.stdout)["probabilities"]}, use_single_float=True
    )


def test_a_file_of_bytes_is_one_message(tmp_path: Path) -> None:
    """Each file gives one output, one after another on stdout; `-` is stdin."""
    messages = [msgpack.packb({"id": number, "logits": LOGITS}) for number in range(3)]
    for number in (0, 2):
        (tmp_path / f"{number}").write_bytes(messages[number])
    asked = run("transform", str(tmp_path / "0"), "-", str(tmp_path / "2"), stdin=messages[1])
    unpacker = msgpack.Unpacker()
    unpacker.feed(asked.stdout)
    assert [output["id"] for output in unpacker] == [0, 1, 2]


def test_hex_goes_in_and_comes_out() -> None:
    """Spaces between bytes and empty lines are welcome."""
    message = msgpack.packb({"logits": LOGITS})
    asked = run("transform", "--from", "hex", "--to", "hex", stdin=f"{message.hex(' ')}\n\n{message.hex()}\n".encode())
    lines = asked.stdout.split()
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert msgpack.unpackb(bytes.fromhex(lines[0].decode()))["probabilities"] == pytest.approx(softmax(LOGITS))


def test_json_carries_binary_data_and_extensions_both_ways() -> None:
    """`$bin` and `$ext` stand for what JSON lacks."""
    data = base64.b64encode(np.array(LOGITS, "<f4").tobytes()).decode()
    message = {"logits": {"$bin": data}, "dtype": "float32", "shape": [3], "stamp": {"$ext": [5, "AAE="]}}
    asked = run("transform", "--from", "json", "--to", "json", stdin=as_json(message))
    told = json.loads(asked.stdout)
    assert told["stamp"] == {"$ext": [5, "AAE="]}
    probabilities = np.frombuffer(base64.b64decode(told["probabilities"]["$bin"]), "<f4")
    assert probabilities.tolist() == pytest.approx(softmax(LOGITS), rel=1e-6)


def test_keys_that_are_no_text_are_told_as_text() -> None:
    """msgpack-numpy writes its keys as binary data; JSON has text only."""
    tensor = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [1], b"data": bytes(4), 1: None}
    del tensor[1]
    asked = run("transform", "--to", "json", stdin=msgpack.packb(tensor))
    assert list(json.loads(asked.stdout)) == ["nd", "type", "kind", "shape", "data"]


def test_a_refused_message_is_told_and_the_others_are_answered() -> None:
    """Exit code 1, one line on stderr for each, the good ones on stdout."""
    asked = run("transform", "--from", "json", "--to", "json", stdin=as_json(LOGITS, {"logits": []}, 5, LOGITS))
    assert asked.returncode == ExitCode.REFUSED
    assert len(asked.stdout.splitlines()) == 2
    assert [line.split(": ")[:3] for line in asked.stderr.decode().splitlines()] == [
        ["message 2", "refused", "empty"],
        ["message 3", "refused", "unsupported_encoding"],
    ]


def test_the_profile_of_the_model_applies() -> None:
    """`--model` stands for the record's header; the settings say what it means."""
    profile = {"MODELS__A__LABELS": '["x", "y", "z"]', "MODELS__A__OUTPUTS": '["label"]'}
    asked = run(
        "transform", "--from", "json", "--to", "json", "--model", "a", stdin=as_json({"logits": LOGITS}), **profile
    )
    assert json.loads(asked.stdout) == {"label": "x"}


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (["--from", "json"], b'{"logits": [1]}\nnonsense', "Line 2 of stdin is not json"),
        (["--from", "json"], b'{"logits": [123456789012345678901234567890]}', "Line 1 of stdin is not json"),
        (["--from", "json"], b'{"logits": {"$bin": "?"}}', "Line 1 of stdin is not json"),
        (["--from", "json"], b"[" * 100_000, "Line 1 of stdin is not json"),
        (["--from", "hex"], b"9g", "Line 1 of stdin is not hex"),
        (["/does/not/exist"], b"", "Cannot read /does/not/exist"),
    ],
    ids=["no JSON", "integer beyond msgpack", "no base64", "nested without end", "no hex", "no file"],
)
@pytest.mark.parametrize("command", ["transform", "explain"])
def test_input_that_is_no_message_ends_with_2_and_says_where(
    command: str, arguments: list[str], stdin: bytes, said: str
) -> None:
    """The line or the file is named, without a traceback."""
    asked = run(command, *arguments, stdin=stdin)
    assert asked.returncode == ExitCode.CONFIGURATION
    assert said in asked.stderr.decode()
    assert "Traceback" not in asked.stderr.decode()


def explained(message: Any, *arguments: str, pack: Callable[[Any], bytes] = msgpack.packb, **environment: str) -> str:
    asked = run("explain", *arguments, stdin=message if isinstance(message, bytes) else pack(message), **environment)
    assert asked.stderr == b""
    text = asked.stdout.decode()
    assert asked.returncode == (ExitCode.REFUSED if "refused: " in text else ExitCode.DRAINED)
    return text


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            {"id": 1, "logits": LOGITS},
            ["T1", "at byte 12", "float64", "[3]: 1 distribution over 3 classes", "columnar"],
        ),
        ({"logits": [[1, 2], [3, 4]]}, ["T2", "[2, 2]: 2 distributions", "integers", "leaves as float32"]),
        ({"logits": [1, 2.5]}, ["T1", "numbers of several kinds", "general"]),
        ({"logits": bytes(8), "dtype": ">f4", "shape": [2]}, ["T3", "float32, big-endian"]),
        ({"logits": bytes(4), "dtype": "BF16", "shape": [2]}, ["T3", "bfloat16; computed in float32"]),
        ({"logits": {"nd": True, "type": "<f4", "shape": [1], "data": bytes(4)}}, ["T4", "[1]"]),
        ({"logits": {"__ndarray__": True, "dtype": "FP32", "shape": [1], "data": bytes(4)}}, ["T5", "float32;"]),
        ({"logits": {"age": [1.5], "sex": [1, 2]}}, ["T6: a map of 2 heads", "head age", "head sex"]),
        ([1.5, 2.5], ["bare T1", "default (outputs: probabilities)", "19 bytes"]),
    ],
    ids=["list", "nested", "mixed", "bin", "bfloat16", "msgpack-numpy", "ndarray map", "heads", "bare"],
)
def test_an_accepted_message_is_explained(message: object, words: list[str]) -> None:
    """Encoding, dtype, shape, profile, path and output are told."""
    text = explained(message)
    assert text.startswith("message 1: accepted")
    for word in words:
        assert word in text


def test_a_profile_shows_in_the_explanation() -> None:
    """Its name, its outputs and the fields of the answer."""
    text = explained({"logits": LOGITS}, "--model", "a", MODELS__A__OUTPUTS='["probabilities", "entropy"]')
    assert "a (outputs: probabilities, entropy)" in text
    assert "probabilities, entropy\n" in text


@pytest.mark.parametrize(
    ("message", "reason", "marked"),
    [
        (msgpack.packb({"logits": [1.5, float("nan")]}), "nan", "cb"),
        (msgpack.packb({"logits": [1.5, None]}), "not_numeric", "c0"),
        (msgpack.packb({"logits": [[1.5], [1, 2]]}), "ragged", "92"),
        (msgpack.packb({"logits": LOGITS})[:-1], "malformed_msgpack", "^^"),
        (b"\x92\x00\xc1", "malformed_msgpack", "c1"),
    ],
)
def test_the_place_of_a_fault_is_marked(message: bytes, reason: str, marked: str) -> None:
    """Under the byte that shows it stands a mark, as in a compiler's message."""
    lines = explained(message).splitlines()
    assert lines[0] == f"message 1: refused: {reason}"
    (place,) = (number for number, line in enumerate(lines) if "^^ here" in line)
    column = lines[place].index("^^")
    above = lines[place - 1]
    assert above[column : column + 2] == marked or (marked == "^^" and len(above) <= column)


def test_an_empty_message_is_explained_too() -> None:
    """There is no byte to mark."""
    assert explained(b"") == "message 1: refused: malformed_msgpack\n  the value is empty\n"
