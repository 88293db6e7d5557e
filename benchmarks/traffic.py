"""Traffic at a fixed rate, and how old it is when it comes out: two processes that benchmarks/latency.py starts.

    traffic.py send SERVERS TOPIC RATE SECONDS CLASSES [PARTITIONS]
    traffic.py read SERVERS TOPIC OFFSETS COUNT

The id of a message is the moment at which it was due, in nanoseconds of the clock that all processes of a machine
share; a sender that is late does not hide that (no coordinated omission). Each prints lines of JSON.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from typing import Any, Final

import confluent_kafka
import numpy as np

from benchmarks.kafka import PARTITIONS

# As inference traffic looks: each message leaves at once, in a record batch of one to a few.
PRODUCER: Final = {
    "linger.ms": 0,
    "acks": "all",
    "enable.idempotence": True,
    "queue.buffering.max.messages": 1 << 20,
    "queue.buffering.max.kbytes": 1 << 20,
}
BEFORE_ID: Final = b"\x82\xa2id\xcf"
ID: Final = struct.Struct(">Q")
NANO: Final = 1_000_000_000
POOL: Final = 997
PERCENTILES: Final = (50, 99, 99.9, 100)
# Of what was due: until then caches fill and connections open.
WARM_UP_SHARE: Final = 0.25
FLUSH_SECONDS: Final = 60
# A program that is silent for longer has stopped. Longer than any pause that its peers are seen to make.
SILENCE_SECONDS: Final = 30
# After the last expected message: time for a program to write what it should not.
SETTLE_SECONDS: Final = 1


def now() -> int:
    """Nanoseconds of the machine's monotonic clock."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def message(due: int, tail: bytes) -> bytes:
    """A message that was due at such a moment."""
    return BEFORE_ID + ID.pack(due) + tail


def send(
    servers: str, topic: str, rate: int, seconds: float, classes: int, partitions: int = PARTITIONS
) -> dict[str, Any]:
    """Send messages at evenly spaced moments, to the partitions in turn.

    Raises:
        SystemExit: not all of them were acknowledged; the figures of the run would be the sender's.
    """
    pool = tails(classes)
    failures: list[str] = []
    producer = confluent_kafka.Producer({"bootstrap.servers": servers, **PRODUCER})
    producer.list_topics(topic)  # connects, so that the first messages need not wait

    def delivered(error: confluent_kafka.KafkaError | None, _: confluent_kafka.Message) -> None:
        if error:
            failures.append(str(error))

    interval, total = NANO / rate, int(rate * seconds)
    late = np.empty(total, np.int64)
    begin, number = now(), 0
    print(json.dumps({"begin": begin / NANO}), flush=True)
    while number < total:
        due = min(total, int((now() - begin) / interval) + 1)
        while number < due:
            planned = int(begin + number * interval)
            late[number] = now() - planned
            value = message(planned, pool[number % POOL])
            producer.produce(topic, value, partition=number % partitions, on_delivery=delivered)
            number += 1
        producer.poll(0)
        time.sleep(max(0.0, (begin + number * interval - now()) / NANO))
    took = (now() - begin) / NANO
    if producer.flush(FLUSH_SECONDS) or failures:
        sys.exit(f"the sender could not write all: {failures[:1] or 'no acknowledgement'}")
    return {"sent": total, "rate": total / took, "late_ms": _percentiles(late[int(WARM_UP_SHARE * total) :])}


def read(servers: str, topic: str, offsets: list[int], count: int) -> dict[str, Any]:
    """Read so many messages from such offsets of the partitions, or until none comes; tell how old each was."""
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": servers, "group.id": "traffic", "enable.auto.commit": False, "fetch.wait.max.ms": 100}
    )
    consumer.assign([confluent_kafka.TopicPartition(topic, number, offset) for number, offset in enumerate(offsets)])
    due: list[int] = []
    ages: list[int] = []
    deadline = now() + SILENCE_SECONDS * NANO
    while now() < deadline:
        record = consumer.poll(0.1)  # one by one: a call for many waits for as many
        if record is None or record.error():
            continue
        moment = now()
        value = record.value() or b""
        if not value.startswith(BEFORE_ID):
            sys.exit(f"an output does not begin with its id: {value[:20]!r}")
        (planned,) = ID.unpack_from(value, len(BEFORE_ID))
        due.append(planned)
        ages.append(moment - planned)
        deadline = moment + (SILENCE_SECONDS if len(due) < count else SETTLE_SECONDS) * NANO
    consumer.close()
    by_due = np.array(ages)[np.argsort(due, kind="stable")]
    counted = by_due[int(WARM_UP_SHARE * len(by_due)) :]
    return {"read": len(due), "distinct": len(set(due)), "ages_ms": _percentiles(counted)}


def tails(classes: int) -> list[bytes]:
    """What follows the id in some messages."""
    random = np.random.default_rng(0)
    elements = np.zeros((POOL, classes), np.dtype([("tag", np.uint8), ("number", ">f4")]))
    elements["tag"] = 0xCA
    elements["number"] = random.normal(scale=3, size=(POOL, classes))
    header = b"\xa6logits\xdc" + struct.pack(">H", classes)
    return [header + row.tobytes() for row in elements]


def _percentiles(nanoseconds: np.ndarray[Any, Any]) -> list[float]:
    if not len(nanoseconds):
        return []
    return [float(each) for each in np.percentile(nanoseconds, PERCENTILES) / 1e6]


def main() -> None:
    """Send or read."""
    mode, servers, topic, first, second, *third = sys.argv[1:]
    if mode == "send":
        result = send(servers, topic, int(first), float(second), *map(int, third))
    else:
        result = read(servers, topic, [int(offset) for offset in first.split(",")], int(second))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
