"""Several workers that share each step: Ray Train's TorchTrainer around the same ``worker.finetune``."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device

from taumerge.errors import TaumergeError
from taumerge.schemas import FinetuneRequest, Progress
from workers.finetuning.worker import finetune
from workers.finetuning.workgroup import Workgroup

NOTE_SECONDS = 0.25


def fit(request: FinetuneRequest, directory: Path, options: dict[str, Any], owner: Any) -> None:
    """Train on ``request.resources.workers`` workers; progress and outcome go to the actor ``owner``.

    Returns when they have ended, however they ended. Every checkpoint is in ``directory``, so that a new call goes
    on where one was lost.

    Args:
        options: Ray's options of one worker.
    """
    scratch = directory / ".train"
    gpus = options.get("num_gpus", 0)
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"request": request, "directory": directory, "owner": owner},
        scaling_config=ray.train.ScalingConfig(
            num_workers=request.resources.workers,
            use_gpu=bool(gpus),
            resources_per_worker={"CPU": options["num_cpus"]} | ({"GPU": gpus} if gpus else {}),
            accelerator_type=options.get("accelerator_type"),
        ),
        run_config=ray.train.RunConfig(name="finetune", storage_path=str(scratch)),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError:
        return  # the owner has been told why, or a worker is gone
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _train_worker(config: dict[str, Any]) -> None:
    request, owner = config["request"], config["owner"]
    context = ray.train.get_context()
    workgroup = Workgroup(context.get_world_rank(), context.get_world_size(), request.resources.strategy)
    if torch.cuda.is_available():
        torch.cuda.set_device(get_device())
    due = 0.0

    def note(progress: Progress) -> None:
        nonlocal due
        if workgroup.rank == 0 and time.monotonic() >= due:
            due = time.monotonic() + NOTE_SECONDS
            owner.note.remote(progress)

    try:
        result = finetune(request, config["directory"], note, threads=1, workgroup=workgroup)
    except TaumergeError as error:
        ray.get(owner.end.remote(error))
        raise
    if workgroup.rank == 0:
        ray.get(owner.end.remote(result))
