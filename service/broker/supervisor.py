"""Runs one command and ends it when the parent is gone. A script of its own, started by `process.py`, never imported.

    python supervisor.py <directory to remove when orphaned, or ""> <file for the output> <command> [<argument> ...]

It prints the process id of the command, and exits when the command does. Its standard input is a pipe that only the
parent holds: the end of that pipe means that the parent is gone, in whichever way, and the command is killed.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def _killed_with_supervisor() -> None:
    """Ask Linux to kill the command should this supervisor itself be killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _main() -> int:
    scratch, output, *command = sys.argv[1:]
    with Path(output).open("ab") as log:
        child = subprocess.Popen(  # noqa: S603 - the command comes from process.py
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Safe: there is no second thread yet.
            preexec_fn=_killed_with_supervisor if sys.platform == "linux" else None,  # noqa: PLW1509
        )
    print(child.pid, flush=True)  # noqa: T201 - the protocol with process.py
    orphaned = threading.Event()

    def watch_parent() -> None:
        while os.read(sys.stdin.fileno(), 64):
            pass
        orphaned.set()
        child.kill()

    threading.Thread(target=watch_parent, daemon=True).start()
    child.wait()
    if orphaned.is_set() and scratch:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
