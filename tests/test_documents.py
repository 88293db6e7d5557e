"""The documents: their links lead somewhere, their commands exist, and what they show is what is answered."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import typer
import yaml
from harness import clean_environment
from markdown_it import MarkdownIt
from typer.core import TyperGroup
from typer.testing import CliRunner

from benchmarks import report
from generate import demo_picture
from service.cli import app
from service.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from markdown_it.token import Token

ROOT: Final = Path(__file__).resolve().parent.parent
PAGES: Final = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/**/*.md")])
# What scripts/docs calls by another name.
RENAMED: Final = {"index.md": "README.md", "kubernetes.md": "deploy/kubernetes/README.md"}
COMMAND: Final = re.compile(r"(?<![\w.-])softmax-service( +[a-z-][^|<>&;#\n)]*)")
ELSEWHERE: Final = re.compile(r"[a-z]+:")


@dataclass(frozen=True)
class Page:
    """A page, read.

    Attributes:
        links: where its links and images lead.
        anchors: what a link can end in, as GitHub makes them of headings.
        code: all pieces of code in it, inline too.
        blocks: its fenced blocks, each as language, file name and text.
    """

    links: tuple[str, ...]
    anchors: frozenset[str]
    code: tuple[str, ...]
    blocks: tuple[tuple[str, str, str], ...]


@cache
def read(file: Path) -> Page:
    tokens = MarkdownIt("commonmark").enable("table").parse(file.read_text(encoding="utf-8"))
    every = list(flat(tokens))
    links = [str(link) for token in every for link in (token.attrGet("href"), token.attrGet("src")) if link]
    for token in every:
        if token.type in {"html_block", "html_inline"}:
            links += re.findall(r'(?:href|src|srcset)="([^"]+)"', token.content)
    titles = [after for token, after in pairwise(tokens) if token.type == "heading_open"]
    fences = [(token.info.partition(" "), token.content) for token in every if token.type == "fence"]
    code = [token.content for token in every if token.type in {"fence", "code_block", "code_inline"}]
    blocks = tuple((language, name, text) for (language, _, name), text in fences)
    return Page(tuple(links), frozenset(anchors(titles)), tuple(code), blocks)


def flat(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from flat(token.children or [])


def anchors(titles: list[Token]) -> Iterator[str]:
    seen: dict[str, int] = {}
    for title in titles:
        text = "".join(part.content for part in title.children or [])
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        number = seen[slug] = seen.get(slug, -1) + 1
        yield f"{slug}-{number}" if number else slug


def named(file: Path) -> str:
    return str(file.relative_to(ROOT))


# --- links ------------------------------------------------------------------------------------


def test_a_page_is_read_as_github_reads_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b.c`: d\n\n## x\n\n[l](m.md#n) `softmax-service run`\n\n## x\n\n    code\n", encoding="utf-8")
    code = ("b.c", "softmax-service run", "code\n")
    assert read(page) == Page(("m.md#n",), frozenset({"a-bc-d", "x", "x-1"}), code, ())


@pytest.mark.parametrize("file", PAGES, ids=named)
def test_every_link_leads_somewhere(file: Path) -> None:
    for link in read(file).links:
        if ELSEWHERE.match(link):
            continue
        name, _, anchor = link.partition("#")
        target = (file.parent / name).resolve() if name else file
        assert target.exists(), f"{link}: there is no such file"
        assert not anchor or anchor in read(target).anchors, f"{link}: there is no such heading"


def test_every_page_is_in_the_navigation_and_linked_from_the_first() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = list(leaves(site["nav"]))
    sources = [ROOT / RENAMED.get(page, page) for page in pages]
    assert sorted(file if file.exists() else ROOT / "docs" / file.name for file in sources) == PAGES
    assert len(pages) == len(set(pages))
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in read(ROOT / "README.md").links}
    assert [named(file) for file in PAGES if file not in linked and named(file) != "README.md"] == []


def leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for below in nav.values() if isinstance(nav, dict) else nav:
            yield from leaves(below)


# --- commands ---------------------------------------------------------------------------------


def commands(file: Path) -> Iterator[list[str]]:
    """The words after each `softmax-service` in a page's code."""
    for code in read(file).code:
        for words in COMMAND.findall(code.replace("\\\n", " ")):
            yield shlex.split(words)


def parse(words: list[str]) -> None:
    """Parse a command as the command line does, without running it.

    Raises:
        typer.TyperException: there is no such command or option, or a value is none.
    """
    command = typer.main.get_command(app)
    while isinstance(command, TyperGroup) and words and not words[0].startswith("-"):
        if words[0] not in command.commands:
            raise typer.BadParameter(f"there is no command {words[0]}")
        command, words = command.commands[words[0]], words[1:]
    with contextlib.suppress(typer.Exit):  # --help says something and leaves
        command.make_context("softmax-service", list(words))


@pytest.mark.parametrize("file", PAGES, ids=named)
def test_every_command_exists_with_its_options(file: Path) -> None:
    for words in commands(file):
        try:
            parse(words)
        except typer.TyperException as error:
            pytest.fail(f"softmax-service {shlex.join(words)}: {error}")


@pytest.mark.parametrize(
    "wrong", ["serve", "run --fast", "topics make", "produce --rate many", "transform --from xml", "dead-letters show"]
)
def test_a_command_that_does_not_exist_would_be_found(wrong: str) -> None:
    with pytest.raises(typer.TyperException):
        parse(wrong.split())


@pytest.mark.parametrize("file", PAGES, ids=named)
def test_every_script_exists(file: Path) -> None:
    found = set(re.findall(r"(?<![\w/])scripts/\w+", file.read_text(encoding="utf-8")))
    assert [name for name in found if not os.access(ROOT / name, os.X_OK)] == []


# --- what is shown ----------------------------------------------------------------------------

FIRST_HOUR: Final = ROOT / "docs" / "getting-started.md"
CONFIGURATION: Final = ROOT / "docs" / "configuration.md"
SESSION: Final = re.compile(r"^\$ (.*\n)((?:(?!\$ ).*\n)*)", re.MULTILINE)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files of the first hour."""
    folder = tmp_path_factory.mktemp("first-hour")
    for _, name, text in read(FIRST_HOUR).blocks:
        if name:
            (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("page", [FIRST_HOUR, ROOT / "README.md"], ids=named)
def test_a_page_shows_what_is_answered(page: Path, workspace: Path) -> None:
    """All of it in one shell, which prints a line between the answers."""
    bash = shutil.which("bash")
    assert bash is not None
    said = [pair for _, _, text in read(page).blocks if text.startswith("$ ") for pair in SESSION.findall(text)]
    assert said
    script = "echo ----\n".join(command for command, _ in said)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(  # noqa: S603 - the page's own commands
        [bash, "-c", f"exec 2>&1\n{script}"],
        cwd=workspace,
        env={**clean_environment(), "PATH": path, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
        check=False,
    )
    # The last digits of a number are the processor's.
    shorter = [
        re.sub(r"(\.\d{6})\d+", r"\1", text) for text in (ran.stdout, "----\n".join(answer for _, answer in said))
    ]
    assert shorter[0] == shorter[1]


def test_the_first_hour_s_program_and_settings_are_right(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    assert load(Path("settings.yaml"), environment={}).models["pets"].classes is None
    ast.parse((workspace / "send.py").read_text(encoding="utf-8"))


def test_the_examples_of_the_settings_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the first two, as a file and from the environment, are the same."""
    monkeypatch.chdir(tmp_path)
    loaded = []
    for language, _, text in read(CONFIGURATION).blocks:
        if language == "yaml":
            file = tmp_path / "settings.yaml"
            file.write_text(text, encoding="utf-8")
            loaded.append(load(file, environment={}))
        elif language == "console":
            # Its commands, one after another; only the first shows what it answers.
            session = SESSION.findall(text)
            said = [CliRunner().invoke(app, shlex.split(command)[1:]).output for command, _ in session]
            assert said[0] == session[0][1]
            assert yaml.safe_load(said[1])["kafka"]["group_id"]
            assert json.loads(said[2])["properties"]
        elif language == "sh":
            exported = re.findall(r"^export (\w+)=(.*)$", text, re.MULTILINE)
            assert len(exported) == text.count("\n")
            secret = tmp_path / "secret"
            secret.write_text("secret\n", encoding="utf-8")
            loaded.append(load(environment={n: str(secret) if n.endswith("_FILE") else v for n, v in exported}))
    file_s, environment_s, with_secret = loaded
    assert file_s == environment_s
    assert with_secret.kafka.sasl_password is not None
    assert with_secret.kafka.sasl_password.get_secret_value() == "secret"


@pytest.mark.parametrize(
    ("name", "section"), [("comparison.md", "At a glance"), ("sizing.md", "What one instance carries")]
)
def test_figures_that_are_cited_are_those_that_were_measured(name: str, section: str) -> None:
    """Not the rounded ones: those are computed from these."""
    measured = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    text = (ROOT / "docs" / name).read_text(encoding="utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    cited = {figure for row in rows for figure in re.findall(r"\b\d+\.\d{2,3}\b|\b\d+,(?!000)\d{3}\b", row)}
    assert cited
    assert {figure for figure in cited if not re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d])", measured)} == set()


def test_what_a_cluster_carries_is_computed_from_what_was_measured() -> None:
    """The example is that of the costs on the page of figures; without these there is none."""
    measured = report.costs_in((ROOT / "docs" / "performance.md").read_text(encoding="utf-8"))
    sizing = (ROOT / "docs" / "sizing.md").read_text(encoding="utf-8")
    example = sizing.split("<!-- begin cluster -->\n")[1].split("<!-- end cluster -->")[0]
    assert example == (f"{report.cluster(measured)}\n" if measured else "")


# --- the picture of the demo ------------------------------------------------------------------


def test_the_screen_is_what_stands_in_the_end() -> None:
    back = "\r\x1b[2K\x1b[1A\x1b[2K"
    written = (
        f"[  0.0 s] begins\r\n\x1b[?25l1\r\nleft{back}2\r\nleft{back}\x1b[1m3\x1b[0m\r\nleft\r\n\x1b[?25h^Cends\r\n"
    )
    assert demo_picture.screen(written) == "[  0.0 s] begins\n\x1b[1m3\x1b[0m\nleft\nends\n"
    drawn = demo_picture.draw(demo_picture.screen(written))
    assert "begins" in drawn
    assert "@font-face" not in drawn


def test_the_picture_is_of_a_run_that_ended_well_and_asks_no_other_host() -> None:
    drawn = demo_picture.PICTURE.read_text(encoding="utf-8").replace("&#160;", " ")
    assert "The service drained and ended with exit code 0" in drawn
    assert "url(http" not in drawn.replace('"', "")
    assert len(drawn) < 150_000
