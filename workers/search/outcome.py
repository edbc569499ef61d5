"""From the journal of a search to its result."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from taumerge.errors import JobFailed
from taumerge.schemas import BestEvaluation, Evaluation, Scores, Split
from workers.evaluation.scores import normalised
from workers.search.baselines import BASE, individual_scores, splits_of
from workers.search.course import Course
from workers.search.directions import Direction
from workers.search.journal import Journal
from workers.search.plan import SearchPlan
from workers.search.points import Candidate, line

LISTED = 20


@dataclass(frozen=True)
class Found:
    """The best merge of a rule, or of all."""

    candidate: Candidate
    direction: Direction
    evaluation: Evaluation


@dataclass(frozen=True)
class Outcomes:
    """Every evaluation of a search, and the best ones."""

    found: tuple[Found, ...]
    """In the order of the candidates, and of λ."""
    warnings: tuple[str, ...]

    @property
    def evaluated(self) -> int:
        """How many evaluations that were: equal directions share theirs."""
        return len({(one.direction.digest, one.evaluation.scaling) for one in self.found})

    @property
    def best(self) -> Found:
        """The merge with the highest score, the first of equals."""
        return _best(self.found)

    @property
    def best_by_method(self) -> dict[str, Found]:
        """The same of each rule, by its name."""
        names = dict.fromkeys(one.candidate.rule.name for one in self.found)
        return {name: _best(one for one in self.found if one.candidate.rule.name == name) for name in names}


def collect(
    plan: SearchPlan,
    candidates: Sequence[Candidate],
    directions: Sequence[Direction],
    course: Course,
    journal: Journal,
) -> Outcomes:
    """Every candidate and λ that was evaluated; candidates with equal directions share the scores.

    Raises:
        JobFailed: ``nothing_scored``: no merged model could be scored.
    """
    found: list[Found] = []
    warnings: list[str] = []
    for candidate, direction in zip(candidates, directions, strict=True):
        unscored: list[float] = []
        reason = ""
        for scaling in line(plan.request):
            record = journal.records.get((direction.digest, scaling, course.split))
            if record is None:
                continue
            scores = course.scores(record.tasks)
            if scores is None:
                unscored.append(scaling)
                reason = (
                    f"merged values of {record.overflowed[0]} are outside the range of its type"
                    if record.overflowed
                    else "its scores are no numbers"
                )
                continue
            evaluation = Evaluation(
                **scores.model_dump(), method=candidate.method, scaling=scaling, seconds=record.seconds
            )
            found.append(Found(candidate, direction, evaluation))
        if unscored:
            parameters = ", ".join(f"{name} {value}" for name, value in candidate.method.items())
            warnings.append(
                f"{parameters}: {len(unscored)} λ from {unscored[0]:g} on have no score, because {reason}"
            )
    if not found:
        raise JobFailed(
            "nothing_scored",
            f"no merged model could be scored; {warnings[0] if warnings else 'none was evaluated'}",
            {"warnings": warnings[:LISTED]},
        )
    return Outcomes(tuple(found), tuple(warnings))


def fine_tuned(plan: SearchPlan, journal: Journal) -> dict[str, Scores]:
    """By split: each task scored with the model that was fine-tuned for it."""
    scores = {split: individual_scores(plan, journal, split) for split in splits_of(plan)}
    return {split: normalised(tasks, tasks) for split, tasks in scores.items()}


def zero_shot(plan: SearchPlan, journal: Journal) -> dict[str, Scores]:
    """By split: the scores of the base."""
    return {
        split: normalised(journal.records[BASE, 1.0, split].tasks, individual_scores(plan, journal, split))
        for split in splits_of(plan)
    }


def with_test(found: Found, plan: SearchPlan, journal: Journal, split: Split | None) -> BestEvaluation:
    """The evaluation, with its row on ``split`` where there is one and its scores are numbers."""
    test = None
    if split is not None:
        tasks: Mapping[str, float] = journal.records[
            found.direction.digest, found.evaluation.scaling, split
        ].tasks
        if all(map(math.isfinite, tasks.values())):
            test = normalised(tasks, individual_scores(plan, journal, split))
    return BestEvaluation(**found.evaluation.model_dump(), test=test)


def _best(found: Iterable[Found]) -> Found:
    return max(found, key=lambda one: one.evaluation.score)
