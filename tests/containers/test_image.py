"""The image, built and run: what is in it, as whom it runs, and what it does without."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any, Final

import pytest
from docker_engine import BASES, DOCKERFILE, HARDENED, built, docker, inspect, run

import service
from generate.sbom import locked

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

REVISION: Final = "0123456789abcdef0123456789abcdef01234567"
# 135 MB beyond the base on x86-64 when this was written.
MAX_OWN_BYTES: Final = 150_000_000
# Nothing is left of a shell but an empty file.
WITHOUT_SHELLS: Final = tuple(
    word for shell in ("/bin/sh", "/bin/bash") for word in ("--volume", f"/dev/null:{shell}:ro")
)
STOP_SECONDS: Final = 10.0


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    with built(REVISION=REVISION) as name:
        yield name


def python(image: str, program: str, *options: str) -> Any:
    """What a program in the image prints, as JSON."""
    return json.loads(
        docker("run", "--rm", "--network", "none", *options, "--entrypoint", "python", image, "-c", program)
    )


def test_its_labels_say_what_it_is(image: str) -> None:
    labels = {key.rpartition(".")[2]: value for key, value in inspect(image)[0]["Config"]["Labels"].items()}
    assert (
        labels.items()
        >= {
            "title": "Softmax Service",
            "licenses": "Apache-2.0",
            "version": service.__version__,
            "revision": REVISION,
        }.items()
    )
    assert labels["source"].startswith("https://github.com/")
    assert labels["description"]


def test_it_runs_as_nobody_with_no_rights_on_a_file_system_that_it_cannot_write(image: str) -> None:
    program = """
import json, os, pathlib
lines = pathlib.Path("/proc/self/status").read_text().splitlines()
status = dict(line.split(":\\t", 1) for line in lines if ":\\t" in line)
can = []
for folder in ("/", "/opt/softmax", "/tmp", "/var/tmp"):
    try:
        pathlib.Path(folder, "written").touch()
        can.append(folder)
    except OSError:
        pass
rights = {"capabilities": status["CapEff"], "no new": status["NoNewPrivs"]}
print(json.dumps({"ids": [os.getuid(), os.getgid()], "can": can, **rights}))
"""
    seen = python(image, program, *HARDENED)
    assert seen == {"ids": [10001, 10001], "can": [], "capabilities": "0" * 16, "no new": "1"}


def test_it_cannot_change_itself_even_without_hardening(image: str) -> None:
    program = """
import json, os
print(json.dumps([f"{at}/{name}" for at, folders, files in os.walk("/opt/softmax") for name in (".", *files)
                  if os.access(f"{at}/{name}", os.W_OK)]))
"""
    assert python(image, program) == []


def test_it_holds_exactly_what_is_locked_and_the_service(image: str) -> None:
    program = """
import importlib.metadata as m, json, platform, re
print(json.dumps([platform.machine(), {re.sub("[-_.]+", "-", d.name).lower(): d.version for d in m.distributions(
    path=[__import__("sysconfig").get_path("purelib")])}]))
"""
    machine, found = python(image, program)
    expected = {name: re.split(r"==| ", line)[1] for name, line in locked(machine).items()}
    assert found == {**expected, "softmax-service": service.__version__}


def test_every_module_has_its_bytecode(image: str) -> None:
    program = """
import importlib.util as u, json, os
print(json.dumps([f"{at}/{name}" for at, _, files in os.walk("/opt/softmax/lib") for name in files
                  if name.endswith(".py") and not os.path.exists(u.cache_from_source(f"{at}/{name}"))]))
"""
    assert python(image, program) == []


def test_the_command_needs_no_shell(image: str) -> None:
    without = ("run", "--rm", "--network", "none", *HARDENED, *WITHOUT_SHELLS)
    assert run(*without, "--entrypoint", "sh", image, "-c", "true").returncode != 0
    told = docker(*without, "--entrypoint", "softmax-service", image, "--version")
    assert told == f"softmax-service {service.__version__}"


def test_it_adds_little_to_its_base(image: str) -> None:
    sizes = [each["Size"] for each in inspect(image, BASES[-1])]
    own = sizes[0] - sizes[1]
    assert 0 < own < MAX_OWN_BYTES, f"{own / 1e6:.0f} MB"


def test_it_has_a_health_check_that_fails_while_there_is_no_broker_and_sigterm_ends_it(image: str) -> None:
    check = inspect(image)[0]["Config"]["Healthcheck"]["Test"][1:]
    options = ("--detach", "--network", "none", *HARDENED, *WITHOUT_SHELLS)
    name = docker("run", *options, "--env", "SOFTMAX_KAFKA__BOOTSTRAP_SERVERS=127.0.0.1:9", image)
    try:
        deadline = time.monotonic() + 60
        alive = [*check[:-1], check[-1].replace("/readyz", "/livez")]
        while (lives := run("exec", name, *alive)).returncode:
            assert time.monotonic() < deadline, lives.stderr + docker("logs", name)
            time.sleep(0.2)
        unready = run("exec", name, *check)
        assert unready.returncode != 0
        assert "503" in unready.stderr
        began = time.monotonic()
        docker("kill", "--signal", "TERM", name)
        assert docker("wait", name) == "0", run("logs", name).stderr
        assert time.monotonic() - began < STOP_SECONDS
    finally:
        run("rm", "--force", "--volumes", name)


def test_the_version_in_the_dockerfile_is_the_code_s() -> None:
    (version,) = re.findall(r"^ARG VERSION=(\S+)", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    assert version == service.__version__
