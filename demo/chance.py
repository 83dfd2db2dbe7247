"""Says how many of a number of draws a weight may win without anything being wrong."""

from __future__ import annotations

from functools import cache

from pgshunt.migration.detector import binomial_tail

# A demo draws at fifteen weights: it fails for nothing but bad luck once in some 60,000 runs.
FALSE_ALARM = 1e-6


@cache
def expected(draws: int, percent: int) -> range:
    """How many of `draws` a weight of `percent` wins, but for a chance of FALSE_ALARM, half on each side."""
    share = percent / 100

    def plausible(won: int) -> bool:
        at_least, at_most = binomial_tail(won, draws, share), binomial_tail(draws - won, draws, 1 - share)
        return min(at_least, at_most) > FALSE_ALARM / 2

    return range(
        next(won for won in range(draws + 1) if plausible(won)),
        1 + next(won for won in range(draws, -1, -1) if plausible(won)),
    )
