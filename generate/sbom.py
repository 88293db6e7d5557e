"""A software bill of materials, in CycloneDX's JSON, of what the image carries beyond its base.

    scripts/sbom [--machine x86_64|aarch64] [--output FILE]

The packages of the image's lock are fetched for the image's Python and platform, whatever runs this, and CycloneDX's
own tool describes them: licences, package URLs, and who needs whom. The sums of the files that were fetched, which the
lock has, are added. The same lock gives the same bytes. Debian's packages, and Python, are the base image's.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import service

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT: Final = Path(__file__).resolve().parent.parent
LOCK: Final = ROOT / "deploy" / "requirements" / "service.txt"
DOCKERFILE: Final = ROOT / "deploy" / "Dockerfile"
# A wheel names the glibc that it needs at least. Up to Debian's of today, the newest first, as pip prefers it.
GLIBC: Final = range(41, 16, -1)
MACHINES: Final = ("x86_64", "aarch64")
SPECIFICATION: Final = "1.6"


class SbomError(Exception):
    """It cannot be made, and why."""


def python_of_the_image() -> str:
    """The version of Python that the image's base has, such as 3.13."""
    (version,) = set(re.findall(r"^FROM python:(\d+\.\d+)", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE))
    return str(version)


def locked(machine: str) -> dict[str, str]:
    """The lines of the lock that hold in the image, without their conditions, by the packages' normal names."""
    version = python_of_the_image()
    there = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{version}.0",
        "python_version": version,
        "sys_platform": "linux",
    }
    lines: dict[str, str] = {}
    for line in LOCK.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        wanted, separator, hashes = line.partition(" --hash=")
        requirement = Requirement(wanted)
        if requirement.marker is None or requirement.marker.evaluate(there):
            name = f"{requirement.name}{requirement.specifier}"
            lines[canonicalize_name(requirement.name)] = name + separator + hashes
    return lines


def install(machine: str, environment: Path) -> dict[str, str]:
    """Make an environment of what the image has, and return the SHA-256 of each package's wheel, by its normal name.

    Raises:
        SbomError: a package cannot be had, or is not what the lock says.
    """
    venv.create(environment)
    (site,) = environment.glob("lib/python*/site-packages")
    requirements, report = environment / "requirements.txt", environment / "report.json"
    requirements.write_text("\n".join(locked(machine).values()) + "\n", encoding="utf-8")
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in GLIBC] + [f"manylinux2014_{machine}"]
    _run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"),
            *("--require-hashes", "--no-deps", "--only-binary", ":all:", "--requirement", str(requirements)),
            # For another Python than the one that runs this: pip would else compare Requires-Python with the latter.
            *("--python-version", python_of_the_image(), "--implementation", "cp", "--ignore-requires-python"),
            *(option for each in platforms for option in ("--platform", each)),
            *("--target", str(site), "--report", str(report)),
        ]
    )
    told = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {
        canonicalize_name(each["metadata"]["name"]): each["download_info"]["archive_info"]["hashes"]["sha256"]
        for each in told
    }


def describe(environment: Path, sums: Mapping[str, str]) -> str:
    """The bill of what is in an environment, whose wheels had these sums.

    Raises:
        SbomError: CycloneDX's tool fails, or the outcome does not keep to the schema.
    """
    arguments = ["environment", "--pyproject", str(ROOT / "pyproject.toml"), "--spec-version", SPECIFICATION]
    tool = [sys.executable, "-m", "cyclonedx_py", *arguments, "--output-reproducible"]
    bill: dict[str, Any] = json.loads(_run([*tool, str(environment / "bin" / "python")]))
    for component in bill["components"]:
        component["hashes"] = [{"alg": "SHA-256", "content": sums[canonicalize_name(component["name"])]}]
    # The version is the code's, which the tool does not read.
    bill["metadata"]["component"] |= {
        "version": service.__version__,
        "purl": f"pkg:pypi/softmax-service@{service.__version__}",
    }
    text = json.dumps(bill, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    if wrong := mistake(text):
        raise SbomError(f"the bill does not keep to CycloneDX {SPECIFICATION}: {wrong}")
    return text


def mistake(text: str) -> str:
    """Where a bill does not keep to CycloneDX's schema; empty if it does."""
    found = JsonStrictValidator(SchemaVersion.from_version(SPECIFICATION)).validate_str(text)
    return "" if found is None else str(found)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - pip and CycloneDX's tool
    if done.returncode:
        raise SbomError(f"{' '.join(command[1:4])} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def main() -> int:
    """Write it where it is wanted; 1 if it cannot be made."""
    here = platform.machine().replace("arm64", "aarch64")
    parser = argparse.ArgumentParser(prog="scripts/sbom", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--machine", choices=MACHINES, default=here, help="of the image")
    parser.add_argument("--output", type=Path, help="a file; else it is printed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder)
        try:
            text = describe(environment, install(options.machine, environment))
        except SbomError as error:
            print(f"scripts/sbom: {error}", file=sys.stderr)  # noqa: T201 - a program
            return 1
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
