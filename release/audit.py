"""What is known against the locked requirements: vulnerabilities, by pip-audit, and licences that nobody has allowed.

Every pin is asked for, also those of other platforms. A service that does not know a package has not answered for it:
pip-audit calls that clean, and here it is an error.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from release import licences, locks
from release.errors import ReleaseError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from release.locks import Pin

ROOT: Final = Path(__file__).resolve().parent.parent
SERVICE_LOCK: Final = ROOT / "deploy" / "requirements" / "service.txt"
# The one that answers for all first is believed. Both know what the Python advisory database has.
SERVICES: Final = ("pypi", "osv")
TIMEOUT_SECONDS: Final = "15"


class NotAnsweredError(ReleaseError):
    """A service of vulnerabilities did not answer for all that was asked."""


@dataclass(frozen=True)
class Vulnerability:
    """One that is known of a locked version."""

    name: str
    version: str
    identifier: str
    fixed_in: tuple[str, ...]

    def __str__(self) -> str:
        """As a line."""
        return f"{self.name} {self.version}: {self.identifier}, fixed in {', '.join(self.fixed_in) or 'no version'}"


def read_report(text: str, asked: Sequence[Pin]) -> list[Vulnerability]:
    """Read pip-audit's report in JSON.

    Raises:
        NotAnsweredError: it does not speak of each package that was asked for.
    """
    try:
        told: list[dict[str, Any]] = json.loads(text)["dependencies"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise NotAnsweredError("there is no report") from error
    answered = {(each["name"], each["version"]) for each in told if "vulns" in each}
    if missing := [pin for pin in asked if (pin.name, pin.version) not in answered]:
        reasons = [each["skip_reason"] for each in told if each["name"] == missing[0].name and "skip_reason" in each]
        why = reasons[0] if reasons else f"{missing[0].name} {missing[0].version} is not in the report"
        raise NotAnsweredError(f"no answer for {len(missing)} of {len(asked)} packages: {why}")
    return [
        Vulnerability(each["name"], each["version"], found["id"], tuple(found["fix_versions"]))
        for each in told
        for found in each["vulns"]
    ]


def ask(tool: Path, service: str, pins: Sequence[Pin], options: Sequence[str] = ()) -> list[Vulnerability]:
    """Let pip-audit ask one service for all pins.

    Raises:
        NotAnsweredError: the service did not answer for all.
    """
    found: list[Vulnerability] = []
    for asked in _without_repetition(pins):
        with tempfile.TemporaryDirectory() as folder:
            requirements = Path(folder, "requirements.txt")
            lines = [f"{pin.name}=={pin.version}{pin.hashes}\n" for pin in asked]
            requirements.write_text("".join(lines), encoding="utf-8")
            command = [str(tool), "--disable-pip", "--require-hashes", "--requirement", str(requirements)]
            command += ["--vulnerability-service", service, "--format", "json", "--progress-spinner", "off"]
            ran = subprocess.run(  # noqa: S603 - pip-audit of the locked environment
                [*command, "--timeout", TIMEOUT_SECONDS, *options],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
        try:
            found += read_report(ran.stdout, asked)
        except NotAnsweredError as error:
            said = [line for line in ran.stderr.splitlines() if line.strip()]
            why = f"{error}: {said[-1]}" if said and not ran.stdout.strip() else str(error)
            raise NotAnsweredError(f"{service}: {why}") from error
    return found


def _without_repetition(pins: Sequence[Pin]) -> Iterator[list[Pin]]:
    """Lists in which no package stands twice: a lock has one version for each range of Pythons, pip-audit takes one."""
    left = list(pins)
    while left:
        first = {pin.name: pin for pin in reversed(left)}
        now = [pin for pin in left if first[pin.name] is pin]
        yield now
        left = [pin for pin in left if first[pin.name] is not pin]


def audit(tool: Path, pins: Sequence[Pin], osv_url: str | None) -> tuple[str, list[Vulnerability]]:
    """Ask one service after the other until one answers for all.

    Returns:
        Its name, and what it knows.

    Raises:
        NotAnsweredError: none did, and why.
    """
    reasons = []
    for service in ("osv",) if osv_url else SERVICES:
        try:
            return service, ask(tool, service, pins, ("--osv-url", osv_url) if osv_url else ())
        except NotAnsweredError as error:
            reasons.append(str(error))
    raise NotAnsweredError("\n".join(reasons))


def main() -> int:
    """Print what is known; 1 if anything stands against a lock, 2 if nobody could say."""
    parser = argparse.ArgumentParser(prog="scripts/audit", description=__doc__)
    parser.add_argument("locks", nargs="*", type=Path, default=[SERVICE_LOCK], help="default: the service's")
    parser.add_argument("--osv-url", help="another service that speaks OSV's language, such as a mirror")
    parser.add_argument("--pip-audit", type=Path, required=True, help=argparse.SUPPRESS)
    given = parser.parse_args()
    try:
        return max([_look_at(lock, given.pip_audit, given.osv_url) for lock in given.locks])
    except ReleaseError as error:  # what was given is no lock
        print(error, file=sys.stderr)
        return 2


def _look_at(lock: Path, tool: Path, osv_url: str | None) -> int:
    status = 0
    pins = locks.read(lock)
    try:
        if lock.resolve() == SERVICE_LOCK:
            print(f"{lock.name}: the licences of {len(licences.check(pins))} packages are allowed")
    except ReleaseError as error:
        print(f"{lock.name}: {error}", file=sys.stderr)
        status = 1
    try:
        service, known = audit(tool, pins, osv_url)
    except NotAnsweredError as error:
        print(f"{lock.name}: nobody could tell its vulnerabilities, which is no all-clear:\n{error}", file=sys.stderr)
        return 2
    for each in known:
        print(f"{lock.name}: {each}", file=sys.stderr)
    if known:
        return 1
    print(f"{lock.name}: {service} knows no vulnerability of its {len(pins)} packages")
    return status


if __name__ == "__main__":
    sys.exit(main())
