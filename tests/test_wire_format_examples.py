"""What docs/wire-format.md shows: its programs, commands, settings and tables, run and compared."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np
import pytest
import yaml
from harness import clean_environment, softmax, unpack

from service.broker import jars
from service.broker.installation import cache_directory, locked
from service.broker.process import java_environment
from service.settings import ModelSettings, OutputSettings, load
from service.transform.pipeline import Limits, Pipeline
from service.transform.profiles import Output
from service.transform.refusals import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

HERE: Final = Path(__file__).resolve().parent
PAGE: Final = HERE.parent / "docs" / "wire-format.md"
GO_MODULE: Final = HERE / "examples" / "go"
BIN: Final = Path(sys.executable).parent
COMMAND: Final = str(BIN / "softmax-service")

MSGPACK_CORE: Final = "0.9.11"
MSGPACK_CORE_SHA256: Final = "031b780833e8766fecb2af629bc04f2eb5d2c2b1e17475b9b6b8a81f932aea31"
MSGPACK_CORE_JAR: Final = f"msgpack-core-{MSGPACK_CORE}.jar"

GO_AT_LEAST: Final = (1, 19)
JDK_AT_LEAST: Final = (17,)

TIMEOUT: Final = 100

PIPELINE: Final = Pipeline(Limits(1 << 20, 1000))


@dataclass(frozen=True)
class Block:
    """A fenced block of the page.

    Attributes:
        language: the first word of its info string.
        file: the second one, the file that it is, if any.
        text: what is between the fences.
        line: where in the page it begins.
    """

    language: str
    file: str
    text: str
    line: int


@cache
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def blocks(*languages: str) -> list[Block]:
    """The page's blocks in these languages, in order; all of them if none is named."""
    found = re.finditer(r"^```([a-z]*)(?: (\S+))?\n(.*?)^```$", page(), re.MULTILINE | re.DOTALL)
    all_of_them = [Block(m[1], m[2] or "", m[3], page().count("\n", 0, m.start()) + 1) for m in found]
    return [block for block in all_of_them if not languages or block.language in languages]


def at_line(block: Block) -> str:
    return f"line-{block.line}"


def table(first_column: str) -> list[list[str]]:
    """The rows of the table whose header begins with this cell, each as its cells."""
    lines = page().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


# --- running ----------------------------------------------------------------------------------


def surroundings() -> dict[str, str]:
    """An environment without settings, in which `python` and `softmax-service` are those of this environment."""
    mine = clean_environment()
    quiet = {name: value for name, value in java_environment().items() if name in mine}
    # Without the paths in what it builds, Go's cache serves every temporary directory.
    flags = f"{os.environ.get('GOFLAGS', '')} -trimpath".strip()
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    # Unbuffered, so that both outputs come in the order in which a terminal shows them.
    return quiet | {"PATH": path, "GOFLAGS": flags, "GOTOOLCHAIN": "local", "PYTHONUNBUFFERED": "1"}


def run(command: Sequence[str], folder: Path, given: str = "") -> str:
    """Run a command that must succeed; what it says on standard output."""
    ran = subprocess.run(  # noqa: S603 - the page's own programs
        command,
        cwd=folder,
        env=surroundings(),
        input=given,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def version(command: str, *arguments: str) -> tuple[int, ...]:
    """The version that a command tells; () where there is no such command."""
    if not (found := shutil.which(command)):
        return ()
    said = subprocess.run(  # noqa: S603 - found on the path
        [found, *arguments], capture_output=True, text=True, timeout=TIMEOUT, check=False, env=surroundings()
    ).stdout
    numbers = re.search(r"\d+(?:\.\d+)*", said)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


@cache
def missing() -> dict[str, str]:
    """The languages that this machine cannot run, with the reason and the cure."""
    problems = {}
    if version("go", "version") < GO_AT_LEAST:
        problems["go"] = "needs Go 1.19 or newer. On Debian and Ubuntu: apt-get install golang-go"
    # Java runs a source file only where its compiler is, which mere runtime environments leave out.
    if version("javac", "-version") < JDK_AT_LEAST or not shutil.which("java"):
        problems["java"] = "needs a JDK 17 or newer. On Debian and Ubuntu: apt-get install default-jdk-headless"
    return problems


def msgpack_core() -> Path:
    """The jar of Java's msgpack, fetched once and checked before each use."""
    directory = cache_directory().parent / f"msgpack-core-{MSGPACK_CORE}"
    with locked("msgpack-core"):
        if not directory.exists():
            jars.fetch(f"org.msgpack:msgpack-core:{MSGPACK_CORE}", directory)
    jar = directory / MSGPACK_CORE_JAR
    assert jars.sha256(jar) == MSGPACK_CORE_SHA256, f"{jar} is not what it should be; remove it"
    return jar


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with all files of the page."""
    folder = tmp_path_factory.mktemp("wire-format")
    for block in blocks():
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def provide(workspace: Path) -> Callable[[str], None]:
    """Put beside the programs what a language needs, or skip."""

    @cache
    def bring(language: str) -> None:
        if language == "go":
            for name in ("go.mod", "go.sum"):
                shutil.copy(GO_MODULE / name, workspace)
            # Now, so that no later command speaks of downloads.
            run(["go", "build", "-o", os.devnull, "."], workspace)
        elif language == "java":
            (workspace / MSGPACK_CORE_JAR).symlink_to(msgpack_core())

    def provide(language: str) -> None:
        if problem := missing().get(language):
            pytest.skip(problem)
        bring(language)

    return provide


# --- programs ---------------------------------------------------------------------------------

PROGRAMS: Final = blocks("python", "go", "java")
RUNNERS: Final = {"python": [sys.executable], "go": ["go", "run"], "java": ["java", "-cp", MSGPACK_CORE_JAR]}
DTYPES: Final = {"<f4": "<f4", "FP32": "<f4"}


def tensor(message: dict[Any, Any], field: str) -> NDArray[np.float64]:
    """A message's tensor, by a way of our own: a list, binary with siblings, or what msgpack-numpy writes."""
    value = message[field]
    if isinstance(value, dict):
        return np.frombuffer(value[b"data"], DTYPES[value[b"type"]]).reshape(value[b"shape"]).astype(np.float64)
    if isinstance(value, bytes):
        return np.frombuffer(value, DTYPES[message["dtype"]]).reshape(message["shape"]).astype(np.float64)
    return np.asarray(value, np.float64)


def test_there_is_a_program_in_each_language() -> None:
    """Python with two libraries, Go and Java have one program each."""
    assert sorted(block.language for block in PROGRAMS) == ["go", "java", "python", "python"]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.file)
def test_a_program_s_message_is_transformed_and_its_reading_of_the_output_is_right(
    program: Block, workspace: Path, provide: Callable[[str], None]
) -> None:
    """The pipe of encode, transform and decode prints the class and the probability that an oracle knows."""
    provide(program.language)
    command = [*RUNNERS[program.language], program.file]
    encoded = run([*command, "encode"], workspace)
    sent = unpack(bytes.fromhex(encoded))
    transformed = run([COMMAND, "transform", "--from", "hex", "--to", "hex"], workspace, encoded)
    received = unpack(bytes.fromhex(transformed))

    expected = softmax(tensor(sent, "logits"))
    np.testing.assert_allclose(tensor(received, "probabilities"), expected, rtol=1e-6, atol=0)
    assert received["id"] == sent["id"]
    assert list(received) == ["probabilities" if name == "logits" else name for name in sent]

    rows = [""] if expected.ndim == 1 else [f", row {row}" for row in range(len(expected))]
    said = [
        f"id {sent['id']}{row}: class {distribution.argmax()}, probability {distribution.max():.4f}"
        for row, distribution in zip(rows, np.atleast_2d(expected), strict=True)
    ]
    assert run([*command, "decode"], workspace, transformed).splitlines() == said


def test_the_page_names_the_versions_that_are_tested() -> None:
    """What the page says to install is what these tests run."""
    (go,) = re.findall(r"vmihailenco/msgpack/v5 (v\S+)", (GO_MODULE / "go.mod").read_text(encoding="utf-8"))
    assert f"github.com/vmihailenco/msgpack/v5@{go}" in page()
    assert set(re.findall(r"msgpack-core[:-](\d+\.\d+\.\d+)", page())) == {MSGPACK_CORE}


# --- commands ---------------------------------------------------------------------------------

# The last digits of a probability are the processor's: numpy has other instructions for each.
DECIMAL: Final = re.compile(r"-?\d+\.\d+(?:e[-+]\d+)?")


def test_every_command_of_the_page_is_in_a_block_that_is_run() -> None:
    """Blocks are of the kinds that these tests know, so none is left out by its name."""
    known = {"console", "json", "jsonl", "yaml", "text", "python", "go", "java"}
    assert {block.language for block in blocks()} <= known
    assert page().count("\n```") == 2 * len(blocks())


@pytest.mark.parametrize("block", blocks("console"), ids=at_line)
def test_a_command_prints_what_the_page_says(block: Block, workspace: Path, provide: Callable[[str], None]) -> None:
    """Each `$ command` is run in the shell; what it prints follows it in the block, and only refusals fail."""
    for language in ("go", "java"):
        if re.search(rf"(\$|\|) {language} ", block.text):
            provide(language)
    # A command may go on after a backslash at the end of its line.
    for command, expected in re.findall(r"^\$ ((?:.*\\\n)*.*\n)((?:[^$].*\n|\n)*)", block.text, re.MULTILINE):
        ran = subprocess.run(  # noqa: S603 - the page's own commands
            ["bash", "-o", "pipefail", "-c", command],  # noqa: S607 - whichever bash there is
            cwd=workspace,
            env=surroundings(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert DECIMAL.sub("#", ran.stdout) == DECIMAL.sub("#", expected), ran.stdout
        for found, shown in zip(DECIMAL.findall(ran.stdout), DECIMAL.findall(expected), strict=True):
            assert math.isclose(float(found), float(shown), rel_tol=1e-6), ran.stdout
        assert ran.returncode == ("refused: " in expected)


# --- data and settings ------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("json", "jsonl"), ids=at_line)
def test_json_on_the_page_is_json(block: Block) -> None:
    """Each block is one document, or one a line."""
    documents = block.text.splitlines() if block.language == "jsonl" else [block.text]
    assert documents
    for document in documents:
        json.loads(document)


@pytest.mark.parametrize("block", blocks("yaml"), ids=at_line)
def test_settings_on_the_page_are_settings_of_the_service(
    block: Block, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each YAML block is a file that the service starts with, and all of it is taken over."""
    monkeypatch.chdir(workspace)
    assert block.file
    shown = load(workspace / block.file, environment={}).shown()
    for section in yaml.safe_load(block.text):
        assert section in shown


def test_every_setting_of_models_is_explained_and_has_an_example() -> None:
    """The table of settings, the example and the code know the same ones."""
    (example,) = (yaml.safe_load(block.text) for block in blocks("yaml"))
    shown = {name for profile in example["models"].values() for name in profile}
    assert shown == set(ModelSettings.model_fields)
    assert set(example["output"]) == set(OutputSettings.model_fields)
    names = {f"models.<name>.{name}" for name in shown} | {f"output.{name}" for name in example["output"]}
    assert {row[0].strip("`") for row in table("setting")} == names | {"models_strict"}


# --- tables -----------------------------------------------------------------------------------

ELEMENTS: Final = [
    (row[-1], spelling)
    for row in table("in binary")
    for spelling in re.findall("`([^`]+)`", "".join(row).replace("\\|", "|"))
]


@pytest.mark.parametrize(("leaves", "spelling"), ELEMENTS, ids=[spelling for _, spelling in ELEMENTS])
def test_a_dtype_in_the_table_is_read_and_leaves_as_the_table_says(leaves: str, spelling: str) -> None:
    """Zeros of each dtype leave as equal probabilities, in the element type and the kind of spelling promised."""
    bits = int(leaves.removeprefix("float"))
    by_kind = {"<": f"<f{bits // 8}", "|": f"<f{bits // 8}"} | dict.fromkeys("FBIU", f"FP{bits}")
    for dtype in {spelling, spelling.replace("<", ">")}:
        number = int(re.findall(r"\d+$", dtype)[0])
        size = number if dtype[0] in "<>|" else number // 8
        outcome = PIPELINE.transform([msgpack.packb({"logits": bytes(2 * size), "dtype": dtype, "shape": [2]})])
        assert outcome.refusals == {}
        assert unpack(outcome.outputs[0]) == {
            "probabilities": np.array([0.5, 0.5], f"<f{bits // 8}").tobytes(),
            "dtype": by_kind.get(spelling[0], leaves),
            "shape": [2],
        }


def test_the_table_of_refusals_names_every_reason_in_the_order_in_which_they_win() -> None:
    """A reason that the code gains or loses is missed here."""
    rows = table("reason")
    assert [row[0] for row in rows] == [f"`{reason}`" for reason in Reason]
    assert all(all(row) for row in rows)


def test_the_table_of_extra_fields_names_every_output() -> None:
    """An output that the code gains or loses is missed here."""
    assert [row[0] for row in table("in `outputs`")] == [f"`{output}`" for output in Output]
