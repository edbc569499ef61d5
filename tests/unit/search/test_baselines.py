"""What the scores of the base and of the fine-tuned models must be before a merged model is scored."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from perceptrons import TASKS, search_body

from taumerge.errors import JobFailed
from taumerge.schemas import SearchRequest
from workers.search.baselines import BASE, UNUSABLE, model_name, score_baselines
from workers.search.bench import Bench
from workers.search.journal import Journal, Record
from workers.search.plan import check_search


def check(directory: Path, base: dict[str, float], individual: dict[str, float]) -> None:
    """``score_baselines`` where all was scored before."""
    plan = check_search(SearchRequest.model_validate(search_body(directory)), code_allowed=False)
    journal = Journal(directory)
    for split in ("validation", "test"):
        journal.append(Record(BASE, 1.0, split, dict.fromkeys(TASKS, 0.5) | base, 1.0, 1.0))
        for index, task in enumerate(TASKS):
            scores = {task: individual.get(task, 0.9)}
            journal.append(Record(model_name(index), 1.0, split, scores, 1.0, 1.0))
    unasked: Any = None
    score_baselines(plan, Bench(unasked, unasked, 0), Journal(directory), lambda: 0.0, lambda progress: None)


def test_a_base_may_score_anything_that_is_a_number(tmp_path: Path) -> None:
    check(tmp_path, {"digits": -0.5, "signs": 0.0}, {})


@pytest.mark.parametrize("score", [0.0, -0.1, math.nan, math.inf])
def test_an_individual_score_that_normalises_nothing(score: float, tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="'digits' scores") as failed:
        check(tmp_path, {}, {"digits": score})
    assert (failed.value.code, failed.value.details) == (UNUSABLE[0], {"tasks": ["digits"]})


@pytest.mark.parametrize("score", [math.nan, -math.inf])
def test_a_base_whose_score_is_no_number(score: float, tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="base scores") as failed:
        check(tmp_path, {"signs": score}, {})
    assert (failed.value.code, failed.value.details) == (UNUSABLE[1], {"tasks": ["signs"]})
