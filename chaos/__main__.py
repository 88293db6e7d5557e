"""The command line of `scripts/chaos`."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Final

from chaos import report
from chaos.faults import FAULTS
from chaos.instance import CONTROLS
from chaos.storm import Options, Outcome, storm
from service.broker import prepare

INTERRUPTED: Final = 130


def main() -> int:
    """Run a storm as asked for; 0 if all is as promised, or if a control was found out."""
    arguments = _parse()
    options = Options(
        guarantee=arguments.guarantee,
        minutes=arguments.minutes,
        seed=arguments.seed,
        instances=arguments.instances,
        rate=arguments.rate,
        faults=arguments.faults.split(","),
        control=arguments.control,
        chained=arguments.chained,
        partitions=arguments.partitions,
    )
    prepare(print)
    try:
        outcome = asyncio.run(_interruptible(options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED
    print(report.table(outcome))
    if arguments.json:
        arguments.json.write_text(json.dumps(report.document(outcome), indent=1) + "\n")
    if options.control:
        found = outcome.verdict.anomalies > 0
        print("the control was found out" if found else "THE CONTROL WAS NOT FOUND OUT")
        return 0 if found else 1
    if outcome.is_sound:
        shutil.rmtree(outcome.logs)
    return 0 if outcome.is_sound else 1


async def _interruptible(options: Options) -> Outcome:
    """Let SIGTERM end the storm as Ctrl-C does: with everything that it has started."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    begun = time.monotonic()
    return await storm(options, lambda line: print(f"{time.monotonic() - begun:7.1f} s  {line}", flush=True))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description="A storm of faults, and what came of it.")
    parser.add_argument("--guarantee", choices=("at_least_once", "exactly_once"), default="at_least_once")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long faults are inflicted")
    parser.add_argument("--seed", type=int, default=1, help="determines the faults and their order")
    parser.add_argument("--instances", type=int, default=3, help="of the service")
    parser.add_argument("--rate", type=float, default=1000.0, help="messages a second")
    parser.add_argument("--faults", type=_known, default=",".join(FAULTS), help=f"some of {', '.join(FAULTS)}")
    parser.add_argument("--control", choices=tuple(CONTROLS), default="", help="a safeguard to switch off")
    parser.add_argument("--chained", action="store_true", help="two services, one reading what the other writes")
    parser.add_argument("--partitions", type=int, default=6, help="of each topic")
    parser.add_argument("--json", type=Path, help="a file for the outcome")
    return parser.parse_args()


def _known(names: str) -> str:
    if unknown := set(names.split(",")) - FAULTS.keys():
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return names


if __name__ == "__main__":
    sys.exit(main())
