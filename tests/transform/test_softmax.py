"""The numbers: against an oracle of higher precision, and the same bits in whatever company."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import mpmath
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from transform_messages import assert_accurate, assert_sums_to_one

from service.transform.softmax import (
    CLASS_MAJOR_BELOW,
    FEW_RECORDS,
    INNER_LOOP,
    SUMMED_AT_ONCE,
    arithmetic,
    as_logits,
    distances_in_place,
    empty_logits,
    softmax_of_distances,
    sum_of_classes,
)

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
    return logits, in_place(logits)


def in_place(logits: Floats) -> list[bool]:
    with arithmetic():
        valid: list[bool] = distances_in_place(logits).tolist()
        softmax_of_distances(logits)
    return valid


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


@pytest.mark.parametrize("classes", [8, 16, 64, 255, 256, CLASS_MAJOR_BELOW - 1, CLASS_MAJOR_BELOW, 512, 1000, 10_000])
def test_level_tails_of_float32_sum_to_one(classes: int) -> None:
    """Where every addition rounds the same way, whatever that is."""
    assert_sums_to_one(worst_tail(classes, FLOAT32)[1])


# Every number of classes up to here, in both layouts, with and without remainders of lanes and chunks; then some.
EVERY: Final = [*range(1, 601), *range(SUMMED_AT_ONCE**2 // 16, 10_001, 997), 4096, 8191, 8192, 9999, 10_000]


@widths
def test_hostile_constants_sum_to_one_for_every_number_of_classes(dtype: np.dtype[Any]) -> None:
    """Constants whose sums lose the same low bits again and again, behind one that dwarfs them, and without it."""
    constants = np.array([0, -1e-7, -0.1, -1 / 3, -5.3, -5.545, -5.9, -15.1, -16.635], dtype)
    for classes in EVERY:
        rows = np.repeat(constants[:, None], classes, axis=1)
        behind_one = rows.copy()
        behind_one[:, -1] = 0
        for logits in (rows, behind_one):
            probabilities, valid = softmax(logits)
            assert all(valid)
            assert_sums_to_one(probabilities)


@widths
def test_a_sum_of_classes_is_off_by_a_few_roundings(dtype: np.dtype[Any]) -> None:
    """No more than a sum by halves: sums in sequence would be off by hundreds."""
    rng = np.random.default_rng(0)
    for classes in EVERY:
        values = empty_logits(3, classes, dtype)
        values[...] = rng.uniform(0.5, 1, (3, classes))
        exact = values.astype(np.longdouble).sum(axis=1)
        error = np.abs(sum_of_classes(values) - exact) / exact / np.finfo(dtype).eps
        assert error.max() <= 4, classes


@widths
@pytest.mark.parametrize("classes", [8, 16, 32, 64, 255, 256, CLASS_MAJOR_BELOW - 1, CLASS_MAJOR_BELOW, 1000, 5000])
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
    """Whatever its logit."""
    for value in (0.0, -5.0, float(np.finfo(dtype).max), -float(np.finfo(dtype).max)):
        probabilities, valid = softmax(np.array([[value]], dtype))
        assert (probabilities.tolist(), valid) == ([[1.0]], [True])


@widths
def test_the_distance_of_extremes_overflows_to_an_exact_zero_without_a_warning(dtype: np.dtype[Any]) -> None:
    """The distance is beyond the largest number, and its exponential 0."""
    largest = float(np.finfo(dtype).max)
    assert softmax(np.array([[largest, -largest]], dtype))[0].tolist() == [[1.0, 0.0]]


@widths
def test_exact_quarters_are_exact(dtype: np.dtype[Any]) -> None:
    """Powers of two are not rounded."""
    assert softmax(np.full((3, 4), 7, dtype))[0].tolist() == [[0.25] * 4] * 3


@widths
@pytest.mark.parametrize("classes", [1, 2, 255, 256, 1000])
@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf], ids=str)
def test_rows_without_a_distribution_are_told_and_change_no_neighbour(
    dtype: np.dtype[Any], classes: int, fault: float
) -> None:
    """One with NaN, with +inf or of -inf alone."""
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


def counts_of_rows(classes: int) -> list[int]:
    """How many rows to take together: around all numbers from which numpy is made to work otherwise."""
    if classes > 600:
        return [2, 3, 5]
    few = [2, 3, 11, FEW_RECORDS - 1, FEW_RECORDS, FEW_RECORDS + 1, 2 * FEW_RECORDS + 3]
    around = [INNER_LOOP // classes + more for more in (-1, 0, 1)]
    many = [INNER_LOOP - 1, INNER_LOOP, INNER_LOOP + 1, 2 * INNER_LOOP + 3] if classes <= 20 else []
    return [*few, *(count for count in around if count > 1), *many]


@widths
def test_a_row_has_the_same_bits_in_any_company_for_every_number_of_classes(dtype: np.dtype[Any]) -> None:
    """Alone, first, last or in the middle, of few or many, wherever in memory the block begins."""
    rng = np.random.default_rng(1)
    for classes in [*range(1, CLASS_MAJOR_BELOW + 9), 1000, 1024, 2047, 4097, 10_001, 65_537]:
        five = (rng.normal(size=(5, classes)) * 6).astype(dtype)
        five[1, ::2] = five[4, 1::2] = -np.inf
        five[1, -1] = five[4, 0] = 0
        alone = [softmax(row[None])[0].tobytes() for row in five]
        for shift, count in enumerate(counts_of_rows(classes)):
            memory = np.empty(count * classes + shift, dtype)
            block = as_logits(memory[shift:], count, classes)
            block[...] = np.resize(five, (count, classes))
            in_place(block)
            for row in {0, 1, count // 2, count - 2, count - 1}:
                assert block[row].tobytes() == alone[row % 5], (classes, count, row)


@widths
def test_the_memory_layout_follows_from_the_number_of_classes_alone(dtype: np.dtype[Any]) -> None:
    """Whole classes lie together where there are few, whole rows where there are many."""
    for classes in (1, 2, CLASS_MAJOR_BELOW - 1, CLASS_MAJOR_BELOW, 1000):
        for rows in (2, 3, 1000):
            logits = empty_logits(rows, classes, dtype)
            assert logits.shape == (rows, classes)
            assert logits.T.flags.c_contiguous is (classes < CLASS_MAJOR_BELOW)
            assert logits.flags.c_contiguous is (classes >= CLASS_MAJOR_BELOW or classes == 1)


@widths
@pytest.mark.parametrize("classes", [3, 500])
def test_the_steps_are_the_distances_and_then_their_softmax(dtype: np.dtype[Any], classes: int) -> None:
    """Distances are over the temperature; the sum that is told is what the exponentials were divided by."""
    rows = (np.random.default_rng(2).normal(size=(4, classes)) * 3).astype(dtype)
    logits = empty_logits(4, classes, dtype)
    logits[...] = rows
    with arithmetic():
        valid = distances_in_place(logits, 2.5)
        expected = (rows - rows.max(axis=1, keepdims=True)) / dtype.type(2.5)
        assert valid.all()
        np.testing.assert_array_equal(logits, expected)
        total = softmax_of_distances(logits)
    np.testing.assert_allclose(total, np.exp(expected.astype(np.longdouble)).sum(axis=1), rtol=1e-6)
    assert_accurate(logits, expected, float(np.finfo(dtype).eps))


@widths
@pytest.mark.parametrize("classes", [1, 3, 500])
@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf], ids=str)
def test_a_row_without_a_distribution_is_as_if_its_logits_were_equal(
    dtype: np.dtype[Any], classes: int, fault: float
) -> None:
    """So that no later step meets a number that is none."""
    logits = empty_logits(2, classes, dtype)
    logits[...] = fault
    with arithmetic():
        assert distances_in_place(logits).tolist() == [False, False]
        assert (logits == 0).all()
        softmax_of_distances(logits)
    assert_sums_to_one(logits)


# numpy's settings


def numpy_settings() -> tuple[int, dict[str, object]]:
    return np.getbufsize(), {**np.geterr()}


def test_numpy_is_as_it_was_after_the_arithmetic() -> None:
    """Its buffer and what it does about faulty numbers, whatever they were, and if the work failed too."""
    with np.errstate(over="raise", invalid="raise"):
        np.setbufsize(2048)
        before = numpy_settings()
        with arithmetic():
            assert set(np.geterr().values()) == {"ignore"}
            assert np.getbufsize() < before[0]
            with arithmetic():
                pass
            assert set(np.geterr().values()) == {"ignore"}
        assert numpy_settings() == before

        def fail() -> None:
            with arithmetic():
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert numpy_settings() == before


def test_the_softmax_leaves_numpy_as_it_was() -> None:
    """By itself, without a caller's `arithmetic`."""
    before = numpy_settings()
    softmax(np.array([[np.nan, np.inf], [1, -np.inf]]))
    assert numpy_settings() == before


@widths
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(1, 600), rows=st.integers(1, 70))
def test_any_block_equals_its_rows_taken_singly(dtype: np.dtype[Any], seed: int, classes: int, rows: int) -> None:
    """Rows of every style among each other."""
    assume(rows * classes < 30_000)
    logits = np.stack([many_logits(classes, seed + row, STYLES[row % 5], dtype) for row in range(rows)])
    together, _ = softmax(logits)
    for row in {0, rows // 2, rows - 1}:
        assert together[row].tobytes() == softmax(logits[row : row + 1])[0].tobytes()
