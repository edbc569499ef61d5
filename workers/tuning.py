"""What the jobs that run on Ray Tune have in common: their progress is passed on, and what it raises ends them."""

from __future__ import annotations

import logging
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from ray import tune

from taumerge.errors import JobFailed
from taumerge.schemas import Progress

START_SECONDS = 120.0
"""How long the first trial may take to start."""


class Watch(tune.Callback, ABC):
    """Passes the progress of the trials on, ten times a second; what ``report`` raises ends them."""

    def __init__(self, report: Callable[[Progress], None]) -> None:
        self._report = report
        self._begun, self._started = time.monotonic(), False
        self.stopped_by: BaseException | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Tune writes its callbacks down for a restore that never comes; a report may hold what cannot be pickled.
        return {}

    @abstractmethod
    def progress(self) -> Progress:
        """How far the trials are."""

    @property
    def over(self) -> bool:
        """Whether no trial is to go on."""
        return self.stopped_by is not None

    def stop(self, error: BaseException) -> None:
        """End the trials; ``error`` is raised when they have ended."""
        self.stopped_by = self.stopped_by or error

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._started = True

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.stopped_by is not None:
            return
        try:
            if not self._started and time.monotonic() - self._begun > START_SECONDS:
                raise JobFailed(
                    "capacity_unavailable",
                    f"no trial could be started within {START_SECONDS:.0f} s: other jobs, or the warm shard workers "
                    "of the service (TAUMERGE_WORKERS), hold the GPUs or CPUs",
                )
            self._report(self.progress())
        except BaseException as error:  # noqa: BLE001 raised again when Tune has ended its trials
            self.stop(error)


class _StopOn(tune.Stopper):
    """Ends the trials when their watch says so."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._watch.over


def run_trials(
    trainable: Any,
    bundle: dict[str, float],
    space: dict[str, Any],
    watch: Watch,
    scratch: Path,
    *,
    config: tune.TuneConfig,
    failures: int = 0,
) -> None:
    """Run trials of ``trainable`` over ``space``, each on the resources of ``bundle``.

    Args:
        scratch: a directory for Tune's own files, which is removed; so is what a killed attempt left there.
        failures: how often a trial is started again when its process dies.

    Raises:
        BaseException: what stopped ``watch``.
    """
    # Tune would print tables, log every result once more in three formats, and miss those logs at the end.
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    os.environ |= {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    shutil.rmtree(scratch, ignore_errors=True)
    # Tune's own names are those of the trainable, in a table that all processes of a Ray job share, and of the second
    # of the start: of two runs that begin together one would carry out the other's trials, on its actors and data.
    name = uuid4().hex
    bound = tune.with_resources(trainable, tune.PlacementGroupFactory([bundle]))
    bound.__name__ = f"{bound.__name__}-{name}"
    tuner = tune.Tuner(
        bound,
        param_space=space,
        tune_config=config,
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(scratch),
            callbacks=[watch],
            stop=_StopOn(watch),
            failure_config=tune.FailureConfig(max_failures=failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if watch.stopped_by is not None:
        raise watch.stopped_by
