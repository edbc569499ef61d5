"""A search from request to result: plan, directions, evaluations, the winner on disk with the evidence."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from taumerge.errors import JobFailed
from taumerge.schemas import BestEvaluation, MethodSpec, Progress, SearchRequest, SearchResult
from workers.aggregation import Rule, build_rule
from workers.checkpoints.files import read_small
from workers.checkpoints.remote.staging import staging_for
from workers.checkpoints.writing import Staging, sync
from workers.clock import Clock
from workers.evaluation.splits import overlap
from workers.merging.dispatch import Report
from workers.merging.mix import Mix, decide, nonfinite_failure
from workers.merging.plan import MergePlan
from workers.merging.pool import shard_actors, worker_count
from workers.merging.run import (
    LARGEST_RECEIPT,
    LEFT_TO_OTHERS,
    Actors,
    committed,
    measure,
    stage_merge,
    unnoted,
)
from workers.merging.sums import Sums
from workers.search.baselines import BASE, UNUSABLE, individual_scores, score_baselines
from workers.search.bench import Bench, record_of
from workers.search.course import Course, plot_course
from workers.search.directions import Direction, Recipe, Shards, room_for_directions, survey
from workers.search.evaluators import Evaluators
from workers.search.journal import Journal, evaluations_in
from workers.search.outcome import Found, Outcomes, collect, fine_tuned, with_test, zero_shot
from workers.search.plan import SearchPlan, plan_search
from workers.search.points import Candidate, expand
from workers.settings import WorkerSettings


def run_search(
    request: SearchRequest,
    settings: WorkerSettings,
    report: Report,
    *,
    job_id: str = "",
    detached: bool = False,
    staged: Callable[[Staging], None] = unnoted,
) -> SearchResult:
    """Carry out ``request`` on the Ray cluster that this process is connected to.

    The output appears whole or not at all. Whatever ends the search early, what was evaluated stays in a hidden
    directory beside it: the same request goes on from there, as long as models and evaluation data are unchanged.

    Args:
        report: told about the progress a few times a second; what it raises stops the search.
        job_id: an output that an earlier attempt of this job has put in place is taken as its result.
        detached: use shard workers that outlive this process, and leave them running.
        staged: told about the hidden directory before it is made.

    Raises:
        InvalidRequest: it cannot be carried out (any more).
        JobFailed: it was begun and failed.
    """
    if job_id and (earlier := _committed(request, job_id)):
        return earlier
    clock = Clock()
    with clock.phase("plan"):
        plan = plan_search(
            request,
            workers=worker_count(settings),
            worker_memory=int(settings.worker_memory),
            code_allowed=settings.allow_code_execution,
        )
    staging = staging_for(plan.merge.output, plan.identity, settings.work_dir)
    staged(staging)
    journal: Journal | None = None
    try:
        staging.create(())
        journal = Journal(staging.journal)
        with Evaluators(request.evaluation, settings) as evaluators:
            with clock.phase("start"):
                evaluators.load(plan.merge)
                actors = shard_actors(settings, detached=detached)
            search = _Search(plan, actors, evaluators, journal, staging.journal / "tune", clock, report)
            outcomes = search.evaluate()
        result = search.stage(outcomes, staging, job_id)
        report(
            Progress(phase="commit", done=1, total=1, unit="steps")
        )  # an attempt that was declared dead goes no further
        with clock.phase("commit"):
            staging.commit(request.overwrite)
        return result.model_copy(update={"seconds": search.seconds})
    except LEFT_TO_OTHERS:
        raise
    except BaseException as error:
        if getattr(error, "code", "") in UNUSABLE or not evaluations_in(staging.journal):
            staging.discard()
        raise
    finally:
        if journal is not None:
            journal.close()


@dataclass
class _Search:
    """The steps of a search whose actors have been started."""

    plan: SearchPlan
    actors: Actors
    evaluators: Evaluators
    journal: Journal
    scratch: Path
    """For Ray Tune's own files."""
    clock: Clock
    report: Report
    mixes: dict[Rule, Mix] = field(default_factory=dict)
    stopped: str | None = None
    """What of the budget ended the search before everything was evaluated."""
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._begun = time.monotonic()
        spec = self.plan.request.evaluation
        self.warnings += [
            f"task {task}: {spec.report_on} may hold examples of {spec.select_on}, so its {spec.report_on} row flatters"
            for task in spec.tasks
            if overlap(spec, task)
        ]

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time by phase, and ``evaluate``: forward passes and scoring alone."""
        return self.clock.seconds | {"evaluate": round(self.journal.evaluating, 4)}

    def elapsed(self) -> float:
        """Seconds that the search has taken, earlier attempts included."""
        return self.journal.elapsed + time.monotonic() - self._begun

    def evaluate(self) -> Outcomes:
        """Everything that takes the evaluators: the baselines, the merged models, and the test rows of the best."""
        with self.clock.phase("measure"):
            importlib.import_module(
                "workers.search.tuning"
            )  # Tune takes a second, in which the evaluators load
            candidates = self._measure()
        with self.clock.phase("directions"):
            bench, directions = self._survey(candidates)
        with self.clock.phase("load"):
            self.evaluators.wait(lambda: self.report(Progress(phase="load", unit="evaluators")))
        with self.clock.phase("baseline"):
            score_baselines(self.plan, bench, self.journal, self.elapsed, self.report)
        with self.clock.phase("search"):
            course = self._course(directions)
            self._tune(course, bench, candidates, directions)
        outcomes = collect(self.plan, candidates, directions, course, self.journal)
        self.warnings += outcomes.warnings
        with self.clock.phase("test"):
            self._test(list(outcomes.best_by_method.values()), bench)
        return outcomes

    def stage(self, outcomes: Outcomes, staging: Staging, job_id: str) -> SearchResult:
        """Merge the winner into ``staging`` by the ordinary path, and put the evidence beside it."""
        from workers.search.report import write_report  # matplotlib takes a second to import

        request, best = self.plan.request, outcomes.best
        rule = best.candidate.rule
        with self.clock.phase("merge"):
            merge = self.plan.merge_of(rule, best.evaluation.scaling)
            staging.keep_only(merge.identity)  # an attempt with other evaluations may have had another winner
            merged = stage_merge(merge, self.mixes[rule], staging, self.actors, self.report, Clock(), job_id)
        with self.clock.phase("report"):
            result = SearchResult(
                output=request.output,
                evaluations=[one.evaluation for one in outcomes.found],
                best=self._best(best),
                best_by_method={name: self._best(one) for name, one in outcomes.best_by_method.items()},
                individual=fine_tuned(self.plan, self.journal),
                zero_shot=zero_shot(self.plan, self.journal),
                complete=self.stopped is None,
                files=merged.files,
                seconds=self.seconds,
                warnings=[*merged.warnings, *self.warnings],
            )
            try:
                names = write_report(staging.path, result, request, outcomes.evaluated)
            except OSError as error:
                raise JobFailed(
                    "output_unwritable",
                    f"the report cannot be written: {error.strerror}. Is the disk full? What was evaluated is kept: "
                    "the same request goes on from there",
                ) from error
            for name in names:
                sync(staging.path / name)
        return result

    def _best(self, found: Found) -> BestEvaluation:
        return with_test(found, self.plan, self.journal, self.plan.request.evaluation.report_on)

    def _measure(self) -> list[Candidate]:
        """The candidates, and how each is merged."""
        request, models = self.plan.request, range(len(self.plan.merge.models))
        norms = measure(self._plain(), self.actors, self.report)
        if norms.nonfinite:
            raise nonfinite_failure(self.plan.merge, norms, models, droppable=False)
        candidates = expand(request, np.sqrt(np.diag(norms.total_gram(len(models)))).tolist())
        grams: Sums | None = None
        for candidate in candidates:
            merge = self.plan.merge_of(candidate.rule)
            if candidate.rule.needs == "gram":
                grams = grams or measure(merge, self.actors, self.report)
                self.mixes[candidate.rule] = decide(merge, grams)
            else:
                self.mixes[candidate.rule] = decide(merge, norms)
        return candidates

    def _plain(self) -> MergePlan:
        """A merge whose measuring pass takes the norms."""
        return replace(self.plan.merge, rule=build_rule(MethodSpec(name="task_arithmetic")))

    def _survey(self, candidates: Sequence[Candidate]) -> tuple[Bench, list[Direction]]:
        """The direction of each candidate; equal ones are the same object."""
        shards, room = Shards.of(self.plan.merge, self.actors), room_for_directions()
        recipes = [Recipe.of(one.rule, self.mixes[one.rule]) for one in candidates]
        directions, kept = survey(shards, recipes, room, self.report)
        self.evaluators.keep(kept)
        large = {one.digest for one in directions if one.bytes > room}
        if large:
            size = max(one.bytes for one in directions)
            self.warnings.append(
                f"V takes up to {size} bytes, more than the {room} of a third of Ray's object store: {len(large)} "
                "directions were computed anew for every λ; a larger object store makes the search faster"
            )
        return Bench(shards, self.evaluators, room, frozenset(kept)), directions

    def _course(self, directions: Sequence[Direction]) -> Course:
        budget, split = self.plan.request.budget, self.plan.request.evaluation.select_on
        deadline = None
        if budget.minutes is not None:
            deadline = time.time() + budget.minutes * 60 - self.elapsed()
        return plot_course(
            self.plan.request,
            directions,
            individual=individual_scores(self.plan, self.journal, split),
            base=self.journal.records[BASE, 1.0, split].tasks,
            deadline=deadline,
        )

    def _tune(
        self,
        course: Course,
        bench: Bench,
        candidates: Sequence[Candidate],
        directions: Sequence[Direction],
    ) -> None:
        from workers.search.tuning import tune_lines

        rules: dict[str, list[str]] = {}
        for candidate, direction in zip(candidates, directions, strict=True):
            rules.setdefault(direction.digest, []).append(candidate.rule.name)
        ended = self.journal.ended
        if ended is None and course.deadline is not None and time.time() >= course.deadline:
            ended = "minutes"
        elif ended is None:
            ended = tune_lines(course, bench, self.journal, self.elapsed, rules, self.report, self.scratch)
            bench.release()
        if ended == "minutes":
            if not any(record.model in rules for record in self.journal.records.values()):
                raise JobFailed(
                    "budget_too_small",
                    f"budget.minutes was over after {self.elapsed():.0f} s, before the first evaluation of a merged "
                    "model; give more",
                )
            self.journal.end(ended)  # another attempt of this search decides as this one does
        self.stopped = None if course.suggestions and ended == "evaluations" else ended

    def _test(self, best: Sequence[Found], bench: Bench) -> None:
        """Score the best of each rule on ``report_on``."""
        split = self.plan.request.evaluation.report_on
        if split is None:
            return
        progress = Progress(phase="test", total=len(best), unit="evaluations")

        def tick() -> None:
            self.report(progress)

        for one in best:
            key = (one.direction.digest, one.evaluation.scaling, split)
            if key not in self.journal.records:
                pending = bench.begin(
                    one.direction, one.evaluation.scaling, split, tick=tick, report=self.report
                )
                record = record_of(one.direction, one.evaluation.scaling, split, *pending.wait(tick))
                self.journal.append(replace(record, elapsed=round(self.elapsed(), 3)))
            if not all(map(math.isfinite, self.journal.records[key].tasks.values())):
                name = one.candidate.rule.name
                self.warnings.append(
                    f"the best of {name} has no {split} row: its scores there are no numbers"
                )
            progress.done += 1


def _committed(request: SearchRequest, job_id: str) -> SearchResult | None:
    """The result of an attempt of this job that put its output in place and died before it could say so."""
    found = committed(request.output, job_id)
    if found is None:
        return None
    try:
        return SearchResult.model_validate_json(read_small(found[0] / "search.json", LARGEST_RECEIPT))
    except (OSError, ValueError):  # no search of ours
        return None
