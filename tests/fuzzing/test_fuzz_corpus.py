"""The fuzzer's seed corpus in every run of the tests, without the fuzzer."""

from __future__ import annotations

import pytest
from invariants import Case, Examiner
from seeds import CORPUS, seeds


def test_the_corpus_is_what_its_program_writes() -> None:
    assert {file.name: file.read_bytes() for file in CORPUS.iterdir()} == seeds()


@pytest.mark.parametrize("name", seeds())
def test_a_seed_keeps_what_must_hold_and_is_refused_for_what_its_name_says(name: str) -> None:
    data = seeds()[name]
    Examiner().examine(data)
    case = Case.of(data)
    refusals = case.pipeline().transform([case.record[0]], [case.record[1]]).refusals
    if not name.startswith("dtype-"):
        expected = [name.split("-")[1]] if name.startswith("refused-") else []
        assert [str(refusal.reason) for refusal in refusals.values()] == expected


def test_the_seeds_one_after_another_keep_what_must_hold() -> None:
    examiner = Examiner()
    for data in seeds().values():
        examiner.examine(data)
