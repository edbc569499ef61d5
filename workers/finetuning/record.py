"""The training record: ``training.json`` beside the weights, which FedNova and the diagnostics read."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taumerge.schemas import FinetuneRequest, TrialResult
from workers.checkpoints.names import RECORD
from workers.checkpoints.writing import remove_notes, sync

if TYPE_CHECKING:
    from workers.finetuning.ledger import Run
    from workers.finetuning.task import TrainingTask
    from workers.hardware import Hardware

LIBRARIES = ("taumerge", "torch", "open_clip_torch", "transformers", "peft", "safetensors")


def build_record(
    request: FinetuneRequest, task: TrainingTask, run: Run, hardware: Hardware, result: TrialResult
) -> dict[str, Any]:
    """Everything that METHODS asks for of a run: what was trained, how long, how fast, on what."""
    train = request.train
    return {
        "base": request.base,
        "request": request.model_dump(mode="json"),
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
        "result": result.model_dump(mode="json"),
    }


def write_record(record: dict[str, Any], directory: Path) -> None:
    """Write ``training.json``."""
    path = directory / RECORD
    path.write_text(json.dumps(record, indent=2) + "\n")
    sync(path)


def completed(request: FinetuneRequest, path: Path) -> TrialResult | None:
    """The result of an attempt at ``request`` that put ``path`` in place; null where it is another's, or not there."""
    try:
        record = json.loads((path / RECORD).read_text())
        if record["request"] != request.model_dump(mode="json"):
            return None
        result = TrialResult.model_validate(record["result"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    remove_notes(path)  # it may have died over them
    return result
