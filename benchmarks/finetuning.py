"""``python -m benchmarks.finetuning``: training throughput against plain PyTorch, on the same model and batches.

Both train in this process in turns, so that what else the machine does slows them alike. Of each turn the steps after
the first count, without validation and checkpoint, which a loop of one's own has too.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.plain_training import Photographs, image_loss, photographs_loader, text_loss, train_plainly
from benchmarks.training_inputs import write_clip, write_llama
from taumerge.schemas import FinetuneRequest, Progress
from workers.finetuning.curves import Events
from workers.finetuning.datasets import load_images
from workers.finetuning.loop import train
from workers.finetuning.task import TrainingTask, build_task
from workers.hardware import Hardware, choose_hardware

TURNS = 4
STEPS = 9


@dataclass
class Comparison:
    """Seconds of a step in each turn."""

    what: str
    examples: int
    """Of a step."""
    ours: list[float]
    plain: list[float]

    @property
    def ratio(self) -> float:
        """Our throughput over that of plain PyTorch: the median over the turns."""
        return statistics.median(p / o for p, o in zip(self.plain, self.ours, strict=True))


def compare_finetuning(directory: Path) -> list[Comparison]:
    """Train an image tower, a whole language model and a LoRA, each both ways in turns."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    hardware = choose_hardware("float32")  # plain loops have no scaler and no autocast
    adapter = {"kind": "lora", "rank": 8}
    return [
        _compare_images(directory, hardware),
        _compare_text(directory, hardware, None),
        _compare_text(directory, hardware, adapter),
    ]


def _compare_images(directory: Path, hardware: Hardware) -> Comparison:
    base, data = write_clip(directory)
    request = _request(base, "clip", {"uri": str(data), "format": "image_folder"}, directory, 32)
    task = build_task(request, hardware)
    images = load_images(request.task.dataset, "train", None)
    photographs = Photographs([Path(str(image)) for image in images.images], images.labels, 128)

    def plain(workers: int) -> list[float]:
        loader = photographs_loader(photographs, request.train, workers)
        return train_plainly(task.model, loader, image_loss, request.train, hardware.device)

    # Worker processes feed a GPU; on CPUs that compute anyway they are in the way or not, so the better one counts.
    workers = min((0, len(os.sched_getaffinity(0))), key=lambda workers: _step_seconds(plain(workers)))
    return _in_turns("CLIP image tower", task, request, hardware, directory, lambda: plain(workers))


def _compare_text(directory: Path, hardware: Hardware, adapter: dict[str, Any] | None) -> Comparison:
    base, data = write_llama(directory)
    request = _request(base, "causal_lm", {"uri": str(data), "format": "jsonl"}, directory, 8, adapter)
    task = build_task(request, hardware)

    def plain() -> list[float]:
        batches = chain.from_iterable(
            task.train_batches(0, 0, 0, 1)
        )  # one a step, encoded and of similar length
        return train_plainly(task.model, batches, text_loss, request.train, hardware.device)

    what = "Llama, LoRA" if adapter else "Llama, whole"
    return _in_turns(what, task, request, hardware, directory, plain)


def _in_turns(
    what: str,
    task: TrainingTask,
    request: FinetuneRequest,
    hardware: Hardware,
    directory: Path,
    plain: Callable[[], list[float]],
) -> Comparison:
    comparison = Comparison(what, request.train.batch_size, [], [])
    _train(task, request, hardware, directory)  # whoever is first pays for what is done once
    for _ in range(TURNS):
        comparison.ours.append(_step_seconds(_train(task, request, hardware, directory)))
        comparison.plain.append(_step_seconds(plain()))
    return comparison


def _train(task: TrainingTask, request: FinetuneRequest, hardware: Hardware, directory: Path) -> list[float]:
    """As ``workers.finetuning.worker`` trains; returns the time at the end of each step."""
    times: list[float] = []

    def report(progress: Progress) -> None:
        times.append(time.perf_counter())

    checkpoint = directory / "checkpoint.pt"
    checkpoint.unlink(missing_ok=True)
    with Events(directory / "events") as events:
        train(task, request.train, hardware, checkpoint, report, log=events.write)
    return times


def _step_seconds(times: list[float]) -> float:
    return (times[-1] - times[0]) / (len(times) - 1)


def _request(
    base: Path,
    kind: str,
    data: dict[str, str],
    directory: Path,
    batch: int,
    adapter: dict[str, Any] | None = None,
) -> FinetuneRequest:
    return FinetuneRequest.model_validate(
        {
            "base": str(base),
            "task": {"kind": kind, "dataset": data},
            "train": {"steps": STEPS, "batch_size": batch, "warmup_steps": 4, "precision": "float32"},
            "adapter": adapter,
            "output": str(directory / "out"),
        }
    )


def finetuning_table(comparisons: list[Comparison]) -> Table:
    """Examples per second both ways, and our share of plain PyTorch's."""
    table = Table("fine-tune", "examples/s", "plain PyTorch", "ratio", "of the turns")
    for one in comparisons:
        ours, plain = (one.examples / statistics.median(seconds) for seconds in (one.ours, one.plain))
        ratios = sorted(p / o for p, o in zip(one.plain, one.ours, strict=True))
        table.add_row(
            one.what,
            f"{ours:.1f}",
            f"{plain:.1f}",
            f"{one.ratio:.2f}",
            f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
        )
    return table


def main() -> None:
    """Compare and print the table."""
    directory = Path(".taumerge/bench/finetuning").resolve()
    directory.mkdir(parents=True, exist_ok=True)
    Console().print(finetuning_table(compare_finetuning(directory)))


if __name__ == "__main__":
    main()
