"""The AsyncAPI specification's own JSON schema: taken once, into the cache, from the package that carries it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Final

from service.broker.installation import cache_directory, locked

PACKAGE: Final = "@asyncapi/specs@6.8.1"
SHA256: Final = "252bfd18c12f60f654ab4def022e3ec9f9589e6dfd65c238204f77c07a1f6b46"
FILE: Final = "package/schemas/3.0.0.json"


class NotFetchedError(Exception):
    """The package cannot be had, and why."""


def schema() -> dict[str, Any]:
    """Return the schema of version 3.0.0.

    Raises:
        NotFetchedError: it is not in the cache, and the package cannot be had.
    """
    file = cache_directory().parent / "asyncapi" / f"{SHA256[:12]}.json"
    with locked("asyncapi"):
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
                fetched = Path(scratch, "schema.json")
                fetched.write_bytes(_fetch(Path(scratch)))
                fetched.replace(file)
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _fetch(scratch: Path) -> bytes:
    npm = shutil.which("npm")
    if npm is None:
        raise NotFetchedError(f"npm, which fetches {PACKAGE}, is missing: apt-get install npm")
    done = subprocess.run(  # noqa: S603 - npm, for what is pinned above
        [npm, "pack", "--silent", PACKAGE], cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        raise NotFetchedError(f"{PACKAGE} cannot be fetched: {done.stderr.decode(errors='replace').strip()[-500:]}")
    archive = scratch / done.stdout.decode().strip().splitlines()[-1]
    if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
        raise NotFetchedError(f"{PACKAGE} has another sum than expected")
    with tarfile.open(archive) as packed:
        member = packed.extractfile(FILE)
        if member is None:
            raise NotFetchedError(f"{PACKAGE} lacks {FILE}")
        return member.read()
