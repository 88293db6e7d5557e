"""A peer: the loop that an engineer writes with confluent-kafka, msgpack and numpy.

    BOOTSTRAP=… INPUT=… OUTPUT=… GROUP=… python confluent_loop.py [--stacked | --service]

It keeps key, partition, timestamp and headers, and commits what is acknowledged: at-least-once. With `--stacked` it is
the work of a better engineer: one softmax over many messages, and one packer for the process's life. With `--service`
the messages go through the service's own transform.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

from benchmarks.peers.softmax import StackedSoftmax, softmax_each

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Transform = Callable[[Sequence[bytes]], list[bytes]]

BATCH: Final = 1000
POLL_SECONDS: Final = 0.1
FLUSH_SECONDS: Final = 60


def consumer_settings() -> dict[str, Any]:
    """How to read; what is not named stays at librdkafka's default, which prefetches up to 64 MiB in its own thread."""
    return {
        "bootstrap.servers": os.environ["BOOTSTRAP"],
        "group.id": os.environ["GROUP"],
        # The topic was filled before we started.
        "auto.offset.reset": "earliest",
        # An automatic commit may come before the acknowledgement of the output: then a crash loses records.
        "enable.auto.commit": False,
        # What the service does too, and librdkafka's default: said for the comparison.
        "isolation.level": "read_committed",
    }


def producer_settings() -> dict[str, Any]:
    """How to write: the promises of the service, and batches large enough not to be the limit."""
    return {
        "bootstrap.servers": os.environ["BOOTSTRAP"],
        # The service has both on.
        "acks": "all",
        "enable.idempotence": True,
        # Wait a little so that batches fill; `flush` below does not wait for it.
        "linger.ms": 5,
        # As large as the broker's default takes, as the service's own batches.
        "batch.size": 1_000_000,
        # As the service's default.
        "compression.type": "none",
    }


class Loop:
    """Consume, transform, produce, wait for the acknowledgements, commit."""

    def __init__(self, transform: Transform) -> None:
        """Connect."""
        self.stopping = False
        self._transform = transform
        self._output = os.environ["OUTPUT"]
        self._failure: KafkaError | None = None
        self._producer = Producer(producer_settings())
        self._consumer = Consumer(consumer_settings())
        self._consumer.subscribe([os.environ["INPUT"]])

    def run(self) -> None:
        """Go on until `stopping`."""
        try:
            while not self.stopping:
                messages = self._consumer.consume(BATCH, POLL_SECONDS)
                if messages:
                    self._process(messages)
            self._commit_last()
        finally:
            self._consumer.close()

    def _process(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if message.error():
                raise KafkaException(message.error())
        outputs = self._transform([message.value() or b"" for message in messages])
        for message, output in zip(messages, outputs, strict=True):
            self._producer.produce(
                self._output,
                output,
                key=message.key(),
                partition=message.partition() or 0,
                timestamp=message.timestamp()[1],
                headers=message.headers(),
                on_delivery=self._delivered,
            )
        # librdkafka has been sending since the first `produce`; only the rest is waited for here.
        if self._producer.flush(FLUSH_SECONDS) or self._failure:
            raise KafkaException(self._failure or KafkaError(KafkaError._TIMED_OUT))  # noqa: SLF001 - so it is named
        # All that was read is acknowledged. Nobody needs to wait for the commit: at worst its batch is repeated.
        self._consumer.commit(asynchronous=True)

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        self._failure = self._failure or error

    def _commit_last(self) -> None:
        try:
            self._consumer.commit(asynchronous=False)
        except KafkaException as error:
            # There is nothing to commit.
            if error.args[0].code() != KafkaError._NO_OFFSET:  # noqa: SLF001 - so it is named
                raise


def service_transform() -> Transform:
    """The service's transform, which this environment holds the packages for."""
    from service.transform.pipeline import Limits, Pipeline  # noqa: PLC0415 - the other modes do without

    pipeline = Pipeline(Limits(max_message_bytes=1 << 20, max_classes=1 << 17))

    def transform(values: Sequence[bytes]) -> list[bytes]:
        outcome = pipeline.transform(values)
        if outcome.refusals:
            raise ValueError(str(next(iter(outcome.refusals.values()))))
        return [output for output in outcome.outputs if output is not None]

    return transform


def main() -> None:
    """Run until SIGTERM."""
    transforms: dict[str, Callable[[], Transform]] = {"--stacked": StackedSoftmax, "--service": service_transform}
    loop = Loop(transforms[sys.argv[1]]() if len(sys.argv) > 1 else softmax_each)

    def stop(*_: object) -> None:
        loop.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    loop.run()


if __name__ == "__main__":
    main()
