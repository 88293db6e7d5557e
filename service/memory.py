"""Memory: what is freed is kept for the next micro-batch, and garbage is looked for seldom."""

from __future__ import annotations

import ctypes
import gc
import platform
from typing import Final

# Parameters of glibc's `mallopt`.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
# The most that glibc takes; nothing that is read or written at once is larger.
MAPPED_FROM: Final = 32 << 20
KEPT: Final = 256 << 20
# How many more objects than before there must be until garbage is looked for among the new ones, and how many such
# looks make one at older ones. Python 3.11 looks after 700.
NEW_OBJECTS: Final = 10_000
LOOKS: Final = 20


def keep_freed_memory() -> bool:
    """Tell glibc to keep it; where that cannot be had, do nothing and tell so.

    Each megabyte that comes fresh from the system is mapped, zeroed and unmapped again: an eighth of
    all time at 1000 classes. What is kept at most is what has been in use at once.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, MAPPED_FROM)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))


def collect_garbage_seldom() -> None:
    """Never look for garbage among what is there now, and more seldom among what comes.

    What has been imported, some 70,000 objects, lives as long as the process. With Python's own thresholds a thousand
    messages a second, each coming alone, made it look at all of them five to eight times a second, for 40 ms each
    time, in which the event loop stood still: p50 10 ms and p99 50 ms; without, 2.5 and 6.4 ms (`scripts/bench
    latency`, while the service itself still made far more objects than now). Cycles are found, after `NEW_OBJECTS`.
    """
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, LOOKS, LOOKS)
