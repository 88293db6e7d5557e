"""Write the generated files, or with --check say which are stale."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from generate import configuration_page, dashboard, events_page, metrics_page, prometheus_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT: Final = Path(__file__).resolve().parent.parent

# Each generated file and what makes its text.
FILES: Final[Mapping[str, Callable[[], str]]] = {
    "deploy/grafana/dashboards/softmax-service.json": dashboard.text,
    "deploy/kubernetes/components/monitored/prometheusrule.yml": prometheus_rule.text,
    "docs/configuration.md": configuration_page.text,
    "docs/events.md": events_page.text,
    "docs/metrics.md": metrics_page.text,
}


def stale() -> dict[Path, str]:
    """The files that are not what the code makes of them, with the text that they should have."""
    texts = {ROOT / name: make() for name, make in FILES.items()}
    return {file: text for file, text in texts.items() if not file.exists() or file.read_text("utf-8") != text}


def main() -> int:
    """Write what is stale, or only name it; 1 if --check finds any."""
    parser = argparse.ArgumentParser(prog="generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is stale")
    check = parser.parse_args().check
    found = stale()
    for file, text in found.items():
        print(f"{'stale' if check else 'written'}: {file.relative_to(ROOT)}")
        if not check:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    return int(check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
