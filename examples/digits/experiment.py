"""The experiment from start to end: train, fine-tune, merge with every rule, compare."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.digits.data import Task, load_tasks
from examples.digits.evaluation import evaluate, normalised
from examples.digits.model import load, new_tower, save
from examples.digits.selection import SCALES, SERVER_STEPS, Models, merge, methods, scalings, select
from examples.digits.table import Finetuned, Merged, results_table
from examples.digits.train import Schedule, train
from taumerge import Client

PRETRAINING = Schedule(steps=160, learning_rate=1e-3)
"""Short, on all tasks together: the base knows a little of everything, as CLIP does."""
FINETUNING = {
    "digits": Schedule(steps=100, learning_rate=1e-3),
    "parity": Schedule(steps=200, learning_rate=3e-4),
    "rotation": Schedule(steps=600, learning_rate=1e-3),
    "mirrored": Schedule(steps=400, learning_rate=5e-4),
}
"""Heterogeneous on purpose: the sums of learning rates differ by a factor of ten."""


def run(service_url: Callable[[], str], directory: Path, console: Console) -> None:
    """Write every model below ``directory`` and print the table of results.

    ``service_url`` waits for the service; it is called when the models are trained.
    """
    # One, because the order of sums would depend on it, and because threads that wait for each other
    # starve beside the workers of the service.
    torch.set_num_threads(1)
    tasks = load_tasks()
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        finetuned = _train_models(tasks, directory, progress)
        waiting = progress.add_task("wait for the service", total=1)
        with Client(service_url()) as client:
            progress.advance(waiting)
            merged = _merge_models(client, tasks, finetuned, directory, progress)
    base = evaluate(load(directory / "base"), tasks, "test")
    console.print(results_table(base, finetuned, merged))
    console.print(
        f"{len(tasks['digits'].test)} handwritten digits are test data; λ and ρ were chosen on others."
    )
    console.print(f"The merged models are in {directory / 'merged'}")


def _train_models(tasks: Mapping[str, Task], directory: Path, progress: Progress) -> dict[str, Finetuned]:
    """Train the base, and from it one model for each task."""
    bar = progress.add_task("pre-train the base", total=PRETRAINING.steps)
    base = new_tower(seed=0)
    record = train(base, list(tasks.values()), PRETRAINING, partial(progress.advance, bar))
    save(base, directory / "base", record)

    finetuned = {}
    for name, schedule in FINETUNING.items():
        bar = progress.add_task(f"fine-tune on {name}", total=schedule.steps)
        tower = deepcopy(base)
        record = train(tower, [tasks[name]], schedule, partial(progress.advance, bar))
        save(tower, directory / name, {"base": "../base", **record})
        finetuned[name] = Finetuned(
            record=record,
            validation=evaluate(tower, tasks, "validation"),
            test=evaluate(tower, tasks, "test"),
        )
    return finetuned


def _merge_models(
    client: Client,
    tasks: Mapping[str, Task],
    finetuned: Mapping[str, Finetuned],
    directory: Path,
    progress: Progress,
) -> list[Merged]:
    """For each rule: choose λ and ρ on validation data, merge with them, evaluate on test data."""
    models = Models(directory / "base", [directory / name for name in finetuned])
    scratch = directory / "candidate"
    individual = {name: model.validation[name] for name, model in finetuned.items()}

    def score(merged: Path) -> float:
        return normalised(evaluate(load(merged), tasks, "validation"), individual)

    first = merge(client, models, {"name": "task_arithmetic"}, 1.0, scratch, statistics="norms")
    norms = [model.norm for model in first.models if model.norm is not None]
    merged = []
    for rule in SCALES:
        candidates = methods(rule, norms)
        bar = progress.add_task(f"merge: {rule}", total=len(candidates) * len(SERVER_STEPS))
        best = select(
            client,
            models,
            candidates,
            scalings(rule, len(finetuned)),
            score,
            scratch,
            partial(progress.advance, bar),
        )
        output = directory / "merged" / rule
        result = merge(client, models, best.method, best.scaling, output, statistics="full")
        merged.append(Merged(best.method, result, evaluate(load(output), tasks, "test")))
    shutil.rmtree(scratch)
    return merged
