"""What runs elsewhere: GitHub's workflows and the hooks of pre-commit, as far as files alone tell."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parent.parent
WORKFLOWS: Final = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HOOKS: Final = ROOT / ".pre-commit-config.yaml"
# A pinned action: owner, name, commit, and the version that the commit is.
PINNED: Final = re.compile(r"uses: [\w-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
# GitHub's own words: a workflow in this repository.
OURS: Final = "uses: ./.github/workflows/ci.yml"


def read(file: Path) -> dict[str, Any]:
    found = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def jobs() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in WORKFLOWS:
        for name, job in read(file)["jobs"].items():
            yield f"{file.name}: {name}", job


def scripts(command: str) -> set[str]:
    return set(re.findall(r"(?<![\w/])(?:scripts/\w+|\.ci/run)", command))


# --- workflows --------------------------------------------------------------------------------


def test_actionlint_finds_nothing() -> None:
    actionlint = shutil.which("actionlint")
    if actionlint is None:
        pytest.skip("actionlint: go install github.com/rhysd/actionlint/cmd/actionlint@v1.7.12")
    ran = subprocess.run(  # noqa: S603 - the tool that was found
        [actionlint, "-no-color", *WORKFLOWS], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "")


def test_zizmor_finds_nothing() -> None:
    """Injections, rights that are too wide, secrets that persist, actions that can be exchanged."""
    zizmor = Path(sys.executable).with_name("zizmor")
    ran = subprocess.run(  # noqa: S603 - the tool of this environment
        [zizmor, "--offline", "--no-progress", ROOT / ".github"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    # The workflows, and dependabot.yml.
    assert ran.stderr.count(" completed ") == len(WORKFLOWS) + 1, ran.stderr


def test_actions_are_pinned_by_commit_and_the_same_everywhere() -> None:
    uses = [line.strip().removeprefix("- ") for file in WORKFLOWS for line in file.read_text("utf-8").splitlines()]
    uses = [line for line in uses if line.startswith("uses:")]
    assert len(uses) > 10
    assert [line for line in uses if not PINNED.fullmatch(line) and line.partition(" # ")[0] != OURS] == []
    names = [line.partition("@")[0] for line in set(uses)]
    assert len(names) == len(set(names))


def test_jobs_end_and_have_no_more_rights_than_they_need() -> None:
    assert [file.name for file in WORKFLOWS] == ["ci.yml", "release.yml"]
    for file in WORKFLOWS:
        workflow = read(file)
        assert workflow["permissions"] in ({}, {"contents": "read"})
        assert "concurrency" in workflow
    for name, job in jobs():
        assert "uses" in job or 0 < job["timeout-minutes"] <= 90, name
        for step in job.get("steps", ()):
            # The token of the checkout does not stay where tests and builds could read it.
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"] == {"persist-credentials": False}, name
    written: dict[str, set[str]] = {}
    for name, job in jobs():
        for right, degree in job.get("permissions", {}).items():
            if degree == "write":
                written.setdefault(name, set()).add(right)
    assert written == {
        "release.yml: image": {"packages", "id-token", "attestations"},
        "release.yml: attest": {"id-token", "attestations"},
        "release.yml: pypi": {"id-token"},
        "release.yml: github": {"contents"},
    }


def test_nothing_is_published_that_was_not_tested() -> None:
    release = dict(read(ROOT / ".github" / "workflows" / "release.yml")["jobs"])
    before: dict[str, set[str]] = {}
    for name, job in release.items():
        needs = job.get("needs", [])
        direct = {needs} if isinstance(needs, str) else set(needs)
        before[name] = direct.union(*(before[each] for each in direct))
    for name in ("image", "attest", "pypi", "github"):
        assert {"tests", "build"} <= before[name], name
    assert {"attest", "image"} <= before["pypi"]


def test_the_scripts_that_jobs_run_exist() -> None:
    found: set[str] = set()
    for _, job in jobs():
        found |= {script for step in job.get("steps", ()) for script in scripts(step.get("run", ""))}
    assert {".ci/run", "scripts/pythons", "scripts/audit", "scripts/release", "scripts/sbom"} == found
    missing = {name for name in found if not os.access(ROOT / name, os.X_OK)}
    assert missing == set()


def test_the_pythons_of_classifiers_jobs_and_record_are_the_same() -> None:
    named = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if "Python :: 3." in each]
    assert named
    record = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8").split("## Pythons\n")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in record.splitlines() if line.startswith("| 3.")]
    assert [row[0].removeprefix("| ") for row in rows] == named
    matrix = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["pythons"]["strategy"]["matrix"]
    assert matrix["python"] == named
    # A newer one may be tried, and may fail.
    assert all(each["experimental"] and each["python"] not in named for each in matrix["include"])


# --- hooks ------------------------------------------------------------------------------------


def test_the_hooks_are_local_and_their_commands_exist() -> None:
    configuration = read(HOOKS)
    assert set(configuration) == {"default_install_hook_types", "repos"}
    (repository,) = configuration["repos"]
    assert set(repository) == {"repo", "hooks"}
    assert repository["repo"] == "local"  # nothing is fetched
    identifiers = [hook["id"] for hook in repository["hooks"]]
    assert len(identifiers) == len(set(identifiers))
    for hook in repository["hooks"]:
        assert {"id", "name", "entry", "language", "pass_filenames"} <= set(hook)
        assert set(hook) <= {"id", "name", "entry", "language", "pass_filenames", "types_or", "files"}
        assert hook["language"] == "system"
        assert hook["pass_filenames"] is False  # or the script would take names for its parts
        re.compile(hook.get("files", ""))
        (script,) = scripts(hook["entry"])
        assert hook["entry"].startswith(script)
        assert os.access(ROOT / script, os.X_OK)


def test_the_hooks_are_all_parts_of_lint() -> None:
    entries = [hook["entry"] for hook in read(HOOKS)["repos"][0]["hooks"]]
    asked = [entry.removeprefix("scripts/lint ") for entry in entries if entry.startswith("scripts/lint ")]
    script = (ROOT / "scripts" / "lint").read_text(encoding="utf-8")
    assert re.findall(r"^    (\w+)\) ", script, re.MULTILINE) == asked
    assert f"set -- {' '.join(asked)}\n" in script


def test_a_part_of_lint_that_is_none_is_refused() -> None:
    ran = subprocess.run(  # noqa: S603 - our script
        [ROOT / "scripts" / "lint", "taste"], capture_output=True, text=True, timeout=100, check=False
    )
    assert ran.returncode == 2
    assert "scripts/lint [rules] [format] [types]" in ran.stderr


# --- shell ------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [*sorted((ROOT / "scripts").iterdir()), ROOT / ".ci" / "run"], ids=lambda s: s.name)
def test_a_script_is_one(script: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    assert os.access(script, os.X_OK)
    ran = subprocess.run([bash, "-n", script], capture_output=True, text=True, check=False)  # noqa: S603 - bash
    assert ran.returncode == 0, ran.stderr
    assert "\nset -euo pipefail\ncd " in script.read_text(encoding="utf-8")
