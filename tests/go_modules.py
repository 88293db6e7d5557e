"""Files out of Go modules, which are fetched from Go's proxy and checked by their sums, and never built."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path


class NotFetchedError(Exception):
    """A package cannot be had, and why."""


def module_directory(module: str, sum_: str) -> Path:
    """Where Go keeps a module, such as example.org/name@v1.2.3, after it was fetched if need be.

    Raises:
        NotFetchedError: Go is missing, the module cannot be had, or it is another than it was.
    """
    go = shutil.which("go")
    if go is None:
        raise NotFetchedError(f"Go, which fetches {module}, is missing")
    # Elsewhere than in a checkout, whose own module Go would else look at.
    told = json.loads(run([go, "mod", "download", "-json", module], Path(tempfile.gettempdir())))
    if told["Sum"] != sum_:
        raise NotFetchedError(f"{module} has the sum {told['Sum']}, not {sum_}")
    return Path(told["Dir"])


def run(command: list[str], directory: Path) -> str:
    """What a command prints.

    Raises:
        NotFetchedError: it failed.
    """
    done = subprocess.run(  # noqa: S603 - pip and Go, for what is pinned by those who call
        command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NotFetchedError(f"{' '.join(command[:4])} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout
