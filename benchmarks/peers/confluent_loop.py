"""A peer: the loop that an engineer writes with confluent-kafka, msgpack and numpy.

    BOOTSTRAP=… INPUT=… OUTPUT=… GROUP=… python confluent_loop.py [--stacked]

It keeps key, partition, timestamp and headers, and commits what is acknowledged: at-least-once. With `--stacked` it is
the work of a better engineer: one softmax over many messages, and one packer for the process's life.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

# Before numpy is imported: idle BLAS threads would only take time from this loop. The service does the same.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import msgpack
import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Transform = Callable[[Sequence[bytes]], list[bytes]]

BATCH: Final = 1000
# Each is a Python object while its array is made. To keep those of a whole batch of long messages alive costs more in
# cache misses than stacking saves.
LOGITS_AT_ONCE: Final = 16_384
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


def softmax_each(values: Sequence[bytes]) -> list[bytes]:
    """One message after the other."""
    outputs = []
    for value in values:
        message = msgpack.unpackb(value)
        logits = np.array(message["logits"], dtype=np.float32)
        exponentials = np.exp(logits - logits.max())
        probabilities = exponentials / exponentials.sum()
        output = {"id": message["id"], "probabilities": probabilities.tolist()}
        outputs.append(msgpack.packb(output, use_single_float=True))
    return outputs


class StackedSoftmax:
    """Many messages in one array; one after the other where they differ in length."""

    def __init__(self) -> None:
        """Make the packer, whose buffer is large: one is made for each message otherwise."""
        self._pack = msgpack.Packer(use_single_float=True).pack

    def __call__(self, values: Sequence[bytes]) -> list[bytes]:
        """Transform a batch."""
        step = max(1, LOGITS_AT_ONCE // max(1, len(msgpack.unpackb(values[0])["logits"])))
        return [
            output
            for start in range(0, len(values), step)
            for output in self._transform_some(values[start : start + step])
        ]

    def _transform_some(self, values: Sequence[bytes]) -> list[bytes]:
        messages = [msgpack.unpackb(value) for value in values]
        if len({len(message["logits"]) for message in messages}) != 1:
            return softmax_each(values)
        matrix = np.array([message["logits"] for message in messages], dtype=np.float32)
        matrix -= matrix.max(axis=1, keepdims=True)
        np.exp(matrix, out=matrix)
        matrix /= matrix.sum(axis=1, keepdims=True)
        pack = self._pack
        return [
            pack({"id": message["id"], "probabilities": row})
            for message, row in zip(messages, matrix.tolist(), strict=True)
        ]


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


def main() -> None:
    """Run until SIGTERM."""
    loop = Loop(StackedSoftmax() if "--stacked" in sys.argv[1:] else softmax_each)

    def stop(*_: object) -> None:
        loop.stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    loop.run()


if __name__ == "__main__":
    main()
