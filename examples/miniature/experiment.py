"""The experiment: fine-tune on eight tasks with the same and with different training, merge by every rule, compare."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.miniature.table import Draw, results_table
from examples.miniature.tasks import TASKS, recipe, write_tasks
from taumerge import Client, DiagnoseResult, Job, SearchResult

BASE = Path(__file__).parent / "base"
SAME_RATE, SAME_STEPS = 5e-4, 120
RATES = (1e-4, 5e-4, 3e-3)
"""Learning rates of different training: they span the thirty-fold that makes heterogeneity show."""
FEWEST_STEPS, MOST_STEPS = 60, 240
AT_ONCE = 2
"""Fine-tunes under way at a time: as many as the service runs."""
METHODS: list[dict[str, Any]] = [
    {"name": "task_arithmetic", "scale": "mean"},
    {"name": "fednova", "scale": "mean", "normalize_by": ["steps", "lr_sum"]},
    {"name": "fedgma", "scale": "mean"},
    {"name": "median", "scale": "mean"},
    {"name": "cclip", "scale": "mean"},
]
"""All of one scale, so that one grid of λ is the same step along the mean for each."""
SCALING = {"from": 0.1, "to": 4.0, "step": 0.1}


@dataclass(frozen=True)
class Training:
    """How a model is fine-tuned."""

    learning_rate: float
    steps: int


def same_training() -> dict[str, Training]:
    """Every task trained alike."""
    return dict.fromkeys(TASKS, Training(SAME_RATE, SAME_STEPS))


def different_training(seed: int) -> dict[str, Training]:
    """A draw of learning rates and lengths, one of each for every task."""
    random = np.random.default_rng(seed)
    return {
        task: Training(float(random.choice(RATES)), int(random.integers(FEWEST_STEPS, MOST_STEPS + 1)))
        for task in TASKS
    }


def run(service_url: Callable[[], str], directory: Path, console: Console, seeds: int) -> None:
    """Write data and models below ``directory`` and print the table of results.

    ``service_url`` waits for the service; it is called when the tasks are drawn.
    """
    data, base = directory / "tasks", directory / "base"
    if not data.exists():
        write_tasks(directory / "tasks.partial")
        (directory / "tasks.partial").rename(data)
    shutil.copytree(BASE, base, dirs_exist_ok=True)
    draws = {"same": same_training()}
    draws |= {f"different-{seed}": different_training(seed) for seed in range(seeds)}
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results = []
    with Client(service_url()) as client, Progress(*columns, console=console) as progress:
        models = _finetune(client, directory, _distinct(draws.values()), progress)
        for name, trainings in draws.items():
            chosen = {task: models[task, training] for task, training in trainings.items()}
            results.append(_search(client, directory, name, chosen, progress))
    console.print(results_table(results[0], results[1:]))
    console.print(f"The merged models, with a report each, are in {directory / 'merged'}")


def _distinct(draws: Iterable[Mapping[str, Training]]) -> list[tuple[str, Training]]:
    return list(dict.fromkeys(pair for draw in draws for pair in draw.items()))


def _finetune(
    client: Client, directory: Path, runs: Sequence[tuple[str, Training]], progress: Progress
) -> dict[tuple[str, Training], Path]:
    """Fine-tune what is not there yet; returns the directory of each model."""
    bar = progress.add_task("fine-tune", total=len(runs))
    outputs: dict[tuple[str, Training], Path] = {}
    waiting: list[Job] = []
    for task, training in runs:
        output = directory / "finetuned" / f"{task}-lr{training.learning_rate:g}-steps{training.steps}"
        outputs[task, training] = output
        if _is_made_of_this_base(output, directory / "base"):
            progress.advance(bar)
            continue
        shutil.rmtree(output, ignore_errors=True)
        waiting.append(client.finetune(_finetune_request(directory, task, training, output)))
        if len(waiting) == AT_ONCE:
            client.wait(waiting.pop(0).id)
            progress.advance(bar)
    for job in waiting:
        client.wait(job.id)
        progress.advance(bar)
    return outputs


def _finetune_request(directory: Path, task: str, training: Training, output: Path) -> dict[str, Any]:
    return {
        "base": str(directory / "base"),
        "task": {"kind": "clip", **recipe(directory / "tasks", task)},
        "train": {
            "steps": training.steps,
            "learning_rate": training.learning_rate,
            "batch_size": 32,
            "warmup_steps": 30,
        },
        "resources": {"gpus": 0},  # the models are too small for one
        "output": str(output),
    }


def _is_made_of_this_base(output: Path, base: Path) -> bool:
    """Whether an earlier run left this model, fine-tuned from the base as it is now."""
    record = output / "training.json"
    weights = base / "open_clip_model.safetensors"
    return record.exists() and record.stat().st_mtime > weights.stat().st_mtime


def _search(
    client: Client, directory: Path, name: str, models: Mapping[str, Path], progress: Progress
) -> Draw:
    """Find the best merge of ``models`` by each rule."""
    bar = progress.add_task(f"search: {name}", total=None)
    output = directory / "merged" / name
    job = client.search(
        base=str(directory / "base"),
        models=[{"uri": str(path), "task": task} for task, path in models.items()],
        methods=METHODS,
        scaling=SCALING,
        evaluation={"kind": "clip", "tasks": {task: recipe(directory / "tasks", task) for task in models}},
        algorithm="adaptive",
        output=str(output),
        overwrite=True,
    )

    def show(job: Job) -> None:
        if job.progress and job.progress.phase == "evaluate":
            progress.update(bar, completed=job.progress.done, total=job.progress.total)

    result = client.wait(job.id, progress=show).result
    assert isinstance(result, SearchResult), "wait raises unless the job succeeded"
    diagnosis = client.wait(
        client.diagnose(base=str(directory / "base"), models=[str(path) for path in models.values()]).id
    ).result
    assert isinstance(diagnosis, DiagnoseResult)
    progress.update(bar, completed=1, total=1)
    return Draw(name, result, diagnosis)
