"""The ahead-of-time cache, by which brokers start three times as fast: made once, by running a broker."""

import tempfile
from pathlib import Path

from service.broker.cluster import Broker
from service.broker.config import BrokerConfig
from service.broker.errors import BrokerError
from service.broker.installation import Progress, install, locked

_SECONDS_TO_WRITE = 300.0


def prepare(progress: Progress | None = None) -> None:
    """Do now, once for this machine, all that later starts profit from: fetch Kafka and make its ahead-of-time cache.

    A broker starts without this too. It costs some ten seconds, so it is worth it before many starts.

    Args:
        progress: Called with a line for people before anything that takes seconds.

    Raises:
        BrokerError: As for `Broker.start`, or the cache could not be made.
    """
    cache = install(progress).ahead_of_time_cache
    with locked("prepare"):
        if not cache.exists():
            if progress is not None:
                progress("Preparing Apache Kafka for quick starts, once (about 10 seconds)")
            _make(cache)


def _make(cache: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="prepare-", dir=cache.parent) as scratch:
        unfinished = Path(scratch, cache.name)
        # Java records what a run loads and links, and writes it down at the orderly end of that run.
        recording = BrokerConfig(
            jvm_arguments=(f"-XX:AOTCacheOutput={unfinished}",), stop_timeout=_SECONDS_TO_WRITE, data_dir=Path(scratch)
        )
        broker = Broker(recording)
        with broker:
            pass
        if not unfinished.exists():
            message = f"Java wrote no ahead-of-time cache; the log of the run ends with:\n{broker.log_tail()}"
            raise BrokerError(message)
        unfinished.replace(cache)
