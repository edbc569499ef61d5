"""The training loop: AdamW, linear warm-up and cosine, clipped gradients, checkpoints. One for every task."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from taumerge.errors import JobFailed
from taumerge.schemas import Progress, TrainSpec
from workers.finetuning.checkpoint import load_checkpoint, save_checkpoint
from workers.finetuning.task import Batch, TrainingTask
from workers.finetuning.workgroup import Workgroup
from workers.hardware import Hardware

Report = Callable[[Progress], None]
"""Told about the progress after every step; what it raises stops the training."""

VALIDATIONS = 100
"""At most about so many in a run: one an epoch, or one every few epochs where epochs are short."""
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


def learning_rate_at(spec: TrainSpec, step: int) -> float:
    """η^(k) of step k = 0 … steps − 1: linear up to the peak, then cosine to zero.

    With steps > warmup_steps > 0 the sum over all steps is η·(steps/2 + 1).
    """
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    progress = (step - spec.warmup_steps) / (spec.steps - spec.warmup_steps)
    return spec.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def train(
    task: TrainingTask,
    spec: TrainSpec,
    hardware: Hardware,
    checkpoint: Path,
    report: Report,
    workgroup: Workgroup | None = None,
) -> Run:
    """Train the model of ``task`` in place, from ``checkpoint`` on where there is one.

    The same spec, task and hardware give the same weights, whether or not the training was interrupted: data
    order and random numbers depend on seed and step only. (On a GPU up to its own non-deterministic kernels.)

    Args:
        checkpoint: file that is replaced every ``checkpoint_every`` steps.
        workgroup: the workers that share each step; default: this one alone.

    Raises:
        JobFailed: ``training_diverged`` (NaN or inf; the last checkpoint stays) or ``out_of_memory``.
    """
    workgroup = workgroup or Workgroup()
    try:
        return _train(task, spec, hardware, checkpoint, report, workgroup)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        examples = spec.micro_batch_size or math.ceil(spec.batch_size / workgroup.world)
        raise JobFailed(
            "out_of_memory",
            f"{hardware.name} ran out of memory with {examples} examples in a forward pass; lower "
            "train.micro_batch_size (gradients then accumulate and the result stays that of batch_size)",
            {"micro_batch_size": examples},
        ) from error


def _train(
    task: TrainingTask,
    spec: TrainSpec,
    hardware: Hardware,
    checkpoint: Path,
    report: Report,
    workgroup: Workgroup,
) -> Run:
    model = workgroup.wrap(task.model, hardware)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    scaler = GradScaler(hardware.device.type, enabled=hardware.dtype is torch.float16)
    run = Run()
    if checkpoint.exists():
        run = Run(**load_checkpoint(checkpoint, model, optimizer, scaler))
    validate_every = task.steps_per_epoch * math.ceil(spec.steps / task.steps_per_epoch / VALIDATIONS)
    pace = _Pace(spec.steps, task.unit, run.step)
    begun = time.monotonic()

    for batches in _steps_from(run.step, task, workgroup):
        if run.step == spec.steps:
            break
        # A seed for each step, instead of a generator's state in the checkpoint.
        torch.manual_seed(_mixed(spec.seed, run.step, workgroup.rank))
        learning_rate = learning_rate_at(spec, run.step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate

        model.train()
        optimizer.zero_grad(set_to_none=True)
        count, loss = _accumulate(model, batches, task, hardware, scaler, workgroup)
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, spec.max_grad_norm)
        if not math.isfinite(loss) or not (scaler.is_enabled() or math.isfinite(float(norm))):
            raise _diverged(run.step, checkpoint, "the loss or its gradient is not finite")
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() < scale:
            run.skipped_steps += 1
            if scaler.get_scale() < SMALLEST_LOSS_SCALE:
                raise _diverged(run.step, checkpoint, "the gradients overflow float16 at every loss scale")
        else:
            run.lr_sum += learning_rate

        run.step += 1
        run.losses.append(loss)
        pace.step(count, time.monotonic() - begun)
        report(pace.progress(run.step, {"loss": loss, "learning_rate": learning_rate}))
        if run.step % validate_every == 0 or run.step == spec.steps:
            epoch = run.step / task.steps_per_epoch
            run.validations.append({"step": run.step, "epoch": epoch, **task.validate(model)})
        begun, run.seconds = time.monotonic(), run.seconds + time.monotonic() - begun
        if run.step % spec.checkpoint_every == 0 or run.step == spec.steps:
            save_checkpoint(checkpoint, model, optimizer, scaler, vars(run), workgroup)
    return run


def _steps_from(step: int, task: TrainingTask, workgroup: Workgroup) -> Iterator[Sequence[Batch]]:
    """The batches of every step from ``step`` on, epoch after epoch, without end."""
    epoch, first = divmod(step, task.steps_per_epoch)
    while True:
        yield from task.train_batches(epoch, first, workgroup.rank, workgroup.world)
        epoch, first = epoch + 1, 0


def _accumulate(
    model: nn.Module,
    batches: Sequence[Batch],
    task: TrainingTask,
    hardware: Hardware,
    scaler: GradScaler,
    workgroup: Workgroup,
) -> tuple[int, float]:
    """Add the gradient of the mean loss over a whole step. Returns how many terms it has, and the loss."""
    counts = [task.count(batch) for batch in batches]
    total = workgroup.sum(sum(counts))
    mean = 0.0
    for batch, count in zip(batches, counts, strict=True):
        with ExitStack() as stack:
            if isinstance(model, DistributedDataParallel) and batch is not batches[-1]:
                stack.enter_context(model.no_sync())
            with hardware.autocast():
                loss = task.loss(model, batch)
            # Gradients are averaged over the workers, terms over the whole step.
            share = count * workgroup.world / total
            scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
        mean += loss.item() * count / total
    return int(total), workgroup.sum(mean)


class _Pace:
    """Throughput and time left, from the steps of this attempt."""

    def __init__(self, steps: int, unit: str, done: int) -> None:
        self._steps, self._unit, self._before = steps, unit, done
        self._count, self._seconds, self._begun = 0, 0.0, time.monotonic()

    def step(self, count: int, seconds: float) -> None:
        """A step over ``count`` terms took so long, with the wait for its data."""
        self._count += count
        self._seconds += seconds

    def progress(self, done: int, metrics: dict[str, float]) -> Progress:
        """The progress after ``done`` steps, validations counted in the time left."""
        a_step = (time.monotonic() - self._begun) / (done - self._before)
        return Progress(
            phase="train",
            done=done,
            total=self._steps,
            unit="steps",
            eta_seconds=round(a_step * (self._steps - done), 1),
            metrics=metrics | {f"{self._unit}_per_second": self._count / self._seconds},
        )


def _mixed(seed: int, step: int, rank: int) -> int:
    """A seed of its own for each (seed, step, rank)."""
    return hash((seed, step, rank)) % 2**63


def _diverged(step: int, checkpoint: Path, problem: str) -> JobFailed:
    kept = {"checkpoint": str(checkpoint)} if checkpoint.exists() else {}
    where = f"the checkpoint before it stays at {checkpoint}" if kept else "there is no checkpoint yet"
    return JobFailed(
        "training_diverged",
        f"{problem} at step {step + 1}; {where}. Lower train.learning_rate, or lengthen train.warmup_steps",
        {"step": step + 1, **kept},
    )


def _lacks_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
