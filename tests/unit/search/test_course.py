"""In which order a search evaluates, and where it ends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from perceptrons import search_body

from taumerge.schemas import MethodSpec, SearchRequest
from workers.aggregation import build_rule
from workers.merging.mix import Mix
from workers.merging.sums import Sums
from workers.search.course import Course, Sweep, plot_course
from workers.search.directions import Direction, Recipe

INDIVIDUAL = {"shapes": 0.5, "digits": 0.8, "signs": 1.0}
BASE = {"shapes": 0.1, "digits": 0.2, "signs": 0.3}


def direction(digest: str) -> Direction:
    recipe = Recipe(build_rule(MethodSpec(name="median")), Mix((0,), frozenset(), (), {}, Sums()))
    return Direction(digest, recipe, 8)


def course(tmp_path: Path, digests: str, **options: Any) -> Course:
    request = SearchRequest.model_validate(search_body(tmp_path) | options)
    return plot_course(
        request,
        [direction(digest) for digest in digests],
        individual=INDIVIDUAL,
        base=BASE,
        deadline=None,
    )


def test_equal_directions_are_gone_along_once(tmp_path: Path) -> None:
    plotted = course(tmp_path, "abacb", scaling=[1.0, 0.5])
    assert [one.digest for one in plotted.directions] == ["a", "b", "c"]
    assert plotted.lines == {0: [0.5, 1.0], 1: [0.5, 1.0], 2: [0.5, 1.0]}


def test_the_drawn_points_are_grouped_by_direction(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "algorithm": "random",
        "budget": {"evaluations": 6},
        "scaling": [0.5, 1.0, 1.5],
    }
    plotted = course(tmp_path / "a", "abcd", **options)
    assert sum(len(scalings) for scalings in plotted.lines.values()) == 6
    assert all(scalings == sorted(set(scalings)) for scalings in plotted.lines.values())
    assert course(tmp_path / "b", "abcd", **options).lines == plotted.lines
    assert course(tmp_path / "c", "abcd", **options, seed=1).lines != plotted.lines


def test_optuna_is_asked_only_where_it_may_leave_something_out(tmp_path: Path) -> None:
    options: dict[str, Any] = {"algorithm": "optuna", "scaling": [0.5, 1.0]}
    assert course(tmp_path / "a", "ab", **options, budget={"evaluations": 3}).suggestions == 3
    assert course(tmp_path / "b", "ab", **options, budget={"evaluations": 4}).suggestions is None


def test_the_rest_after_optuna_is_drawn_and_that_of_an_interrupted_search_is_the_same(tmp_path: Path) -> None:
    plotted = course(
        tmp_path, "abc", scaling=[0.5, 1.0, 1.5], algorithm="optuna", budget={"evaluations": 6}, seed=3
    )

    def keys(rest: Course) -> set[tuple[str, float, str]]:
        lines = rest.lines.items()
        return {
            (rest.directions[at].digest, scaling, rest.split)
            for at, scalings in lines
            for scaling in scalings
        }

    known = {("a", 0.5, "validation"), ("c", 1.0, "validation")}
    rest = keys(plotted.rest(known))
    assert len(rest) == 4
    assert not rest & known
    for done in rest:
        assert keys(plotted.rest(known | {done})) == rest - {done}
    assert plotted.rest(known | rest).lines == {}


def test_scores_are_normalised_and_missing_where_a_model_could_not_be_scored(tmp_path: Path) -> None:
    plotted = course(tmp_path, "a")
    assert plotted.score(INDIVIDUAL) == 1.0
    assert plotted.score(BASE) == pytest.approx((0.2 + 0.25 + 0.3) / 3)
    assert plotted.score({}) is None
    assert plotted.score(BASE | {"signs": math.nan}) is None


def gone_through(line: Sweep, scores: dict[float, float | None]) -> list[float]:
    evaluated = []
    while (scaling := line.next()) is not None:
        assert line.next() == scaling
        evaluated.append(scaling)
        line.tell(scaling, scores[scaling])
    return evaluated


def test_patience_counts_scores_in_a_row_that_are_worse_than_the_best() -> None:
    scores: dict[float, float | None] = {1: 0.5, 2: 0.4, 3: 0.5, 4: 0.4, 5: None, 6: 0.9}
    assert gone_through(Sweep(list(scores), 2), scores) == [1, 2, 3, 4, 5]
    assert gone_through(Sweep(list(scores), 3), scores) == [1, 2, 3, 4, 5, 6]
    assert gone_through(Sweep(list(scores), None), scores) == list(scores)


def test_one_point_of_a_line(tmp_path: Path) -> None:
    plotted = course(tmp_path, "ab", scaling=[0.5, 1.0], algorithm="optuna", budget={"evaluations": 1})
    assert gone_through(plotted.line(1, 1), {1.0: 0.3}) == [1.0]  # type: ignore[arg-type]
