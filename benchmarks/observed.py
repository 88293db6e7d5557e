"""The service without anything that observes it, or with all of it read every second: what observing costs.

`python -m benchmarks.observed none` runs it without metrics, status, samples and logs of events;
`… all` as delivered, while a thread of the same process reads `/metrics` and `/status.json` each second,
so that the reader's own work counts too.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import urllib.request
from typing import Any, Final

from service import app, cli
from service.observability.events import Observer
from service.observability.http import HttpServer

SECONDS_BETWEEN_READS: Final = 1.0


def without_observers() -> None:
    """Let nobody hear of anything."""
    os.environ["SOFTMAX_METRICS__PREDICTIONS"] = "false"

    async def nothing(*_: object) -> None:
        """Watch neither the loop nor the status."""

    setattr(app, "Observers", lambda *_: Observer())  # noqa: B010 - another kind, on purpose
    setattr(app, "_watch", nothing)  # noqa: B010


def with_a_reader() -> None:
    """Read everything once a second, as soon as it is served."""
    start = HttpServer.start

    async def start_and_read(server: HttpServer) -> str:
        address = await start(server)
        threading.Thread(target=_read, args=(address,), daemon=True).start()
        return address

    setattr(HttpServer, "start", start_and_read)  # noqa: B010


def _read(address: str) -> None:
    while True:
        for path in ("metrics", "status.json"):
            with urllib.request.urlopen(f"{address}/{path}") as answer:  # noqa: S310 - our own process
                answer.read()
        time.sleep(SECONDS_BETWEEN_READS)


def main() -> None:
    """Run the service."""
    changes: dict[str, Any] = {"none": without_observers, "all": with_a_reader}
    changes[sys.argv[1]]()
    sys.argv[1:] = ["run"]
    cli.main()


if __name__ == "__main__":
    main()
