"""Make a release: its version, its notes, its files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from release import artefacts, version
from release.errors import ReleaseError


def main() -> int:
    """Do one step; 1 with a sentence if something stands against it."""
    parser = argparse.ArgumentParser(prog="scripts/release", description=__doc__)
    steps = parser.add_subparsers(dest="step", required=True)
    prepare = steps.add_parser("prepare", help="write a new version wherever it stands, and date the changelog")
    prepare.add_argument("version")
    check = steps.add_parser("check", help="look whether all places agree, and a tag with them")
    check.add_argument("tag", nargs="?")
    steps.add_parser("notes", help="print what the changelog says at its top")
    build = steps.add_parser("build", help="build sdist and wheel from the tracked files")
    build.add_argument("folder", nargs="?", type=Path, default=Path("dist"))
    given = parser.parse_args()
    try:
        match given.step:
            case "prepare":
                version.prepare(given.version)
            case "check":
                version.check(given.tag)
                print(version.current())
            case "notes":
                print(version.notes(), end="")
            case _:
                for file in artefacts.build_all(given.folder):
                    print(file)
    except ReleaseError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
