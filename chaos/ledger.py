"""What has been stored in the input topic, and so what must come out."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np

from chaos import messages
from chaos.verdict import Expected


class LedgerError(Exception):
    """The input topic does not hold what was sent: nothing can be proven with it."""


@dataclass(slots=True)
class Column:
    """The records of one partition, by offset.

    Attributes:
        numbers: which message.
        stored_at: when it was acknowledged, monotonic seconds.
    """

    numbers: array[int] = field(default_factory=lambda: array("q"))
    stored_at: array[float] = field(default_factory=lambda: array("d"))


class Ledger:
    """Written by the load; read by everybody, at any time."""

    def __init__(self, partitions: int) -> None:
        """Begin with an empty topic."""
        self._columns = [Column() for _ in range(partitions)]

    def stored(self, partition: int, offset: int | None, number: int, at: float) -> None:
        """The broker has acknowledged a message.

        The offset is `None` where the broker only knows a repeated request as stored already: the message lies
        where the one after it, acknowledged with an offset, leaves it room.

        Raises:
            LedgerError: it lies where the next message of its partition should not.
        """
        column = self._columns[partition]
        place = len(column.numbers)
        if (offset is not None and offset != place) or (column.numbers and number <= column.numbers[-1]):
            raise LedgerError(f"message {number} lies at {partition}@{offset}, expected @{place}")
        column.stored_at.append(at)
        column.numbers.append(number)

    def __len__(self) -> int:
        """How many messages have been stored."""
        return sum(len(column.numbers) for column in self._columns)

    def refused(self) -> int:
        """How many of them must become dead letters."""
        return sum(messages.reason(number) is not None for column in self._columns for number in column.numbers)

    def coordinates(self, partition: int, number: int) -> tuple[int, int] | None:
        """Where in the input a message is; `None` as long as its acknowledgement is not here."""
        numbers = self._columns[partition].numbers
        count = len(numbers)
        at = bisect_left(numbers, number, 0, count)
        return (partition, at) if at < count and numbers[at] == number else None

    def expected(self) -> list[Expected]:
        """By input partition what must come out."""
        return [
            Expected(
                numbers=np.array(column.numbers, np.int64),
                stored_at=np.array(column.stored_at, np.float64),
                refused=np.array([messages.reason(number) is not None for number in column.numbers], bool),
            )
            for column in self._columns
        ]
