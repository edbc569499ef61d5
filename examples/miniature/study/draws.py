"""Sets of fine-tunes to merge: what is turned, by how much, and what chance decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.miniature.finetunes import BATCH_SIZE, LEARNING_RATE, STEPS, WARMUP_STEPS
from examples.miniature.tasks import recipe

SEEDS = range(5)
TASKS = ("handwriting", "shapes", "textures", "signs")
"""Four of the miniature's eight tasks, of which no two share their classes."""
LORA = {"kind": "lora", "rank": 4, "alpha": 8, "targets": ["c_fc", "c_proj"]}
"""On the linear layers of the transformer blocks: ΔW of rank 4, alpha twice the rank."""


@dataclass(frozen=True)
class Training:
    """How one model is trained."""

    learning_rate: float
    steps: int
    seed: int
    adapter: Mapping[str, Any] | None = None

    def spec(self) -> dict[str, Any]:
        """``train`` of a fine-tune."""
        return {
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "batch_size": BATCH_SIZE,
            "warmup_steps": WARMUP_STEPS,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Draw:
    """One set of fine-tunes."""

    dial: str
    """What is turned."""
    level: str
    """How far."""
    seed: int
    base: Path
    models: Mapping[str, Training]
    """Task → how its model is trained."""
    recipes: Mapping[str, Mapping[str, Any]]
    """Task → its data, as fine-tunes and evaluations ask for it."""


def spaced(centre: float, ratio: float, count: int) -> list[float]:
    """``count`` values around ``centre``, evenly spaced on a log scale; the last is ``ratio`` times the first."""
    return [float(value) for value in centre * np.geomspace(ratio**-0.5, ratio**0.5, count)]


def shuffled(values: Sequence[Any], seed: int) -> list[Any]:
    """``values`` in a random order: which task gets which is chance, and the same for every level of a dial."""
    return [values[index] for index in np.random.default_rng(seed).permutation(len(values))]


def draw_trainings(
    seed: int, *, rate_ratio: float = 1, step_ratio: float = 1, adapters: Sequence[Any] = (None,) * len(TASKS)
) -> dict[str, Training]:
    """The training of each task: learning rates and lengths around the demo's, in ratios, dealt out by chance.

    Args:
        rate_ratio: largest learning rate over the smallest.
        step_ratio: longest training over the shortest.
        adapters: of which each task gets one.
    """
    rates = shuffled(spaced(LEARNING_RATE, rate_ratio, len(TASKS)), seed)
    lengths = shuffled(spaced(STEPS, step_ratio, len(TASKS)), seed)
    dealt = zip(TASKS, rates, lengths, shuffled(adapters, seed), strict=True)
    return {
        task: Training(float(f"{rate:.3g}"), round(length), len(TASKS) * seed + number, adapter)
        for number, (task, rate, length, adapter) in enumerate(dealt)
    }


def task_recipes(data: Path) -> dict[str, dict[str, Any]]:
    """The data of ``TASKS``, from what ``tasks.write_tasks`` wrote."""
    return {task: recipe(data, task) for task in TASKS}
