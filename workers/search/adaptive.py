"""Adaptive λ: which λ of the grid to evaluate next along one direction. Pure: nothing is evaluated here.

The score rises from that of the base, at λ = 0, to an optimum and falls to chance. Where the optimum lies depends on
the rule and its scale. The search walks outwards by doubling steps until the score has clearly fallen, narrows
the bracket around the best score down to its neighbours on the grid, and last tries what lies next to λ that are
as good as the best within the noise of a few hundred examples. docs/search.md has the measured regret.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

MOST = 12
"""Evaluations of a grid of up to 40 λ; each doubling of the grid beyond needs two more."""
WALK = (0.25, 0.5, 1.0)
"""Where the walk outwards stops, as shares of the grid."""
FALLEN = 0.02
"""A score that is lower than the best by this share of it has passed the optimum."""
NOISE = 0.015
"""Scores that differ by less than this share might be in the other order on other examples."""
DENTS = 2
"""So many λ in a row below the noise bound a plateau."""
ZERO = -1
"""Place of λ = 0, before the first λ of the grid."""


class LineSearch:
    """Finds the λ with the best score among ``scalings``, asking for the score of one at a time.

    Where the scores rise strictly to one optimum and fall strictly from there, that optimum is found. Else the best
    evaluated is near the optimum: a search claims no more than it evaluated. The same answers lead to the same
    questions, so a search that was interrupted can be replayed.

    Args:
        scalings: the grid, ascending, without repetition.
        zero: the score of the base, where it is known.
    """

    def __init__(self, scalings: Sequence[float], zero: float | None) -> None:
        self._scalings = list(scalings)
        self._last = len(self._scalings) - 1
        self._scores: dict[int, float] = {}  # by place on the grid
        if zero is not None and math.isfinite(zero) and self._scalings[0] > 0:
            self._scores[ZERO] = zero
        self.most = min(len(self._scalings), most_evaluations(len(self._scalings)))
        """Evaluations at most."""

    def next(self) -> float | None:
        """The λ to evaluate next; None when the search has ended. Asking again without ``tell`` answers the same."""
        if len(self._evaluated()) == self.most:
            return None
        place = self._walk()
        if place is None:
            place = self._narrow()
        if place is None:
            place = self._look_around()
        return None if place is None else self._scalings[place]

    def tell(self, scaling: float, score: float | None) -> None:
        """The score at ``scaling``; None, or what is not finite, where there is none: worse than any."""
        known = -math.inf if score is None or not math.isfinite(score) else score
        self._scores[self._scalings.index(scaling)] = known

    @property
    def best(self) -> tuple[float, float] | None:
        """λ and score of the best that was evaluated, the smallest λ where several are equal; None before."""
        scored = {place: score for place, score in self._evaluated().items() if score > -math.inf}
        if not scored:
            return None
        place = max(scored, key=lambda place: (scored[place], -place))
        return self._scalings[place], scored[place]

    def _evaluated(self) -> dict[int, float]:
        return {place: score for place, score in self._scores.items() if place != ZERO}

    def _walk(self) -> int | None:
        stops = dict.fromkeys(max(0, math.ceil(share * len(self._scalings)) - 1) for share in WALK)
        known = self._evaluated()
        if known and self._scores[max(known)] < self._below_best(FALLEN):
            return None
        return next((stop for stop in stops if stop not in known), None)

    def _narrow(self) -> int | None:
        """A place between the best and its evaluated neighbours; None where they are its neighbours on the grid."""
        left, best, right = self._bracket()
        below, above = best - left - 1, right - best - 1
        if not below and not above:
            return None
        guess = self._summit(left, best, right)
        remaining = self.most - len(self._evaluated())
        if guess is not None and 1 + _needed_after(guess, left, best, right) <= remaining:
            return guess
        return (left + best + 1) // 2 if below >= above else (best + right) // 2

    def _look_around(self) -> int | None:
        """The nearest place to the best that only scores within the noise of it, and single dents, lead to."""
        _, best, _ = self._bracket()
        floor = self._below_best(NOISE)
        found = []
        for step in (-1, 1):
            place, dents = best + step, 0
            while place in self._scores and dents < DENTS:
                dents = 0 if self._scores[place] >= floor else dents + 1
                place += step
            if dents < DENTS and 0 <= place <= self._last:
                found.append(place)
        return min(found, key=lambda place: abs(place - best), default=None)

    def _bracket(self) -> tuple[int, int, int]:
        """Places of the best score and of the scores next to it; those beyond the grid count as known."""
        best = max(self._scores, key=lambda place: (self._scores[place], -place))
        edge = min(ZERO, best - 1)
        left = max((place for place in self._scores if place < best), default=edge)
        right = min((place for place in self._scores if place > best), default=self._last + 1)
        return left, best, right

    def _summit(self, left: int, best: int, right: int) -> int | None:
        """The place nearest to the top of the parabola through three scores, where it is new and on the grid."""
        low, top, high = (self._scores.get(place, -math.inf) for place in (left, best, right))
        if not math.isfinite(low + top + high) or (low == top == high):
            return None
        slope_left, slope_right = (top - low) / (best - left), (high - top) / (right - best)
        bend = (slope_right - slope_left) / (right - left)  # negative, as the top is in the middle
        place = round((left + best) / 2 - slope_left / (2 * bend))
        if place == best:
            place = best - 1 if best - left >= right - best else best + 1
        place = min(max(place, left + 1), right - 1)
        return place if 0 <= place <= self._last and place not in self._scores else None

    def _below_best(self, share: float) -> float:
        best = max(self._scores.values())
        return best - share * abs(best)


def most_evaluations(length: int) -> int:
    """How many evaluations a search of a grid of ``length`` λ may take."""
    return MOST + 2 * max(0, math.ceil(math.log2(length / 40)))


def _needed_after(place: int, left: int, best: int, right: int) -> int:
    """How many more evaluations narrow the bracket for certain, after one at ``place``, whichever way it turns out."""
    if place < best:
        outer, inner, other = place - left - 1, best - place - 1, right - best - 1
    else:
        outer, inner, other = right - place - 1, place - best - 1, best - left - 1
    return max(_needed(outer, inner), _needed(inner, other))


@cache
def _needed(one: int, other: int) -> int:
    """How many halvings of the longer side surely close a bracket with so many places on its sides."""
    if one < other:
        one, other = other, one
    if not one:
        return 0
    half = (one - 1) // 2
    rest = one - 1 - half
    return 1 + max(_needed(rest, half), _needed(half, other))
