"""Many messages, each alone and in company, by either path: five thousand, or a million with `scripts/test --long`."""

from __future__ import annotations

import random
import resource
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import settings as hypothesis_settings
from invariants import HEADERS, LIMITS, SETTINGS, Setting, compare, transformed
from mutator import mutate, survey
from seeds import ANSWERED, f4, f8, message

from service.transform.pipeline import Outcome, Pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from invariants import Record

CASES: Final = 50 * hypothesis_settings().max_examples
BATCH: Final = 100
# The seeds are small; sums have an order from eight classes on, and another memory layout beyond some hundreds.
BASES: Final = [
    *ANSWERED.values(),
    *(message(numbers(*range(classes))) for classes in (9, 33, 130, 500) for numbers in (f4, f8)),
]
# Batches between two looks at the memory; what is remembered of messages is full long before.
SETTLED: Final = 1000
KIB_OF_GROWTH: Final = 64 << 10


def renumbered(value: bytes, chance: random.Random) -> bytes:
    """The same kind of message with other numbers, ids and times, nearly always legal ones."""
    changed = bytearray(value)
    for node in survey(value):
        if node.kind == "scalar" and node.end > node.body:
            changed[node.body + 1 : node.end] = chance.randbytes(node.end - node.body - 1)
        elif node.kind == "bin" and node.end - node.body > len(b"__ndarray__"):
            changed[node.body : node.end] = chance.randbytes(node.end - node.body)
    return bytes(changed)


def batch_of(chance: random.Random) -> list[Record]:
    """Mostly messages of a few kinds with other numbers, some damaged, some of any kind; in any order."""
    kinds = chance.sample(BASES, 3)
    values = [renumbered(chance.choice(kinds), chance) for _ in range(BATCH * 6 // 10)]
    values += [mutate(chance.choice(kinds), chance) for _ in range(BATCH * 3 // 10)]
    values += [chance.choice(BASES) for _ in range(BATCH - len(values))]
    chance.shuffle(values)
    header = chance.choice(HEADERS)
    return [(value, chance.choice(HEADERS) if chance.random() < 0.1 else header) for value in values]


def cut(batch: list[Record], chance: random.Random) -> Iterator[list[Record]]:
    """The batch in pieces."""
    places = sorted(chance.sample(range(1, len(batch)), chance.randint(1, 5)))
    for start, stop in zip([0, *places], [*places, len(batch)], strict=True):
        yield batch[start:stop]


def share_of_columns(outcomes: list[Outcome]) -> float:
    """How many of the answered records went by columns."""
    columnar = sum(outcome.columnar for outcome in outcomes)
    return columnar / (columnar + sum(outcome.general for outcome in outcomes))


@pytest.mark.timeout(3 * 3600)
@pytest.mark.parametrize("setting", SETTINGS, ids=range(len(SETTINGS)))
def test_a_record_ends_the_same_by_either_path_and_in_any_company(setting: Setting) -> None:
    """Alone in a fresh pipeline, which knows no layout, and in batches of long-lived ones: whole, shuffled, cut."""
    chance = random.Random(repr(setting))  # noqa: S311 - repeatable
    limits, profiles = LIMITS[0], setting.profiles()
    whole, pieces = Pipeline(limits, profiles), Pipeline(limits, profiles)
    outcomes: list[Outcome] = []
    settled_at = 0
    batches = CASES // BATCH // len(SETTINGS)
    for number in range(batches):
        batch = batch_of(chance)
        alone = [transformed(Pipeline(limits, profiles), [record])[0] for record in batch]
        compare("in a batch", alone, transformed(whole, batch))
        order = chance.sample(range(len(batch)), len(batch))
        shuffled = [batch[position] for position in order]
        found = [verdict for piece in cut(shuffled, chance) for verdict in transformed(pieces, piece)]
        compare("in pieces of a shuffled batch", [alone[position] for position in order], found)
        if number < SETTLED:
            outcomes.append(whole.transform([value for value, _ in batch], [model for _, model in batch]))
            settled_at = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert share_of_columns(outcomes) > 0.3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - settled_at < KIB_OF_GROWTH
