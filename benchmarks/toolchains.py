"""Builds of the peers in other languages, from locked sources.

Each needs its language's toolchain. To be without it is normal, and `Unavailable` says so.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from benchmarks.environments import PEERS
from benchmarks.processes import BenchmarkError
from service.broker import jars
from service.broker.installation import cache_directory, java, locked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_JAVA_SOURCE: Final = PEERS / "java" / "StreamsPeer.java"
_JAVA_JARS: Final = PEERS / "java" / "jars.json"
# Of the Java that runs the peer: it only has to be newer.
_JAVA_RELEASE: Final = "17"


class Unavailable(Exception):  # noqa: N818 - the normal state of a machine without a toolchain
    """A program cannot be built here, for want of a toolchain."""


def go_program() -> Path:
    """Return the peer in Go, which is built the first time.

    Raises:
        Unavailable: there is no Go, or an older one than the module asks for.
        BenchmarkError: it could not be built.
    """
    go = _tool("go", "Go")

    def build(directory: Path) -> None:
        # As go.mod says and no other: a newer toolchain is not fetched for it.
        environment = {"GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}
        command = [go, "build", "-trimpath", "-o", str(directory / "softmax-peer"), "."]
        try:
            _run(command, directory=PEERS / "go", environment=environment)
        except BenchmarkError as error:
            if "go.mod requires go" in str(error):
                raise Unavailable(str(error).splitlines()[-1]) from None
            raise

    sources = [PEERS / "go" / "go.mod", PEERS / "go" / "go.sum", *sorted((PEERS / "go").glob("*.go"))]
    return _built("go", sources, _run([go, "version"]), build) / "softmax-peer"


def go_versions(*modules: str) -> dict[str, str]:
    """Versions of the Go that builds the peer, and of modules in it."""
    lines = [line.split("\t") for line in _run([_tool("go", "Go"), "version", "-m", str(go_program())]).splitlines()]
    found = {line[2]: line[3].removeprefix("v") for line in lines if line[1:2] == ["dep"]}
    return {"Go": lines[0][0].rpartition("go")[2], **{module.split("/")[2]: found[module] for module in modules}}


def rust_program() -> Path:
    """Return the peer in Rust, which is built the first time, librdkafka with it: that takes two minutes.

    Raises:
        Unavailable: there is no Rust, or nothing that builds C.
        BenchmarkError: it could not be built.
    """
    cargo = _tool("cargo", "Rust")
    for tool in ("cc", "make"):
        _tool(tool, "C compiler with make, for librdkafka,")

    def build(directory: Path) -> None:
        environment = {
            # The vector instructions that this machine has.
            "RUSTFLAGS": "-C target-cpu=native",
            "CARGO_TARGET_DIR": str(directory / "target"),
        }
        command = [cargo, "build", "--release", "--locked", "--quiet"]
        _run(command, directory=PEERS / "rust", environment=environment)
        (directory / "target" / "release" / "softmax-peer").rename(directory / "softmax-peer")
        shutil.rmtree(directory / "target")

    rust = PEERS / "rust"
    sources = [rust / "Cargo.toml", rust / "Cargo.lock", *sorted((rust / "src").glob("*.rs"))]
    return _built("rust", sources, _run([cargo, "--version"]), build) / "softmax-peer"


def rust_versions(*crates: str) -> dict[str, str]:
    """Versions of the Rust that builds the peer, and of crates in it."""
    rust_program()
    lock = (PEERS / "rust" / "Cargo.lock").read_text()
    found = dict(re.findall(r'^name = "(.+)"\nversion = "(.+)"$', lock, re.MULTILINE))
    return {
        "Rust": _run([_tool("cargo", "Rust"), "--version"]).split()[1],
        **{crate: found[crate] for crate in crates},
    }


def java_command() -> list[str]:
    """Return the command of the peer on Kafka Streams, which is compiled the first time.

    Raises:
        Unavailable: there is no Java compiler.
        BenchmarkError: it could not be built.
    """
    compiler = _tool("javac", "Java compiler")

    def build(directory: Path) -> None:
        jars.fetch_verified(jars.Manifest.load(_JAVA_JARS), directory / "jars")
        classes = ["-cp", str(directory / "jars" / "*"), "-d", str(directory)]
        _run([compiler, "--release", _JAVA_RELEASE, *classes, str(_JAVA_SOURCE)])

    directory = _built("java", [_JAVA_SOURCE, _JAVA_JARS], _run([compiler, "--version"]), build)
    class_path = os.pathsep.join([str(directory), str(directory / "jars" / "*")])
    quiet = ["--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow"]
    return [str(java()), *quiet, "-cp", class_path, "StreamsPeer"]


def java_versions(*artifacts: str) -> dict[str, str]:
    """Versions of artifacts that the peer on Kafka Streams runs with."""
    java_command()
    names = jars.Manifest.load(_JAVA_JARS).jars
    return {
        artifact: name.removeprefix(f"{artifact}-").removesuffix(".jar")
        for artifact in artifacts
        for name in names
        if name.startswith(artifact)
    }


def _built(peer: str, sources: Sequence[Path], toolchain: str, build: Callable[[Path], None]) -> Path:
    """The directory of a build, which is made the first time for these sources and this toolchain."""
    content = toolchain.encode() + b"".join(source.read_bytes() for source in sources)
    directory = cache_directory().parent / "bench" / f"{peer}-{hashlib.sha256(content).hexdigest()[:12]}"
    with locked("bench"):
        # The last thing to be written: a directory without it was left half-built.
        if not (directory / "complete").exists():
            print(f"Building the peer in {peer}, once", flush=True)
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            build(directory)
            (directory / "complete").touch()
    return directory


def _tool(name: str, toolchain: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise Unavailable(f"there is no {toolchain} on this machine (no command `{name}`)")
    return path


def _run(command: Sequence[str], *, directory: Path = PEERS, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(  # noqa: S603 - a toolchain, on sources of ours
        command,
        cwd=directory,
        env=os.environ | (environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    # Fetch the jars of Kafka Streams anew, and trust what came: the list is then reviewed and committed.
    jars.write_manifest(sys.argv[1], _JAVA_JARS)
