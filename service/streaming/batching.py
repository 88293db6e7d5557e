"""When is a micro-batch full? A passive policy: it is told the time and never looks at a clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """The bounds of a micro-batch.

    Attributes:
        max_records: most records.
        max_bytes: most bytes of values; one record may exceed it alone.
        max_delay: seconds to wait for more after the first record; 0 takes what is there.
    """

    max_records: int
    max_bytes: int
    max_delay: float

    def cuts(self, sizes: NDArray[np.int64]) -> Iterator[tuple[int, int, str]]:
        """Where to cut records of so many bytes: `start`, `stop` and what closes the piece; one piece at least."""
        reach = np.cumsum(sizes)
        start, count = 0, len(sizes)
        while True:
            before = int(reach[start - 1]) if start else 0
            fitting = int(np.searchsorted(reach, before + self.max_bytes, side="right"))
            full = start + self.max_records
            stop = min(max(fitting, start + 1), full, count)
            yield start, stop, "records" if stop == full else "bytes"
            start = stop
            if start >= count:
                return


class Window:
    """A micro-batch while it fills; it opens at its first record, not when the last one closed."""

    def __init__(self, policy: BatchPolicy) -> None:
        """Open nothing yet."""
        self._policy = policy
        self._opened_at: float | None = None
        self.records = 0
        self.size = 0

    def add(self, records: int, size: int, now: float) -> None:
        """Take records in."""
        if self._opened_at is None and records:
            self._opened_at = now
        self.records += records
        self.size += size

    def waited(self, now: float) -> float:
        """Seconds since the first record came."""
        return 0.0 if self._opened_at is None else now - self._opened_at

    def remaining(self, now: float) -> float | None:
        """Seconds until the delay closes the window; `None` while it is empty."""
        if self._opened_at is None:
            return None
        return max(0.0, self._policy.max_delay - self.waited(now))

    def closed_by(self, now: float) -> str | None:
        """What has closed the window: `records`, `bytes`, `delay`, `idle`; `None` while it is open.

        `idle` means that no delay is asked for: what has arrived is taken.
        """
        if self.records >= self._policy.max_records:
            return "records"
        if self.size >= self._policy.max_bytes:
            return "bytes"
        if self.remaining(now) == 0.0:
            return "delay" if self._policy.max_delay else "idle"
        return None
