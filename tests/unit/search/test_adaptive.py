"""Adaptive λ: any scores end the search, orderly ones with their optimum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from workers.search.adaptive import LineSearch, most_evaluations

PAPER = [number / 20 for number in range(1, 41)]
steps = st.floats(1e-6, 1e6)
"""Between neighbouring scores: strictly rising or falling, and however steep."""


def carry_out(search: LineSearch, grid: Sequence[float], scores: Sequence[float | None]) -> list[float]:
    """Answer every question; the λ asked for, each on the grid and once."""
    asked: list[float] = []
    while (scaling := search.next()) is not None:
        assert scaling == search.next(), "asking again is no new question"
        assert scaling in grid
        assert scaling not in asked
        asked.append(scaling)
        search.tell(scaling, scores[grid.index(scaling)])
    return asked


@st.composite
def one_hill(draw: st.DrawFn, length: int) -> tuple[float, list[float]]:
    """The score of the base, and scores that rise strictly and then fall strictly, from a top anywhere."""
    top = draw(st.integers(0, length))
    rise = np.cumsum(draw(st.lists(steps, min_size=top, max_size=top)))
    fall = np.cumsum(draw(st.lists(steps, min_size=length - top, max_size=length - top)))
    summit = float(rise[-1]) if top else 0.0
    scores = [0.0, *(float(value) for value in rise), *(float(summit - value) for value in fall)]
    return scores[0], scores[1:]


@settings(max_examples=300, deadline=None)
@given(hill=one_hill(40), base_known=st.booleans())
def test_one_hill_on_the_papers_grid_is_climbed_to_its_top(
    hill: tuple[float, list[float]], base_known: bool
) -> None:
    zero, scores = hill
    search = LineSearch(PAPER, zero if base_known else None)
    asked = carry_out(search, PAPER, scores)
    assert len(asked) <= 12
    assert search.best is not None
    assert search.best[1] == max(scores)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 13, 41, 100, 1000, 10_000])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.33, 0.71, 1.0])
def test_a_hill_is_climbed_on_any_grid(length: int, share: float) -> None:
    grid = [float(number) for number in range(1, length + 1)]
    top = share * length
    scores = [-abs(scaling - top) for scaling in grid]
    search = LineSearch(grid, -top)
    asked = carry_out(search, grid, scores)
    assert len(asked) <= min(length, most_evaluations(length))
    assert search.best is not None
    assert search.best[1] == max(scores)


@settings(max_examples=300, deadline=None)
@given(
    scores=st.lists(st.none() | st.floats(), min_size=1, max_size=90),
    zero=st.none() | st.floats(),
)
@example(scores=[None] * 40, zero=None)
@example(scores=[0.5] * 40, zero=0.5)
@example(scores=[0.0] * 40, zero=None)
@example(scores=[-math.inf, math.inf], zero=math.inf)
def test_any_scores_end_the_search_and_nothing_is_claimed_that_was_not_evaluated(
    scores: list[float | None], zero: float | None
) -> None:
    grid = [number / 20 for number in range(1, len(scores) + 1)]
    search = LineSearch(grid, zero)
    assert search.best is None
    asked = carry_out(search, grid, scores)
    assert 1 <= len(asked) <= search.most
    if len(grid) <= 40:
        assert len(asked) <= 12
    evaluated = {scaling: scores[grid.index(scaling)] for scaling in asked}
    real = {
        scaling: score for scaling, score in evaluated.items() if score is not None and math.isfinite(score)
    }
    if not real:
        assert search.best is None
    else:
        assert search.best is not None
        assert real[search.best[0]] == search.best[1] == max(real.values())


def test_it_starts_with_the_grids_zero_where_the_grid_has_one() -> None:
    grid = [0.0, 0.1, 0.2]
    search = LineSearch(grid, 0.9)
    assert carry_out(search, grid, [0.9, 0.8, 0.1])
    assert search.best == (0.0, 0.9)


def test_what_overflows_lies_beyond_the_optimum() -> None:
    scores = [1 - abs(scaling - 0.3) if scaling < 0.5 else None for scaling in PAPER]
    search = LineSearch(PAPER, 0.5)
    carry_out(search, PAPER, scores)
    assert search.best == (0.3, 1.0)


def test_a_plateau_of_many_equal_scores_is_no_endless_question() -> None:
    scores = [min(0.9, scaling) for scaling in PAPER]
    search = LineSearch(PAPER, 0.0)
    assert len(carry_out(search, PAPER, scores)) <= 12
    assert search.best is not None
    assert search.best[1] == 0.9


def test_the_neighbours_within_the_noise_are_looked_at() -> None:
    """A dent of one image beside the optimum does not hide it."""
    scores = [0.8 - (scaling - 0.5) ** 2 for scaling in PAPER]
    scores[PAPER.index(0.5)] = 0.795
    scores[PAPER.index(0.55)] = 0.802
    search = LineSearch(PAPER, 0.3)
    carry_out(search, PAPER, scores)
    assert search.best == (0.55, 0.802)


def test_an_interrupted_search_is_replayed() -> None:
    rng = np.random.default_rng(0)
    scores = [float(value) for value in rng.uniform(size=40)]
    whole = carry_out(LineSearch(PAPER, 0.2), PAPER, scores)
    resumed = LineSearch(PAPER, 0.2)
    for scaling in whole[:5]:
        assert resumed.next() == scaling
        resumed.tell(scaling, scores[PAPER.index(scaling)])
    assert [*whole[:5], *carry_out(resumed, PAPER, scores)] == whole
