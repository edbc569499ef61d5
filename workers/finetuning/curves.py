"""Pictures of a training: TensorBoard events while it runs, and a plot of loss and accuracy at its end."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from matplotlib.figure import Figure
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from taumerge.errors import JobFailed

if TYPE_CHECKING:
    from workers.finetuning.ledger import Run

PLOT = "training.png"
EVENTS = "tensorboard"
FLUSH_SECONDS = 5.0
"""How old an event may grow before TensorBoard can see it."""


class Events:
    """A file of TensorBoard events in ``directory``, in the place of what an earlier attempt left there.

    Written in the training's own thread: tensorboardX's ``SummaryWriter`` queues for a thread, and waits for ever
    when that thread has met a full disk.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._due = 0.0

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add the numbers of a step; raises JobFailed with ``output_unwritable``."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        try:
            self._writer.write_event(event)
            if time.monotonic() >= self._due:
                self._due = time.monotonic() + FLUSH_SECONDS
                self._writer.flush()
        except OSError as error:
            raise _unwritable(error) from error

    def __enter__(self) -> Self:
        try:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory.mkdir()
            self._writer = EventsWriter(str(self._directory / "events"))
        except OSError as error:
            raise _unwritable(error) from error
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            self._writer.close()
        except OSError as failed:
            if error is None:
                raise _unwritable(failed) from failed


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


def _unwritable(error: OSError) -> JobFailed:
    return JobFailed(
        "output_unwritable", f"the training's events cannot be written: {error.strerror}. Is the disk full?"
    )
