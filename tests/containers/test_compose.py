"""The local stack, as `docker compose up -d --wait` starts it: records flow, Prometheus sees it, it scales, it ends.

Grafana is not run here: what it is given is looked at in tests/test_deploy.py and tests/monitoring/test_dashboard.py.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import uuid
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pytest
import yaml
from docker_engine import BASES, ROOT, built, docker, engine_or_skip, has, inspect, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Seen = TypeVar("Seen")

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

STACK: Final[dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
# All but Grafana.
RUN: Final = ("kafka", "topics", "softmax", "load", "prometheus")
INSTANCES: Final = 3
SECONDS: Final = 120.0
STOP_SECONDS: Final = 10.0


def pinned(name: str) -> str:
    """The image of a service where no variable says otherwise."""
    image = str(STACK[name]["image"])
    return image.partition(":-")[2].removesuffix("}") if image.startswith("$") else image


def prometheus_image() -> str:
    """The pinned Prometheus, or else whichever is there: the configuration is for any of them."""
    wanted = pinned("prometheus")
    latest = f"{wanted.partition(':')[0]}:latest"
    return latest if has(latest) and not has(wanted) else wanted


def free_port() -> int:
    with socket.socket() as candidate:
        candidate.bind(("127.0.0.1", 0))
        return int(candidate.getsockname()[1])


class Stack:
    """The stack under a project's name and on ports that nobody else has."""

    def __init__(self, image: str, prometheus: str) -> None:
        self.project = f"softmax-test-{uuid.uuid4().hex[:8]}"
        self.kafka_port = free_port()
        self._compose = partial(
            docker,
            *("compose", "--project-name", self.project, "--env-file", os.devnull),
            seconds=300,
            STACK_IMAGE=image,
            STACK_PROMETHEUS_IMAGE=prometheus,
            STACK_LOAD_RATE="50",
            STACK_KAFKA_PORT=str(self.kafka_port),
            # 0 is any port that is free; the first is in what Kafka says of itself.
            STACK_HTTP_PORTS="0",
            STACK_PROMETHEUS_PORT="0",
        )

    def compose(self, *arguments: str) -> str:
        return self._compose(*arguments)

    def up(self, *services: str, instances: int) -> None:
        self.compose(
            "up", "-d", "--wait", "--pull", "never", "--no-build", "--scale", f"softmax={instances}", *services
        )

    def containers(self, service: str = "") -> list[Any]:
        names = self.compose("ps", "--all", "--quiet", *filter(None, [service])).split()
        return list(inspect(*names)) if names else []

    def address(self, service: str, port: int, index: int = 1) -> str:
        return f"http://{self.compose('port', '--index', str(index), service, str(port))}"

    def asked(self, query: str) -> list[dict[str, Any]]:
        """What Prometheus answers."""
        answer = fetched(f"{self.address('prometheus', 9090)}/api/v1/query?{urllib.parse.urlencode({'query': query})}")
        found = json.loads(answer)["data"]["result"]
        assert isinstance(found, list)
        return found

    def left(self) -> dict[str, str]:
        """What Docker still has of the project."""
        ours = ("--quiet", "--filter", f"label=com.docker.compose.project={self.project}")
        return {"containers": docker("ps", "--all", *ours), "networks": docker("network", "ls", *ours)}


@contextmanager
def stack() -> Iterator[Stack]:
    engine_or_skip(*BASES, pinned("kafka"), prometheus := prometheus_image())
    with built() as image:
        there = Stack(image, prometheus)
        try:
            yield there
        except BaseException:
            sys.stderr.write(there.compose("logs", "--no-color", "--tail", "40"))
            raise
        finally:
            there.compose("down", "--volumes", "--timeout", "10")


def fetched(address: str) -> str:
    with urllib.request.urlopen(address, timeout=20) as response:  # noqa: S310 - our own
        return str(response.read().decode())


def until(look: Callable[[], Seen], holds: Callable[[Seen], bool]) -> Seen:
    """Look until it holds."""
    deadline = time.monotonic() + SECONDS
    while not holds(seen := look()):
        assert time.monotonic() < deadline, seen
        time.sleep(0.5)
    return seen


def instances(found: list[dict[str, Any]]) -> dict[str, float]:
    return {each["metric"]["instance"]: float(each["value"][1]) for each in found}


# One story: its steps take the stack as the one before left it, and a stack takes a while.
def test_the_stack_serves_is_watched_scales_and_ends() -> None:
    with stack() as running:
        running.up(*RUN, instances=1)
        everything_is_as_the_file_says(running)
        records_flow(running)
        rules_are_loaded(running)
        running.up("softmax", instances=INSTANCES)
        prometheus_sees_every_instance(running)
        grafana_would_see_it_too(running)
        sigterm_ends_an_instance(running)
        volumes = [mount["Name"] for each in running.containers() for mount in each["Mounts"] if mount.get("Name")]
        assert volumes
    assert running.left() == {"containers": "", "networks": ""}
    assert set(docker("volume", "ls", "--quiet").split()) & set(volumes) == set()


def everything_is_as_the_file_says(running: Stack) -> None:
    for name in RUN:
        (container,) = running.containers(name)
        state = container["State"]
        if name == "topics":
            assert (state["Status"], state["ExitCode"]) == ("exited", 0)
        else:
            assert (state["Status"], state["Health"]["Status"], container["RestartCount"]) == ("running", "healthy", 0)
        if container["Config"]["Image"].startswith("softmax-service"):
            host = container["HostConfig"]
            assert (host["ReadonlyRootfs"], host["CapDrop"]) == (True, ["ALL"]), name
            assert "no-new-privileges:true" in host["SecurityOpt"], name
        bound = [at for ports in container["NetworkSettings"]["Ports"].values() for at in ports or ()]
        assert {at["HostIp"] for at in bound} <= {"127.0.0.1"}, name


def records_flow(running: Stack) -> None:
    tail = ("softmax-service", "tail", "--count", "3")
    assert running.compose("exec", "--no-TTY", "softmax", *tail)
    # The broker as this machine sees it, by the port that it is published on.
    own = {name: value for name, value in os.environ.items() if not name.startswith("SOFTMAX_")}
    given = {**own, "SOFTMAX_KAFKA__BOOTSTRAP_SERVERS": f"localhost:{running.kafka_port}"}
    command = [sys.executable, "-m", "service", *tail[1:]]
    seen = subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 - ours
    assert seen.returncode == 0, seen.stderr
    assert seen.stdout
    status = json.loads(fetched(f"{running.address('softmax', 8080)}/status.json"))
    assert status


def rules_are_loaded(running: Stack) -> None:
    def groups() -> list[dict[str, Any]]:
        answer = json.loads(fetched(f"{running.address('prometheus', 9090)}/api/v1/rules"))
        return list(answer["data"]["groups"])

    files = [ROOT / "deploy" / "prometheus" / name for name in ("recording.yml", "alerts.yml")]
    written = {group["name"] for file in files for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]}
    loaded = until(groups, lambda found: all(rule["health"] != "unknown" for group in found for rule in group["rules"]))
    assert {group["name"] for group in loaded} == written
    assert {rule["health"] for group in loaded for rule in group["rules"]} == {"ok"}


def prometheus_sees_every_instance(running: Stack) -> None:
    def up() -> dict[str, float]:
        return instances(running.asked('up{job="softmax-service"}'))

    def produced() -> dict[str, float]:
        return instances(running.asked("sum by (instance) (softmax_records_produced_total)"))

    addresses = {
        f"{network['IPAddress']}:8080"
        for each in running.containers("softmax")
        for network in each["NetworkSettings"]["Networks"].values()
    }
    assert len(addresses) == INSTANCES
    until(up, lambda found: found == dict.fromkeys(addresses, 1.0))
    # Each has partitions, and outputs of them.
    until(produced, lambda found: found.keys() == addresses and all(found.values()))
    # Each is published on a port of its own.
    ports = {running.address("softmax", 8080, index) for index in range(1, INSTANCES + 1)}
    assert len(ports) == INSTANCES
    for address in ports:
        fetched(f"{address}/readyz")  # an error unless it is


def grafana_would_see_it_too(running: Stack) -> None:
    """From inside of the network, by the address that Grafana is given."""
    file = ROOT / "deploy" / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    (source,) = yaml.safe_load(file.read_text(encoding="utf-8"))["datasources"]
    address = f"{source['url']}/api/v1/query?query=count(softmax_build_info)"
    program = f"import urllib.request as r; print(r.urlopen({address!r}, timeout=20).read().decode())"
    answer = json.loads(running.compose("exec", "--no-TTY", "softmax", "python", "-c", program))
    assert answer["data"]["result"][0]["value"][1] == str(INSTANCES)


def sigterm_ends_an_instance(running: Stack) -> None:
    container = running.containers("softmax")[0]
    (network,) = container["NetworkSettings"]["Networks"].values()
    others = f'instance!="{network["IPAddress"]}:8080"'
    name = container["Id"]
    began = time.monotonic()
    docker("stop", "--time", "60", name)
    assert time.monotonic() - began < STOP_SECONDS
    assert inspect(name)[0]["State"]["ExitCode"] == 0, run("logs", name).stderr
    # The others take its partitions, and go on.
    until(
        lambda: running.asked(f"count(sum by (partition) (rate(softmax_records_produced_total{{{others}}}[15s])) > 0)"),
        lambda found: bool(found) and found[0]["value"][1] == "4",
    )
