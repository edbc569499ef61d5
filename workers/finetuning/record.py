"""The training record: ``training.json`` beside the weights, which FedNova and the diagnostics read."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from taumerge.schemas import FinetuneRequest
from workers.finetuning.hardware import Hardware
from workers.finetuning.loop import Run
from workers.finetuning.task import TrainingTask

LIBRARIES = ("taumerge", "torch", "open_clip_torch", "transformers", "peft", "safetensors")


def build_record(
    request: FinetuneRequest, task: TrainingTask, run: Run, hardware: Hardware
) -> dict[str, Any]:
    """Everything that METHODS asks for of a run: what was trained, how long, how fast, on what."""
    train = request.train
    return {
        "base": request.base,
        "task": request.task.kind,
        **task.record(),
        "steps": run.step,
        "lr_sum": run.lr_sum,
        "skipped_steps": run.skipped_steps,
        "batch_size": train.batch_size,
        "learning_rate": train.learning_rate,
        "schedule": "warmup_cosine",
        "warmup_steps": train.warmup_steps,
        "optimizer": "adamw",
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "precision": str(hardware.dtype).removeprefix("torch."),
        "seed": train.seed,
        "steps_per_epoch": task.steps_per_epoch,
        "validation_accuracy": [one["accuracy"] for one in run.validations if "accuracy" in one],
        "validations": run.validations,
        "seconds": round(run.seconds, 3),
        "workers": request.resources.workers,
        "device": hardware.name,
        "versions": {
            "python": platform.python_version(),
            **{library: version(library) for library in LIBRARIES},
        },
    }
