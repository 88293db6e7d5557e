"""A Java process that never outlives the process that started it."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from service.broker.errors import BrokerError

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
# Options that somebody's shell sets for all of Java must not change this process.
_IGNORED_ENVIRONMENT = {"JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS", "CLASSPATH"}


def java_environment() -> dict[str, str]:
    """Return this process's environment without what would change how Java runs."""
    return {name: value for name, value in os.environ.items() if name not in _IGNORED_ENVIRONMENT}


class JavaProcess:
    """One Java process under a supervisor, which kills it when we are gone, even by SIGKILL."""

    def __init__(self, command: Sequence[str], *, directory: Path, output: Path, scratch: Path | None) -> None:
        """Start `command` in `directory`, its output going to the file `output`.

        Args:
            command: The Java executable and its arguments.
            directory: The working directory.
            output: The file that standard output and standard error are written to, replacing what it held.
            scratch: A directory that the supervisor removes if we end without having stopped the process.
        """
        arguments = [sys.executable, "-I", "-S", str(_SUPERVISOR), str(scratch or ""), str(output), *command]
        with output.open("wb") as errors:
            self._supervisor = subprocess.Popen(  # noqa: S603 - the command is built from verified parts
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=directory,
                env=java_environment(),
                # Out of the terminal's foreground group: Ctrl-C ends the service, and the service ends the broker.
                start_new_session=True,
            )
        self.pid = self._read_pid(output)

    def _read_pid(self, output: Path) -> int:
        assert self._supervisor.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
        with self._supervisor.stdout as pipe:
            line = pipe.readline()
        if not line.strip():
            self._supervisor.wait()
            self._let_go()
            message = f"Java could not be started: {output.read_text(errors='replace')}"
            raise BrokerError(message)
        return int(line)

    @property
    def is_alive(self) -> bool:
        """Whether Java still runs; a frozen process counts as alive."""
        return self._supervisor.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to Java itself, unless it has ended."""
        if self.is_alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def ends_within(self, seconds: float) -> bool:
        """Wait for the end of the process, and say whether it came."""
        try:
            self._supervisor.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self._let_go()
        return True

    def kill(self) -> None:
        """End Java at once, and return when it is gone."""
        self.signal(signal.SIGKILL)
        self._supervisor.wait()
        self._let_go()

    def _let_go(self) -> None:
        assert self._supervisor.stdin is not None  # noqa: S101 - for the type checker: it is a pipe
        self._supervisor.stdin.close()
