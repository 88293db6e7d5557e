"""Traffic at a fixed rate, and how old it is when it comes out: two processes that benchmarks/latency.py starts.

    traffic.py send SERVERS TOPIC RATE SECONDS CLASSES      traffic.py read SERVERS TOPIC SECONDS

The id of a message is the moment at which it was due, in nanoseconds of the clock that all processes of a machine
share; a sender that is late does not hide that (no coordinated omission). Each prints one line of JSON.
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
PRODUCER: Final = {"linger.ms": 0, "acks": "all", "queue.buffering.max.messages": 1 << 17}
BEFORE_ID: Final = b"\x82\xa2id\xcf"
ID: Final = struct.Struct(">Q")
NANO: Final = 1_000_000_000
POOL: Final = 997
PERCENTILES: Final = (50, 99, 99.9, 100)


def now() -> int:
    """Nanoseconds of the machine's monotonic clock."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def send(servers: str, topic: str, rate: int, seconds: float, classes: int) -> dict[str, Any]:
    """Send messages at evenly spaced moments, to the partitions in turn."""
    tails = _tails(classes)
    producer = confluent_kafka.Producer({"bootstrap.servers": servers, **PRODUCER})
    interval = NANO / rate
    begin, number = now(), 0
    total = int(rate * seconds)
    late = np.empty(total, np.int64)
    while number < total:
        moment = now()
        due = min(total, int((moment - begin) / interval) + 1)
        while number < due:
            planned = int(begin + number * interval)
            late[number] = moment - planned
            producer.produce(topic, BEFORE_ID + ID.pack(planned) + tails[number % POOL], partition=number % PARTITIONS)
            number += 1
        producer.poll(0)
        time.sleep(max(0.0, (begin + number * interval - now()) / NANO))
    producer.flush(30)
    return {"sent": total, "seconds": (now() - begin) / NANO, "late_ms": _percentiles(late)}


def read(servers: str, topic: str, seconds: float) -> dict[str, Any]:
    """Read until so many seconds have passed without a message; tell the age of each when it came."""
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": servers, "group.id": "traffic", "enable.auto.commit": False, "fetch.wait.max.ms": 100}
    )
    consumer.assign([confluent_kafka.TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    ids: list[int] = []
    ages: list[int] = []
    quiet_since = now()
    while now() - quiet_since < seconds * NANO:
        message = consumer.poll(0.1)  # one by one: a call for many waits for as many
        if message is None or message.error():
            continue
        moment = now()
        quiet_since = moment
        (planned,) = ID.unpack_from(message.value() or b"", len(BEFORE_ID))
        ids.append(planned)
        ages.append(moment - planned)
    consumer.close()
    order = np.argsort(ids)
    counted = np.array(ages)[order][len(ages) // 4 :]  # by when they were due, without the first quarter
    return {"read": len(ids), "distinct": len(set(ids)), "ages_ms": _percentiles(counted)}


def _tails(classes: int) -> list[bytes]:
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
    mode, servers, topic, *numbers = sys.argv[1:]
    if mode == "send":
        rate, seconds, classes = numbers
        result = send(servers, topic, int(rate), float(seconds), int(classes))
    else:
        result = read(servers, topic, float(numbers[0]))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
