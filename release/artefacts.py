"""Wheel and sdist, built from the tracked files alone: nothing that lies about in a checkout can get into them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from release.errors import ReleaseError

ROOT: Final = Path(__file__).resolve().parent.parent


def tracked(root: Path = ROOT) -> list[str]:
    """Return the names of the files that git knows of and that are there.

    Raises:
        ReleaseError: this is no checkout.
    """
    git = shutil.which("git")
    if git is None:
        raise ReleaseError("git is not there, which tells what belongs to the project.")
    # A checkout may belong to somebody else, as in a container; it is only read.
    listed = _run([git, "-c", f"safe.directory={root}", "ls-files", "-z"], root)
    return [name for name in listed.split("\0") if name and (root / name).is_file()]


def copy_tracked(folder: Path, root: Path = ROOT) -> None:
    """Copy the tracked files, as they are now, into a folder.

    Raises:
        ReleaseError: this is no checkout.
    """
    for name in tracked(root):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, target)


def build(source: Path, into: Path, *targets: str) -> None:
    """Build `wheel` or `sdist`, or both, of a source tree with this environment's build backend; no index is asked.

    Raises:
        ReleaseError: it cannot be built.
    """
    options = [option for target in targets for option in ("-t", target)]
    _run([sys.executable, "-m", "hatchling", "build", *options, "-d", str(into)], source)


def build_all(into: Path, root: Path = ROOT) -> list[Path]:
    """Build the sdist of the tracked files and, out of that, the wheel.

    Returns:
        Both files.

    Raises:
        ReleaseError: this is no checkout, or it cannot be built.
    """
    into = into.absolute()
    into.mkdir(parents=True, exist_ok=True)
    if there := sorted(file.name for file in into.iterdir()):
        raise ReleaseError(f"{into} is not empty: {', '.join(there)}")
    with tempfile.TemporaryDirectory() as folder:
        clean = Path(folder, "clean")
        copy_tracked(clean, root)
        build(clean, into, "sdist")
        (sdist,) = into.glob("*.tar.gz")
        build(unpack(sdist, Path(folder, "unpacked")), into, "wheel")
    return sorted(into.iterdir())


def unpack(sdist: Path, into: Path) -> Path:
    """Unpack an sdist and return the folder that it holds."""
    with tarfile.open(sdist) as archive:
        archive.extractall(into, filter="data")
    (source,) = into.iterdir()
    return source


def _run(command: list[str], folder: Path) -> str:
    ran = subprocess.run(  # noqa: S603 - git, or the build backend of this environment
        command, cwd=folder, env=os.environ, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if ran.returncode:
        raise ReleaseError(f"{' '.join(command)}:\n{ran.stdout}{ran.stderr}")
    return ran.stdout
