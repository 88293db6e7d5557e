"""A peer on Faust: an agent that takes many events, one softmax for all of them.

    BOOTSTRAP=… INPUT=… OUTPUT=… GROUP=… python faust_take.py

It keeps key, partition and timestamp, and acknowledges a batch when its outputs are: at-least-once.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from typing import Any, Final

import faust

from benchmarks.peers.softmax import StackedSoftmax

BATCH: Final = 1000
SECONDS_TO_WAIT: Final = 0.1

app = faust.App(
    os.environ["GROUP"],
    broker=f"kafka://{os.environ['BOOTSTRAP']}",
    consumer_auto_offset_reset="earliest",
    # As often as the service.
    broker_commit_interval=1.0,
    producer_acks=-1,
    producer_linger=0.005,
    producer_max_batch_size=1 << 20,
    stream_wait_empty=False,
    topic_disable_leader=True,
    web_enabled=False,
    datadir=tempfile.mkdtemp(prefix="faust-"),
)
source = app.topic(os.environ["INPUT"], key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
target = app.topic(os.environ["OUTPUT"], key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
transform = StackedSoftmax()


@app.agent(source)
async def handle(stream: Any) -> None:
    """Transform what has come, send it, and wait for the acknowledgements."""
    async for events in stream.take_events(BATCH, within=SECONDS_TO_WAIT):
        outputs = transform([event.value for event in events])
        pending = [
            await target.send(
                key=event.key,
                value=output,
                partition=event.message.partition,
                timestamp=event.message.timestamp,
            )
            for event, output in zip(events, outputs, strict=True)
        ]
        await asyncio.gather(*pending)


if __name__ == "__main__":
    app.main()
