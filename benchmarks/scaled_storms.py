"""The group scaled up and down under load: a storm of `chaos/` with no other fault, and what it has shown."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaException

from benchmarks.groups import PARTITIONS
from chaos import report
from chaos.cluster import ClusterError
from chaos.fleet import FleetError
from chaos.ledger import LedgerError
from chaos.readers import ReaderError
from chaos.storm import Options, storm
from service.broker import BrokerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chaos.storm import Outcome

# Messages a second.
RATE: Final = 1000


def storm_options(guarantee: str, seconds: float) -> Options:
    """A storm of nothing but changes of the group's size."""
    return Options(
        guarantee,
        minutes=seconds / 60,
        instances=1,
        rate=RATE,
        faults=("scale",),
        partitions=PARTITIONS,
    )


def storm_row(outcome: Outcome) -> dict[str, Any]:
    """What a storm has shown; of the two readers' findings the larger ones."""
    tallies = outcome.verdict.readers.values()
    return {
        "guarantee": outcome.options.guarantee,
        "seconds": outcome.seconds,
        "messages": outcome.messages,
        "scaled": len(outcome.strikes),
        **{
            name: max(getattr(tally, name) for tally in tallies)
            for name in ("lost", "duplicated", "reordered", "corrupted")
        },
        "disagreements": outcome.verdict.disagreements,
        "longest_stall_seconds": outcome.verdict.longest_stall_s,
        "sound": outcome.is_sound,
    }


async def storms(guarantees: Sequence[str], seconds: float) -> tuple[list[dict[str, Any]], list[str]]:
    """Scale up and down under load; a row for each guarantee, and a line for each that proved nothing."""
    rows, failures = [], []
    for guarantee in guarantees:
        print(f"\n{guarantee}: scaling up and down for {seconds:g} s", flush=True)
        try:
            outcome = await storm(storm_options(guarantee, seconds), lambda line: print(f"  {line}", flush=True))
        except (BrokerError, KafkaException, ClusterError, FleetError, LedgerError, ReaderError) as error:
            # What was measured before is still worth writing down.
            failures.append(f"{guarantee}, scaling up and down: {error}")
            print(f"  {failures[-1]}", flush=True)
            continue
        print(report.table(outcome), flush=True)
        rows.append(storm_row(outcome))
        if outcome.is_sound:
            shutil.rmtree(outcome.logs)
    return rows, failures
