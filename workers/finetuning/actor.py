"""A training as a Ray actor, pinned to its accelerator; replaced when its process dies, kept for the next if not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from taumerge.errors import JobFailed, TaumergeError
from taumerge.schemas import FinetuneRequest, Progress, TrialResult
from workers import spare
from workers.merging.pool import BESIDE_SHARD_GPUS, warm_shard_actors
from workers.settings import WorkerSettings

Report = Callable[[Progress], None]

ATTEMPTS = 3
"""How often a training is started before the loss of its process makes it fail."""
READY_SECONDS = 120.0
TICK_SECONDS = 0.25
LOADING = Progress(phase="load", unit="steps")
WAITING = "wait"
"""Phase of a group whose workers have not started."""


class TrainingActor:
    """``worker.finetune`` in a process of its own. The driver stays light, so torch is imported here only."""

    def __init__(self) -> None:
        # Torch's threads wait for one another at every operation; spinning there, they take the CPUs from those that
        # still compute: where two trainings share two CPUs it made them twenty times as slow.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self._progress = LOADING

    def ready(self) -> bool:
        """Answers when the actor has started."""
        return True

    def progress(self) -> Progress:
        """How far ``finetune`` is, which runs in another thread."""
        return self._progress

    def finetune(self, request: FinetuneRequest, directory: Path) -> TrialResult:
        """See ``worker.finetune``."""
        from workers.finetuning.worker import finetune

        try:
            return finetune(request, directory, self._note)
        finally:
            self._progress = LOADING  # as the next training finds it

    def _note(self, progress: Progress) -> None:
        self._progress = progress


class TrainingGroup(TrainingActor):
    """As many workers as the request says, by Ray Train. Whoever kills this actor ends them too."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self._options = options
        self._progress = Progress(phase=WAITING, unit="steps")
        self._outcome: TrialResult | TaumergeError | None = None

    def note(self, progress: Progress) -> None:
        """How far the first worker is."""
        self._progress = progress

    def end(self, outcome: TrialResult | TaumergeError) -> None:
        """What the workers made, or why they failed: the first to say counts."""
        self._outcome = self._outcome or outcome

    def finetune(self, request: FinetuneRequest, directory: Path) -> TrialResult:
        """See ``worker.finetune``; a group that loses a worker is started again from its checkpoint."""
        from workers.finetuning.group import fit

        for _ in range(ATTEMPTS):
            fit(request, directory, self._options, ray.get_runtime_context().current_actor)
            if isinstance(self._outcome, TrialResult):
                return self._outcome
            if self._outcome is not None:
                raise self._outcome
        raise _lost()


def train_on_actor(
    request: FinetuneRequest, directory: Path, settings: WorkerSettings, report: Report
) -> TrialResult:
    """Carry out a request without a grid on one actor, or a group. ``directory`` holds its checkpoint and its files.

    Raises:
        InvalidRequest: what only the data or the model shows.
        JobFailed: ``capacity_unavailable``, ``worker_lost``, or what the training raises.
    """
    options = worker_options(request, settings)
    alone, kind = request.resources.workers == 1, (TrainingActor, options)
    for _ in range(ATTEMPTS):
        if alone:
            [actor] = spare.take(kind) or [_start(options)]
        else:
            actor = _start_group(options)
        result = None
        try:
            result = _watch(actor, request, directory, report)
            return result
        except ray.exceptions.RayActorError as error:
            lost = error
        finally:
            if result is not None and alone:
                spare.keep(kind, [actor])
            else:
                ray.kill(actor)
    raise _lost() from lost


def worker_options(request: FinetuneRequest, settings: WorkerSettings) -> dict[str, Any]:
    """Ray's options for one worker of a training: as the request says, else the settings, else what there is.

    Raises:
        JobFailed: ``capacity_unavailable``: the cluster can never give this.
    """
    wanted = request.resources
    cluster: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    accelerator = wanted.accelerator_type or settings.accelerator_type
    gpus = wanted.gpus
    if gpus is None:
        whole = BESIDE_SHARD_GPUS if warm_shard_actors() else 1.0  # a warm shard worker keeps its part
        gpus = whole if accelerator or cluster.get("GPU") else 0.0
    if not gpus:
        return {"num_cpus": 1}
    if accelerator and f"accelerator_type:{accelerator}" not in cluster:
        raise JobFailed(
            "capacity_unavailable",
            f"no node of this Ray cluster has an accelerator of type {accelerator}; add one, or change "
            "resources.accelerator_type or TAUMERGE_ACCELERATOR_TYPE",
        )
    if cluster.get("GPU", 0) < gpus * wanted.workers:
        raise JobFailed(
            "capacity_unavailable",
            f"{wanted.workers} workers with {gpus:g} GPUs each are asked for and this Ray cluster has "
            f"{cluster.get('GPU', 0):g}; lower resources.workers or resources.gpus",
        )
    pinned = {"accelerator_type": accelerator} if accelerator else {}
    return {"num_cpus": 1, "num_gpus": gpus, **pinned}


def _start(options: dict[str, Any]) -> Any:
    actor: Any = ray.remote(TrainingActor).options(**options, max_concurrency=2).remote()
    try:
        ray.get(actor.ready.remote(), timeout=READY_SECONDS)
    except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError) as error:
        ray.kill(actor)  # else it would wait, and take the GPU as soon as there is one
        raise _no_capacity() from error
    return actor


def _start_group(options: dict[str, Any]) -> Any:
    return ray.remote(TrainingGroup).options(num_cpus=0, max_concurrency=4).remote(options)


def _watch(actor: Any, request: FinetuneRequest, directory: Path, report: Report) -> TrialResult:
    """Wait for the training and pass its progress on; what ``report`` raises stops it."""
    training = actor.finetune.remote(request, directory)
    asked = actor.progress.remote()
    latest = LOADING
    begun = time.monotonic()
    while True:
        report(latest)
        if latest.phase == WAITING and time.monotonic() - begun > READY_SECONDS:
            raise _no_capacity()
        done, _ = ray.wait([training], timeout=TICK_SECONDS)
        if done:
            break
        if ray.wait([asked], timeout=0)[0]:
            latest, asked = ray.get(asked), actor.progress.remote()
    try:
        result: TrialResult = ray.get(training)
    except ray.exceptions.RayTaskError as error:
        raise cause_of(error) from None
    report(Progress(phase="save", done=result.steps, total=result.steps, unit="steps"))
    return result


def _lost() -> JobFailed:
    return JobFailed(
        "worker_lost",
        f"the training's process died {ATTEMPTS} times; look for a lack of memory on its node, and lower "
        "train.micro_batch_size",
    )


def _no_capacity() -> JobFailed:
    return JobFailed(
        "capacity_unavailable",
        f"the training could not be started within {READY_SECONDS:.0f} s: other jobs, or the warm shard workers of "
        "the service (TAUMERGE_WORKERS), hold the GPUs or CPUs",
    )


def cause_of(error: BaseException) -> BaseException:
    """The error of the hierarchy that a Ray error carries, or the error itself."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, TaumergeError) else error
