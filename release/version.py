"""The version: one place that says it, and all that repeat it because no code reads them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from packaging.version import InvalidVersion, Version

from release.changelog import NEXT, Section, sections
from release.errors import ReleaseError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT: Final = Path(__file__).resolve().parent.parent
CHANGELOG: Final = "CHANGELOG.md"
SOURCE: Final = "service/__init__.py"
# Where a version stands, as the only group. The source is read by the package's metadata and by the command.
PLACES: Final[Mapping[str, str]] = {
    SOURCE: r'^__version__ = "([^"]+)"$',
    "deploy/Dockerfile": r"^ARG VERSION=(\S+)$",
    "docs/asyncapi.yml": r"^  version: (\S+)$",
    "deploy/kubernetes/README.md": r"(?:--image softmax-service:|newTag: )(\S+)",
    "deploy/kubernetes/base/kustomization.yml": r"app\.kubernetes\.io/version: (\S+)",
    "deploy/kubernetes/base/statefulset.yml": r"image: softmax-service:(\S+)",
}


def current(root: Path = ROOT) -> str:
    """Return the version that the source says."""
    ((_, version),) = list(_stated(root, SOURCE))
    return version


def disagreements(root: Path = ROOT) -> list[str]:
    """Return what contradicts the source's version, as sentences.

    Raises:
        ReleaseError: the changelog is not one.
    """
    version = current(root)
    wrong = []
    for place in PLACES:
        stated = list(_stated(root, place))
        if not stated:
            wrong.append(f"{place}: no version stands there")
        wrong += [f"{place}:{line}: {each}, not {version}" for line, each in stated if each != version]
    released = [each.version for each in _changelog(root) if each.version]
    if released and released[0] != version:
        wrong.append(f"{CHANGELOG}: the newest version is {released[0]}, not {version}")
    return wrong


def check(tag: str | None = None, root: Path = ROOT) -> None:
    """Look whether all places agree, and whether `tag` may be released.

    Raises:
        ReleaseError: they do not, or the tag is not `v` and the version, or the changelog has something unreleased.
    """
    if wrong := disagreements(root):
        raise ReleaseError("\n".join(wrong))
    if tag is None:
        return
    if tag != f"v{current(root)}":
        raise ReleaseError(f"The tag is {tag}, and the version {current(root)}.")
    if _changelog(root)[0].version != current(root):
        raise ReleaseError(f"{CHANGELOG} begins with {NEXT}, not with {current(root)}: scripts/release prepare VERSION")


def prepare(version: str, root: Path = ROOT) -> None:
    """Write a new version wherever it stands, and into the changelog with today's date (UTC).

    Raises:
        ReleaseError: it is no version, or not newer than the last one released, or there is nothing to release.
    """
    try:
        normal = str(Version(version))
    except InvalidVersion:
        normal = ""
    if normal != version:
        raise ReleaseError(f"{version!r} is not a version in its normal form, such as 1.2.0 or 1.2.0rc1.")
    top, *released = _changelog(root)
    if top.version is not None or "\n- " not in top.text:
        raise ReleaseError(f"{CHANGELOG} has nothing under {NEXT}: there is nothing to release.")
    last = released[0].version if released else None
    if last and Version(version) <= Version(last):
        raise ReleaseError(f"{version} is not newer than {last}.")
    for place, pattern in PLACES.items():
        file = root / place
        text = file.read_text(encoding="utf-8")
        file.write_text(re.sub(pattern, lambda found: _put(found, version), text, flags=re.MULTILINE), "utf-8")
    changelog = (root / CHANGELOG).read_text(encoding="utf-8")
    heading = f"## {version} - {datetime.now(UTC).date().isoformat()}\n"
    (root / CHANGELOG).write_text(changelog.replace(f"## {NEXT}\n", heading, 1), encoding="utf-8")


def notes(root: Path = ROOT) -> str:
    """Return what the changelog says at its top, without the heading."""
    return _changelog(root)[0].text.strip() + "\n"


def _changelog(root: Path) -> list[Section]:
    return sections((root / CHANGELOG).read_text(encoding="utf-8"))


def _stated(root: Path, place: str) -> Iterator[tuple[int, str]]:
    """Lines and the versions in them."""
    text = (root / place).read_text(encoding="utf-8")
    for found in re.finditer(PLACES[place], text, flags=re.MULTILINE):
        yield text.count("\n", 0, found.start(1)) + 1, found[1]


def _put(found: re.Match[str], version: str) -> str:
    start, end = (place - found.start() for place in found.span(1))
    return found[0][:start] + version + found[0][end:]
