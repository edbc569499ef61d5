"""Pictures of a training: TensorBoard events, and a plot of loss and accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tensorboardX import SummaryWriter

from taumerge.schemas import TrainSpec
from workers.finetuning.loop import Run, learning_rate_at

PLOT = "training.png"
EVENTS = "tensorboard"


def write_events(run: Run, spec: TrainSpec, directory: Path) -> None:
    """``train/loss`` and ``train/learning_rate`` of every step, ``validation/…`` of every validation."""
    with SummaryWriter(str(directory / EVENTS)) as writer:
        for step, loss in enumerate(run.losses):
            writer.add_scalar("train/loss", loss, step + 1)
            writer.add_scalar("train/learning_rate", learning_rate_at(spec, step), step + 1)
        for validation in run.validations:
            for name in validation.keys() - {"step", "epoch"}:
                writer.add_scalar(f"validation/{name}", validation[name], int(validation["step"]))


def write_plot(run: Run, directory: Path) -> None:
    """Loss of every step with its moving average, and the validation accuracy, over the steps."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    loss_axes = figure.subplots()
    steps = np.arange(1, len(run.losses) + 1)
    window = max(1, len(steps) // 50)
    mean = np.convolve(run.losses, np.ones(window) / window, mode="valid")
    loss_axes.plot(steps, run.losses, color="tab:blue", alpha=0.3, linewidth=0.8)
    loss_axes.plot(steps[window - 1 :], mean, color="tab:blue", label="training loss")
    loss_axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    scored = [one for one in run.validations if "accuracy" in one]
    if scored:
        accuracy_axes = loss_axes.twinx()
        accuracy = [one["accuracy"] for one in scored]
        at = [one["step"] for one in scored]
        accuracy_axes.plot(at, accuracy, color="tab:orange", marker=".", label="validation accuracy")
        accuracy_axes.set(ylabel="accuracy", ylim=(0, 1.02))
    figure.legend(loc="outside upper center", ncols=2)
    figure.savefig(directory / PLOT, dpi=120)
