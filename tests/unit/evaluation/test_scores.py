"""Normalised scores, by hand."""

from __future__ import annotations

import math

import pytest

from taumerge.errors import JobFailed
from workers.evaluation.scores import normalised


def test_the_score_is_the_mean_of_ratios_and_not_the_ratio_of_means() -> None:
    scores = normalised({"a": 0.5, "b": 0.9}, {"a": 1.0, "b": 0.6})
    assert scores.score == pytest.approx((0.5 / 1.0 + 0.9 / 0.6) / 2)
    assert scores.average == pytest.approx(0.7)
    assert scores.tasks == {"a": 0.5, "b": 0.9}


def test_only_the_tasks_that_are_scored_count() -> None:
    assert normalised({"a": 0.5}, {"a": 0.5, "b": 0.0}).score == 1.0


@pytest.mark.parametrize("useless", [0.0, -0.1, math.nan, math.inf])
def test_an_individual_model_that_scores_nothing_is_an_error_that_names_its_task(useless: float) -> None:
    with pytest.raises(JobFailed, match=f"'b' scores {useless:g} ") as failed:
        normalised({"a": 0.5, "b": 0.1}, {"a": 0.5, "b": useless})
    assert failed.value.code == "individual_score_zero"
    assert failed.value.details == {"tasks": ["b"]}
