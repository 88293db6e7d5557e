"""`python -m service.broker run` starts a broker until Ctrl-C and prints its address; `prepare` fills the cache.

`lock` makes the manifest anew, to be reviewed and committed.
"""

import contextlib
import signal
import sys

from service.broker.cluster import Broker
from service.broker.errors import BrokerError
from service.broker.installation import COORDINATE
from service.broker.jars import write_manifest
from service.broker.preparation import prepare


def _main(arguments: list[str]) -> int:
    try:
        match arguments:
            case ["run"]:
                with Broker() as broker, contextlib.suppress(KeyboardInterrupt):
                    print(broker.bootstrap_servers, flush=True)  # noqa: T201 - a command line
                    signal.pause()
            case ["prepare"]:
                prepare(progress=print)
            case ["lock"]:
                write_manifest(COORDINATE)
            case _:
                print(__doc__, file=sys.stderr)  # noqa: T201 - a command line
                return 2
    except BrokerError as error:
        print(error, file=sys.stderr)  # noqa: T201 - a command line
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
