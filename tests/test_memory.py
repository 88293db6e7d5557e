"""Memory: what is freed is kept for the next use, and garbage is looked for seldom."""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import Final

import pytest

# How many pages the system had to provide for a megabyte that is made and dropped thirty times.
PAGES: Final = """
import resource, sys
from service.memory import keep_freed_memory

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


# Small objects come and go, some hundreds at a time, as those of requests do; then as many cycles as there may be.
COLLECTIONS: Final = """
import gc, sys, weakref
import service.app
from service.memory import LOOKS, NEW_OBJECTS, collect_garbage_seldom

class Node:
    pass

gc.collect()
if sys.argv[1] == "seldom":
    collect_garbage_seldom()
before = [generation["collections"] for generation in gc.get_stats()]
for _ in range(2_000):
    request = [[] for _ in range(900)]
after = [generation["collections"] for generation in gc.get_stats()]
print(sum(after) - sum(before))
node = Node()
node.itself = node
gone = weakref.ref(node)
del node
kept = [[] for _ in range(2 * NEW_OBJECTS)]
print(gone() is None)
"""


def collections(how: str) -> tuple[int, bool]:
    done = subprocess.run(  # noqa: S603 - this very interpreter
        [sys.executable, "-c", COLLECTIONS, how], capture_output=True, text=True, check=True, timeout=60
    )
    count, found = done.stdout.split()
    return int(count), found == "True"


def test_garbage_is_looked_for_seldom_and_found() -> None:
    usual, _ = collections("usual")
    seldom, found = collections("seldom")
    assert usual > 1000
    assert seldom < 10
    assert found
