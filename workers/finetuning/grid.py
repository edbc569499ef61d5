"""A grid of fine-tunes by Ray Tune: a directory for each trial, each as whole as a fine-tune alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune

from taumerge.errors import JobFailed, TaumergeError
from taumerge.schemas import FinetuneRequest, JobError, Progress, TrialResult
from workers.checkpoints.checkpoint import local_path
from workers.checkpoints.writing import Staging
from workers.finetuning.actor import ATTEMPTS, Report, worker_options
from workers.finetuning.preflight import trials
from workers.finetuning.record import completed
from workers.settings import WorkerSettings
from workers.tuning import Watch, run_trials

REPORT_SECONDS = 0.5
RESULT = "result"
STEP = "step"


def run_grid(
    request: FinetuneRequest,
    output: Path,
    settings: WorkerSettings,
    report: Report,
    staging_of: Callable[[FinetuneRequest, Path], Staging],
) -> list[TrialResult]:
    """Run the trials of ``request`` that are not finished yet; a trial that fails does not end the others.

    Returns one result for each point of the grid, in order.

    Raises:
        JobFailed: ``capacity_unavailable``, or ``every_trial_failed``.
    """
    runs = trials(request)
    watch = _Watch(runs, report)
    stagings = {}
    for index, run in enumerate(runs):
        path = local_path(run.output)
        finished = _finished(run, path)
        if finished is not None:
            watch.results[index] = finished
        else:
            stagings[index] = staging_of(run, path)
    if stagings:
        options = worker_options(request, settings)
        # Tune's own files: another grid with this output has others
        _run_trials(runs, stagings, options, staging_of(request, output).path, watch)
        if len(watch.results) < len(runs):  # Tune answers Ctrl-C by ending early
            raise KeyboardInterrupt
    results = [watch.results[index] for index in range(len(runs))]
    first = results[0].error
    if first is not None and all(result.error for result in results):
        raise JobFailed("every_trial_failed", f"every trial failed; the first: {first.message}")
    return results


def _run_trials(
    runs: Sequence[FinetuneRequest],
    stagings: dict[int, Staging],
    options: dict[str, Any],
    scratch: Path,
    watch: _Watch,
) -> None:
    bundle = {"CPU": options["num_cpus"], "GPU": options.get("num_gpus", 0)}
    if "accelerator_type" in options:
        bundle[f"accelerator_type:{options['accelerator_type']}"] = 0.001
    run_trials(
        tune.with_parameters(_train_trial, runs=list(runs), stagings=stagings),
        bundle,
        {"index": tune.grid_search(list(stagings))},
        watch,
        scratch,
        # a process imports torch once, not once for each trial
        config=tune.TuneConfig(max_concurrent_trials=_slots(bundle), reuse_actors=True),
        failures=ATTEMPTS - 1,
    )


def _train_trial(
    config: dict[str, Any], runs: Sequence[FinetuneRequest], stagings: dict[int, Staging]
) -> None:
    """One trial, in a process of its own. A process that dies is replaced and goes on from its checkpoint."""
    from workers.finetuning.worker import finetune

    index = config["index"]
    run, staging = runs[index], stagings[index]
    due = 0.0

    def note(progress: Progress) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + REPORT_SECONDS
            tune.report({STEP: progress.done} | progress.metrics)

    try:
        staging.create(())
        result = finetune(run, staging.path, note, threads=1 if not ray.get_gpu_ids() else None)
        staging.commit(overwrite=False)
    except TaumergeError as error:
        details = getattr(error, "details", {})
        if "checkpoint" not in details:
            staging.discard()
        problem = JobError(code=error.code, message=str(error), details=details)
        result = _failed(run, problem)
    tune.report({STEP: run.train.steps, RESULT: result.model_dump_json()})


class _Watch(Watch):
    """Gathers steps and results of the trials."""

    def __init__(self, runs: Sequence[FinetuneRequest], report: Report) -> None:
        super().__init__(report)
        self._runs = runs
        self._steps: dict[int, int] = {}
        self._metrics: dict[str, float] = {}
        self.results: dict[int, TrialResult] = {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        index = trial.config["index"]
        self._steps[index] = result[STEP]
        self._metrics = {name: result[name] for name in ("loss", "learning_rate") if name in result}
        if RESULT in result:
            self.results[index] = TrialResult.model_validate_json(result[RESULT])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        index = trial.config["index"]
        message = f"the trial's process failed {ATTEMPTS} times; the log of its worker says why"
        self.results.setdefault(
            index, _failed(self._runs[index], JobError(code="worker_lost", message=message))
        )

    def progress(self) -> Progress:
        steps = sum(
            run.train.steps if index in self.results else self._steps.get(index, 0)
            for index, run in enumerate(self._runs)
        )
        ended = {"trials_ended": float(len(self.results)), "trials": float(len(self._runs))}
        total = sum(run.train.steps for run in self._runs)
        return Progress(phase="train", done=steps, total=total, unit="steps", metrics=self._metrics | ended)


def _finished(run: FinetuneRequest, path: Path) -> TrialResult | None:
    """The result of a trial whose directory an earlier attempt completed.

    Raises:
        JobFailed: ``output_exists``: something else is in its place.
    """
    result = completed(run, path)
    if result is None and os.path.lexists(path):
        raise JobFailed(
            "output_exists",
            f"{run.output} exists and is not this trial; choose another output, or move it away",
        )
    return result


def _failed(run: FinetuneRequest, error: JobError) -> TrialResult:
    train = run.train
    return TrialResult(output=run.output, learning_rate=train.learning_rate, steps=train.steps, error=error)


def _slots(bundle: dict[str, float]) -> int:
    """How many trials the cluster can run at once."""
    cluster: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(1, min(int(cluster.get(name, 0) / amount) for name, amount in bundle.items() if amount))
