"""How the codes of a map are written as digits, which a head predicts one after another."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from typing import Annotated

from vqvae.errors import UserError
from vqvae.ranges import Ge, Le, NotEmpty, checked

Values = Annotated[int, Ge(2), Le(2**18)]


class Digits(ABC):
    """How codes are written as digits. `prior/head=<choice>` names one."""

    @abstractmethod
    def of(self, size: int, factors: list[int]) -> list[int]:
        """K, and the factors of it that a code's index is made of (Quantizer.factors) -> how many values each digit has.

        Raises UserError where K codes cannot be written so.
        """


class Flat(Digits):
    """One digit: the code itself."""

    def of(self, size: int, factors: list[int]) -> list[int]:
        return [size]


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
