"""Checkpoints and a search for the stand-in evaluator of ``tests/plugins``: three tasks, a model for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from checkpoint_files import save
from torch import Tensor

INPUTS, HIDDEN, CLASSES = 16, 24, 10
TASKS = ("shapes", "digits", "signs")
TYPES = {
    "body.weight": torch.float32,
    "head.weight": torch.bfloat16,
    "head.bias": torch.float16,
    "scale": torch.float64,
    "frozen": torch.float32,
}
SHAPES: dict[str, tuple[int, ...]] = {
    "body.weight": (HIDDEN, INPUTS),
    "head.weight": (CLASSES, HIDDEN),
    "head.bias": (CLASSES,),
    "scale": (INPUTS,),
    "frozen": (INPUTS,),
}
OTHERS = {"position_ids": torch.arange(5)}


def stored(wide: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor in its own type, and one that is no float."""
    return {name: tensor.to(TYPES[name]) for name, tensor in wide.items()} | OTHERS


def perceptrons(directory: Path) -> tuple[str, dict[str, str], dict[str, str]]:
    """Write a base, and by task the model and the teacher whose labels it learned; returns their paths."""
    generator = torch.Generator().manual_seed(3)

    def randn(name: str, scale: float) -> Tensor:
        return torch.randn(SHAPES[name], generator=generator, dtype=torch.float64) * scale

    base = {name: randn(name, 0.5) for name in SHAPES}
    models, teachers = {}, {}
    for number, task in enumerate(TASKS):
        change = {name: randn(name, 0.3 + 0.1 * number) for name in SHAPES if name != "frozen"}
        teacher = {name: tensor + change.get(name, 0) for name, tensor in base.items()}
        learned = {
            name: tensor + change[name] * 0.9 + randn(name, 0.05) if name in change else tensor
            for name, tensor in base.items()
        }
        record = {"steps": 100 * (number + 1), "lr_sum": 0.1}
        models[task] = save(directory / f"ft-{task}", stored(learned), training=record)
        teachers[task] = save(directory / f"teacher-{task}", stored(teacher))
    return save(directory / "base", stored(base)), models, teachers


def search_body(directory: Path) -> dict[str, Any]:
    """A search over freshly written checkpoints; evaluations are logged in ``directory/log``."""
    base, models, teachers = perceptrons(directory)
    return {
        "base": base,
        "models": [{"uri": uri, "task": task} for task, uri in models.items()],
        "scaling": [0.1, 0.3, 0.55, 1.0, 1.7],
        "evaluation": {
            "kind": "standin",
            "evaluators": 1,
            "tasks": {
                task: {"options": {"teacher": teacher, "log": str(directory / "log")}}
                for task, teacher in teachers.items()
            },
        },
        "output": str(directory / "best"),
    }


def logged(directory: Path) -> list[str]:
    """The evaluations so far, a task and a split each."""
    log = directory / "log"
    return log.read_text().splitlines() if log.exists() else []
