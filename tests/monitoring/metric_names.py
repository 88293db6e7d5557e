"""Which metrics there are, and which ones an expression names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from service.observability.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

SUFFIXES: Final = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_count", "_sum"),
    "info": ("_info",),
}
WORDS: Final = {"and", "or", "unless", "offset", "bool", "by", "without", "on", "ignoring", "group_left", "group_right"}
# Strings go first: braces and number signs in them mean nothing.
NO_METRIC: Final = (
    re.compile(r'"(?:\\.|[^"])*"'),
    re.compile(r"#.*"),
    re.compile(r"\{[^}]*\}|\[[^\]]*\]"),
    re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right) ?\([^)]*\)"),
)
NAME: Final = re.compile(r"(?<![\w:.$])[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])")


def exposed() -> set[str]:
    """Names of the series that the service exposes, those without a sample yet too."""
    metrics = Metrics({"version": "1"}, max_records=1000, max_bytes=100_000)
    return {name for family in metrics.registry.collect() for name in _series(family)}


def _series(family: Metric) -> Iterator[str]:
    for suffix in SUFFIXES[family.type]:
        yield family.name + suffix


def named_in(expression: str) -> set[str]:
    """The metrics that a PromQL expression names."""
    for pattern in NO_METRIC:
        expression = pattern.sub(" ", expression)
    return set(NAME.findall(expression)) - WORDS
