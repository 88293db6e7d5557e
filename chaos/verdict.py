"""The verdict: what should have come out, against what came out. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]
    Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Expected:
    """The input of one partition, in order.

    Attributes:
        numbers: the messages, ascending.
        stored_at: when each was acknowledged, monotonic seconds.
        refused: which must become dead letters; the others become outputs.
    """

    numbers: Numbers
    stored_at: Times
    refused: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a reader has read of one partition of one topic, in its order.

    Attributes:
        numbers: the messages that the records answer.
        offsets: where the records lie.
        at: when each was read, monotonic seconds.
    """

    numbers: Numbers
    offsets: Numbers
    at: Times


@dataclass(frozen=True, slots=True)
class Reading:
    """What one reader has read, by partition.

    Attributes:
        name: the reader's.
        outputs: of the output topic.
        dead_letters: of the dead-letter topic.
        corrupted: what was wrong with single records, in words.
    """

    name: str
    outputs: Sequence[Seen]
    dead_letters: Sequence[Seen]
    corrupted: Sequence[str] = ()


@dataclass(slots=True)
class Tally:
    """What a reader found wrong; or, of repeats, worth counting.

    Attributes:
        messages: how many should have come.
        lost: of these, how many did not.
        duplicated: how many came that had come before.
        reordered: how many came for the first time after a later one of their partition.
        corrupted: how many answered nothing that was asked, or wrongly.
        rewinds: how often a partition went back.
        examples: some of the lost, reordered and corrupted, in words.
    """

    messages: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupted: int = 0
    rewinds: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Sum up."""
        self.messages += other.messages
        self.lost += other.lost
        self.duplicated += other.duplicated
        self.reordered += other.reordered
        self.corrupted += other.corrupted
        self.rewinds += other.rewinds
        self.examples += other.examples

    def anomalies(self, *, repeats_allowed: bool) -> int:
        """How many things are not as promised."""
        return self.lost + self.reordered + self.corrupted + (0 if repeats_allowed else self.duplicated)


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault that has been inflicted.

    Attributes:
        name: which.
        detail: on whom, how long.
        begun: monotonic seconds.
        healed: monotonic seconds.
    """

    name: str
    detail: str
    begun: float
    healed: float


def compare(expected: Numbers, seen: Numbers) -> Tally:
    """Compare what one partition of a topic should hold, in order and once, with what was read from it."""
    ranks = np.searchsorted(expected, seen)
    known = ranks < len(expected)
    known[known] = expected[ranks[known]] == seen[known]
    tally = Tally(messages=len(expected), corrupted=int(np.count_nonzero(~known)))
    tally.examples += [f"{number} does not belong here" for number in seen[~known][:3]]
    ranks = ranks[known]
    found, at = np.unique(ranks, return_index=True)
    tally.duplicated = len(ranks) - len(found)
    tally.rewinds = int(np.count_nonzero(np.diff(ranks) <= 0))
    missing = np.delete(expected, found)
    tally.lost = len(missing)
    tally.examples += [f"{number} is lost" for number in missing[:3]]
    firsts = ranks[np.sort(at)]
    late = firsts[1:] < np.maximum.accumulate(firsts)[:-1]
    tally.reordered = int(np.count_nonzero(late))
    tally.examples += [f"{expected[rank]} came late" for rank in firsts[1:][late][:3]]
    return tally


def judge(expected: Sequence[Expected], reading: Reading) -> Tally:
    """Compare all that was sent with all that a reader has read."""
    total = Tally(corrupted=len(reading.corrupted), examples=list(reading.corrupted[:10]))
    for partition, (sent, outputs, letters) in enumerate(
        zip(expected, reading.outputs, reading.dead_letters, strict=True)
    ):
        for topic, wanted, seen in (("output", ~sent.refused, outputs), ("dead letter", sent.refused, letters)):
            tally = compare(sent.numbers[wanted], seen.numbers)
            tally.examples = [f"{topic} partition {partition}: {example}" for example in tally.examples]
            total.add(tally)
    return total


def disagreements(one: Reading, other: Reading) -> int:
    """How many records two readers of the same topics do not agree on: a committed record must never change."""
    count = 0
    for mine, theirs in zip([*one.outputs, *one.dead_letters], [*other.outputs, *other.dead_letters], strict=True):
        pairs = [set(zip(seen.offsets.tolist(), seen.numbers.tolist(), strict=True)) for seen in (mine, theirs)]
        count += len(pairs[0] ^ pairs[1])
    return count


def answered_at(sent: Expected, outputs: Seen, letters: Seen) -> Times:
    """When each message of a partition had been answered first, and all before it; not a number if never."""
    at = np.full(len(sent.numbers), np.nan)
    for seen in (outputs, letters):
        numbers, first = np.unique(seen.numbers, return_index=True)
        ranks = np.searchsorted(sent.numbers, numbers)
        known = ranks < len(sent.numbers)
        known[known] = sent.numbers[ranks[known]] == numbers[known]
        at[ranks[known]] = seen.at[first[known]]
    return np.fmax.accumulate(at) if len(at) else at


def longest_stall(sent: Expected, answered: Times) -> float:
    """The longest time, in seconds, that the next message of a partition waited for its answer."""
    if not len(answered):
        return 0.0
    ready = sent.stored_at.copy()
    ready[1:] = np.fmax(ready[1:], answered[:-1])
    waits = answered - ready
    return float(np.nanmax(waits, initial=0.0))


def recovery(sent: Expected, answered: Times, healed: float) -> float:
    """How long after `healed` all that had been stored by then was answered, in seconds."""
    count = int(np.searchsorted(sent.stored_at, healed, side="right"))
    return max(0.0, float(answered[count - 1]) - healed) if count else 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """All that there is to say in the end.

    Attributes:
        readers: what each reader found, by its name.
        disagreements: records that the readers do not agree on.
        longest_stall_s: the longest wait of a message that was next in its partition, seconds.
        recovery_s: by the fault's name, how long after its end until all from before was answered, each time.
        anomalies: how many things are not as promised.
    """

    readers: dict[str, Tally]
    disagreements: int
    longest_stall_s: float
    recovery_s: dict[str, list[float]]
    anomalies: int


def decide(
    expected: Sequence[Expected],
    concurrent: Reading,
    final: Reading,
    strikes: Sequence[Strike],
    *,
    repeats_allowed: bool,
) -> Verdict:
    """Judge both readers, and tell how long things took by what the concurrent one saw when."""
    readers = {reading.name: judge(expected, reading) for reading in (concurrent, final)}
    answered = [
        answered_at(*parts) for parts in zip(expected, concurrent.outputs, concurrent.dead_letters, strict=True)
    ]
    pairs = list(zip(expected, answered, strict=True))
    times: dict[str, list[float]] = {}
    for strike in strikes:
        longest = max((recovery(sent, at, strike.healed) for sent, at in pairs), default=0.0)
        times.setdefault(strike.name, []).append(round(longest, 3))
    differing = disagreements(concurrent, final)
    return Verdict(
        readers=readers,
        disagreements=differing,
        longest_stall_s=round(max((longest_stall(sent, at) for sent, at in pairs), default=0.0), 3),
        recovery_s=times,
        anomalies=differing + sum(tally.anomalies(repeats_allowed=repeats_allowed) for tally in readers.values()),
    )


def reading(name: str, columns: Sequence[tuple[Any, Any, Any]], partitions: int, corrupted: Sequence[str]) -> Reading:
    """Make a reading of columns (numbers, offsets, times), those of the output topic before the others."""
    seen = [
        Seen(np.array(numbers, np.int64), np.array(offsets, np.int64), np.array(at, np.float64))
        for numbers, offsets, at in columns
    ]
    return Reading(name, seen[:partitions], seen[partitions:], list(corrupted))
