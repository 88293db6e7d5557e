"""Record headers: which pass on, and what a dead letter says of itself."""

from __future__ import annotations

import hashlib
import re
from fnmatch import translate
from typing import TYPE_CHECKING, Final

import numpy as np

from service import __version__
from service.transform import byte_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiokafka import TopicPartition

    from service.transform.frames import Frames, Record
    from service.transform.refusals import InvalidMessage

    Headers = list[tuple[str, bytes | None]]

_OURS: Final = ("softmax-*", "__connect.errors.*")
ATTEMPT: Final = "softmax-error-attempt"
_OURS_PATTERN: Final = re.compile("|".join(map(translate, _OURS)))
_WILDCARD: Final = re.compile(r"[*?\[]")
MAX_TRACE_PARENTS: Final = 32
_COUNT: Final = re.compile(rb"[0-9]{1,9}")


def model_of(headers: Sequence[tuple[str, bytes | None]]) -> bytes | None:
    """What the header `model` says; as if absent where there are several."""
    given = [value for name, value in headers if name == "model"]
    return given[0] if len(given) == 1 else None


def trace_parents(frames: Frames) -> list[str]:
    """What the headers `traceparent` of some of the records say: a span has room for so many links."""
    with_headers = np.flatnonzero(frames.ends - frames.headers > 1)
    step = max(1, -(-len(with_headers) // MAX_TRACE_PARENTS))
    found = []
    for position in with_headers[::step].tolist():
        found += [
            value.decode("ascii", "replace")
            for name, value in frames.record(position).headers
            if name == "traceparent" and value is not None
        ][:1]
    return found


class HeaderPolicy:
    """Decides which headers of an input its output carries."""

    def __init__(self, drop: Sequence[str], group: str) -> None:
        """Drop names that match a pattern of `drop`; name `group` in dead letters."""
        self._dropped = re.compile("|".join(map(translate, [*_OURS, *drop])))
        self._group = group
        # What each dropped name begins with: where it does not occur, nobody needs to look for the name.
        self._beginnings = [_WILDCARD.split(pattern)[0].encode() for pattern in [*_OURS, *drop]]

    def passed_on(self, headers: Sequence[tuple[str, bytes | None]]) -> Headers:
        """The headers of an output."""
        return [header for header in headers if not self._dropped.match(header[0])]

    def all_pass(self, frames: Frames, start: int, stop: int) -> bool:
        """Whether nothing in the headers of these records can have a name that is dropped."""
        sizes = frames.ends[start:stop] - frames.headers[start:stop]
        some = np.flatnonzero(sizes > 1)
        if not len(some):
            return True
        if b"" in self._beginnings:
            return False
        ends = np.cumsum(sizes[some])
        together = np.empty(int(ends[-1]), np.uint8)
        begins = frames.headers[start:stop][some]
        byte_rows.copy(together, ends - sizes[some], frames.data, begins, sizes[some])
        content = together.tobytes()
        return not any(beginning in content for beginning in self._beginnings)

    def of_dead_letter(self, partition: TopicPartition, record: Record, refusal: InvalidMessage) -> Headers:
        """The headers of a dead letter: the record's own, then what happened to it where."""
        where = {"topic": partition.topic, "partition": str(partition.partition), "offset": str(record.offset)}
        ours = {
            "softmax-error-reason": refusal.reason.value,
            "softmax-error-message": refusal.detail,
            **{f"softmax-error-{name}": value for name, value in where.items()},
            "softmax-error-timestamp": str(record.timestamp),
            "softmax-error-group": self._group,
            "softmax-error-service-version": __version__,
            ATTEMPT: str(1 + attempts_of(record.headers)),
            **{f"__connect.errors.{name}": value for name, value in where.items()},
            "__connect.errors.exception.class.name": refusal.reason.value,
            "__connect.errors.exception.message": refusal.detail,
        }
        kept = [header for header in record.headers if not is_ours(header[0])]
        return [*kept, *((name, value.encode()) for name, value in ours.items())]


def without_value(headers: Headers, value: bytes | None) -> Headers:
    """The headers of a dead letter whose value is too long for its topic."""
    if value is None:
        return headers
    digest = hashlib.sha256(value).hexdigest()
    return [
        *headers,
        ("softmax-error-value-sha256", digest.encode()),
        ("softmax-error-value-length", str(len(value)).encode()),
    ]


def attempts_of(headers: Sequence[tuple[str, bytes | None]]) -> int:
    """How often a record has been refused: what a dead letter says, or one that was replayed."""
    attempts = [int(value) for name, value in headers if name == ATTEMPT and value and _COUNT.fullmatch(value)]
    return max(attempts, default=0)


def is_ours(name: str) -> bool:
    """Whether this service writes headers of that name to dead letters."""
    return _OURS_PATTERN.match(name) is not None
