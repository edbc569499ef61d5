"""Ray Tune over the directions of a search: a trial for each, which reports what it evaluates.

One process runs the trials after another and drives the evaluators, which are the parallelism. What is known from an
earlier attempt is answered from the journal: an interrupted search repeats its decisions and evaluates nothing twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import RayTaskError

from taumerge.errors import JobFailed, TaumergeError
from taumerge.schemas import JobError, Progress
from workers.merging.dispatch import Report
from workers.search.bench import Bench, idle, record_of
from workers.search.course import Course
from workers.search.evaluators import Pending
from workers.search.journal import Journal, Key, Record
from workers.tuning import Watch, run_trials

RECORDS, FAILURE, STOPPED, SCORE = "records", "failure", "stopped", "score"
BATCH_SECONDS = 0.25
"""Evaluations shorter than this are reported together: a report takes Tune longer than a small model its λ."""
SUGGESTIONS = 10
"""Optuna may suggest a point again, which costs no evaluation: it is asked so many times the budget, at most. What is
then left of the budget is drawn."""


class SweepTrial(tune.Trainable):
    """Evaluates along one direction after another; a step is an evaluation, or several short ones."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], course: Course, bench: Bench, known: dict[Key, Record]
    ) -> None:
        self._course, self._bench, self._known = course, bench, known
        digests = {direction.digest for direction in course.directions}
        self._spent = sum(model in digests and split == course.split for model, _, split in known)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._direction = self._course.directions[new_config["direction"]]
        self._line = self._course.line(new_config["direction"], new_config.get("place"))
        self._latest: float | None = None
        self._begun: tuple[float, Pending] | None = None
        self._stopped: str | None = None
        return True

    def step(self) -> dict[str, Any]:
        begun = time.monotonic()
        records: list[dict[str, Any]] = []
        ended: dict[str, Any] = {}
        try:
            while (record := self._next()) is not None:
                records.append(asdict(record))
                if time.monotonic() - begun + record.seconds >= BATCH_SECONDS:
                    break  # another one would not be short, or keep the others waiting
            else:
                ended = {"done": True, STOPPED: self._stopped}
        except TaumergeError as error:
            details = getattr(error, "details", {})
            failure = JobError(code=error.code, message=str(error), details=details)
            ended = {"done": True, FAILURE: failure.model_dump()}
        return {SCORE: self._latest or 0.0, RECORDS: records} | ended

    def _next(self) -> Record | None:
        """The next evaluation along the line; null at its end, or at that of the budget."""
        if self._begun is None:
            self._begin()
        if self._begun is None:
            return None
        (scaling, pending), self._begun = self._begun, None
        record = record_of(self._direction, scaling, self._course.split, *pending.wait(idle))
        self._known[record.key] = record
        self._tell(record)
        if self._bench.holds(self._direction):
            self._begin()  # the evaluators work on while this one is reported and written down
        return record

    def _begin(self) -> None:
        """Begin the next evaluation, unless the line or the budget is at its end."""
        course = self._course
        while (scaling := self._line.next()) is not None:
            known = self._known.get((self._direction.digest, scaling, course.split))
            if known is None:
                break
            self._tell(known)
        if scaling is None:
            return
        if course.most is not None and self._spent >= course.most:
            self._stopped = "evaluations"
        elif course.deadline is not None and time.time() >= course.deadline:
            self._stopped = "minutes"
        else:
            self._spent += 1
            self._begun = scaling, self._bench.begin(self._direction, scaling, course.split)

    def _tell(self, record: Record) -> None:
        self._latest = self._course.score(record.tasks)
        self._line.tell(record.scaling, self._latest)


class _SearchWatch(Watch):
    """Keeps every evaluation in the journal, and knows the best so far."""

    def __init__(
        self,
        course: Course,
        journal: Journal,
        clock: Callable[[], float],
        rules: Mapping[str, Sequence[str]],
        report: Report,
        bench: Bench,
    ) -> None:
        super().__init__(report)
        self._course, self._journal, self._clock, self._rules = course, journal, clock, rules
        self._bench = bench
        self._best: dict[str, float] = {}
        self._counts = {direction.digest: 0 for direction in course.directions}
        self._ended: set[int] = set()
        self._new = 0
        self._first: float | None = None
        self.stopped: str | None = None
        """The part of the budget that ended the search."""
        self.completed = 0
        """Trials that ended."""
        for record in journal.records.values():
            self._count(record)

    @property
    def over(self) -> bool:
        return super().over or self.stopped is not None

    def stop(self, error: BaseException) -> None:
        super().stop(error)
        self._bench.evaluators.kill()  # else Tune would wait for the evaluation that is under way

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        try:
            for found in result[RECORDS]:
                record = replace(Record(**found), elapsed=round(self._clock(), 3))
                self._journal.append(record)
                self._count(record)
                self._new += 1
            if FAILURE in result:
                raise JobFailed(**result[FAILURE])
            self.stopped = self.stopped or result.get(STOPPED)
        except TaumergeError as error:
            self.stop(error)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.completed += 1
        self._ended.add(trial.config["direction"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        cause = trial.get_pickled_error()
        if isinstance(cause, RayTaskError):  # raised by the trial itself: a fault of ours
            self.stop(cause)
            return
        lost = JobFailed(
            "worker_lost",
            "the process that drives the evaluators ended unexpectedly; the same request goes on from there",
        )
        lost.__cause__ = cause
        self.stop(lost)

    def progress(self) -> Progress:
        if self._first is None:
            self._first = time.monotonic()
        done, total = sum(self._counts.values()), self._total()
        left = total - done
        pace = (time.monotonic() - self._first) / self._new if self._new else None
        return Progress(
            phase="evaluate",
            done=done,
            total=total,
            unit="evaluations",
            eta_seconds=None if pace is None else round(pace * left, 1),
            metrics=self._best | {"evaluators": float(len(self._bench.evaluators.actors))},
        )

    def _total(self) -> int:
        """Evaluations at most, as far as it can be told by now."""
        course = self._course
        if course.suggestions is not None:
            return course.suggestions
        counts = [self._counts[direction.digest] for direction in course.directions]
        total = sum(
            counts[index] if index in self._ended else course.most_along(index) for index in course.lines
        )
        return total if course.most is None else min(total, course.most)

    def _count(self, record: Record) -> None:
        names = self._rules.get(record.model)
        if names is None or record.split != self._course.split:
            return
        self._counts[record.model] += 1
        score = self._course.score(record.tasks)
        if score is not None:
            for key in ("best", *(f"best:{name}" for name in names)):
                self._best[key] = max(score, self._best.get(key, score))


def tune_lines(
    course: Course,
    bench: Bench,
    journal: Journal,
    clock: Callable[[], float],
    rules: Mapping[str, Sequence[str]],
    report: Report,
    scratch: Path,
) -> str | None:
    """Evaluate what ``course`` says and is not in the journal yet.

    Args:
        clock: seconds that the search has taken.
        rules: the names of the rules that share a direction, by its digest.
        scratch: a directory for Tune's own files, which is removed.

    Returns what of the budget ended the search early: ``evaluations``, ``minutes``, or null.

    Raises:
        BaseException: what ``report`` raises; JobFailed: what an evaluation raises.
    """
    watch = _SearchWatch(course, journal, clock, rules, report, bench)

    def run(course: Course, space: dict[str, Any], trials: int, **config: Any) -> None:
        before = watch.completed
        run_trials(
            tune.with_parameters(SweepTrial, course=course, bench=bench, known=dict(journal.records)),
            {"memory": 1},  # nothing that others wait for: the evaluators do the work
            space,
            watch,
            scratch,
            config=tune.TuneConfig(
                metric=SCORE, mode="max", max_concurrent_trials=1, reuse_actors=True, **config
            ),
        )
        if watch.stopped is None and watch.completed - before < trials:  # Tune answers Ctrl-C by ending early
            raise KeyboardInterrupt

    if course.suggestions is not None:
        places = max(len(scalings) for scalings in course.lines.values())
        space = {"direction": tune.choice(list(course.lines)), "place": tune.randint(0, places)}
        samples = course.suggestions * SUGGESTIONS
        run(course, space, samples, search_alg=_optuna(course.seed), num_samples=samples)
        course = course.rest(journal.records)
    if watch.stopped is None and course.lines:
        run(course, {"direction": tune.grid_search(list(course.lines))}, len(course.lines))
    return watch.stopped


def _optuna(seed: int) -> Any:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(seed=seed)
