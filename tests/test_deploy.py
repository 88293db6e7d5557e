"""The container image and the compose stack, as far as files alone tell."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml
from go_modules import NotFetchedError, module_directory
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # it ships no types

from service.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parent.parent
COMPOSE: Final = ROOT / "docker-compose.yml"
DOCKERFILE: Final = ROOT / "deploy" / "Dockerfile"
# The compose specification's schema lies in the module that docker compose itself reads files with.
SPECIFICATION: Final = (
    "github.com/compose-spec/compose-go/v2@v2.16.2",
    "h1:pTp1DqQwJzFd85GzlWsSszKA1ABrV/ySqsClujIcWA8=",
)

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
    assert set(services()) == {"kafka", "topics", "softmax", "load", "prometheus", "grafana"}
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
def test_the_file_keeps_to_the_compose_specification_s_schema_and_that_would_tell() -> None:
    try:
        file = module_directory(*SPECIFICATION) / "schema" / "compose-spec.json"
    except NotFetchedError as error:
        pytest.skip(f"no schema: {error}")
    validator = Draft202012Validator(json.loads(file.read_text(encoding="utf-8")))
    assert [error.message for error in validator.iter_errors(compose())] == []
    mistaken = json.loads(json.dumps(compose()).replace('"retries"', '"retires"', 1))
    assert not validator.is_valid(mistaken)


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
@pytest.mark.parametrize("name", ["kafka", "softmax", "load", "prometheus", "grafana"])
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


# --- watched ----------------------------------------------------------------------------------


def mounts(name: str) -> dict[str, Path]:
    """What a service is shown, by where it sees it."""
    found = {}
    for volume in services()[name].get("volumes", ()):
        source, target, *options = str(volume).split(":")
        assert options == ["ro"], volume
        found[target] = ROOT / source
    return found


def test_prometheus_is_given_its_configuration_and_finds_each_container_of_the_service() -> None:
    service = services()["prometheus"]
    (file,) = [word.partition("=")[2] for word in service["command"] if word.startswith("--config.file=")]
    folder, _, name = file.rpartition("/")
    configuration = yaml.safe_load((mounts("prometheus")[folder] / name).read_text(encoding="utf-8"))
    assert all((mounts("prometheus")[folder] / rules).is_file() for rules in configuration["rule_files"])
    (scrapes,) = configuration["scrape_configs"]
    (found,) = scrapes["dns_sd_configs"]
    assert set(found["names"]) <= set(services())
    (port,) = services()[found["names"][0]]["ports"]
    assert _default(port).rpartition(":")[2] == str(found["port"])
    # The name that its alerts know, as a string in them.
    alerts = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
    assert set(re.findall(r'job="([^"]+)"', alerts)) == {scrapes["job_name"]}


def test_grafana_is_given_the_source_and_the_dashboard_where_it_looks() -> None:
    seen = mounts("grafana")
    provisioning = {target.rpartition("/")[2]: folder for target, folder in seen.items() if "/provisioning/" in target}
    (source,) = yaml.safe_load((provisioning["datasources"] / "prometheus.yml").read_text(encoding="utf-8"))[
        "datasources"
    ]
    ((host, port),) = re.findall(r"^http://(\w+):(\d+)$", source["url"])
    assert _default(services()[host]["ports"][0]).endswith(f":{port}")
    (provider,) = yaml.safe_load(next(provisioning["dashboards"].glob("*.yml")).read_text(encoding="utf-8"))[
        "providers"
    ]
    boards = seen[provider["options"]["path"]]
    home, _, name = environment_of("grafana")["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].rpartition("/")
    board = json.loads((seen[home] / name).read_text(encoding="utf-8"))
    assert (boards / name).is_file()
    # Its source is chosen on the page, and the provisioned one is the first: the default.
    asked = set(re.findall(r'"uid": "([^"]+)"', json.dumps([panel.get("datasource") for panel in board["panels"]])))
    assert asked <= {"${datasource}", source["uid"]}
    (choice,) = [each for each in board["templating"]["list"] if each["name"] == "datasource"]
    assert (choice["query"], source["type"], source["isDefault"]) == ("prometheus", "prometheus", True)


def test_grafana_lets_look_without_a_login_and_asks_nobody_else() -> None:
    given = environment_of("grafana")
    assert (given["GF_AUTH_ANONYMOUS_ENABLED"], given["GF_AUTH_ANONYMOUS_ORG_ROLE"]) == ("true", "Viewer")
    assert given["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert {value for name, value in given.items() if name.startswith(("GF_ANALYTICS_", "GF_NEWS_"))} == {"false"}


# --- without Docker ---------------------------------------------------------------------------


@pytest.mark.parametrize(("without", "code", "word"), [("", 1, "failed"), ("docker", 0, "skipped")])
def test_a_machine_without_docker_is_excused_only_if_it_is_said_to_be_so(without: str, code: int, word: str) -> None:
    given = {"SOFTMAX_TEST_REQUIRE_ALL": "1", "SOFTMAX_TEST_WITHOUT": without, "DOCKER_HOST": "unix:///nowhere"}
    test = "tests/containers/test_image.py::test_its_labels_say_what_it_is"
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-q", test]
    ran = subprocess.run(  # noqa: S603 - this interpreter
        command, cwd=ROOT, env={**os.environ, **given}, capture_output=True, text=True, timeout=100, check=False
    )
    assert ran.returncode == code, ran.stdout
    assert f"1 {word}" in ran.stdout or f"1 {word.replace('failed', 'error')}" in ran.stdout
    assert "install Docker Engine" in ran.stdout


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
def test_hadolint_has_nothing_to_say() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert program, "scripts/setup dev"
    checked = subprocess.run([program, str(DOCKERFILE)], capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 - the locked one
    assert (checked.returncode, checked.stdout) == (0, "")
    worse = DOCKERFILE.read_text(encoding="utf-8").replace("WORKDIR /build", "WORKDIR build")
    checked = subprocess.run([program, "-"], input=worse, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 - the same
    assert "DL3000" in checked.stdout


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
