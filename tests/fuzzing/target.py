"""The fuzzer's target: libFuzzer's choice of inputs, judged by `invariants`. Run by scripts/fuzz.

    python target.py [libFuzzer's options] CORPUS ...
    python target.py --replay FILE ...      one verdict for each finding

The environment variable FUZZ_FINDINGS names the folder for what is found. A fault does not end the run:
the first input of each kind is kept, made as small as is quickly possible.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
import traceback
from pathlib import Path
from random import Random
from typing import Final

import atheris
from mutator import mutate

with atheris.instrument_imports(include=["service.transform"]):
    from invariants import CONTROL, LONGEST, Examiner, Fault

# libFuzzer takes a run that lasts much longer than this for a hang.
SHRINK_SECONDS: Final = 8


def kind_of(error: Exception) -> str:
    """What the input shows; faults of one kind are told once."""
    cause = error.__cause__ if isinstance(error, Fault) else error
    kind = error.kind if isinstance(error, Fault) else f"the judge itself fails: {type(error).__name__}"
    if cause is None:
        return kind
    frames = traceback.extract_tb(cause.__traceback__)
    return f"{kind} at {Path(frames[-1].filename).name}:{frames[-1].lineno}"


def fault_of(examiner: Examiner, data: bytes) -> Exception | None:
    """Why the input is a finding, if it is one."""
    try:
        examiner.examine(data)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is a finding
        return error
    return None


def shows(kind: str, data: bytes) -> bool:
    """Whether the input shows this kind of fault by itself, without those before it."""
    fault = fault_of(Examiner(), data)
    return fault is not None and kind_of(fault) == kind


def smallest(kind: str, data: bytes) -> bytes:
    """A smaller input that shows the same: without stretches, and with zeros for control bytes."""
    until = time.monotonic() + SHRINK_SECONDS
    for at in range(CONTROL):
        quieter = data[:at] + b"\0" + data[at + 1 :]
        data = quieter if shows(kind, quieter) else data
    step = max(len(data) - CONTROL, 1)
    while step and time.monotonic() < until:
        at, before = CONTROL, data
        while at < len(data) and time.monotonic() < until:
            shorter = data[:at] + data[at + step :]
            if shows(kind, shorter):
                data = shorter
            else:
                at += step
        step = step if data != before and step == 1 else step // 2
    return data


class Target:
    """What libFuzzer calls."""

    def __init__(self, findings: Path) -> None:
        self._findings = findings
        self._examiner = Examiner()
        self._known: set[str] = set()

    def test(self, data: bytes) -> None:
        fault = fault_of(self._examiner, data)
        if fault is None:
            return
        kind = kind_of(fault)
        if kind not in self._known:
            self._known.add(kind)
            self._keep(kind, data, fault)
        self._examiner = Examiner()

    def _keep(self, kind: str, data: bytes, fault: Exception) -> None:
        by_itself = shows(kind, data)
        if by_itself:
            data = smallest(kind, data)
        name = self._findings / f"fault-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"
        told = f"{kind}\n  control {data[:CONTROL].hex()} message {data[CONTROL:].hex()}\n  {fault!s:.1000}\n"
        if not by_itself:
            told += f"  only after the inputs before it, which are in {name.name}.trail\n"
            trail = "\n".join(earlier.hex() for earlier in self._examiner.trail)
            name.with_suffix(".trail").write_text(trail + "\n", encoding="utf-8")
        sys.stderr.write(f"FINDING: {told}")
        name.with_suffix(".txt").write_text(told + "".join(traceback.format_exception(fault)), encoding="utf-8")
        name.with_suffix(".input").write_bytes(data)


def vary(data: bytes, max_size: int, seed: int) -> bytes:
    """A byte chooses: libFuzzer's own changes, those of msgpack, both, or other control bytes."""
    chance = Random(seed)  # noqa: S311 - libFuzzer gives the seed
    data = data.ljust(CONTROL, b"\0")
    choice = chance.randrange(256)
    if choice < 64:
        return bytes(atheris.Mutate(data, max_size))
    if choice < 96:
        at = chance.randrange(CONTROL)
        data = data[:at] + chance.randbytes(1) + data[at + 1 :]
    changed = data[:CONTROL] + mutate(data[CONTROL:], chance)
    if choice >= 224 and len(changed) <= max_size:
        changed = bytes(atheris.Mutate(changed, max_size))
    return changed[:max_size]


def replay(files: list[str]) -> bool:
    """Judge files one by one, those with a trail after the inputs that it holds; tell whether any shows a fault."""
    faulty = False
    for file in map(Path, files):
        trail = file.with_suffix(".trail")
        examiner = Examiner()
        if trail.exists():
            for line in trail.read_text(encoding="utf-8").split():
                fault_of(examiner, bytes.fromhex(line))
        fault = fault_of(examiner, file.read_bytes())
        sys.stdout.write(f"{file.name}: {kind_of(fault) if fault else 'no fault'}\n")
        if fault:
            faulty = True
            traceback.print_exception(fault)
    return faulty


def main() -> None:
    """Fuzz, or replay."""
    if sys.argv[1:2] == ["--replay"]:
        sys.exit(replay(sys.argv[2:]))
    target = Target(Path(os.environ["FUZZ_FINDINGS"]))
    atheris.Setup([*sys.argv, f"-max_len={CONTROL + LONGEST}"], target.test, custom_mutator=vary)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
