"""Locked requirements, read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from packaging.markers import Marker

from release.errors import ReleaseError

if TYPE_CHECKING:
    from pathlib import Path

_PIN: Final = re.compile(r"([\w.-]+)==(\S+)(?: ; (.+?))?((?: \\\n    --hash=\S+)+)\n")


@dataclass(frozen=True)
class Pin:
    """A package of a lock.

    Attributes:
        name: as the lock writes it.
        version: the only one.
        marker: when it is needed, or empty for always.
        hashes: as pip's options, with the lock's line breaks.
    """

    name: str
    version: str
    marker: str
    hashes: str

    @property
    def needed(self) -> bool:
        """Whether this interpreter on this platform needs it."""
        return not self.marker or Marker(self.marker).evaluate()


def read(lock: Path) -> list[Pin]:
    """Read a lock that scripts/lock has made.

    Raises:
        ReleaseError: something in it is not a version with hashes.
    """
    text = lock.read_text(encoding="utf-8")
    pins = [Pin(name, version, marker or "", hashes) for name, version, marker, hashes in _PIN.findall(text)]
    if left := _PIN.sub("", text).strip():
        raise ReleaseError(f"{lock.name}: {left.splitlines()[0]!r} is not a version with hashes.")
    if not pins:
        raise ReleaseError(f"{lock.name} locks nothing.")
    return pins
