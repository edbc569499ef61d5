"""The fine-tunes of a draw: the same training for every task, or a different one for each; made by the service."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from examples.miniature.tasks import TASKS, recipe
from taumerge import Client, Job

Kind = Literal["same", "different"]
KINDS: tuple[Kind, ...] = ("same", "different")
"""Homogeneous and heterogeneous training."""

LEARNING_RATE, STEPS = 5e-4, 120
LEARNING_RATES = (1e-4, 5e-4, 3e-3)
FEWEST_STEPS, MOST_STEPS = 60, 240
BATCH_SIZE, WARMUP_STEPS = 32, 30
POLL_SECONDS = 0.5
RECORD = "training.json"


@dataclass(frozen=True)
class Training:
    """How one model is trained."""

    task: str
    learning_rate: float
    steps: int
    seed: int


def draw_trainings(kind: Kind, draw: int) -> list[Training]:
    """The training of each task in draw number 0, 1, …

    ``same``: one learning rate and length for all. ``different``: a learning rate of ``LEARNING_RATES`` and a length
    from ``FEWEST_STEPS`` to ``MOST_STEPS``, each as likely.
    """
    random = np.random.default_rng(draw)
    trainings = []
    for number, task in enumerate(TASKS):
        rate, steps = LEARNING_RATE, STEPS
        if kind == "different":
            rate = float(random.choice(LEARNING_RATES))
            steps = int(random.integers(FEWEST_STEPS, MOST_STEPS, endpoint=True))
        trainings.append(Training(task, rate, steps, seed=len(TASKS) * draw + number))
    return trainings


@dataclass(frozen=True)
class Workshop:
    """Where fine-tunes are made, and from what."""

    client: Client
    base: Path
    data: Path
    """Directory that ``tasks.write_tasks`` filled."""
    directory: Path
    """Each fine-tune is a directory in it, under a name that says what decides it. What is there is not made again."""

    def path(self, training: Training) -> Path:
        """The directory of a fine-tune."""
        decides = json.dumps([asdict(training), self.request(training), _digest(self.base)], sort_keys=True)
        return self.directory / f"{training.task}-{hashlib.sha256(decides.encode()).hexdigest()[:12]}"

    def request(self, training: Training) -> dict[str, Any]:
        """What ``POST /finetune`` is asked for, but for the output."""
        return {
            "base": str(self.base),
            "task": {"kind": "clip", **recipe(self.data, training.task)},
            "train": {
                "steps": training.steps,
                "learning_rate": training.learning_rate,
                "batch_size": BATCH_SIZE,
                "warmup_steps": WARMUP_STEPS,
                "seed": training.seed,
            },
            "resources": {"gpus": 0},  # the models are too small for one
        }

    def fine_tune(self, trainings: Iterable[Training], progress: Callable[[int, int], object]) -> None:
        """Make the fine-tunes that are not there yet; the service works on several at once.

        Args:
            progress: told the steps that are done and those of all.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        missing = {self.path(one): one for one in trainings if not (self.path(one) / RECORD).exists()}
        running = {
            self.client.finetune(self.request(one) | {"output": str(path)}).id: one.steps
            for path, one in missing.items()
        }
        total, ended = sum(running.values()), 0
        progress(0, total)
        while running:
            time.sleep(POLL_SECONDS)
            jobs = [self.client.job(identity) for identity in running]
            for job in jobs:
                if job.ended:
                    self.client.wait(job.id)  # raises unless it succeeded
                    ended += running.pop(job.id)
            progress(ended + sum(_steps_done(job) for job in jobs if not job.ended), total)


def _digest(base: Path) -> str:
    return hashlib.sha256((base / "open_clip_model.safetensors").read_bytes()).hexdigest()


def _steps_done(job: Job) -> int:
    return job.progress.done if job.progress and job.progress.unit == "steps" else 0
