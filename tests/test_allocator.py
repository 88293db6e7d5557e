"""The allocator: large memory is kept for the next use."""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import Final

import pytest

# How many pages the system had to provide for a megabyte that is made and dropped thirty times.
PAGES: Final = """
import resource, sys
from service.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
faults = []
for size in (24, 25, 26, 27, 28):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        block = b"x" * (size << 20)
        del block
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(faults))
"""


def pages(how: str) -> int:
    done = subprocess.run(  # noqa: S603 - this very interpreter
        [sys.executable, "-c", PAGES, how], capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_freed_memory_is_used_again() -> None:
    """Pages come from the system for what grows, not for each use: there are 66,560 in all uses together."""
    kept = pages("kept")
    assert kept < pages("returned") / 4
