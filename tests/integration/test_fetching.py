"""The loop overlaps: the broker prepares what comes next while the service transforms what has come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from harness import Bus, environment, pack

from service.observability.events import Observer
from service.settings import load
from service.streaming.polling import WORTH_FETCHING_AHEAD_BYTES
from service.streaming.worker import Worker
from service.transform.pipeline import Limits, Pipeline

if TYPE_CHECKING:
    from service.transform.pipeline import Messages, Work

CLASSES: Final = 2000
# Some megabytes: more than one fetch brings.
MESSAGES: Final = 600


async def test_the_next_fetch_is_under_way_before_what_has_come_is_transformed(bus: Bus) -> None:
    # By the public interface: the hooks of whole batches are for a process of their own.
    settings = load(environment=environment(**bus.settings, kafka__whole_batches=False))
    logits = np.zeros(CLASSES, np.float32)
    for number in range(MESSAGES):
        await bus.producer.send(bus.input, pack(logits, id=number), partition=0)
    await bus.producer.flush()

    class Watching(Pipeline):
        def begin(self, messages: Messages, *args: Any, **options: Any) -> Work:
            size = int(messages.lengths.sum())
            seen.append((size, bool(worker._parts.consumer._fetcher._in_flight)))
            return super().begin(messages, *args, **options)

    seen: list[tuple[int, bool]] = []
    pipeline = Watching(Limits(settings.limits.max_message_bytes, settings.limits.max_classes))
    worker = Worker(settings, pipeline, Observer(), until_caught_up=True)
    await worker.run()

    assert sum(size for size, _ in seen) > MESSAGES * CLASSES * 5
    large = [under_way for size, under_way in seen if size >= WORTH_FETCHING_AHEAD_BYTES]
    assert len(large) > 1
    assert all(large)
