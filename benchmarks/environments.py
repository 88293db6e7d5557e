"""Peers' own environments and builds, from locked requirements: a peer is never a dependency of the project.

A peer in another language needs that language's toolchain. To be without it is normal, and `Unavailable` says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.processes import BenchmarkError
from service.broker.installation import cache_directory, locked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PEERS: Final = Path(__file__).with_name("peers")
_VERSIONS: Final = """
import importlib.metadata, json, sys
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""


class Unavailable(Exception):  # noqa: N818 - the normal state of a machine without a toolchain
    """A program cannot be built here, for want of a toolchain."""


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


def go_program() -> Path:
    """Return the peer in Go, which is built the first time.

    Raises:
        Unavailable: there is no Go, or an older one than the module asks for.
        BenchmarkError: it could not be built.
    """
    sources = [PEERS / "go" / "go.mod", PEERS / "go" / "go.sum", *sorted((PEERS / "go").glob("*.go"))]
    directory = _build_directory("go", sources, _run([_tool("go", "Go"), "version"]))
    with locked("bench"):
        if not (directory / "complete").exists():
            print("Building the peer in Go, once", flush=True)
            # As go.mod says and no other: a newer toolchain is not fetched for it.
            environment = os.environ | {"GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}
            command = [_tool("go", "Go"), "build", "-trimpath", "-o", str(directory / "softmax-peer"), "."]
            try:
                _run(command, directory=PEERS / "go", environment=environment)
            except BenchmarkError as error:
                if "go.mod requires go" in str(error):
                    raise Unavailable(str(error).splitlines()[-1]) from None
                raise
            (directory / "complete").touch()
    return directory / "softmax-peer"


def go_versions(*modules: str) -> dict[str, str]:
    """Versions of the Go that builds the peer, and of modules in it."""
    lines = [line.split("\t") for line in _run([_tool("go", "Go"), "version", "-m", str(go_program())]).splitlines()]
    found = {line[2]: line[3].removeprefix("v") for line in lines if line[1:2] == ["dep"]}
    return {"Go": lines[0][0].rpartition("go")[2], **{module.split("/")[2]: found[module] for module in modules}}


def _tool(name: str, toolchain: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise Unavailable(f"there is no {toolchain} on this machine (no command `{name}`)")
    return path


def _build_directory(peer: str, sources: Sequence[Path], toolchain: str) -> Path:
    content = toolchain.encode() + b"".join(source.read_bytes() for source in sources)
    return cache_directory().parent / "bench" / f"{peer}-{hashlib.sha256(content).hexdigest()[:12]}"


def _run(command: Sequence[str], *, directory: Path = PEERS, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(  # noqa: S603 - a toolchain, on sources of ours
        command,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def peer_versions(peer: str, *packages: str) -> dict[str, str]:
    """Versions of packages in a peer's environment."""
    command = [str(python_of(peer)), "-c", _VERSIONS, *packages]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)  # noqa: S603 - ours
    found: dict[str, str] = json.loads(done.stdout)
    return {"Python": platform.python_version(), **found}


def own_versions(*packages: str) -> dict[str, str]:
    """Versions of packages in the project's environment."""
    return {"Python": platform.python_version(), **{package: version(package) for package in packages}}
