"""Examples of what `/status.json` answers."""

from __future__ import annotations

import math
from typing import Any, Final

NOW: Final = 1_790_000_000.0
SCRIPT: Final = "<img src=x onerror=\"document.title='broken in'\"><script>document.title='broken in'</script>"
RIGHT_TO_LEFT: Final = "\u202e\u05e9\u05dc\u05d5\u05dd \u05d0\u05d1 <b>\u05e2</b>\u202c"
LONG: Final = "A" * 10_000

Document = dict[str, Any]


def percentiles(count: int, *seconds: float) -> Document:
    return {"count": count, **dict(zip(("p50", "p90", "p99", "p999"), seconds, strict=True))}


def stages(**mean_seconds: float) -> list[Document]:
    names = ("wait", "layout", "decode", "softmax", "encode", "general", "deliver", "commit")
    return [
        {
            "stage": name,
            "batches": 0 if name not in mean_seconds else 10 if name in {"general", "commit"} else 104,
            "mean_seconds": mean_seconds.get(name, 0.0),
            "total_seconds": mean_seconds.get(name, 0.0) * (10 if name in {"general", "commit"} else 104),
        }
        for name in names
    ]


def sizes(*batches: int) -> list[Document]:
    bounds = (1, 4, 16, 64, 256, 1024, 4096, 16384, None)
    return [{"upto": upto, "batches": number} for upto, number in zip(bounds, batches, strict=True)]


def partition(number: int, records: int, seconds: float, rate: float, topic: str = "images.logits") -> Document:
    return {
        "topic": topic,
        "partition": number,
        "lag_records": records,
        "lag_seconds": seconds,
        "records_per_second": rate,
    }


def dead_letter(age: float, reason: str, detail: str, offset: int, **more: str) -> Document:
    place = {"topic": "images.logits", "partition": 3, "offset": offset}
    return {"at": NOW - age, "reason": reason, "detail": detail, **place, **more}


def settings() -> Document:
    return {
        "kafka": {
            "bootstrap_servers": "broker-1:9092,broker-2:9092",
            "group_id": "softmax-images",
            "client_rack": None,
            "sasl_password": "**********",
            "whole_batches": True,
            "session_timeout_ms": 30000,
        },
        "topics": {"input": "images.logits", "output": "images.probabilities", "dead_letter": "images.dead-letter"},
        "headers": {"drop": ["ce_*"]},
        "batch": {"max_records": 16384, "max_bytes": 4194304, "max_delay_ms": 0},
        "models": {"digits": {"temperature": 0.5, "labels": ["zero", "one"]}},
        "models_strict": False,
        "http": {"host": "127.0.0.1", "port": 8080},
    }


def healthy() -> Document:
    """A service at work, with a little of everything."""
    # A rebalance, and what had waited meanwhile.
    events = {44: -6000, 45: -11_000, 46: -10_500, 47: 6200, 48: 4100, 49: 2300, 50: 900}
    rates = [12_400 + 900 * math.sin(i / 7) + 500 * math.sin(i * i) + events.get(i, 0) for i in range(120)]
    return {
        "time": NOW,
        "service": {
            "version": "0.1.0",
            "python": "3.11.7",
            "numpy": "2.4.1",
            "aiokafka": "0.14.0",
            "group": "softmax-images",
            "input": "images.logits",
            "output": "images.probabilities",
            "dead_letter": "images.dead-letter",
            "guarantee": "at_least_once",
        },
        "uptime_seconds": 11_530.4,
        "health": {"ready": True, "stalled": False, "why": "running"},
        "window_seconds": 10.0,
        "throughput": {
            "records_per_second": 12_345.6,
            "dead_letters_per_second": 0.3,
            "consumed_per_second": 12_521.9,
            "history": [{"age_seconds": 119.0 - i, "records_per_second": rate} for i, rate in enumerate(rates)],
        },
        "latency": {
            **percentiles(123_456, 0.0024, 0.0048, 0.0187, 0.0423),
            "models": {
                "default": percentiles(98_765, 0.0022, 0.0041, 0.0156, 0.0398),
                "digits": percentiles(24_691, 0.0031, 0.0063, 0.0219, 0.0447),
            },
        },
        "stages": stages(
            wait=0.00012,
            layout=0.00031,
            decode=0.00046,
            softmax=0.00092,
            encode=0.00058,
            general=0.00021,
            deliver=0.00271,
            commit=0.00133,
        ),
        "batches": {
            "per_second": 10.4,
            "mean_records": 1187.1,
            "mean_bytes": 1_284_505.0,
            "closed_by": {"records": 7, "bytes": 2, "delay": 1, "idle": 93, "drain": 0},
            "records_histogram": sizes(1, 2, 5, 9, 21, 38, 19, 8, 0),
        },
        "paths": {"columnar": 123_211, "general": 245},
        "partitions": [
            partition(0, 112, 0.009, 3102.0),
            partition(1, 48, 0.004, 3055.4),
            partition(2, 0, 0.0, 3081.2),
            partition(3, 1874, 0.61, 3107.0),
        ],
        "in_flight": {"records": 1187, "bytes": 1_284_505},
        "retries": {"produce": 4},
        "rebalances": 2,
        "offsets_lost": 0,
        "dead_letters": {
            "by_reason": {"nan": 31, "not_numeric": 4, "too_many_classes": 1},
            "last": [
                dead_letter(3, "nan", "element 17 of 1000 is NaN", 918_273, payload="82a2696407a66c6f6769747393cb7ff8"),
                dead_letter(41, "not_numeric", "element 1 at byte 22 is not a number", 918_020),
                dead_letter(95, "too_many_classes", "1000001 classes, at most 1000000 are allowed", 917_411),
            ],
        },
        "predictions": {
            "default": {"count": 98_765, "mean_confidence": 0.7132, "mean_entropy": 0.9046},
            "digits": {"count": 24_691, "mean_confidence": 0.9387, "mean_entropy": 0.2114},
        },
        "settings": settings(),
    }


def idle() -> Document:
    """Just started, and nothing to do."""
    nothing = dict.fromkeys(("p50", "p90", "p99", "p999"))
    return healthy() | {
        "uptime_seconds": 0.4,
        "window_seconds": 10.0,
        "throughput": {
            "records_per_second": 0.0,
            "dead_letters_per_second": 0.0,
            "consumed_per_second": 0.0,
            "history": [],
        },
        "latency": {"count": 0, **nothing, "models": {}},
        "stages": stages(),
        "batches": {
            "per_second": 0.0,
            "mean_records": 0.0,
            "mean_bytes": 0.0,
            "closed_by": dict.fromkeys(("records", "bytes", "delay", "idle", "drain"), 0),
            "records_histogram": sizes(*[0] * 9),
        },
        "paths": {"columnar": 0, "general": 0},
        "partitions": [],
        "in_flight": {"records": 0, "bytes": 0},
        "retries": {"produce": 0},
        "rebalances": 0,
        "dead_letters": {"by_reason": {}, "last": []},
        "predictions": {},
    }


def hostile() -> Document:
    """Texts that come from strangers' messages and want to be more than text."""
    document = healthy()
    document["health"] = {"ready": True, "stalled": False, "why": SCRIPT}
    document["latency"]["models"] = {
        name: percentiles(9, 0.1, 0.2, 0.3, 0.4) for name in (SCRIPT, LONG, RIGHT_TO_LEFT, "__proto__", "constructor")
    }
    document["predictions"] = {
        name: {"count": 1, "mean_confidence": 0.5, "mean_entropy": 0.5} for name in (SCRIPT, LONG, RIGHT_TO_LEFT)
    }
    document["dead_letters"] = {
        "by_reason": {SCRIPT: 1, LONG: 2, "constructor": 3},
        "last": [
            dead_letter(1, "nan", SCRIPT, 1, payload=SCRIPT),
            dead_letter(2, LONG, LONG, 2, payload="ff" * 5000),
            dead_letter(3, RIGHT_TO_LEFT, RIGHT_TO_LEFT, 3),
            dead_letter(3, "twice", "the same record again", 3),
            dead_letter(4, "lines", "one\n\ttwo \x00\x1b[31m \ud83d\ude00", 4),
        ],
    }
    document["settings"] = {SCRIPT: {LONG: SCRIPT, "__proto__": RIGHT_TO_LEFT}, "empty": {}}
    return document


def stalled() -> Document:
    """Ready once, but nothing moves."""
    return healthy() | {"health": {"ready": True, "stalled": True, "why": "nothing has moved for 61 s"}}


def many_partitions(number: int = 1000) -> Document:
    """More partitions than a page should list; number i has a lag of i records."""
    return healthy() | {"partitions": [partition(i, i, i / 1000, 1.0, "wide") for i in range(number)]}
