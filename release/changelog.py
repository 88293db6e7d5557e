"""The changelog, read: its sections, the newest first."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import Final

from packaging.version import InvalidVersion, Version

from release.errors import ReleaseError

NEXT: Final = "Unreleased"
KINDS: Final = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Known limits")
_RELEASED: Final = re.compile(r"(\S+) - (\d{4}-\d{2}-\d{2})")


@dataclass(frozen=True)
class Section:
    """What one version changes.

    Attributes:
        version: its number, or None for what is not released yet.
        released: its day, or None with the version.
        text: what stands below its heading.
    """

    version: str | None
    released: date | None
    text: str


def sections(changelog: str) -> list[Section]:
    """Read a changelog.

    Raises:
        ReleaseError: a heading is none that a changelog has, is empty, or stands in the wrong order.
    """
    _, *parts = re.split(r"^## (.*)\n", changelog, flags=re.MULTILINE)
    found = [_section(heading, text) for heading, text in zip(parts[::2], parts[1::2], strict=True)]
    if not found:
        raise ReleaseError("The changelog has no section.")
    if any(each.version is None for each in found[1:]):
        raise ReleaseError(f"{NEXT} may only stand at the top of the changelog.")
    released = [(Version(each.version), each.released) for each in found if each.version and each.released]
    for (newer, newer_day), (older, older_day) in pairwise(released):
        if newer <= older or newer_day < older_day:
            raise ReleaseError(f"{newer} stands above {older}, and is not newer.")
    return found


def _section(heading: str, text: str) -> Section:
    _, *parts = re.split(r"^#{3,} *(.*)$", text, flags=re.MULTILINE)
    kinds = parts[::2]
    if strange := [kind for kind in kinds if kind not in KINDS]:
        raise ReleaseError(f"{heading}: {strange[0]!r} is none of {', '.join(KINDS)}.")
    if len(kinds) != len(set(kinds)):
        raise ReleaseError(f"{heading}: a kind of change stands there twice.")
    if any("\n- " not in part for part in parts[1::2]):
        raise ReleaseError(f"{heading}: a kind of change has none.")
    if heading == NEXT:
        return Section(None, None, text)
    matched = _RELEASED.fullmatch(heading)
    try:
        if matched and kinds:
            return Section(str(Version(matched[1])), date.fromisoformat(matched[2]), text)
    except (InvalidVersion, ValueError):
        pass
    raise ReleaseError(f"The heading {heading!r} is not '{NEXT}' nor 'VERSION - YYYY-MM-DD' with changes below it.")
