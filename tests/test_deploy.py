"""The container image and the compose stack, as far as files alone tell."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from service.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parent.parent
COMPOSE: Final = ROOT / "docker-compose.yml"
DOCKERFILE: Final = ROOT / "deploy" / "Dockerfile"

needs_compose = pytest.mark.skipif(not COMPOSE.exists(), reason="docker-compose.yml is not there yet")
needs_dockerfile = pytest.mark.skipif(not DOCKERFILE.exists(), reason="deploy/Dockerfile is not there yet")


@cache
def compose() -> dict[str, Any]:
    stack = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    assert isinstance(stack, dict)
    return stack


def services() -> dict[str, dict[str, Any]]:
    found = compose()["services"]
    assert isinstance(found, dict)
    return found


def environment_of(name: str) -> dict[str, str]:
    given = services()[name].get("environment") or {}
    if isinstance(given, list):
        given = dict(each.split("=", 1) for each in given)
    return {key: _default(str(value)) for key, value in given.items()}


def _default(value: str) -> str:
    """The value where the variables of the shell are not set: `${A:-b}` is b."""
    return re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", value)


def published() -> Iterator[tuple[str, str]]:
    """Services and the host addresses of the ports that they publish."""
    for name, service in services().items():
        for port in service.get("ports", ()):
            if isinstance(port, dict):
                yield name, str(port.get("host_ip", ""))
            else:
                yield name, _default(str(port)).rpartition(":")[0].rpartition(":")[0]


def test_the_helper_reads_defaults_of_variables() -> None:
    assert _default("127.0.0.1:${PORT:-8080}:8080") == "127.0.0.1:8080:8080"
    assert _default("${A-x}${B:-}") == "x"


# --- compose ----------------------------------------------------------------------------------


@needs_compose
def test_the_stack_is_kafka_its_topics_and_the_service() -> None:
    assert {"kafka", "topics", "softmax"} <= set(services())
    assert "version" not in compose()  # obsolete: compose warns


@needs_compose
def test_every_key_is_one_of_the_compose_specification() -> None:
    top = {"name", "services", "networks", "volumes", "secrets", "configs", "include"}
    known = {
        *("annotations", "build", "cap_add", "cap_drop", "command", "container_name", "configs", "cpus", "depends_on"),
        *("deploy", "entrypoint", "env_file", "environment", "expose", "extra_hosts", "healthcheck", "hostname"),
        *("image", "init", "labels", "logging", "mem_limit", "memswap_limit", "networks", "pids_limit", "platform"),
        *("ports", "profiles", "pull_policy", "read_only", "restart", "secrets", "security_opt", "shm_size"),
        *("stop_grace_period", "stop_signal", "sysctls", "tmpfs", "tty", "ulimits", "user", "volumes", "working_dir"),
    }
    assert {key for key in compose() if not key.startswith("x-")} <= top
    for name, service in services().items():
        assert {key for key in service if not key.startswith("x-")} <= known, name
        assert "image" in service or "build" in service, name


@needs_compose
def test_ports_are_published_on_this_machine_alone() -> None:
    addresses = list(published())
    assert addresses
    assert [(name, address) for name, address in addresses if address != "127.0.0.1"] == []


@needs_compose
def test_images_from_elsewhere_are_pinned_to_a_version() -> None:
    images = {name: _default(str(s["image"])) for name, s in services().items() if "build" not in s}
    assert images
    for name, image in images.items():
        repository, _, tag = image.rpartition(":")
        own = repository.startswith("softmax") or image.startswith("softmax")
        assert own or re.fullmatch(r"v?\d+(\.\d+)+([.-]\w+)*", tag), f"{name}: {image}"
        assert "@sha256" not in image  # asks a registry even where the image is there


@needs_compose
def test_whoever_waits_for_others_waits_for_their_health_or_their_end() -> None:
    for name, service in services().items():
        awaited = service.get("depends_on", {})
        assert isinstance(awaited, dict), f"{name}: a bare list waits for the start only"
        for other, how in awaited.items():
            condition = how["condition"]
            assert condition in {"service_healthy", "service_completed_successfully"}, f"{name} on {other}"
            if condition == "service_healthy":
                assert has_health_check(other), other


@needs_compose
def test_the_service_starts_after_its_topics_and_those_after_kafka_is_healthy() -> None:
    assert services()["topics"]["depends_on"]["kafka"]["condition"] == "service_healthy"
    assert services()["softmax"]["depends_on"]["topics"]["condition"] == "service_completed_successfully"
    assert not services()["topics"].get("restart", "no").startswith(("always", "unless"))


def has_health_check(name: str) -> bool:
    check = services()[name].get("healthcheck")
    from_image = DOCKERFILE.exists() and "HEALTHCHECK" in DOCKERFILE.read_text(encoding="utf-8")
    ours = "build" in services()[name] or _default(services()[name].get("image", "")).startswith("softmax")
    return bool(check and check.get("test") and not check.get("disable")) or (check is None and ours and from_image)


@needs_compose
@pytest.mark.parametrize("name", ["kafka", "softmax"])
def test_what_runs_for_good_has_a_health_check(name: str) -> None:
    assert has_health_check(name)


@needs_compose
def test_what_serves_nothing_does_not_inherit_the_image_s_health_check() -> None:
    assert "HEALTHCHECK" in DOCKERFILE.read_text(encoding="utf-8")
    for name, service in services().items():
        ours = _default(str(service.get("image", ""))).startswith("softmax")
        if ours and str(service.get("restart", "no")) != "no" and service.get("command", ["run"])[0] != "run":
            check = service.get("healthcheck", {})
            assert check.get("disable") or check.get("test"), name


@needs_compose
def test_the_settings_in_the_stack_are_settings_of_the_service() -> None:
    for name in ("topics", "softmax"):
        given = {key: value for key, value in environment_of(name).items() if key.startswith("SOFTMAX_")}
        assert load(environment=given).kafka.bootstrap_servers.startswith("kafka:"), name


@needs_compose
def test_the_service_has_time_to_drain_before_it_is_killed() -> None:
    given = {key: value for key, value in environment_of("softmax").items() if key.startswith("SOFTMAX_")}
    grace = re.fullmatch(r"(\d+)s", str(services()["softmax"].get("stop_grace_period", "10s")))
    assert grace is not None
    assert int(grace[1]) * 1000 > load(environment=given).delivery.drain_timeout_ms


@needs_compose
def test_what_the_stack_mounts_or_builds_from_is_there() -> None:
    for name, service in services().items():
        build = service.get("build")
        if build:
            context = ROOT / (build if isinstance(build, str) else build.get("context", "."))
            dockerfile = "Dockerfile" if isinstance(build, str) else build.get("dockerfile", "Dockerfile")
            assert (context / dockerfile).is_file(), name
        for volume in service.get("volumes", ()):
            source = volume.get("source", "") if isinstance(volume, dict) else str(volume).split(":")[0]
            if source.startswith((".", "/")):
                assert (ROOT / source).exists(), f"{name}: {source}"


# --- image ------------------------------------------------------------------------------------


@cache
def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments, continuation lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    pairs = [line.strip().partition(" ") for line in lines if line.strip()]
    return [(name.upper(), rest.strip()) for name, _, rest in pairs]


def last_stage() -> list[tuple[str, str]]:
    start = max(number for number, (name, _) in enumerate(instructions()) if name == "FROM")
    return instructions()[start:]


@needs_dockerfile
def test_nothing_asks_a_registry_for_a_syntax_or_a_digest() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    assert not re.search(r"^#\s*syntax\s*=", text, re.MULTILINE)
    stages = set(re.findall(r"^FROM\s+.*?\sAS\s+(\S+)", text, re.MULTILINE | re.IGNORECASE))
    bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    assert bases
    for base in bases:
        assert base in stages or re.search(r":\d", base) or re.search(r":\$\{?\w", base), base
        assert "@" not in base


@needs_dockerfile
def test_the_image_runs_as_somebody_who_is_not_root_by_number() -> None:
    users = [rest for name, rest in last_stage() if name == "USER"]
    assert users
    # A number, so that Kubernetes' runAsNonRoot can tell.
    assert re.fullmatch(r"[1-9]\d*(:\d+)?", users[-1]), users[-1]


@needs_dockerfile
def test_the_image_installs_only_what_is_locked_by_hashes() -> None:
    installs = [rest for name, rest in instructions() if name == "RUN" and re.search(r"\bpip3? .*install", rest)]
    assert any("--require-hashes" in each for each in installs)
    for each in installs:
        for command in re.split(r"&&|;", each):
            if re.search(r"\bpip3? .*install", command):
                assert "--require-hashes" in command or "--no-deps" in command, command
    copied = " ".join(rest for name, rest in instructions() if name in {"COPY", "ADD", "RUN"})
    assert "requirements/service.txt" in copied
    assert "requirements/dev.txt" not in copied


@needs_dockerfile
def test_the_process_is_the_command_itself_so_that_signals_reach_it() -> None:
    entry = [rest for name, rest in last_stage() if name == "ENTRYPOINT"]
    assert len(entry) == 1
    words = json.loads(entry[0])
    assert "softmax-service" in words[0] or words[1:] == ["-m", "service"] or "softmax-service" in words
    for name, rest in last_stage():
        if name == "CMD":
            assert isinstance(json.loads(rest), list)
        assert not (name == "STOPSIGNAL" and rest not in {"SIGTERM", "15"})


@needs_dockerfile
def test_the_image_listens_beyond_its_own_loopback() -> None:
    given = " ".join(rest for name, rest in last_stage() if name == "ENV")
    assert re.search(r"SOFTMAX_HTTP__HOST[= ]\"?0\.0\.0\.0", given)


@needs_dockerfile
def test_the_image_checks_its_own_health() -> None:
    checks = [rest for name, rest in last_stage() if name == "HEALTHCHECK"]
    if not checks:
        assert COMPOSE.exists()
        assert has_health_check("softmax")
    for check in checks:
        assert "livez" in check or "readyz" in check


@needs_dockerfile
def test_what_the_image_copies_is_there() -> None:
    for name, rest in instructions():
        if name != "COPY" or "--from=" in rest:
            continue
        words = json.loads(rest) if rest.startswith("[") else [w for w in rest.split() if not w.startswith("--")]
        for source in words[:-1]:
            assert list(ROOT.glob(source.rstrip("/"))) or source in {".", "./"}, source
