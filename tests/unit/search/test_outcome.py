"""What the journal of a search amounts to."""

from __future__ import annotations

from taumerge.schemas import Evaluation, MethodSpec
from workers.aggregation import build_rule
from workers.merging.mix import Mix
from workers.merging.sums import Sums
from workers.search.directions import Direction, Recipe
from workers.search.outcome import Found, Outcomes
from workers.search.points import Candidate


def found(digest: str, scaling: float, score: float) -> Found:
    rule = build_rule(MethodSpec(name="median"))
    direction = Direction(digest, Recipe(rule, Mix((0,), frozenset(), (), {}, Sums())), 8)
    scores = {"score": score, "average": score, "tasks": {"digits": score}}
    evaluation = Evaluation.model_validate(scores | {"method": {}, "scaling": scaling, "seconds": 1.0})
    return Found(Candidate(rule), direction, evaluation)


def test_equal_directions_share_an_evaluation_and_equal_scores_do_not() -> None:
    outcomes = Outcomes((found("a", 0.5, 0.9), found("a", 0.5, 0.9), found("b", 0.5, 0.9)), ())
    assert outcomes.evaluated == 2


def test_the_best_is_the_first_of_equals() -> None:
    outcomes = Outcomes((found("a", 0.5, 0.8), found("b", 1.0, 0.9), found("c", 0.5, 0.9)), ())
    assert outcomes.best is outcomes.found[1]
