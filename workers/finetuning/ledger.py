"""What a training has done and measured: kept, reported, and looked at for a loss that is no number."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from taumerge.errors import JobFailed
from taumerge.schemas import Progress, TrainSpec
from workers.finetuning.schedule import learning_rate_at

Report = Callable[[Progress], None]
"""Told about the progress after every step; what it raises stops the training."""
Log = Callable[[int, Mapping[str, float]], None]
"""Told numbers by name, with the step that they belong to."""

SMALLEST_LOSS_SCALE = 1.0


@dataclass
class Run:
    """How far a training is, and what it has measured. Checkpoints hold it."""

    step: int = 0
    """Optimizer steps done."""
    lr_sum: float = 0.0
    """A = Σ_k η^(k) over the steps that changed the weights."""
    skipped_steps: int = 0
    """Steps that float16 gradients overflowed in: they changed no weight and are not in ``lr_sum``."""
    losses: list[float] = field(default_factory=list)
    """Training loss of each step."""
    validations: list[dict[str, float]] = field(default_factory=list)
    """``step``, ``epoch`` and the metrics of the task."""
    seconds: float = 0.0
    """Wall time of training and validation, over all attempts."""


@dataclass(frozen=True)
class Step:
    """A step of the optimizer, which the device may still be computing."""

    learning_rate: float
    numbers: Tensor
    """Loss, norm of its gradient before clipping, and how many terms the loss is the mean of: float64 [3]."""


class Ledger:
    """Enters steps and validations into a ``Run``, and tells report and log about them."""

    def __init__(
        self,
        run: Run,
        spec: TrainSpec,
        unit: str,
        scaler: GradScaler,
        checkpoint: Path,
        report: Report,
        log: Log,
    ) -> None:
        self._run, self._spec, self._unit, self._scaler = run, spec, unit, scaler
        self._checkpoint, self._report, self._log = checkpoint, report, log
        self._before = run.step
        self._terms = self._training = 0.0
        self._begun = self._since = time.monotonic()
        self._repeat()

    def settle(self, step: Step) -> None:
        """Wait for a step and enter it.

        Raises:
            JobFailed: ``training_diverged``.
        """
        run = self._run
        loss, norm, terms = step.numbers.tolist()
        if not math.isfinite(loss) or not (self._scaler.is_enabled() or math.isfinite(norm)):
            raise self._diverged("the loss or its gradient is not finite")
        if math.isfinite(norm):
            run.lr_sum += step.learning_rate
        else:  # the scaler took no step
            run.skipped_steps += 1
            if self._scaler.get_scale() < SMALLEST_LOSS_SCALE:
                raise self._diverged("the gradients overflow float16 at every loss scale")
        run.step += 1
        run.losses.append(loss)
        self._terms += terms
        self._training += self._lap()
        numbers = {"loss": loss, "learning_rate": step.learning_rate}
        self._log(run.step, {f"train/{name}": value for name, value in numbers.items()})
        self._report(self._progress(numbers))

    def validate(self, epoch: float, metrics: Mapping[str, float]) -> None:
        """Enter the metrics of a validation after the last step."""
        self._run.validations.append({"step": self._run.step, "epoch": epoch, **metrics})
        self._log_validation(self._run.validations[-1])
        self._lap()

    def _repeat(self) -> None:
        """Log what the checkpoint knows: the log of the attempt before it may know more, or less."""
        for step, loss in enumerate(self._run.losses):
            rate = learning_rate_at(self._spec, step)
            self._log(step + 1, {"train/loss": loss, "train/learning_rate": rate})
        for validation in self._run.validations:
            self._log_validation(validation)

    def _log_validation(self, validation: Mapping[str, float]) -> None:
        metrics = {
            f"validation/{name}": value for name, value in validation.items() if name not in {"step", "epoch"}
        }
        self._log(int(validation["step"]), metrics)

    def _lap(self) -> float:
        """Seconds since the last lap."""
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        self._run.seconds += seconds
        return seconds

    def _progress(self, numbers: dict[str, float]) -> Progress:
        done, steps = self._run.step, self._spec.steps
        a_step = (time.monotonic() - self._begun) / (done - self._before)  # with its share of the validations
        return Progress(
            phase="train",
            done=done,
            total=steps,
            unit="steps",
            eta_seconds=round(a_step * (steps - done), 1),
            metrics=numbers | {f"{self._unit}_per_second": self._terms / self._training},
        )

    def _diverged(self, problem: str) -> JobFailed:
        step, checkpoint = self._run.step + 1, self._checkpoint
        kept = {"checkpoint": str(checkpoint)} if checkpoint.exists() else {}
        where = f"the checkpoint before it stays at {checkpoint}" if kept else "there is no checkpoint yet"
        return JobFailed(
            "training_diverged",
            f"{problem} at step {step}; {where}. Lower train.learning_rate, or lengthen train.warmup_steps",
            {"step": step, **kept},
        )
