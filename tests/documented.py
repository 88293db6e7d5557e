"""Which commands the documents show, and what becomes of each: run by a test, or why it is not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from markdown_it import MarkdownIt

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parent.parent
PAGES: Final = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/**/*.md")])
SHELL: Final = {"sh", "console", "bash", "shell", ""}
# What is asked of the shell, with its continuation lines.
PROMPTED: Final = re.compile(r"^\$ ((?:.*\\\n)*.*)$", re.MULTILINE)
COMMAND_LINE: Final = re.compile(r"^((?:.*\\\n)*.*)$", re.MULTILINE)
COMMENT: Final = re.compile(r"\s+#.*$")


def blocks(page: Path) -> list[str]:
    """A page's blocks that may hold commands: those of a shell, and those that do not say what they are."""
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    return [
        token.content
        for token in tokens
        if token.type == "code_block" or (token.type == "fence" and token.info in SHELL)
    ]


def commands(block: str) -> Iterator[str]:
    """The commands of a block, each in one line and without its comment."""
    for each in PROMPTED.findall(block) or COMMAND_LINE.findall(block):
        joined = re.sub(r"\s*\\\n\s*", " ", each)
        if command := COMMENT.sub("", joined).strip():
            yield command


# Whole blocks of a page that are no commands, by their first words.
DRAWN: Final = {
    "docs/architecture.md": ("Kafka ─▶ poll",),
    "docs/delivery.md": ("assigned    pause",),
    "docs/sizing.md": ("instances = ", "in_flight_bytes ≥", "f                  = "),
}

LIVE: Final = "tests/integration/test_documented_commands.py"
SHOWN: Final = "tests/test_documents.py"
EXAMPLES: Final = "tests/test_wire_format_examples.py"
KUBERNETES: Final = "tests/test_kubernetes.py"
DEMO: Final = "tests/integration/test_commands.py"

# Where each `$` of a page is run, and its answer compared.
RUN: Final = {
    "docs/getting-started.md": (SHOWN, LIVE),
    "docs/wire-format.md": (EXAMPLES,),
    "README.md": (SHOWN,),
    "docs/configuration.md": (SHOWN,),
}
# The pages' own commands, in the order in which LIVE types them.
TYPED: Final = {
    "README.md": (
        "softmax-service topics create",
        "softmax-service check",
        "softmax-service run",
        "softmax-service produce --rate 100",
        "softmax-service tail",
    ),
    "docs/delivery.md": (
        "softmax-service tail --dead-letters",
        "softmax-service dead-letters list",
        "softmax-service dead-letters show 0 17",
        "softmax-service dead-letters replay --dry-run",
        "softmax-service dead-letters replay --reason missing_logits --unwrap payload --rate 500",
        "softmax-service dead-letters replay --model other",
    ),
}

_CLUSTER: Final = f"needs a cluster; the objects are held against their schemas by {KUBERNETES}"
_BENCHMARK: Final = "measures for minutes to hours, with peers that it builds; the figures are kept, tests would not be"
_STORM: Final = "more than an hour; tests/integration/test_storm.py runs the same program for a moment"
_COMPOSE: Final = "needs Docker: the stack is run by tests/containers, its file looked at by tests/test_deploy.py"
# Commands that no test runs as they stand, and why; with what covers them otherwise.
NOT_RUN: Final[dict[str, dict[str, str]]] = {
    "README.md": {
        "scripts/demo": f"makes .venv anew; the demo itself: {DEMO}",
        "scripts/test": "is what runs this",
        "pip install .": "asks a registry; the wheel and its command: tests/test_packaging.py",
    },
    "docs/getting-started.md": {
        "scripts/demo": f"makes .venv anew; the demo itself: {DEMO}",
        "docker compose up -d --wait kafka": _COMPOSE,
        "docker compose down --volumes": _COMPOSE,
        "docker compose up -d --wait": _COMPOSE,
        "docker compose exec softmax softmax-service tail --count 5": _COMPOSE,
    },
    "docs/delivery.md": {
        "scripts/chaos --guarantee at_least_once --minutes 64 --rate 1500 --seed 101": _STORM,
        "scripts/chaos --guarantee exactly_once --minutes 64 --rate 1500 --seed 102": _STORM,
    },
    "docs/wire-format.md": {
        "pip install msgpack": f"asks a registry; {EXAMPLES} has it installed",
        "pip install msgpack-numpy": f"asks a registry; {EXAMPLES} has it installed",
        "go mod init example": f"{EXAMPLES} keeps the module's sums",
        "go get github.com/vmihailenco/msgpack/v5@v5.4.1": f"{EXAMPLES} keeps the module's sums",
    },
    "docs/performance.md": {
        "scripts/bench": _BENCHMARK,
        "scripts/bench --quick": _BENCHMARK,
        "scripts/bench --classes 10,100,1000 --json figures.json --write-docs": _BENCHMARK,
        "scripts/bench --batch-records 8 --messages 300000 --write-docs": _BENCHMARK,
        "scripts/bench latency --write-docs": _BENCHMARK,
        "scripts/bench startup": _BENCHMARK,
        "scripts/bench scrape --write-docs": _BENCHMARK,
        "scripts/bench --classes 10 --programs softmax-service-observed,softmax-service-unobserved --write-docs": (
            _BENCHMARK
        ),
        "scripts/bench recovery --write-docs": _BENCHMARK,
        "scripts/bench scale-out --json scale-out.json --write-docs": _BENCHMARK,
        "scripts/bench transform --write-docs": _BENCHMARK,
        "scripts/soak --watch --json soak.json --write-docs": _BENCHMARK,
        ".venv/bin/python benchmarks/report.py figures.json": _BENCHMARK,
        ".venv/bin/python benchmarks/goals.py figures.json …": _BENCHMARK,
    },
    "deploy/kubernetes/README.md": {
        "kubectl kustomize deploy/kubernetes/overlays/complete": f"{KUBERNETES} builds every overlay",
        "kubectl apply --namespace softmax --kustomize deploy/kubernetes/overlays/complete": _CLUSTER,
        "kubectl run topics --namespace softmax --rm --stdin --restart Never --image softmax-service:0.1.0"
        " --env SOFTMAX_KAFKA__BOOTSTRAP_SERVERS=kafka.kafka.svc:9092 -- topics create --partitions 12": _CLUSTER,
        "kubectl create secret generic softmax-service-kafka --namespace softmax"
        " --from-file username --from-file password --from-file ca.crt": _CLUSTER,
        "kubectl rollout status statefulset/softmax-service": _CLUSTER,
        "kubectl exec softmax-service-0 -- softmax-service check --config /etc/softmax-service/settings.yml": _CLUSTER,
        "kubectl port-forward softmax-service-0 8080": _CLUSTER,
    },
    "CONTRIBUTING.md": {
        "scripts/test": "is what runs this",
        "scripts/test tests/transform": "is what runs this",
        "scripts/test --long": "takes long",
        "scripts/lint": "scripts/test begins with it",
        "scripts/fuzz --minutes 30": "takes long; tests/transform/test_fuzz.py runs the same targets for a moment",
        "scripts/chaos --minutes 5": "takes long; tests/integration/test_storm.py runs the same program for a moment",
        "scripts/bench --quick": _BENCHMARK,
        "scripts/generate": "that it would change nothing is tests/monitoring/test_pages.py's",
        "scripts/docs": "asks a registry once; links and headings: tests/test_documents.py",
        "scripts/lock": "asks a registry, and needs uv",
        "scripts/pythons": "takes long; what it found stands in docs/testing.md",
        "scripts/sbom": "what it writes is tests/test_sbom.py's",
        "scripts/reproduce": f"builds an image twice; {_COMPOSE}",
        "scripts/audit": "what it says in each case is tests/test_audit.py's",
    },
}
