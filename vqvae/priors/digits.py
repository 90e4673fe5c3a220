"""How the codes of a map are written as digits, which a head predicts one after another."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from typing import Annotated

from vqvae.errors import UserError
from vqvae.ranges import Ge, Le, NotEmpty, checked

WHOLE_OR_BITS = "a masked prior predicts codes whole, or in groups of as many bits: take prior/head=flat or bits"
Values = Annotated[int, Ge(2), Le(2**18)]


class Digits(ABC):
    """How codes are written as digits. `prior/head=<choice>` names one."""

    @abstractmethod
    def of(self, size: int, factors: list[int]) -> list[int]:
        """K, and the factors of it that a code's index is made of (Quantizer.factors) -> how many values each digit has.

        Raises UserError where K codes cannot be written so.
        """

    def check(self, masks: bool) -> None:
        """Raises UserError unless a prior can predict such digits; `masks` is Prior.masks."""
        if masks:
            raise UserError(WHOLE_OR_BITS)


class Flat(Digits):
    """One digit: the code itself."""

    def of(self, size: int, factors: list[int]) -> list[int]:
        return [size]

    def check(self, masks: bool) -> None:
        """Nothing: every prior can."""


@checked
class Factors(Digits):
    """Mixed-radix digits of the index, the fastest first.

    Args:
        digits: how many values each has; their product is the K of every map. None: neighbors among the factors that a code is
            made of (bits of lfq and bsq, levels of fsq; prime factors of K elsewhere), in as few groups as `largest` allows,
            and those as even as can be.
        largest: values of such a group at most; a prime factor above it is a digit of its own.
    """

    def __init__(self, digits: Annotated[list[Values], NotEmpty] | None = None, largest: Values = 256) -> None:
        self.digits, self.largest = digits, largest

    def of(self, size: int, factors: list[int]) -> list[int]:
        if self.digits is None:
            return even_groups([p for f in factors for p in ([f] if f <= self.largest else primes(f))], self.largest)
        if math.prod(self.digits) != size:
            raise UserError(
                f"prior.head.digits={self.digits} make {math.prod(self.digits)} codes, and a map has {size}: "
                "null takes digits that fit"
            )
        return self.digits


@checked
class Bits(Digits):
    """Groups of as many bits of the index, the lowest first, which a masked prior hides and predicts each on its own.

    (MaskBit: Weber et al. 2024, arXiv 2409.16211, section 3.2.) K must be a power of 2.

    Args:
        groups: of a code; a softmax has the K^(1 / groups) values of one.
    """

    def __init__(self, groups: Annotated[int, Ge(2), Le(62)] = 2) -> None:
        self.groups = groups

    def of(self, size: int, factors: list[int]) -> list[int]:
        bits = size.bit_length() - 1
        if size != 2**bits:
            raise UserError(f"prior/head=bits needs a power of 2 of codes, and a map has {size}: take prior/head=flat")
        if not bits or bits % self.groups:
            fitting = " or ".join(str(n) for n in range(2, bits + 1) if bits % n == 0) or "no number of groups"
            raise UserError(
                f"prior.head.groups={self.groups} does not divide the {bits} bits of a map's {size} codes: {fitting} does"
            )
        return [2 ** (bits // self.groups)] * self.groups

    def check(self, masks: bool) -> None:
        if not masks:
            raise UserError(
                "prior/head=bits is for prior=maskgit, which hides groups of bits: take prior/head=factors, or flat"
            )


def even_groups(factors: list[int], largest: int) -> list[int]:
    """Products of neighbors of at most `largest`, in as few groups as can be; of those, with the least largest product."""

    def groups(most: int) -> list[int]:
        products = [1]
        for factor in factors:
            fits = products[-1] == 1 or products[-1] * factor <= most
            products[-1:] = [products[-1] * factor] if fits else [products[-1], factor]
        return products

    count = len(groups(largest))
    return groups(1 + bisect_left(range(1, largest), True, key=lambda most: len(groups(most)) <= count))


def primes(number: int) -> list[int]:
    """Prime factors, the smallest first."""
    found, divisor = [], 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return [*found, number] if number > 1 or not found else found
