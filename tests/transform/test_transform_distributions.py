"""What is told of a distribution: every quantity against a wider oracle, and the same bits in whatever company."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transform_messages import assert_accurate

from service.transform.distributions import Distributions, distribute
from service.transform.profiles import Output, Profile
from service.transform.softmax import CLASS_MAJOR_BELOW, arithmetic, empty_logits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

WIDTHS: Final[list[np.dtype[Any]]] = [np.dtype(np.float32), np.dtype(np.float64)]
widths = pytest.mark.parametrize("dtype", WIDTHS, ids=str)
# Both memory layouts, and both ways to find the highest few.
CLASSES: Final = [1, 2, 3, 7, CLASS_MAJOR_BELOW - 1, CLASS_MAJOR_BELOW, 511, 512, 513, 1025]
OUTPUTS: Final = tuple(output.value for output in Output if output is not Output.LABEL)
STYLES: Final = ["normal", "ties", "equal", "masks", "hostile", "one high"]
PER_ROW: Final = (
    "valid", "probabilities", "log_probabilities", "predicted", "confidence", "entropy", "margin", "top",
    "top_probabilities",
)  # fmt: skip


def everything(top_k: int = 5, **settings: Any) -> Profile:
    """A profile that asks for all that is computed."""
    return Profile(outputs=OUTPUTS, top_k=top_k, **settings)


def distributed(rows: Floats, profile: Profile) -> Distributions:
    """Distributions of rows, which stay as they are."""
    logits = empty_logits(len(rows), rows.shape[1], rows.dtype)
    logits[...] = rows
    with arithmetic():
        return distribute(logits, profile)


def present(values: NDArray[Any] | None) -> NDArray[Any]:
    assert values is not None
    return values


def row_of(made: Distributions, row: int) -> dict[str, bytes]:
    """All bits of one row."""
    return {name: present(getattr(made, name))[row].tobytes() for name in PER_ROW}


def some_rows(style: str, rows: int, classes: int, dtype: np.dtype[Any], seed: int = 0) -> Floats:
    """Rows that all have a distribution."""
    rng = np.random.default_rng([seed, classes])
    largest = float(np.finfo(dtype).max) / 2
    made: Floats = (rng.normal(size=(rows, classes)) * 4).astype(dtype)
    if style == "ties":
        made = rng.choice(np.array([1, 2, 2.5], dtype), (rows, classes))
    elif style == "equal":
        made[...] = dtype.type(-3)
    elif style == "masks":
        made[rng.random(made.shape) < 0.6] = -np.inf
        made[np.arange(rows), rng.integers(classes, size=rows)] = 0
    elif style == "hostile":
        made = rng.choice(np.array([largest, -largest, 1e30, 0, -0.0, np.finfo(dtype).tiny, -88, 3], dtype), made.shape)
    elif style == "one high":
        made[:, -1] = 200
    return made


class Row(NamedTuple):
    """A row as it should be."""

    exponents: Floats
    probabilities: Floats
    log_probabilities: Floats
    entropy: np.floating[Any]
    order: list[int]


def oracle(logits: Floats, temperature: float, masked: Sequence[int] = ()) -> Row:
    """One row in 64 bits of mantissa; the ranks by the logits themselves, the first of equals first."""
    exact = logits.astype(np.longdouble)
    exact[[index for index in masked if index < len(exact)]] = -np.inf
    with np.errstate(all="ignore"):
        exponents = (exact - exact.max()) / np.longdouble(logits.dtype.type(temperature))
        exponentials = np.exp(exponents)
        total = exponentials.sum()
        probabilities = exponentials / total
        terms = np.where(probabilities > 0, probabilities * np.maximum(exponents, -12_000), 0)
    order = sorted(range(len(exact)), key=lambda index: (-exact[index], index))
    return Row(exponents, probabilities, exponents - np.log(total), np.log(total) - terms.sum(), order)


def assert_row(made: Distributions, row: int, expected: Row, top_k: int, dtype: np.dtype[Any]) -> None:
    """Compare all that is told of one row."""
    eps, largest = float(np.finfo(dtype).eps), np.longdouble(np.finfo(dtype).max)
    probabilities = made.probabilities[row]
    assert_accurate(probabilities, expected.exponents, eps)
    logarithms = present(made.log_probabilities)[row].astype(np.longdouble)
    finite, overflown = expected.log_probabilities > -largest, expected.log_probabilities < -1.001 * largest
    bound = eps * (8 + 2 * np.log(len(probabilities)) - 2 * expected.exponents)
    assert (np.abs(logarithms[finite] - expected.log_probabilities[finite]) <= bound[finite]).all()
    assert (logarithms[overflown] == -np.inf).all()
    spread = (expected.probabilities * np.maximum(expected.exponents, -12_000) ** 2).sum()
    entropy = float(present(made.entropy)[row])
    assert abs(entropy - float(expected.entropy)) <= eps * (16 + 4 * np.log(len(probabilities)) + 4 * float(spread))
    best = expected.order[:top_k]
    assert present(made.top)[row].tolist() == best
    assert present(made.top_probabilities)[row].tolist() == probabilities[best].tolist()
    assert present(made.predicted)[row] == best[0]
    assert present(made.confidence)[row] == probabilities[best[0]]
    margin = present(made.margin)[row]
    others = np.delete(probabilities, best[0])
    assert margin == (probabilities[best[0]] - others.max() if len(others) else 1)


@widths
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("style", STYLES)
def test_every_quantity_agrees_with_a_wider_oracle(style: str, classes: int, dtype: np.dtype[Any]) -> None:
    """For every temperature and number of best classes."""
    rows = some_rows(style, 3, classes, dtype)
    for temperature, top_k in ((1.0, 1), (0.1, 3), (7.5, classes), (1e-6, classes + 5), (1e6, 2)):
        made = distributed(rows, everything(top_k, temperature=temperature))
        assert made.valid.tolist() == [True] * 3
        for row, logits in enumerate(rows):
            assert_row(made, row, oracle(logits, temperature), top_k, dtype)


@widths
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("style", STYLES)
def test_masked_classes_have_no_probability(style: str, classes: int, dtype: np.dtype[Any]) -> None:
    """Exactly 0, a logarithm of -inf, and a rank behind all others; indices beyond the classes are ignored."""
    masked = tuple(index for index in (0, classes // 2, classes - 2, classes, 10**9) if 0 <= index != classes - 1)
    rows = some_rows(style, 4, classes, dtype)
    rows[:, -1] = 1
    made = distributed(rows, everything(classes, masked=masked))
    assert made.valid.tolist() == [True] * 4
    hidden = [index for index in masked if index < classes]
    assert (made.probabilities[:, hidden] == 0).all()
    assert (present(made.log_probabilities)[:, hidden] == -np.inf).all()
    for row, logits in enumerate(rows):
        assert_row(made, row, oracle(logits, 1, masked), classes, dtype)


@widths
@pytest.mark.parametrize("classes", [2, CLASS_MAJOR_BELOW, 600])
@pytest.mark.parametrize("fault", [np.nan, np.inf], ids=str)
def test_a_fault_at_a_masked_class_is_a_fault(fault: float, classes: int, dtype: np.dtype[Any]) -> None:
    """It would go unseen once it is hidden; -inf there is none, nor is a fault at an index that is not masked away."""
    rows = some_rows("normal", 4, classes, dtype)
    rows[1, 1] = fault
    rows[2, 1] = -np.inf
    profile = everything(masked=(1,))
    assert distributed(rows, profile).valid.tolist() == [True, False, True, True]


@widths
@pytest.mark.parametrize("classes", [1, 3, 400, 600])
def test_rows_of_which_all_is_masked_have_no_distribution(classes: int, dtype: np.dtype[Any]) -> None:
    """Whether by the profile, by the logits or by both."""
    rows = some_rows("normal", 3, classes, dtype)
    assert distributed(rows, everything(masked=tuple(range(classes)))).valid.tolist() == [False] * 3
    rows[1, classes // 2 :] = -np.inf
    found = distributed(rows, everything(masked=tuple(range(classes // 2)))).valid.tolist()
    assert found == [True, False, True]


@widths
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf], ids=str)
def test_rows_without_a_distribution_disturb_no_others(fault: float, classes: int, dtype: np.dtype[Any]) -> None:
    """Every bit of every quantity is that of the row alone."""
    rows = np.concatenate([some_rows(style, 2, classes, dtype) for style in STYLES])
    for profile in (everything(4), everything(4, temperature=0.3, masked=(1, 600))):
        if classes == 2 and profile.masked:
            rows[:, 0] = 1
        alone = [row_of(distributed(row[None], profile), 0) for row in rows]
        spoilt = np.repeat(rows, 2, axis=0)
        spoilt[1::4] = fault
        spoilt[3::4, -1] = fault
        made = distributed(spoilt, profile)
        for row, expected in enumerate(alone):
            assert row_of(made, 2 * row) == expected
        assert not made.valid[1::4].any()
        if fault != -np.inf:
            assert not made.valid[1::2].any()


@widths
@given(
    classes=st.integers(1, 40) | st.sampled_from(CLASSES),
    count=st.integers(1, 20),
    style=st.sampled_from(STYLES),
    seed=st.integers(0, 2**32 - 1),
    temperature=st.sampled_from([1.0, 0.37, 2.0, 1e-6]),
)
def test_every_quantity_of_a_row_is_that_of_the_row_alone(
    dtype: np.dtype[Any], classes: int, count: int, style: str, seed: int, temperature: float
) -> None:
    """To the last bit, whatever the number of rows and its place among them."""
    rows = some_rows(style, count, classes, dtype, seed)
    profile = everything(min(3, classes), temperature=temperature)
    made = distributed(rows, profile)
    for row in {0, count // 2, count - 1}:
        assert row_of(made, row) == row_of(distributed(rows[row : row + 1], profile), 0)


@widths
@pytest.mark.parametrize("classes", [2, CLASS_MAJOR_BELOW - 1, CLASS_MAJOR_BELOW, 511, 512, 2000])
def test_equal_logits_rank_by_their_index(classes: int, dtype: np.dtype[Any]) -> None:
    """Zeros of either sign are equal; logits whose probabilities vanish are not."""
    rows = np.zeros((3, classes), dtype)
    rows[0, ::2] = -0.0
    rows[1] = -np.arange(classes) * dtype.type(1e3)
    rows[2] = 1
    rows[2, -1] = np.nextafter(dtype.type(1), dtype.type(2))
    made = distributed(rows, everything(classes))
    assert present(made.top)[0].tolist() == list(range(classes))
    assert present(made.top)[1].tolist() == list(range(classes))
    assert present(made.top)[2].tolist() == [classes - 1, *range(classes - 1)]
    assert present(made.predicted).tolist() == [0, 0, classes - 1]


@widths
@pytest.mark.parametrize("classes", [2, 5, 400])
@pytest.mark.parametrize("temperature", [2.0, 1e6, 1e38])
def test_distances_beyond_the_largest_number_are_divided_all_the_same(
    temperature: float, classes: int, dtype: np.dtype[Any]
) -> None:
    """The extremes of float32 are 6.8e38 apart: no number of its own, but over the temperature it is one."""
    largest = np.finfo(dtype).max
    rows = np.full((2, classes), -largest, dtype)
    rows[0, 0] = rows[1, 1:] = largest
    made = distributed(rows, everything(2, temperature=temperature))
    for row, logits in enumerate(rows):
        assert_row(made, row, oracle(logits, temperature), 2, dtype)


@widths
def test_the_temperature_is_rounded_to_the_width_of_the_logits(dtype: np.dtype[Any]) -> None:
    """So that one profile divides by one number per width."""
    rows = some_rows("normal", 2, 5, dtype)
    rounded = float(dtype.type(0.1))
    for row in (0, 1):
        assert row_of(distributed(rows, everything(2, temperature=0.1)), row) == row_of(
            distributed(rows, everything(2, temperature=rounded)), row
        )


@pytest.mark.parametrize("output", OUTPUTS)
def test_what_is_not_asked_for_is_not_computed(output: str) -> None:
    """Save what comes for nothing with what is."""
    beside = {
        "log_probabilities": {"log_probabilities", "entropy"},
        "entropy": {"log_probabilities", "entropy"},
        "predicted": {"predicted", "confidence"},
        "confidence": {"predicted", "confidence"},
        "margin": {"predicted", "confidence", "margin"},
        "top_k": {"top", "top_probabilities"},
    }
    profile = Profile(outputs=(output,), top_k=2 if output == "top_k" else None)
    made = distributed(some_rows("normal", 2, 4, WIDTHS[0]), profile)
    told = {name for name in PER_ROW if getattr(made, name) is not None} - {"valid", "probabilities"}
    assert told == beside.get(output, set())
