"""The rows that stand beside every merged model: the base (zero-shot), and each fine-tuned model on its own task."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ray import ObjectRef

from taumerge.errors import JobFailed
from taumerge.schemas import MethodSpec, Progress, Split
from workers.aggregation import build_rule
from workers.evaluation.scores import normalised
from workers.merging.dispatch import Report
from workers.merging.mix import Mix
from workers.merging.sums import Sums
from workers.search.bench import Bench, stream
from workers.search.directions import Recipe, Shards, silent
from workers.search.evaluators import Outcome, gather
from workers.search.journal import Journal, Record
from workers.search.plan import SearchPlan

BASE = "base"
UNUSABLE = ("individual_score_zero", "base_score_nonfinite")
"""Failures of ``score_baselines`` that are repaired in what it scored: nothing of that is of use again."""


def model_name(index: int) -> str:
    """What the journal calls a fine-tuned model."""
    return f"models.{index}"


def splits_of(plan: SearchPlan) -> tuple[Split, ...]:
    """The splits that are scored: first the one that decides."""
    spec = plan.request.evaluation
    return tuple(dict.fromkeys(split for split in (spec.select_on, spec.report_on) if split is not None))


def score_baselines(
    plan: SearchPlan, bench: Bench, journal: Journal, clock: Callable[[], float], report: Report
) -> None:
    """Score the base and the fine-tuned models on every split, as far as the journal has not.

    Raises:
        JobFailed: ``individual_score_zero``: a task on which its own model scores 0 normalises nothing;
            ``base_score_nonfinite``.
    """
    splits = splits_of(plan)
    progress = Progress(
        phase="baseline", total=(1 + len(plan.request.models)) * len(splits), unit="evaluations"
    )

    def tick() -> None:
        report(progress)

    def keep(model: str, split: Split, outcome: Outcome, seconds: float) -> None:
        record = Record(model, 1.0, split, outcome.tasks, round(seconds, 6), round(outcome.evaluating, 6))
        journal.append(replace(record, elapsed=round(clock(), 3)))

    for split in splits:
        if (BASE, 1.0, split) not in journal.records:
            moved = [actor.take.remote(plan.merge.base) for actor in bench.evaluators.actors]
            keep(BASE, split, *bench.evaluators.score(split, moved).wait(tick))
        progress.done += 1

    waiting: list[tuple[str, Split, list[ObjectRef[Any]]]] = []
    for index, model in enumerate(plan.request.models):
        name = model_name(index)
        todo = [split for split in splits if (name, 1.0, split) not in journal.records]
        progress.done += len(splits) - len(todo)
        if todo:
            actor = bench.evaluators.of_task(model.task)
            moved = _set_to_model(plan, index, actor, bench, tick)
            scored = [actor.score.remote(split, (model.task,)) for split in todo]
            waiting += [(name, split, [*moved, one]) for split, one in zip(todo, scored, strict=True)]
    for name, split, references in waiting:  # the evaluators work side by side meanwhile
        begun = time.perf_counter()
        outcome = gather(references, tick)[-1]
        if outcome.overflowed:
            raise JobFailed(
                "overflow",
                f"{name}: values of {sorted(outcome.overflowed)[0]} with the adapter are outside the range of its type",
                {"tensors": sorted(outcome.overflowed)},
            )
        keep(name, split, outcome, time.perf_counter() - begun)
        progress.done += 1
    for split in splits:
        scores = individual_scores(plan, journal, split)
        normalised(scores, scores)
        base = journal.records[BASE, 1.0, split].tasks
        if unusable := [task for task, score in base.items() if not math.isfinite(score)]:
            raise JobFailed(
                "base_score_nonfinite",
                f"the base scores {base[unusable[0]]} on task {unusable[0]!r}, so no merged model can be compared with "
                "it; check the task's data and metric, or leave the task out",
                {"tasks": unusable},
            )
    tick()


def individual_scores(plan: SearchPlan, journal: Journal, split: Split) -> Mapping[str, float]:
    """The score of each task with the model that was fine-tuned for it."""
    found = {
        model.task: journal.records[model_name(index), 1.0, split].tasks[model.task]
        for index, model in enumerate(plan.request.models)
    }
    return {task: found[task] for task in plan.request.evaluation.tasks}


def _set_to_model(
    plan: SearchPlan, index: int, actor: Any, bench: Bench, tick: Callable[[], None]
) -> list[ObjectRef[None]]:
    """Let an evaluator's model be a fine-tuned one: as it is stored, or the base with the adapter applied."""
    checkpoint = plan.merge.models[index]
    if checkpoint.adapter is None:
        return [actor.take.remote(checkpoint)]
    recipe = Recipe(
        build_rule(MethodSpec(name="task_arithmetic")), Mix((index,), frozenset(), (1.0,), {}, Sums())
    )
    alone = Shards.of(plan.merge, bench.shards.actors, (index,))
    return stream(alone, recipe, 1.0, [actor], tick, silent)
