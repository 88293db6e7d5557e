"""The rule files of `deploy/prometheus` as the Prometheus operator takes them: one object, comments included."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

RULES: Final = Path(__file__).resolve().parent.parent / "deploy" / "prometheus"
GROUPS: Final = "groups:\n"
HEAD: Final = """\
# Made by scripts/generate from deploy/prometheus/recording.yml and alerts.yml.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: softmax-service
spec:
  groups:
"""


def text() -> str:
    """The object as YAML."""
    return HEAD + "\n".join(_groups())


def _groups() -> Iterator[str]:
    for name in ("recording.yml", "alerts.yml"):
        comment, _, groups = (RULES / name).read_text("utf-8").partition(GROUPS)
        yield indent(comment, "    ") + indent(groups, "  ")
