"""The deployed rules with every time a thirtieth of what it is, so that seconds do for what takes minutes.

| as deployed | here | |
|---|---|---|
| 5m, 10m, 15m, 30m | 10, 20, 30, 60 s | windows |
| 1h, 6h | 120, 720 s | windows: what has happened so far is in them |
| 1m, 2m, 5m, 10m, 15m | 2, 4, 10, 20, 30 s | `for` |
| 60, 120, 900 s | 2, 4, 30 s | `SECONDS_COMPARED` |

What is no time of waiting stays: the objective of 0.25 s, the loop's 0.1 s, ratios, slopes, counts.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import yaml
from prometheus_server import DEPLOYED

if TYPE_CHECKING:
    from pathlib import Path

HASTE: Final = 30
FILES: Final = ("recording.yml", "alerts.yml")
# Seconds that an alert's expression compares with.
SECONDS_COMPARED: Final = {"SoftmaxLagGrowing": 60, "SoftmaxNoProgress": 120, "SoftmaxOffsetsLost": 900}
SECONDS_IN: Final = {"s": 1, "m": 60, "h": 3600}


def rules(file: Path) -> list[dict[str, Any]]:
    """All rules of a file."""
    groups = yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def write_hastened(folder: Path) -> None:
    """Write the rule files to a folder, hastened."""
    for name in FILES:
        groups = yaml.safe_load((DEPLOYED / name).read_text(encoding="utf-8"))
        for group in groups["groups"]:
            group["rules"] = [hastened(rule) for rule in group["rules"]]
        (folder / name).write_text(yaml.safe_dump(groups, sort_keys=False), encoding="utf-8")


def hastened(rule: dict[str, Any]) -> dict[str, Any]:
    """A rule with its times divided, and nothing else changed."""
    expression = re.sub(r"\[(\d+[smh])\]", lambda window: f"[{_divided(window[1])}]", rule["expr"])
    seconds = SECONDS_COMPARED.get(rule.get("alert", ""))
    if seconds is not None:
        expression, found = re.subn(rf"(?<=[<>] ){seconds}\b", str(seconds // HASTE), expression)
        assert found, f"{rule['alert']} does not compare with {seconds} s"
    waits = {"for": _divided(rule["for"])} if "for" in rule else {}
    return {**rule, "expr": expression, **waits}


def _divided(duration: str) -> str:
    return f"{int(duration[:-1]) * SECONDS_IN[duration[-1]] // HASTE}s"
