"""The numbers: against an oracle of higher precision, and the same bits in whatever company."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mpmath
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from transform_messages import assert_accurate, assert_sums_to_one

from service.transform.softmax import CLASS_MAJOR_BELOW, empty_logits, softmax_in_place

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy
    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

FLOAT32: np.dtype[Any] = np.dtype(np.float32)
FLOAT64: np.dtype[Any] = np.dtype(np.float64)
WIDTHS = [FLOAT32, FLOAT64]
widths = pytest.mark.parametrize("dtype", WIDTHS, ids=str)
# Summing one after another rounds at each step, at worst always the same way: (K - 1) / 2 eps.
# Up to here that stays within the specification however the sum is made.
FEW_CLASSES = 8


def softmax(rows: Floats) -> tuple[Floats, list[bool]]:
    """Probabilities of rows and whether each has any."""
    count, classes = rows.shape
    logits = empty_logits(count, classes, rows.dtype)
    logits[...] = rows
    valid = softmax_in_place(logits)
    return logits, valid.tolist()


def oracle(logits: list[float]) -> list[mpmath.mpf]:
    """The softmax with 50 digits."""
    with mpmath.workdps(50):
        highest = max(logits)
        terms = [mpmath.exp(mpmath.mpf(z) - mpmath.mpf(highest)) if z > -np.inf else mpmath.mpf(0) for z in logits]
        total = mpmath.fsum(terms)
        return [term / total for term in terms]


def few_logits(dtype: np.dtype[Any]) -> SearchStrategy[list[float]]:
    """Up to eight logits that have a distribution, the hostile ones among them."""
    info = np.finfo(dtype)
    largest, smallest, denormal = float(info.max), float(info.tiny), float(info.smallest_subnormal)
    hostile = [largest, -largest, 1e30, -1e30, smallest, -smallest, denormal, -denormal, 0.0, -0.0, 88.0, -104.0, 745.0]
    finite = st.one_of(
        st.floats(-30, 30, width=32 if dtype == np.float32 else 64),
        st.floats(width=32 if dtype == np.float32 else 64, allow_nan=False, allow_infinity=False),
        st.sampled_from([float(dtype.type(value)) for value in hostile]),
    )
    return st.lists(finite | st.just(-np.inf), min_size=1, max_size=FEW_CLASSES).filter(lambda z: max(z) > -np.inf)


@widths
@given(data=st.data())
def test_few_classes_agree_with_an_oracle_of_fifty_digits(dtype: np.dtype[Any], data: st.DataObject) -> None:
    """Within (8 + |z - max|) eps relative, and absolute below the normal range; masks exactly 0; sums to 1."""
    logits = data.draw(few_logits(dtype))
    (row,), valid = softmax(np.array([logits], dtype))
    assert valid == [True]
    eps, smallest = float(np.finfo(dtype).eps), float(np.finfo(dtype).tiny)
    with mpmath.workdps(50):
        for found, expected, z in zip(row.tolist(), oracle(logits), logits, strict=True):
            if z == -np.inf:
                assert found == 0
            else:
                distance = mpmath.mpf(max(logits)) - mpmath.mpf(z)
                bound = max((8 + distance) * eps * expected, mpmath.mpf(smallest))
                assert abs(mpmath.mpf(found) - expected) <= bound
    assert_sums_to_one(row)
    assert row[int(np.argmax(logits))] == row.max()


def many_logits(classes: int, seed: int, style: str, dtype: np.dtype[Any]) -> Floats:
    """Logits of one style, made from a seed: as lists they would be too slow to draw."""
    rng = np.random.default_rng(seed)
    limit = float(np.finfo(dtype).max)
    logits: Floats = (rng.normal(size=classes) * 10 ** rng.uniform(-2, 2)).astype(dtype)
    if style == "ties":
        logits = rng.choice(logits[:3], classes)
    elif style == "hostile":
        logits = rng.choice(np.array([limit, -limit, 1e30, -1e30, 0, np.finfo(dtype).tiny, -88, 1], dtype), classes)
    elif style == "biased":
        logits[:] = dtype.type(rng.uniform(-6, -5))
        logits[0] = 0
    if style == "masked":
        logits[rng.random(classes) < 0.5] = -np.inf
        logits[rng.integers(classes)] = 0
    return logits


STYLES = ["normal", "ties", "hostile", "masked", "biased"]
many = given(
    classes=st.integers(1, 5000) | st.sampled_from([127, 128, 129, 254, 255, 256, 257, 10_000]),
    seed=st.integers(0, 2**32 - 1),
    style=st.sampled_from(STYLES),
)


@widths
@many
def test_many_classes_rank_as_their_logits_and_mask_exactly(
    dtype: np.dtype[Any], classes: int, seed: int, style: str
) -> None:
    """The argmax of the logits has the highest probability, masks 0, equal logits equal bits, larger ones no less."""
    logits = many_logits(classes, seed, style, dtype)
    (row,), valid = softmax(logits[None])
    assert valid == [True]
    assert row[int(logits.argmax())] == row.max()
    assert (row[np.isneginf(logits)] == 0).all()
    for value in np.unique(logits)[:5]:
        assert len(set(row[logits == value].tolist())) == 1
    assert abs(float(row.astype(np.longdouble).sum()) - 1) < 1e-4


@widths
@many
@example(classes=255, seed=1, style="biased")
def test_many_classes_are_within_the_bound_of_a_longdouble_oracle(
    dtype: np.dtype[Any], classes: int, seed: int, style: str
) -> None:
    """Within (8 + |z - max|) eps relative, for up to 10 000 classes."""
    logits = many_logits(classes, seed, style, dtype)
    assert_accurate(softmax(logits[None])[0], logits, float(np.finfo(dtype).eps))


@many
@example(classes=255, seed=1, style="biased")
def test_many_float32_probabilities_sum_to_one(classes: int, seed: int, style: str) -> None:
    """Row sums stay within 4 float32 eps of 1 for up to 10 000 classes."""
    assert_sums_to_one(softmax(many_logits(classes, seed, style, FLOAT32)[None])[0])


@many
def test_many_float64_probabilities_sum_to_one(classes: int, seed: int, style: str) -> None:
    """Row sums stay within 4 float32 eps of 1 for up to 10 000 classes."""
    assert_sums_to_one(softmax(many_logits(classes, seed, style, FLOAT64)[None])[0])


def worst_tail(classes: int, dtype: np.dtype[Any]) -> tuple[Floats, Floats]:
    """Rows of one high logit and a level tail, whose additions all round the same way, and their softmax."""
    rows = np.empty((400, classes), dtype)
    rows[...] = np.linspace(-6, -5, 400)[:, None]
    rows[:, 0] = 0
    return rows, softmax(rows)[0]


@pytest.mark.parametrize(
    "classes",
    [
        8,
        16,
        64,
        255,
        256,
        512,
        1000,
        10_000,
    ],
)
def test_level_tails_of_float32_sum_to_one(classes: int) -> None:
    assert_sums_to_one(worst_tail(classes, FLOAT32)[1])


@widths
@pytest.mark.parametrize(
    "classes",
    [
        *(8, 16),
        32,
        64,
        255,
        *(256, 1000, 5000),
    ],
)
def test_level_tails_are_accurate(classes: int, dtype: np.dtype[Any]) -> None:
    """Each probability is within its bound where the rounding of the sum does its worst."""
    logits, probabilities = worst_tail(classes, dtype)
    assert_accurate(probabilities, logits, float(np.finfo(dtype).eps))


def test_everyday_float32_logits_sum_to_one() -> None:
    """Plain Gaussian logits, no trap in them."""
    logits = (np.random.default_rng(0).normal(size=(2000, 255)) * 3).astype(np.float32)
    assert_sums_to_one(softmax(logits)[0])


@widths
def test_one_class_has_probability_one(dtype: np.dtype[Any]) -> None:
    for value in (0.0, -5.0, float(np.finfo(dtype).max), -float(np.finfo(dtype).max)):
        probabilities, valid = softmax(np.array([[value]], dtype))
        assert (probabilities.tolist(), valid) == ([[1.0]], [True])


@widths
def test_the_distance_of_extremes_overflows_to_an_exact_zero_without_a_warning(dtype: np.dtype[Any]) -> None:
    largest = float(np.finfo(dtype).max)
    assert softmax(np.array([[largest, -largest]], dtype))[0].tolist() == [[1.0, 0.0]]


@widths
def test_exact_quarters_are_exact(dtype: np.dtype[Any]) -> None:
    assert softmax(np.full((3, 4), 7, dtype))[0].tolist() == [[0.25] * 4] * 3


@widths
@pytest.mark.parametrize("classes", [1, 2, 255, 256, 1000])
@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf], ids=str)
def test_rows_without_a_distribution_are_told_and_change_no_neighbour(
    dtype: np.dtype[Any], classes: int, fault: float
) -> None:
    rng = np.random.default_rng(classes)
    rows = rng.normal(size=(5, classes)).astype(dtype)
    expected = softmax(rows)[0]
    faulty = rows.copy()
    faulty[1, -1] = fault
    faulty[3] = fault
    found, valid = softmax(faulty)
    # A single -inf is a mask; only a row of nothing else has no distribution.
    assert valid == [True, classes > 1 and fault == -np.inf, True, False, True]
    for row in (0, 2, 4):
        assert found[row].tobytes() == expected[row].tobytes()


@pytest.mark.parametrize(
    "classes", [1, 2, 3, 7, 16, 127, 128, 129, CLASS_MAJOR_BELOW - 1, CLASS_MAJOR_BELOW, 257, 1000, 20_000]
)
@widths
def test_a_row_has_the_same_bits_in_whatever_company(dtype: np.dtype[Any], classes: int) -> None:
    """Alone, among any number of others and at any place in the block: lanes and remainders must not matter."""
    rng = np.random.default_rng(classes)
    counts = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 130] if classes <= 1000 else [1, 2, 3, 5]
    rows = (rng.normal(size=(max(counts), classes)) * 5).astype(dtype)
    if classes > 2:
        rows[1::4, 1] = -np.inf
        rows[2::4] = np.round(rows[2::4])
    rows[3::4] *= 20
    alone = [softmax(row[None])[0].tobytes() for row in rows]
    for count in counts:
        for start in {0, len(rows) - count, (len(rows) - count) // 3}:
            found, valid = softmax(rows[start : start + count])
            assert all(valid)
            assert [row.tobytes() for row in found] == alone[start : start + count]


@widths
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(1, 600), rows=st.integers(1, 70))
def test_any_block_equals_its_rows_taken_singly(dtype: np.dtype[Any], seed: int, classes: int, rows: int) -> None:
    assume(rows * classes < 30_000)
    logits = np.stack([many_logits(classes, seed + row, STYLES[row % 5], dtype) for row in range(rows)])
    together, _ = softmax(logits)
    for row in {0, rows // 2, rows - 1}:
        assert together[row].tobytes() == softmax(logits[row : row + 1])[0].tobytes()
