"""The Kubernetes objects: true to the service and to each other, and what kubeconform says of what kustomize makes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
import yaml
from go_modules import NotFetchedError
from kubernetes_schemas import VERSIONS, schemas
from prometheus_client import CollectorRegistry

from service import __version__
from service.errors import ConfigurationError
from service.observability.http import HttpServer
from service.settings import Settings, environment_name, load

ROOT: Final = Path(__file__).resolve().parent.parent
FOLDER: Final = ROOT / "deploy" / "kubernetes"
OVERLAYS: Final = sorted(file.parent.name for file in FOLDER.glob("overlays/*/kustomization.yml"))
SETTINGS: Final = FOLDER / "base" / "settings.yml"
NAMED: Final = {"app.kubernetes.io/name": "softmax-service", "app.kubernetes.io/instance": "softmax-service"}
# What `kubectl apply` notes of an object in an annotation may not be longer.
MAX_ANNOTATION: Final = 262_144

T = TypeVar("T")


def read(name: str) -> dict[str, Any]:
    found = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


STATEFUL_SET: Final = read("base/statefulset.yml")["spec"]
POD: Final = STATEFUL_SET["template"]["spec"]
LOCKED_POD: Final = read("components/locked-down/statefulset.yml")["spec"]["template"]["spec"]
SCALED_OBJECT: Final = read("components/autoscaled/scaledobject.yml")["spec"]


def only(items: list[T]) -> T:
    assert len(items) == 1
    return items[0]


CONTAINER: Final = only(POD["containers"])
LOCKED_CONTAINER: Final = only(LOCKED_POD["containers"])


def environment(container: dict[str, Any], secrets: Path) -> dict[str, str]:
    """What the pod would set, with files in place of mounted secrets and words in place of what the cluster knows."""
    given = {}
    for variable in container["env"]:
        value = variable.get("value", "of-the-cluster")
        if variable["name"].endswith("_FILE"):
            secrets.joinpath(Path(value).name).write_text("secret\n", encoding="utf-8")
            value = str(secrets / Path(value).name)
        given[variable["name"]] = value
    return given


def loaded(secrets: Path, *, locked_down: bool = False) -> Settings:
    given = environment(CONTAINER, secrets)
    if locked_down:
        given |= environment(LOCKED_CONTAINER, secrets)
    return load(SETTINGS, given)


def broker_ports(settings: Settings) -> set[int]:
    return {int(server.rpartition(":")[2]) for server in settings.kafka.bootstrap_servers.split(",")}


def allowed(policy: dict[str, Any], way: str) -> set[int | str]:
    return {port["port"] for rule in policy["spec"][way] for port in rule["ports"]}


# --- settings ---------------------------------------------------------------------------------


def test_the_settings_are_settings_of_the_service(tmp_path: Path) -> None:
    settings = loaded(tmp_path)
    assert settings.http.host == "0.0.0.0"  # noqa: S104 - the kubelet comes from outside the pod
    assert settings.kafka.group_instance_id == settings.kafka.client_id == "of-the-cluster"


def test_the_locked_down_settings_are_too_and_complete(tmp_path: Path) -> None:
    kafka = loaded(tmp_path, locked_down=True).kafka
    assert kafka.security_protocol == "SASL_SSL"
    assert kafka.sasl_password is not None
    assert kafka.sasl_password.get_secret_value() == "secret"
    assert kafka.ssl_check_hostname


def test_no_secret_stands_in_the_environment() -> None:
    for variable in (*CONTAINER["env"], *LOCKED_CONTAINER["env"]):
        assert not variable["name"].endswith("PASSWORD"), variable


def test_members_are_named_by_their_pods() -> None:
    names = {each["name"]: each["valueFrom"]["fieldRef"]["fieldPath"] for each in CONTAINER["env"]}
    assert names == {
        environment_name("kafka.group_instance_id"): "metadata.name",
        environment_name("kafka.client_id"): "metadata.name",
    }


def test_what_is_mounted_is_what_is_given_to_the_command() -> None:
    command, option, file = CONTAINER["args"]
    assert (command, option) == ("run", "--config")
    generated = only(read("base/kustomization.yml")["configMapGenerator"])
    mount, volume = only(CONTAINER["volumeMounts"]), only(POD["volumes"])
    assert mount["name"] == volume["name"]
    assert generated["name"] == volume["configMap"]["name"]
    assert file == f"{mount['mountPath']}/{only(generated['files'])}"


def test_the_files_of_the_secret_are_where_the_settings_look_for_them() -> None:
    mount, volume = only(LOCKED_CONTAINER["volumeMounts"]), only(LOCKED_POD["volumes"])
    assert mount["name"] == volume["name"]
    files = {f"{mount['mountPath']}/{item['path']}" for item in volume["secret"]["items"]}
    assert files == {each["value"] for each in LOCKED_CONTAINER["env"] if each.get("value", "").startswith("/")}
    # The kubelet makes them root's.
    assert volume["secret"]["defaultMode"] == 0o440
    assert LOCKED_POD["securityContext"]["fsGroup"] == POD["securityContext"]["runAsGroup"]


def test_the_readme_makes_the_secret_that_is_asked_for() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    name = only(re.findall(r"create secret generic (\S+)", readme))
    keys = set(re.findall(r"--from-file (\S+)", readme))
    wanted = [each["valueFrom"]["secretKeyRef"] for each in LOCKED_CONTAINER["env"] if "valueFrom" in each]
    secret = only(LOCKED_POD["volumes"])["secret"]
    wanted += [{"name": secret["secretName"], **item} for item in secret["items"]]
    authentication = read("overlays/complete/triggerauthentication.yml")["spec"]["secretTargetRef"]
    assert {each["name"] for each in (*wanted, *authentication)} == {name}
    assert {each["key"] for each in wanted} == {each["key"] for each in authentication} == keys


def test_services_of_the_namespace_set_no_variables_that_look_like_settings() -> None:
    assert POD["enableServiceLinks"] is False
    with pytest.raises(ConfigurationError):
        load(SETTINGS, {"SOFTMAX_GRAFANA_SERVICE_HOST": "10.0.0.1"})


# --- the process ------------------------------------------------------------------------------


def test_the_image_is_this_version_s() -> None:
    assert CONTAINER["image"] == f"softmax-service:{__version__}"
    labels = only(read("base/kustomization.yml")["labels"])["pairs"]
    assert labels["app.kubernetes.io/version"] == __version__
    for file in FOLDER.rglob("*.*"):
        text = file.read_text(encoding="utf-8")
        assert ":latest" not in text, file
        assert set(re.findall(r"(?:--image softmax-service:|newTag: )(\S+)", text)) <= {__version__}, file


def test_the_user_is_the_image_s_and_may_do_nothing() -> None:
    user = only(re.findall(r"^USER (\d+):\1$", (ROOT / "deploy" / "Dockerfile").read_text("utf-8"), re.MULTILINE))
    pod, container = POD["securityContext"], CONTAINER["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] == pod["runAsGroup"] == int(user)
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["automountServiceAccountToken"] is False
    assert read("base/serviceaccount.yml")["automountServiceAccountToken"] is False


def test_probes_ask_for_what_is_served() -> None:
    server = HttpServer("", 0, CollectorRegistry(), lambda: pytest.fail("nobody asks"), dict)
    assert server._runner.app is not None
    served = {resource.canonical for resource in server._runner.app.router.resources()}
    paths = {name: CONTAINER[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}
    monitored = only(read("components/monitored/podmonitor.yml")["spec"]["podMetricsEndpoints"])
    assert {*paths.values(), monitored["path"]} <= served


def test_a_stalled_process_is_restarted_before_it_ends_itself(tmp_path: Path) -> None:
    probe = CONTAINER["livenessProbe"]
    assert probe["timeoutSeconds"] < probe["periodSeconds"]
    # After twice stall_seconds it ends; /livez fails after once.
    assert probe["periodSeconds"] * probe["failureThreshold"] <= loaded(tmp_path).http.stall_seconds


def test_there_is_time_to_drain_and_to_come_back(tmp_path: Path) -> None:
    settings = loaded(tmp_path)
    grace = POD["terminationGracePeriodSeconds"] * 1000
    assert settings.delivery.drain_timeout_ms + 10_000 < grace < settings.kafka.session_timeout_ms


def test_all_ports_are_the_one_that_the_service_listens_on(tmp_path: Path) -> None:
    port = only(CONTAINER["ports"])
    assert port["containerPort"] == loaded(tmp_path).http.port
    service = only(read("base/service.yml")["spec"]["ports"])
    assert (service["port"], service["targetPort"]) == (port["containerPort"], port["name"])
    named = {CONTAINER[f"{name}Probe"]["httpGet"]["port"] for name in ("startup", "liveness", "readiness")}
    named |= {
        endpoint["port"] for endpoint in read("components/monitored/podmonitor.yml")["spec"]["podMetricsEndpoints"]
    }
    for policy in ("base", "components/locked-down"):
        named |= allowed(read(f"{policy}/networkpolicy.yml"), "ingress")
    assert named == {port["name"]}


@pytest.mark.parametrize(("folder", "locked_down"), [("base", False), ("components/locked-down", True)])
def test_the_network_lets_names_and_brokers_through(folder: str, locked_down: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a parameter of the test
    ports = broker_ports(loaded(tmp_path, locked_down=locked_down))
    assert allowed(read(f"{folder}/networkpolicy.yml"), "egress") == {53, *ports}


# --- objects that speak of each other ---------------------------------------------------------


def test_everybody_means_the_same_pods() -> None:
    assert STATEFUL_SET["selector"]["matchLabels"] == NAMED
    assert STATEFUL_SET["template"]["metadata"]["labels"] == NAMED
    assert read("base/service.yml")["spec"]["selector"] == NAMED
    assert read("base/networkpolicy.yml")["spec"]["podSelector"]["matchLabels"] == NAMED
    assert read("base/poddisruptionbudget.yml")["spec"]["selector"]["matchLabels"] == NAMED
    assert read("components/monitored/podmonitor.yml")["spec"]["selector"]["matchLabels"] == NAMED
    for constraint in POD["topologySpreadConstraints"]:
        assert constraint["labelSelector"]["matchLabels"] == NAMED
    assert STATEFUL_SET["serviceName"] == read("base/service.yml")["metadata"]["name"]
    assert POD["serviceAccountName"] == read("base/serviceaccount.yml")["metadata"]["name"]
    assert SCALED_OBJECT["scaleTargetRef"]["name"] == read("base/statefulset.yml")["metadata"]["name"]


def test_every_file_is_part_of_something() -> None:
    for folder in {file.parent for file in FOLDER.rglob("*.yml")}:
        kustomization = yaml.safe_load((folder / "kustomization.yml").read_text(encoding="utf-8"))
        named = {*kustomization.get("resources", ()), *kustomization.get("components", ())}
        named |= {patch["path"] for patch in kustomization.get("patches", ()) if "path" in patch}
        named |= {file for each in kustomization.get("configMapGenerator", ()) for file in each["files"]}
        assert [name for name in named if not (folder / name).exists()] == []
        assert {file.name for file in folder.glob("*.yml")} - {"kustomization.yml"} <= named, folder


def test_keda_watches_what_the_service_reads(tmp_path: Path) -> None:
    settings = loaded(tmp_path)
    trigger = only(SCALED_OBJECT["triggers"])["metadata"]
    assert trigger["bootstrapServers"] == settings.kafka.bootstrap_servers
    assert trigger["consumerGroup"] == settings.kafka.group_id
    assert trigger["topic"] == settings.topics.input
    assert trigger["offsetResetPolicy"] == settings.delivery.start_offset
    # KEDA refuses both.
    assert (trigger["limitToPartitionsWithLag"], trigger["allowIdleConsumers"]) == ("true", "false")
    assert only(read("components/autoscaled/kustomization.yml")["patches"])["patch"].split() == [
        *("-", "op:", "remove", "path:", "/spec/replicas")
    ]


def test_keda_logs_in_as_the_service_does(tmp_path: Path) -> None:
    kafka = loaded(tmp_path, locked_down=True).kafka
    changes = yaml.safe_load(only(read("overlays/complete/kustomization.yml")["patches"])["patch"])
    values = {change["path"].rpartition("/")[2]: change["value"] for change in changes}
    assert values == {
        "authenticationRef": {"name": read("overlays/complete/triggerauthentication.yml")["metadata"]["name"]},
        "bootstrapServers": kafka.bootstrap_servers,
        "sasl": kafka.sasl_mechanism.lower().replace("-sha-", "_sha"),
        "tls": "enable",
    }


def test_scaling_waits_until_the_last_step_is_over(tmp_path: Path) -> None:
    behaviour = SCALED_OBJECT["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    session = loaded(tmp_path).kafka.session_timeout_ms / 1000
    for way in ("scaleUp", "scaleDown"):
        assert behaviour[way]["stabilizationWindowSeconds"] > session
        assert only(behaviour[way]["policies"])["periodSeconds"] > 2 * session
    assert 0 < SCALED_OBJECT["minReplicaCount"] <= SCALED_OBJECT["fallback"]["replicas"]
    assert SCALED_OBJECT["fallback"]["replicas"] < SCALED_OBJECT["maxReplicaCount"]


def test_the_operator_s_rules_are_prometheus_s() -> None:
    files = ("recording.yml", "alerts.yml")
    groups = [yaml.safe_load((ROOT / "deploy" / "prometheus" / file).read_text("utf-8"))["groups"] for file in files]
    assert read("components/monitored/prometheusrule.yml")["spec"] == {"groups": groups[0] + groups[1]}


def test_the_job_is_the_one_that_the_alerts_know() -> None:
    label = read("components/monitored/podmonitor.yml")["spec"]["jobLabel"]
    alerts = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
    assert set(re.findall(r'job="([^"]+)"', alerts)) == {STATEFUL_SET["template"]["metadata"]["labels"][label]}


# --- what comes out ---------------------------------------------------------------------------


def built(overlay: str | Path) -> str:
    for name, arguments in (("kustomize", ["build"]), ("kubectl", ["kustomize"])):
        if program := shutil.which(name):
            command = [program, *arguments, str(FOLDER / "overlays" / overlay)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)  # noqa: S603 - found on the path
            # Of a patch or a field that is out of fashion it says so, and goes on.
            assert (done.returncode, done.stderr) == (0, "")
            return done.stdout
    pytest.skip("kustomize is missing: go install sigs.k8s.io/kustomize/kustomize/v5@v5.7.1")


def conform(objects: str, version: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("kubeconform")
    if program is None:
        pytest.skip("kubeconform is missing: go install github.com/yannh/kubeconform/cmd/kubeconform@latest")
    try:
        where = schemas(version)
    except NotFetchedError as error:
        pytest.skip(f"no schemas: {error}")
    command = [program, "-strict", "-schema-location", f"{where}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json", "-"]
    return subprocess.run(command, input=objects, capture_output=True, text=True, timeout=100, check=False)  # noqa: S603 - found on the path


@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_kustomize_makes_keeps_to_the_schemas(overlay: str, version: str) -> None:
    checked = conform(built(overlay), version)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("periodSeconds: 10", "periodSecond: 10"),
        ("minReadySeconds: 10", "minReadySeconds: soon"),
        ("minReplicaCount: 2", "minReplicas: 2"),
        ("sourceLabels:", "source_labels:"),
        ("secretTargetRef:", "secretTarget:"),
        ("expr: sum by", "expression: sum by"),
        ("kind: PodMonitor", "kind: PodWatch"),
    ],
)
def test_the_schemas_find_a_mistake(right: str, wrong: str) -> None:
    objects = built("complete")
    assert right in objects
    assert conform(objects.replace(right, wrong, 1), VERSIONS[-1]).returncode == 1


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_kustomize_makes_is_whole(overlay: str) -> None:
    objects = list(yaml.safe_load_all(built(overlay)))
    for each in objects:
        labels = each["metadata"]["labels"]
        assert labels.items() >= NAMED.items(), each["kind"]
        assert labels["app.kubernetes.io/part-of"] == "softmax-service", each["kind"]
        assert "namespace" not in each["metadata"]
        assert len(yaml.safe_dump(each, width=MAX_ANNOTATION)) < MAX_ANNOTATION
    kinds = {each["kind"]: each for each in objects}
    pod = kinds["StatefulSet"]["spec"]["template"]["spec"]
    maps = {each["metadata"]["name"]: each for each in objects if each["kind"] == "ConfigMap"}
    mounted = {volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume}
    assert maps[only(list(mounted))]["data"] == {"settings.yml": SETTINGS.read_text(encoding="utf-8")}
    assert ("replicas" in kinds["StatefulSet"]["spec"]) is (overlay not in {"autoscaled", "complete"})
    assert len(pod["containers"][0]["env"]) == len({each["name"] for each in pod["containers"][0]["env"]})


def test_the_dashboard_comes_as_the_sidecar_wants_it() -> None:
    maps = [
        each for each in yaml.safe_load_all(built("monitored")) if "grafana_dashboard" in each["metadata"]["labels"]
    ]
    dashboard = ROOT / "deploy" / "grafana" / "dashboards" / "softmax-service.json"
    assert only(maps)["data"] == {dashboard.name: dashboard.read_text(encoding="utf-8")}


def test_an_overlay_of_one_s_own_is_made_as_the_readme_says(tmp_path: Path) -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    kustomization = only(re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL))
    (tmp_path / "kustomization.yml").write_text(kustomization, encoding="utf-8")
    (tmp_path / "settings.yml").write_text("topics: {input: images}\n", encoding="utf-8")
    for name in ("kubernetes", "grafana"):
        shutil.copytree(ROOT / "deploy" / name, tmp_path / "softmax-service" / "deploy" / name)
    objects = list(yaml.safe_load_all(built(tmp_path)))
    assert {each["metadata"]["namespace"] for each in objects} == {"softmax"}
    stateful_set = only([each["spec"] for each in objects if each["kind"] == "StatefulSet"])
    assert stateful_set["replicas"] == 4
    assert only(stateful_set["template"]["spec"]["containers"])["image"].startswith("registry.example.org/")
    maps = {each["metadata"]["name"]: each["data"] for each in objects if each["kind"] == "ConfigMap"}
    volume = only(stateful_set["template"]["spec"]["volumes"])
    assert maps[volume["configMap"]["name"]] == {"settings.yml": "topics: {input: images}\n"}
