"""The service with points at which it dies, or with a safeguard switched off: `python -m chaos.instance run`.

The shipped package knows nothing of this: the named functions are wrapped from outside before its command line begins.
SOFTMAX_FAILPOINTS says where to die, as in `committed=3,revoking=1`: by SIGKILL, at the third pass and the first one.
SOFTMAX_SAFEGUARDS_OFF names safeguards, separated by commas.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import pkgutil
import signal
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FAILPOINTS_VARIABLE: Final = "SOFTMAX_FAILPOINTS"
GUARANTEE_VARIABLE: Final = "SOFTMAX_DELIVERY__GUARANTEE"
CONTROLS_VARIABLE: Final = "SOFTMAX_SAFEGUARDS_OFF"


@dataclass(frozen=True, slots=True)
class Failpoint:
    """A step of the service, before or after which it can die.

    Attributes:
        step: the function, as `package.module:Class.function`.
        when: before its first line or after its last.
    """

    step: str
    when: Literal["before", "after"]


SECONDS_BETWEEN: Final = 5.0

_EXACTLY_ONCE: Final = "service.streaming.exactly_once:ExactlyOnce"
_AT_LEAST_ONCE: Final = "service.streaming.at_least_once:AtLeastOnce"
_TRANSACTIONS: Final = "service.streaming.transactions:Transactions"
_LANE: Final = "service.streaming.exactly_once:Lane"
_PROGRESS: Final = "service.streaming.progress:Progress"
_WORKER: Final = "service.streaming.worker:Worker"
# Whatever the guarantee.
_OF_THE_GROUP: Final[Mapping[str, Failpoint]] = {
    "revoking": Failpoint(f"{_WORKER}.on_partitions_revoked", "before"),
    "revoked": Failpoint(f"{_WORKER}.on_partitions_revoked", "after"),
    "assigned": Failpoint(f"{_WORKER}.on_partitions_assigned", "after"),
}
FAILPOINTS: Final[Mapping[str, Mapping[str, Failpoint]]] = {
    "at_least_once": {
        **_OF_THE_GROUP,
        "producing": Failpoint(f"{_AT_LEAST_ONCE}._send", "before"),
        "produced": Failpoint(f"{_AT_LEAST_ONCE}._send", "after"),
        # Acknowledged, and not yet committed.
        "acknowledged": Failpoint(f"{_PROGRESS}.finish", "after"),
        "committing": Failpoint(f"{_AT_LEAST_ONCE}.commit", "before"),
        # Committed, and nobody here knows it yet.
        "committed": Failpoint(f"{_PROGRESS}.committed", "before"),
    },
    "exactly_once": {
        **_OF_THE_GROUP,
        "taking_over": Failpoint(f"{_TRANSACTIONS}.start", "before"),
        # The lease is ours, and the offset not yet known.
        "leased": Failpoint(f"{_TRANSACTIONS}.start", "after"),
        "taken_over": Failpoint(f"{_LANE}.take_over", "after"),
        "begun": Failpoint(f"{_TRANSACTIONS}.begin", "after"),
        "produced": Failpoint(f"{_TRANSACTIONS}.send", "after"),
        "acknowledged": Failpoint(f"{_TRANSACTIONS}.settle", "after"),
        "offset_sent": Failpoint(f"{_TRANSACTIONS}.send_offset", "after"),
        "committing": Failpoint(f"{_TRANSACTIONS}.commit", "before"),
        # Committed, and nobody here knows it yet.
        "committed": Failpoint(f"{_TRANSACTIONS}.commit", "after"),
    },
}
# These are passed at a rebalance only.
REBALANCES: Final = frozenset(_OF_THE_GROUP)


def _commit_what_was_taken() -> None:
    """Commit records when they are taken, not when their outputs are acknowledged."""
    progress = _resolve(_PROGRESS)

    def committable(self: Any) -> dict[Any, int]:
        taken = {partition: offset for partition, (offset, _) in self._taken.items()}
        return {partition: offset for partition, offset in taken.items() if self._committed.get(partition) != offset}

    progress.committable = committable


def _leave_without_draining() -> None:
    """Give partitions away and stop without waiting for what is under way, and without a commit."""

    async def drain(_self: Any, _timeout: float) -> bool:
        return True

    async def revoked(self: Any, _partitions: object) -> None:
        self._parts.delivery.let_go()

    _resolve(_AT_LEAST_ONCE).drain = drain
    _resolve(_WORKER).on_partitions_revoked = revoked


def _ask_for_the_offset_before_the_lease() -> None:
    """Believe the committed offset while the last holder of the lease may still be committing another one."""
    transactions, lane = _resolve(_TRANSACTIONS), _resolve(_LANE)
    start = transactions.start
    early: dict[object, object] = {}

    async def take_over(self: Any) -> None:
        early[self.partition] = await self.delivery.beginning(self.partition)
        await original(self)

    async def slow_start(self: Any) -> None:
        # As long as a cluster takes that is looking for a leader; a member that was paused comes back meanwhile.
        await asyncio.sleep(SECONDS_BETWEEN)
        await start(self)

    async def beginning(self: Any, partition: Any) -> Any:
        return early.pop(partition, None) or await asked(self, partition)

    exactly_once = _resolve(_EXACTLY_ONCE)
    original, asked = lane.take_over, exactly_once.beginning
    lane.take_over, transactions.start, exactly_once.beginning = take_over, slow_start, beginning


def _trust_a_tainted_producer() -> None:
    """Go on with a producer one of whose requests may still be on its way."""
    _resolve(_TRANSACTIONS).tainted = property(lambda _: False, lambda _, __: None)


def _commit_without_acknowledgements() -> None:
    """Let aiokafka's commit wait for the batches, which takes failed ones for done."""

    async def settle(_self: Any, _sent: object) -> None:
        """Wait for nothing."""

    _resolve(_TRANSACTIONS).settle = settle


# What each control switches off; the storm must find what that does.
CONTROLS: Final[Mapping[str, Callable[[], None]]] = {
    "commit_after_acknowledgement": _commit_what_was_taken,
    "drain_before_leaving": _leave_without_draining,
    "offset_after_lease": _ask_for_the_offset_before_the_lease,
    "taint": _trust_a_tainted_producer,
    "await_sends": _commit_without_acknowledgements,
}


def arm(name: str, failpoint: Failpoint, passes: int) -> None:
    """Let this process die at a failpoint.

    Args:
        name: what the failpoint is called, for the last words.
        failpoint: where.
        passes: at the how-manyeth pass.
    """
    path, _, attribute = failpoint.step.rpartition(".")
    owner = _resolve(path)
    original = getattr(owner, attribute)
    left = passes

    def count() -> None:
        nonlocal left
        left -= 1
        if not left:
            os.write(2, f'{{"event": "failpoint", "name": "{name}"}}\n'.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    @wraps(original)
    async def waiting(*args: Any, **kwargs: Any) -> Any:
        if failpoint.when == "before":
            count()
        result = await original(*args, **kwargs)
        if failpoint.when == "after":
            count()
        return result

    @wraps(original)
    def direct(*args: Any, **kwargs: Any) -> Any:
        if failpoint.when == "before":
            count()
        result = original(*args, **kwargs)
        if failpoint.when == "after":
            count()
        return result

    setattr(owner, attribute, waiting if inspect.iscoroutinefunction(original) else direct)


def _resolve(path: str) -> Any:
    return pkgutil.resolve_name(path)


def main() -> None:
    """Wrap what the environment names, then be the service."""
    known = FAILPOINTS[os.environ.get(GUARANTEE_VARIABLE, "at_least_once")]
    for item in filter(None, os.environ.pop(FAILPOINTS_VARIABLE, "").split(",")):
        name, _, passes = item.partition("=")
        arm(name, known[name], int(passes))
    for name in filter(None, os.environ.pop(CONTROLS_VARIABLE, "").split(",")):
        CONTROLS[name]()
    from service.cli import main as command  # noqa: PLC0415 - after the wrapping

    command()


if __name__ == "__main__":
    main()
