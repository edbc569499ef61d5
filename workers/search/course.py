"""What a search evaluates, in which order, and where it ends. Pure: nothing is evaluated here."""

from __future__ import annotations

import math
import random
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from taumerge.schemas import Scores, SearchRequest, Split
from workers.evaluation.scores import normalised
from workers.search.adaptive import LineSearch
from workers.search.directions import Direction
from workers.search.journal import Key
from workers.search.points import draw, line


class Line(Protocol):
    """Decides which λ are evaluated along a direction."""

    def next(self) -> float | None:
        """The λ to evaluate next; null at the end."""

    def tell(self, scaling: float, score: float | None) -> None:
        """Its score; null where it has none."""


class Sweep:
    """All λ in order, until ``patience`` of them in a row are worse than the best."""

    def __init__(self, scalings: Sequence[float], patience: int | None) -> None:
        self._left = list(scalings)
        self._patience = patience
        self._best = float("-inf")
        self._worse = 0

    def next(self) -> float | None:
        tired = self._patience is not None and self._worse >= self._patience
        return None if tired or not self._left else self._left[0]

    def tell(self, scaling: float, score: float | None) -> None:
        self._left.remove(scaling)
        worse = score is None or score < self._best
        self._worse = self._worse + 1 if worse else 0
        self._best = self._best if score is None else max(self._best, score)


@dataclass(frozen=True)
class Course:
    """What a search evaluates, and where it ends."""

    directions: tuple[Direction, ...]
    """Each once."""
    lines: Mapping[int, Sequence[float]]
    """The λ to try along each direction, ascending; directions without any are left out."""
    adaptive: bool
    patience: int | None
    suggestions: int | None
    """Let Optuna choose so many points; null: evaluate every line."""
    seed: int
    split: Split
    individual: Mapping[str, float]
    """Score of each task with the model that was fine-tuned for it, which normalises the others."""
    base: Mapping[str, float]
    """Score of each task with the base."""
    most: int | None
    """Evaluations at most, those of earlier attempts included."""
    deadline: float | None
    """No evaluation begins after this time."""

    def scores(self, tasks: Mapping[str, float]) -> Scores | None:
        """The normalised score of the scores of all tasks; null where the model could not be scored."""
        if not tasks or not all(math.isfinite(score) for score in tasks.values()):
            return None
        return normalised(tasks, self.individual)

    def score(self, tasks: Mapping[str, float]) -> float | None:
        """The number of ``scores`` that a search maximises."""
        scores = self.scores(tasks)
        return None if scores is None else scores.score

    def line(self, direction: int, place: int | None) -> Line:
        """How the λ of a direction are gone through; only one of them where a ``place`` is given."""
        scalings = self.lines[direction]
        if place is not None:
            return Sweep([scalings[place]], None)
        if self.adaptive:
            return LineSearch(scalings, self.score(self.base))
        return Sweep(scalings, self.patience)

    def rest(self, known: Container[Key]) -> Course:
        """What is left of the budget where Optuna suggests nothing new any more: points that are not ``known``, drawn.

        An interrupted search, to which more is known, has the same left all in all.
        """
        points = [(index, scaling) for index, scalings in self.lines.items() for scaling in scalings]
        random.Random(self.seed).shuffle(points)
        new = [
            (index, scaling)
            for index, scaling in points
            if (self.directions[index].digest, scaling, self.split) not in known
        ]
        left = (self.suggestions or 0) - (len(points) - len(new))
        return replace(self, lines=_by_direction(new[: max(0, left)]))

    def most_along(self, direction: int) -> int:
        """Evaluations along a direction, at most."""
        scalings = self.lines[direction]
        return LineSearch(scalings, None).most if self.adaptive else len(scalings)


def plot_course(
    request: SearchRequest,
    directions: Sequence[Direction],
    *,
    individual: Mapping[str, float],
    base: Mapping[str, float],
    deadline: float | None,
) -> Course:
    """What ``request`` evaluates along ``directions``, of which equal ones count once."""
    distinct = tuple({direction.digest: direction for direction in directions}.values())
    scalings, most = line(request), request.budget.evaluations
    lines: Mapping[int, Sequence[float]] = dict.fromkeys(range(len(distinct)), scalings)
    if request.algorithm == "random":
        lines = _by_direction(draw(request, distinct))
    asks = request.algorithm == "optuna" and most is not None and most < len(distinct) * len(scalings)
    return Course(
        directions=distinct,
        lines=lines,
        adaptive=request.algorithm == "adaptive",
        patience=request.patience,
        suggestions=most if asks else None,
        seed=request.seed,
        split=request.evaluation.select_on,
        individual=individual,
        base=base,
        most=most,
        deadline=deadline,
    )


def _by_direction(points: Iterable[tuple[int, float]]) -> dict[int, list[float]]:
    """The λ of each direction, ascending."""
    lines: dict[int, list[float]] = {}
    for index, scaling in sorted(points):
        lines.setdefault(index, []).append(scaling)
    return lines
