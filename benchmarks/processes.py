"""A program under measurement: started, observed from outside by what the operating system knows, ended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import psutil

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SECONDS_BETWEEN_LOOKS: Final = 0.02


class BenchmarkError(Exception):
    """A measurement that is worth nothing, and why."""


@dataclass(frozen=True, slots=True)
class End:
    """How a process ended.

    Attributes:
        exit_code: negative for a signal.
        cpu_seconds: of its whole life, its start included.
    """

    exit_code: int
    cpu_seconds: float


class MeasuredProcess:
    """A process in a group of its own, which does not outlive the `with` block."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start nothing yet.

        Args:
            name: for messages.
            command: the program and its arguments.
            environment: added to ours, of which the service's settings are left out.
        """
        self._name, self._command = name, command
        # A setting that somebody's shell exports must not change what is measured.
        ours = {key: value for key, value in os.environ.items() if not key.startswith("SOFTMAX_")}
        self._environment = {**ours, **environment}

    def __enter__(self) -> Self:
        """Start."""
        self._output = tempfile.TemporaryFile()
        self._popen = subprocess.Popen(  # noqa: S603 - our own programs
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._end: End | None = None
        self._observed = psutil.Process(self._popen.pid)
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what still runs."""
        if self._look() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._wait(None)
        self._output.close()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._popen.pid

    def check(self) -> None:
        """See that it still runs.

        Raises:
            BenchmarkError: it has ended, with its last words.
        """
        if end := self._look():
            raise BenchmarkError(f"{self._name} ended with exit code {end.exit_code}; its last words:\n{self.tail()}")

    def cpu_seconds(self) -> float:
        """Processor time so far, of all its threads, for its own code and in the kernel."""
        times = self._observed.cpu_times()
        return times.user + times.system

    def rss(self) -> int:
        """Bytes of memory in use."""
        return self._observed.memory_info().rss

    def peak_rss(self) -> int:
        """Most bytes of memory in use so far.

        From /proc where there is one: `ru_maxrss` begins, on Linux, at the size of the process that started this one.
        """
        status = Path("/proc", str(self.pid), "status")
        if status.exists() and (found := re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)):
            return int(found[1]) * 1024
        return self.rss()

    def stop(self, seconds: float = 30) -> End:
        """Ask it to end by SIGTERM.

        Raises:
            BenchmarkError: it did not in time, or not cleanly.
        """
        self.check()
        os.kill(self.pid, signal.SIGTERM)
        end = self._wait(seconds)
        if end is None:
            raise BenchmarkError(f"{self._name} did not end {seconds:.0f} s after SIGTERM:\n{self.tail()}")
        if end.exit_code:
            raise BenchmarkError(f"{self._name} ended with exit code {end.exit_code} after SIGTERM:\n{self.tail()}")
        return end

    def tail(self, size: int = 4000) -> str:
        """The end of what it has written."""
        self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, self._output.tell() - size))
        return self._output.read().decode(errors="replace")

    def _wait(self, seconds: float | None) -> End | None:
        deadline = None if seconds is None else time.monotonic() + seconds
        while (end := self._look()) is None and (deadline is None or time.monotonic() < deadline):
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return end

    def _look(self) -> End | None:
        """Its end, if that has come: by `wait4`, which tells what it used."""
        if self._end is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self._popen.returncode = os.waitstatus_to_exitcode(status)
                self._end = End(self._popen.returncode, usage.ru_utime + usage.ru_stime)
        return self._end
