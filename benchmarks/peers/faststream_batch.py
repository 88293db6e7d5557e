"""A peer on FastStream: a batch subscriber that publishes each result.

    BOOTSTRAP=… INPUT=… OUTPUT=… GROUP=… python faststream_batch.py

It keeps key, partition and timestamp, and commits a batch when the handler has returned: at-least-once. FastStream adds
headers of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any, Final

import uvloop
from faststream import AckPolicy, FastStream
from faststream.kafka import KafkaBroker, KafkaMessage

from benchmarks.peers.softmax import StackedSoftmax

if TYPE_CHECKING:
    from collections.abc import Sequence

BATCH: Final = 1000
MIB: Final = 1 << 20
OUTPUT: Final = os.environ["OUTPUT"]

broker = KafkaBroker(
    os.environ["BOOTSTRAP"],
    acks="all",
    enable_idempotence=True,
    max_batch_size=MIB,
    linger_ms=5,
    # A line for each batch would only take its time.
    log_level=logging.DEBUG,
)
app = FastStream(broker)
transform = StackedSoftmax()


async def plain(message: KafkaMessage) -> Any:
    """The values as they are: by default FastStream looks for a type of content."""
    return message.body


@broker.subscriber(
    os.environ["INPUT"],
    batch=True,
    group_id=os.environ["GROUP"],
    auto_offset_reset="earliest",
    isolation_level="read_committed",
    ack_policy=AckPolicy.NACK_ON_ERROR,
    max_records=BATCH,
    max_partition_fetch_bytes=MIB,
    decoder=plain,
)
async def handle(values: list[bytes], message: KafkaMessage) -> None:
    """Transform a batch, publish it, and wait for the acknowledgements."""
    records: Sequence[Any] = message.raw_message
    pending = []
    for record, output in zip(records, transform(values), strict=True):
        pending.append(
            await broker.publish(
                output,
                OUTPUT,
                key=record.key,
                partition=record.partition,
                timestamp_ms=record.timestamp,
                no_confirm=True,
            )
        )
    await asyncio.gather(*pending)


if __name__ == "__main__":
    uvloop.run(app.run())
