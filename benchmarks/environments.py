"""Environments of the peers in Python, from locked requirements: a peer is never a dependency of the project."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path
from typing import Final

from benchmarks.processes import BenchmarkError
from service.broker.installation import cache_directory, locked

PEERS: Final = Path(__file__).with_name("peers")
_VERSIONS: Final = """
import importlib.metadata, json, sys
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""


def python_of(peer: str) -> Path:
    """Return the interpreter of a peer's environment, which is built the first time.

    Raises:
        BenchmarkError: it could not be built.
    """
    requirements = PEERS / f"requirements-{peer}.txt"
    key = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    directory = cache_directory().parent / "bench" / f"{peer}-{key}"
    with locked("bench"):
        # The last thing to be written: an environment without it was left half-built.
        if not (directory / "complete").exists():
            print(f"Building the environment of {peer}, once", flush=True)
            _build(directory, requirements)
            (directory / "complete").touch()
    return directory / "bin" / "python"


def _build(directory: Path, requirements: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    venv.create(directory, with_pip=True)
    options = ["--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--requirement", str(requirements)]
    done = subprocess.run(  # noqa: S603 - pip of the environment just made
        [str(directory / "bin" / "python"), "-m", "pip", "install", *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchmarkError(f"Cannot install {requirements.name}:\n{done.stdout}{done.stderr}")


def peer_versions(peer: str, *packages: str) -> dict[str, str]:
    """Versions of packages in a peer's environment."""
    command = [str(python_of(peer)), "-c", _VERSIONS, *packages]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)  # noqa: S603 - ours
    found: dict[str, str] = json.loads(done.stdout)
    return {"Python": platform.python_version(), **found}


def own_versions(*packages: str) -> dict[str, str]:
    """Versions of packages in the project's environment."""
    return {"Python": platform.python_version(), **{package: version(package) for package in packages}}
