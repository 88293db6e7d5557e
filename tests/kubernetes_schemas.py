"""Schemas to check Kubernetes objects by: taken once, into the cache, from packages that carry them."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from zipfile import ZipFile

import yaml
from go_modules import module_directory, run

from service.broker.installation import cache_directory, locked

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK: Final = Path(__file__).resolve().parent.parent / "deploy" / "requirements" / "schemas.txt"
# The oldest that deploy/kubernetes/README.md promises, and the newest that the package has.
VERSIONS: Final = ("1.29.0", "1.37.0")
KINDS: Final = {"ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceAccount", "StatefulSet"}
# Modules that carry definitions of objects, the sums that Go must find for them, and where they lie.
MODULES: Final = (
    (
        "github.com/kedacore/keda/v2@v2.21.0",
        "h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps=",
        ("config/crd/bases/keda.sh_scaledobjects.yaml", "config/crd/bases/keda.sh_triggerauthentications.yaml"),
    ),
    (
        "github.com/prometheus-operator/prometheus-operator@v0.85.0",
        "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
        (
            "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
            "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
        ),
    ),
)
METADATA: Final = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"


def schemas(version: str) -> Path:
    """Return the directory of the schemas for a version of Kubernetes, named as kubeconform's KindSuffix has it.

    Raises:
        NotFetchedError: they are not in the cache, and a package cannot be had.
    """
    key = hashlib.sha256(Path(__file__).read_bytes() + LOCK.read_bytes()).hexdigest()[:12]
    directory = cache_directory().parent / "kubernetes-schemas" / key
    with locked("kubernetes-schemas"):
        if not directory.exists():
            directory.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
                made = Path(scratch, "made")
                _make(made, Path(scratch))
                made.replace(directory)
    return directory / version


def _make(directory: Path, scratch: Path) -> None:
    definitions = [definition for module, sum_, files in MODULES for definition in _custom(module, sum_, files)]
    options = ["--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--dest", str(scratch)]
    run([sys.executable, "-m", "pip", "download", *options, "--requirement", str(LOCK)], scratch)
    with ZipFile(next(scratch.glob("*.whl"))) as wheel:
        for version in VERSIONS:
            name = f"kubernetes_validate/kubernetes-json-schema/v{version}-local-strict/_definitions.json"
            known = json.loads(wheel.read(name))["$defs"]
            (directory / version).mkdir(parents=True)
            for file, schema in (*_core(known), *_of_custom(definitions, known)):
                (directory / version / file.lower()).write_text(json.dumps(schema), encoding="utf-8")


def _custom(module: str, sum_: str, files: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    directory = module_directory(module, sum_)
    for file in files:
        yield yaml.safe_load((directory / file).read_text(encoding="utf-8"))


def _core(known: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, definition in known.items():
        for kind in definition.get("x-kubernetes-group-version-kind", ()):
            if kind["kind"] in KINDS:
                yield (
                    _file(kind["kind"], kind["group"], kind["version"]),
                    _closed({"$ref": f"#/$defs/{name}"}, known),
                )


def _of_custom(definitions: list[dict[str, Any]], known: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for spec in (definition["spec"] for definition in definitions):
        for version in spec["versions"]:
            schema = _strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"$ref": f"#/$defs/{METADATA}"}
            yield _file(spec["names"]["kind"], spec["group"], version["name"]), _closed(schema, known)


def _file(kind: str, group: str, version: str) -> str:
    return "-".join(filter(None, [kind, group.split(".", maxsplit=1)[0], version])) + ".json"


def _closed(schema: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The schema with all definitions that it leads to."""
    needed: dict[str, Any] = {}
    ahead = _led_to(schema)
    while ahead:
        name = ahead.pop()
        if name not in needed:
            needed[name] = known[name]
            ahead += _led_to(known[name])
    return {**schema, "$defs": needed}


def _led_to(schema: dict[str, Any]) -> list[str]:
    return re.findall(r'"#/\$defs/([^"]+)"', json.dumps(schema))


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A copy in which objects have no properties but those that are listed."""
    copy = dict(schema)
    if "properties" in schema:
        copy["properties"] = {name: _strict(below) for name, below in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            copy.setdefault("additionalProperties", False)
    for below in ("items", "additionalProperties"):
        if isinstance(schema.get(below), dict):
            copy[below] = _strict(schema[below])
    return copy
