"""A peer on Quix Streams: each message through `apply`, as its documents show.

    BOOTSTRAP=… INPUT=… OUTPUT=… GROUP=… python quix_apply.py [exactly-once]

It keeps key, partition, timestamp and headers; its checkpoints are at-least-once or, on request, transactions.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from quixstreams import Application, message_context
from quixstreams.models import Row

from benchmarks.peers.softmax import softmax_one

app = Application(
    broker_address=os.environ["BOOTSTRAP"],
    consumer_group=os.environ["GROUP"],
    auto_offset_reset="earliest",
    # As often as the service.
    commit_interval=1.0,
    processing_guarantee="exactly-once" if "exactly-once" in sys.argv[1:] else "at-least-once",
    consumer_extra_config={"isolation.level": "read_committed"},
    producer_extra_config={"linger.ms": 5, "batch.size": 1_000_000, "compression.type": "none"},
    auto_create_topics=False,
    loglevel="WARNING",
)
source = app.topic(os.environ["INPUT"], key_deserializer="bytes", value_deserializer="bytes")
target = app.topic(os.environ["OUTPUT"], key_serializer="bytes", value_serializer="bytes")
frame = app.dataframe(source).apply(softmax_one)


def produce(value: bytes, key: Any, timestamp: int, headers: Any) -> None:
    """What `to_topic` does, with a partition: its public interface has none."""
    context = message_context()
    row = Row(value=value, key=key, timestamp=timestamp, context=context, headers=headers)
    frame._producer.produce_row(row=row, topic=target, key=key, partition=context.partition, timestamp=timestamp)  # noqa: SLF001 - see above


frame.update(produce, metadata=True)

if __name__ == "__main__":
    app.run()
