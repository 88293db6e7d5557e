"""The C library's allocator: freed memory is kept for the next micro-batch instead of going back to the system."""

from __future__ import annotations

import ctypes
import platform
from typing import Final

# Parameters of glibc's `mallopt`.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
# The most that glibc takes; nothing that is read or written at once is larger.
MAPPED_FROM: Final = 32 << 20
KEPT: Final = 256 << 20


def keep_freed_memory() -> bool:
    """Tell glibc to keep it; where that cannot be had, do nothing and tell so.

    Each megabyte that comes fresh from the system is mapped, zeroed and unmapped again: an eighth of
    all time at 1000 classes. What is kept at most is what has been in use at once.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, MAPPED_FROM)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))
