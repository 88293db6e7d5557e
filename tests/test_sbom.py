"""The software bill of materials: of exactly what the image carries, and true."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import pytest

import service
from generate.sbom import LOCK, SbomError, describe, install, locked, main, mistake, python_of_the_image

if TYPE_CHECKING:
    from pathlib import Path

MACHINE: Final = "x86_64"
# They take seconds for pip, and seconds for CycloneDX's tool.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("environment")


@pytest.fixture(scope="module")
def sums(environment: Path) -> dict[str, str]:
    try:
        return install(MACHINE, environment)
    except SbomError as error:
        pytest.skip(f"the packages cannot be had, pip needs the network: {error}")


@pytest.fixture(scope="module")
def text(environment: Path, sums: dict[str, str]) -> str:
    return describe(environment, sums)


@pytest.fixture
def bill(text: str) -> dict[str, Any]:
    made = json.loads(text)
    assert isinstance(made, dict)
    return made


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lock_is_read_as_the_image_s_python_reads_it() -> None:
    assert python_of_the_image() == "3.13"
    lines = locked(MACHINE)
    assert "colorama" not in lines  # for Windows
    assert "uvloop" in lines
    text = LOCK.read_text(encoding="utf-8")
    numpys = re.findall(r"^numpy==(\S+) ; python_full_version (\S+) '3\.12'", text, re.MULTILINE)
    assert len(numpys) == 2
    assert lines["numpy"].startswith(f"numpy=={next(version for version, relation in numpys if relation == '>=')} ")
    assert all(" --hash=sha256:" in line and ";" not in line for line in lines.values())


def test_it_lists_exactly_the_locked_packages_and_the_service(bill: dict[str, Any]) -> None:
    listed = {normal(each["name"]): each["version"] for each in bill["components"]}
    assert listed == {name: re.split(r"==| ", line)[1] for name, line in locked(MACHINE).items()}
    assert len(listed) == len(bill["components"])
    root = bill["metadata"]["component"]
    assert (root["name"], root["version"], root["type"]) == ("softmax-service", service.__version__, "application")
    assert root["licenses"] == [{"license": {"acknowledgement": "declared", "id": "Apache-2.0"}}]


def test_every_component_has_its_address_a_licence_and_a_sum_of_the_lock(bill: dict[str, Any]) -> None:
    lines = locked(MACHINE)
    for each in bill["components"]:
        name = normal(each["name"])
        assert each["purl"] == f"pkg:pypi/{name}@{each['version']}"
        assert each["licenses"], name
        (sum_,) = each["hashes"]
        assert sum_["alg"] == "SHA-256"
        assert f"--hash=sha256:{sum_['content']} " in f"{lines[name]} ", name


def test_the_service_needs_what_the_project_says(bill: dict[str, Any]) -> None:
    needs = {each["ref"]: each.get("dependsOn", []) for each in bill["dependencies"]}
    direct = {reference.partition("==")[0] for reference in needs[bill["metadata"]["component"]["bom-ref"]]}
    assert {normal(name) for name in direct} >= {"aiokafka", "aiohttp", "numpy", "pydantic", "uvloop"}
    assert set(needs) == {each["bom-ref"] for each in [*bill["components"], bill["metadata"]["component"]]}


def test_it_keeps_to_the_schema_and_the_schema_would_tell(text: str, bill: dict[str, Any]) -> None:
    assert mistake(text) == ""
    bill["components"][0]["hashes"][0]["content"] = "soon"
    assert mistake(json.dumps(bill))


def test_it_is_the_same_each_time_and_knows_no_time_and_no_folder(
    text: str, environment: Path, sums: dict[str, str]
) -> None:
    assert describe(environment, sums) == text
    assert not {"serialNumber", "timestamp"} & {*json.loads(text), *json.loads(text)["metadata"]}
    assert str(environment) not in text


def test_what_cannot_be_made_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "service.txt"
    wrong.write_text(f"msgpack==1.1.0 --hash=sha256:{'0' * 64}\n", encoding="utf-8")
    monkeypatch.setattr("generate.sbom.LOCK", wrong)
    monkeypatch.setattr("sys.argv", ["scripts/sbom", "--machine", MACHINE])
    assert main() == 1
    assert "pip install failed" in capsys.readouterr().err
