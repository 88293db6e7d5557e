"""The demo as a picture: a real run of `scripts/demo` in a terminal, Ctrl-C typed, its screen drawn as SVG.

Not one of the files that `scripts/generate` makes, as every run shows other figures: `python -m generate.demo_picture`.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
import time
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT: Final = Path(__file__).resolve().parent.parent
PICTURE: Final = ROOT / "docs" / "images" / "demo.svg"
ROWS: Final = 40
COLUMNS: Final = 88
SHOWN_SECONDS: Final = 12.0
CTRL_C: Final = b"\x03"
HIDE_CURSOR: Final = "\x1b[?25l"
# Between two frames rich goes back to the first line, wiping each.
BACK: Final = re.compile(r"\r\x1b\[2K(?:\x1b\[1A\x1b\[2K)*")
CURSOR: Final = re.compile(r"\x1b\[\?25[lh]")
# Fonts of another host: nobody who reads the page should ask it.
FONTS: Final = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def run() -> str:
    """All that the demo writes on a terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.environ["TERM"] = "xterm-256color"
        demo = str(ROOT / "scripts" / "demo")
        os.execv(demo, [demo])  # noqa: S606 - ours
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    written, shown_since = b"", 0.0
    while True:
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # how Linux tells that nobody has the terminal open any more
            break
        if not piece:
            break
        written += piece
        if HIDE_CURSOR.encode() in written and not shown_since:
            shown_since = time.monotonic()
        if shown_since and time.monotonic() - shown_since > SHOWN_SECONDS:
            os.write(terminal, CTRL_C)
            shown_since = float("inf")
    _, status = os.waitpid(pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"The demo ends with exit code {code}:\n{written.decode(errors='replace')}")
    return written.decode()


def screen(written: str) -> str:
    """What stands on the screen in the end, with its colours."""
    frames = BACK.split(written.replace("\r\n", "\n"))
    begin, _, only = frames[0].partition(HIDE_CURSOR)
    return CURSOR.sub("", begin + (frames[-1] if len(frames) > 1 else only)).replace("^C", "")


def draw(shown: str) -> str:
    """A screen as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    console.print(Text("$ scripts/demo", style="bold"))
    console.print(Text.from_ansi(shown.rstrip()), soft_wrap=False)
    drawn = console.export_svg(title="scripts/demo", theme=MONOKAI, unique_id="demo")
    return FONTS.sub("", drawn).replace("Fira Code", "ui-monospace, Menlo, Consolas")


if __name__ == "__main__":
    PICTURE.write_text(draw(screen(run())), encoding="utf-8")
    sys.stdout.write(f"{PICTURE.relative_to(ROOT)}\n")
