"""The softmax of one row in 60 digits, and how far each number may be off."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from decimal import Context, Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Width:
    """A floating-point type."""

    name: str
    code: str
    tag: int
    eps: Decimal
    tiny: Decimal
    largest: Decimal

    def rounded(self, value: float) -> Decimal:
        (rounded,) = struct.unpack(self.code, struct.pack(self.code, value))
        return Decimal(rounded)


_WIDTHS: Final = (
    Width("float32", "f", 0xCA, Decimal(2.0**-23), Decimal(2.0**-126), Decimal(2.0**128 - 2.0**104)),
    Width("float64", "d", 0xCB, Decimal(2.0**-52), Decimal(2.0**-1022), Decimal(math.nextafter(math.inf, 0))),
)
WIDTHS: Final = {width.name: width for width in _WIDTHS}
NOTHING: Final = Decimal("-Infinity")
EXACTLY: Final = Context(prec=60)
SUM_TOLERANCE: Final = 4 * 2.0**-23


@dataclass(frozen=True)
class Number:
    """A number that leaves, and by how much it may be off.

    A probability is within (8 + |x|) eps, x the distance from the highest logit over the temperature, of the type that
    it is computed in; within the smallest normal number where that is more. The bounds of what is made of
    probabilities follow from this one. Rounding to a narrower type that leaves adds half a step of it.

    Attributes:
        value: what it should be; infinite values must be met.
        tolerance: how far it may be off.
        width: the type that leaves.
        tagged: whether it is a msgpack object; else it is one of a bin.
        may_overflow: whether its negative is beyond the largest number of the types on its way.
        row: whose probability it is, if it is one of all probabilities of a row.
    """

    value: Decimal
    tolerance: Decimal
    width: Width
    tagged: bool = True
    may_overflow: bool = False
    row: Distribution | None = None

    @property
    def length(self) -> int:
        return struct.calcsize(self.width.code) + self.tagged

    def read(self, raw: bytes) -> float | None:
        """The number that stands in an output, `None` if it is not one of this type."""
        if len(raw) < self.length or (self.tagged and raw[0] != self.width.tag):
            return None
        order = ">" if self.tagged else "<"
        return float(struct.unpack(order + self.width.code, raw[self.tagged :])[0])

    def accepts(self, found: float) -> bool:
        if self.value == NOTHING or math.isinf(found):
            return found == -math.inf and (self.may_overflow or self.value == NOTHING)
        return not math.isnan(found) and abs(Decimal(found) - self.value) <= self.tolerance


@dataclass(frozen=True, eq=False)
class Distribution:
    """One row.

    Attributes:
        exponents: (z - max z) / T for each class, `NOTHING` where masked.
        total: the sum of their exponentials.
        probabilities: exactly 0 where masked.
        order: the classes by falling logits, the first of equals first.
        computed: the type in which all that was computed.
        leaving: the type that leaves.
    """

    exponents: list[Decimal]
    total: Decimal
    probabilities: list[Decimal]
    order: list[int]
    computed: Width
    leaving: Width

    @classmethod
    def of(cls, logits: Sequence[float], temperature: float, computed: Width, leaving: Width) -> Distribution:
        """The distribution of logits of which those that are masked are -inf."""
        highest, divisor = Decimal(max(logits)), computed.rounded(temperature)
        exponents = [NOTHING if z == -math.inf else (Decimal(z) - highest) / divisor for z in logits]
        exponentials = [Decimal(0) if x == NOTHING else x.exp() for x in exponents]
        total = sum(exponentials, Decimal(0))
        order = sorted(range(len(logits)), key=lambda at: (-logits[at], at))
        return cls(exponents, total, [each / total for each in exponentials], order, computed, leaving)

    @cached_property
    def log_total(self) -> Decimal:
        return self.total.ln()

    @cached_property
    def spread(self) -> Decimal:
        """The mean distance from the highest logit, which the sum's error grows with."""
        return sum((p * -x for p, x in zip(self.probabilities, self.exponents, strict=True) if p), Decimal(0))

    def _number(self, value: Decimal, error: Decimal) -> Number:
        """A number that was computed with such an error, and then rounded to leave."""
        rounding = abs(value) * self.leaving.eps / 2 if self.leaving.eps > self.computed.eps else Decimal(0)
        smallest = max(self.computed.tiny, self.leaving.tiny)
        return Number(value, max(error * self.computed.eps + rounding, smallest), self.leaving)

    def _error(self, at: int) -> Decimal:
        """The error of a probability, in eps."""
        return (8 - self.exponents[at]) * self.probabilities[at] if self.probabilities[at] else Decimal(0)

    def probability(self, at: int) -> Number:
        if self.exponents[at] == NOTHING:
            return Number(Decimal(0), Decimal(0), self.leaving)
        return self._number(self.probabilities[at], self._error(at))

    def all_probabilities(self) -> list[Number]:
        return [replace(self.probability(at), row=self) for at in range(len(self.probabilities))]

    def log_probability(self, at: int) -> Number:
        exponent, log = self.exponents[at], self.log_total
        if exponent == NOTHING:
            return Number(NOTHING, Decimal(0), self.leaving)
        number = self._number(exponent - log, 10 + self.spread + 2 * log - 2 * exponent)
        lowest = -min(self.computed.largest, self.leaving.largest)
        return replace(number, may_overflow=number.value - number.tolerance <= lowest)

    def log_probabilities(self) -> list[Number]:
        return [self.log_probability(at) for at in range(len(self.exponents))]

    def confidence(self) -> Number:
        return self.probability(self.order[0])

    def entropy(self) -> Number:
        terms = [(p, -x) for p, x in zip(self.probabilities, self.exponents, strict=True) if p]
        log = self.log_total
        error = 10 + 2 * log + sum((p * x * (20 + x) for p, x in terms), Decimal(0))
        return self._number(log + self.spread, error)

    def margin(self) -> Number:
        """The two may have been rounded to leave before their difference was taken."""
        if len(self.order) == 1:
            return Number(Decimal(1), Decimal(0), self.leaving)
        first, second = self.order[:2]
        highest, next_highest = self.probabilities[first], self.probabilities[second]
        number = self._number(highest - next_highest, self._error(first) + self._error(second) + 1)
        rounding = (highest + next_highest) * self.leaving.eps / 2
        return replace(number, tolerance=number.tolerance + rounding)
