"""The audit of what is locked: licences, and vulnerabilities by the real pip-audit, which asks a service made here."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import subprocess
import threading
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from release import licences, locks
from release.audit import NotAnsweredError, Vulnerability, read_report
from release.errors import ReleaseError
from release.locks import Pin

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parent.parent
REQUIREMENTS: Final = ROOT / "deploy" / "requirements"
ALL_LOCKS: Final = sorted(REQUIREMENTS.glob("*.txt"))


# --- locks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", ALL_LOCKS, ids=lambda lock: lock.stem)
def test_every_line_of_a_lock_is_read(lock: Path) -> None:
    pins = locks.read(lock)
    assert len(pins) == lock.read_text(encoding="utf-8").count("==") - sum(pin.marker.count("==") for pin in pins)
    assert all(pin.hashes.count("--hash=sha256:") >= 1 for pin in pins)


@pytest.mark.parametrize("text", ["", "numpy\n", "numpy>=2\n", "numpy==2.4.6\n", "-r other.txt\n"])
def test_what_is_no_lock_is_refused(tmp_path: Path, text: str) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(text, encoding="utf-8")
    with pytest.raises(ReleaseError):
        locks.read(lock)


# --- licences ---------------------------------------------------------------------------------


def test_the_licence_of_all_that_the_service_needs_is_known_and_allowed() -> None:
    pins = locks.read(REQUIREMENTS / "service.txt")
    found = licences.check(pins)
    assert set(found) == {pin.name for pin in pins if pin.needed}
    assert found["aiokafka"] == "Apache-2.0"
    # Each that is allowed is so because somebody needs it.
    stated = " ".join(found.values())
    assert [each for each in licences.ALLOWED if each not in stated] == []


def test_a_package_that_is_missing_or_another_one_is_told() -> None:
    with pytest.raises(ReleaseError, match="not-there is not installed") as told:
        licences.check([Pin("not-there", "1.0", "", ""), Pin("numpy", "0.1", "", "")])
    assert "numpy is installed as" in str(told.value)
    assert licences.check([Pin("not-there", "1.0", "sys_platform == 'win32'", "")]) == {}


@pytest.mark.parametrize(
    ("fields", "stated"),
    [
        ({"License-Expression": "MIT OR Apache-2.0", "License": "whatever"}, "MIT OR Apache-2.0"),
        ({"License": "Apache 2"}, "Apache-2.0"),
        ({"License": "Apache-2.0"}, "Apache-2.0"),
        ({"Classifier": "License :: OSI Approved :: MIT License"}, "MIT"),
        (
            {"License": "Copyright, and much more", "Classifier": "License :: OSI Approved :: BSD License"},
            "BSD-3-Clause",
        ),
        ({"License": "see LICENSE"}, None),
        ({"Classifier": "License :: Other/Proprietary License"}, None),
        ({}, None),
    ],
)
def test_a_licence_is_read_as_packages_say_it(fields: dict[str, str], stated: str | None) -> None:
    about = Message()
    for name, value in fields.items():
        about[name] = value
    assert licences.licence(about) == stated  # type: ignore[arg-type]  # the protocol is what a message has


@pytest.mark.parametrize(
    ("expression", "may"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("MIT AND GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND (GPL-3.0-only OR ISC)", True),
        ("(MIT OR ISC) AND GPL-3.0-only", False),
        ("MIT OR ISC AND GPL-3.0-only", True),
        ("Apache-2.0 WITH LLVM-exception", False),
    ],
)
def test_an_expression_is_allowed_if_one_can_keep_to_it(expression: str, may: bool) -> None:  # noqa: FBT001 - a case
    assert licences.allowed(expression) is may


# --- vulnerabilities --------------------------------------------------------------------------

PINS: Final = [Pin("one", "1.0", "", ""), Pin("two", "2.0", "", "")]


def report(*told: dict[str, Any]) -> str:
    return json.dumps({"dependencies": told, "fixes": []})


def test_a_report_that_speaks_of_all_is_believed() -> None:
    known = {"id": "PYSEC-1", "fix_versions": ["2.1"], "aliases": [], "description": ""}
    told = report({"name": "one", "version": "1.0", "vulns": []}, {"name": "two", "version": "2.0", "vulns": [known]})
    assert read_report(told, PINS) == [Vulnerability("two", "2.0", "PYSEC-1", ("2.1",))]


@pytest.mark.parametrize(
    "told",
    [
        "",
        "null",
        report(),
        report({"name": "one", "version": "1.0", "vulns": []}),
        report({"name": "one", "version": "1.0", "vulns": []}, {"name": "two", "version": "2.1", "vulns": []}),
        report({"name": "one", "version": "1.0", "vulns": []}, {"name": "two", "skip_reason": "not found"}),
    ],
)
def test_silence_is_no_all_clear(told: str) -> None:
    with pytest.raises(NotAnsweredError):
        read_report(told, PINS)


class Service(http.server.BaseHTTPRequestHandler):
    """Answers in OSV's language; knows one vulnerability of one package."""

    known: str
    status: int
    asked: set[str]

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = asked["package"]["name"]
        self.asked.add(f"{name} {asked['version']}")
        affected = {
            "package": {"name": name, "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}],
        }
        found = {"id": "PYSEC-2026-1", "details": "It breaks.", "modified": "2026-01-01T00:00:00Z"}
        body = json.dumps({"vulns": [{**found, "affected": [affected]}]} if name == self.known else {}).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(known: str = "", status: int = 200) -> Iterator[tuple[str, set[str]]]:
    """A service that knows something of one package: its address, and what it is asked for."""
    asked: set[str] = set()
    handler = type("Handler", (Service,), {"known": known, "status": status, "asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query", asked
        finally:
            server.shutdown()
            thread.join()


def audit(url: str) -> subprocess.CompletedProcess[str]:
    """Run the script; where it has no environment yet, pip makes one."""
    ran = subprocess.run(  # noqa: S603 - our script
        [ROOT / "scripts" / "audit", "--osv-url", url],
        env={**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    if any(sign in ran.stderr for sign in ("NewConnectionError", "NameResolutionError", "ConnectTimeout")):
        pytest.skip("pip needs its package index for pip-audit")
    return ran


def test_the_script_says_what_a_service_knows() -> None:
    """One test, as there is one environment of the script in a checkout."""
    pins = locks.read(REQUIREMENTS / "service.txt")
    (msgpack,) = [pin for pin in pins if pin.name == "msgpack"]

    with serving() as (url, asked):
        clean = audit(url)
    assert clean.returncode == 0, clean.stderr
    assert clean.stdout.splitlines()[-1] == f"service.txt: osv knows no vulnerability of its {len(pins)} packages"
    # Those of other platforms and other Pythons too.
    assert asked == {f"{pin.name} {pin.version}" for pin in pins}

    with serving(known="msgpack") as (url, _):
        vulnerable = audit(url)
    assert vulnerable.returncode == 1
    assert f"service.txt: msgpack {msgpack.version}: PYSEC-2026-1, fixed in 99.0" in vulnerable.stderr

    with serving(status=503) as (url, _):
        away = audit(url)
    assert away.returncode == 2
    assert "no all-clear" in away.stderr
    assert not any("knows no vulnerability" in ran.stdout for ran in (vulnerable, away))
