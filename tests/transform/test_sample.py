"""The sample: some of the distributions as numbers, and outputs that do not know of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.transform.columnar import SAMPLED_NUMBERS, SAMPLED_ROWS
from service.transform.distributions import confidence_and_entropy
from service.transform.pipeline import MAX_SAMPLED, Limits, Messages, Pipeline, Work
from service.transform.profiles import Profile, Profiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

LIMITS: Final = Limits(1 << 22, 1 << 20)
RANDOM: Final = np.random.default_rng(8)


def message(logits: Any, **fields: object) -> bytes:
    packed: bytes = msgpack.packb({**fields, "logits": logits}, use_single_float=True)
    return packed


def worked(values: Sequence[bytes], profiles: Profiles | None = None, *, sampled: bool = True) -> Work:
    work = Pipeline(LIMITS, profiles).begin(Messages.of(values), sampled=sampled)
    for _ in work.by_columns():
        pass
    work.one_by_one()
    return work


def outputs(work: Work) -> dict[int, bytes]:
    return {
        position: value
        for block in work.blocks
        for position, value in zip(block.positions.tolist(), block.values(), strict=True)
    }


@pytest.mark.parametrize("classes", [1, 2, 10, 100, 1000, 5000])
def test_sampled_rows_are_distributions_that_left(classes: int) -> None:
    values = [message(RANDOM.normal(0, 3, classes).astype(np.float32).tolist()) for _ in range(300)]
    work = worked(values)
    left: set[tuple[float, ...]] = {
        tuple(np.array(msgpack.unpackb(output)["probabilities"], np.float32).tolist())
        for output in outputs(work).values()
    }
    rows = [row for _, some in work.sample for row in some]
    assert rows
    assert all(tuple(row.tolist()) in left for row in rows)


def test_a_block_gives_few_rows_spread_over_it() -> None:
    ((_, rows),) = worked([message([float(n), 0.0]) for n in range(1000)]).sample
    assert 1 < len(rows) <= SAMPLED_ROWS
    confidences = rows[:, 0].tolist()
    assert confidences == sorted(confidences)
    assert confidences[0] == 0.5
    wide = worked([message([0.0] * SAMPLED_NUMBERS) for _ in range(3)])
    assert all(len(rows) == 1 for _, rows in wide.sample)


def test_nothing_is_sampled_unless_asked_for_and_outputs_are_the_same() -> None:
    values = [message(RANDOM.normal(size=n % 7 + 1).tolist()) for n in range(100)]
    without, with_sample = worked(values, sampled=False), worked(values)
    assert without.sample == []
    assert outputs(without) == outputs(with_sample)


def test_the_sample_outlives_the_workspace() -> None:
    pipeline = Pipeline(LIMITS)
    for logits in ([1.0, 2.0], [9.0, 0.0]):
        work = pipeline.begin(Messages.of([message(logits)] * 3), sampled=True)
        list(work.by_columns())
        if logits == [1.0, 2.0]:
            first = work
    assert first.sample[0][1][0] == pytest.approx([0.2689414, 0.7310586])


def test_rows_without_a_distribution_are_left_out() -> None:
    values = [message([float("nan"), 1.0]), message([1.0, 1.0]), message([float("inf"), 1.0]), message([1.0, 1.0])]
    work = worked(values)
    assert sorted(work.refusals) == [0, 2]
    assert all(np.isfinite(rows).all() for _, rows in work.sample)


def test_each_head_and_each_profile_is_sampled() -> None:
    profiles = Profiles({"a": Profile(temperature=2.0)})
    heads = [message({"x": [1.0, 2.0], "y": [1.0, 2.0, 3.0]}, model="a")] * 2
    sample = worked([*heads, message([1.0, 2.0])], profiles).sample
    assert sorted((model, rows.shape[1]) for model, rows in sample) == [("a", 2), ("a", 3), ("default", 2)]


def test_of_messages_alone_so_many_are_looked_at() -> None:
    values = [message([float(n)] * (n + 1)) for n in range(MAX_SAMPLED + 5)]
    work = worked(values)
    assert work.general == len(values)
    assert len(work.sample) == MAX_SAMPLED


def test_thousands_of_kinds_make_no_sample_of_thousands_of_pieces() -> None:
    values = [message([0.0] * (n // 2 + 1), pad="x" * (n // 2)) for n in range(600)]
    work = worked(values)
    assert work.columnar == len(values)
    assert len(work.sample) == MAX_SAMPLED


@given(st.lists(st.lists(st.floats(-50, 50), min_size=4, max_size=4), min_size=1, max_size=20))
def test_confidence_and_entropy_agree_with_their_definitions(logits: list[list[float]]) -> None:
    z = np.array(logits)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    confidence, entropy = confidence_and_entropy(p)
    assert confidence == pytest.approx(p.max(axis=1))
    assert entropy == pytest.approx([-sum(x * np.log(x) for x in row if x > 0) for row in p], abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_masked_class_and_a_certain_one_have_no_part_in_the_entropy(dtype: type[np.floating[Any]]) -> None:
    rows: NDArray[np.floating[Any]] = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], dtype)
    confidence, entropy = confidence_and_entropy(rows)
    assert confidence.tolist() == [1.0, 0.5]
    assert entropy.tolist() == [0.0, pytest.approx(np.log(2))]
