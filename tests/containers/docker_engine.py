"""Whatever Docker answers, for tests that build and run; none is started, and no registry is asked for an image."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[2]
DOCKERFILE: Final = ROOT / "deploy" / "Dockerfile"
HOW: Final = "install Docker Engine with buildx and compose, or set DOCKER_HOST to one that runs"
BASES: Final = tuple(sorted(set(re.findall(r"^FROM (\w+:\S+)", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE))))
BUILD_SECONDS: Final = 540.0
# What anybody who runs the image should take away from it, and nothing that it misses.
HARDENED: Final = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")


def docker(*arguments: str, seconds: float = 100, **variables: str) -> str:
    """What a command of Docker's prints.

    Args:
        arguments: without the word docker.
        seconds: it may take.
        variables: of the environment, besides Docker's own.

    Raises:
        AssertionError: it failed; with what it said.
    """
    done = run(*arguments, seconds=seconds, **variables)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr or done.stdout}"
    return done.stdout.strip()


def run(*arguments: str, seconds: float = 100, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command of Docker's, however it ends."""
    program = shutil.which("docker")
    if program is None:
        pytest.skip(f"Docker is missing: {HOW}")
    own = {name: value for name, value in os.environ.items() if not name.startswith(("STACK_", "COMPOSE_", "SOFTMAX_"))}
    return subprocess.run(  # noqa: S603 - found on the path
        [program, *arguments],
        cwd=ROOT,
        env={**own, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def engine_or_skip(*images: str) -> None:
    """Skip the test where no Docker answers, or it does not have these images."""
    for needed in (["version", "--format", "{{.Server.Version}}"], ["buildx", "version"], ["compose", "version"]):
        if (done := run(*needed)).returncode:
            pytest.skip(f"Docker does not answer: {HOW} ({done.stderr.strip()[:200]})")
    if missing := [image for image in images if not has(image)]:
        pytest.skip(f"Docker lacks base images: docker pull {' '.join(missing)}")


def has(image: str) -> bool:
    """Whether Docker has an image."""
    return run("image", "inspect", image).returncode == 0


def inspect(*names: str) -> Any:
    """What Docker knows of images or containers."""
    return json.loads(docker("inspect", *names))


@contextmanager
def built(**arguments: str) -> Iterator[str]:
    """Build the image, with build arguments, under a name of its own, which ends with the block."""
    engine_or_skip(*BASES)
    name = f"softmax-service:test-{uuid.uuid4().hex[:8]}"
    given = [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
    docker("build", "--quiet", "--file", str(DOCKERFILE), "--tag", name, *given, ".", seconds=BUILD_SECONDS)
    try:
        yield name
    finally:
        run("image", "rm", "--force", name)
