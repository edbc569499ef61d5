"""The training loop: AdamW, linear warm-up and cosine, clipped gradients, checkpoints. One for every task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from taumerge.errors import JobFailed
from taumerge.schemas import TrainSpec
from workers.finetuning.checkpoint import load_checkpoint, save_checkpoint
from workers.finetuning.ledger import Ledger, Log, Report, Run, Step
from workers.finetuning.schedule import learning_rate_at
from workers.finetuning.task import Batch, TrainingTask
from workers.finetuning.workgroup import Workgroup, whole
from workers.hardware import Hardware, lacks_memory

VALIDATIONS = 100
"""At most about so many in a run: one an epoch, or one every few epochs where epochs are short."""


def _no_log(step: int, numbers: Mapping[str, float]) -> None:
    """A log that nobody reads."""


def train(
    task: TrainingTask,
    spec: TrainSpec,
    hardware: Hardware,
    checkpoint: Path,
    report: Report,
    workgroup: Workgroup | None = None,
    log: Log = _no_log,
) -> Run:
    """Train the model of ``task`` in place, from ``checkpoint`` on where there is one.

    The same spec, task and hardware give the same weights, whether or not the training was interrupted: data
    order and random numbers depend on seed and step only. (On a GPU up to its own non-deterministic kernels.)

    Args:
        checkpoint: file that is replaced every ``checkpoint_every`` steps.
        workgroup: the workers that share each step; default: this one alone.
        log: told the numbers of every step and validation, those before ``checkpoint`` too.

    Raises:
        JobFailed: ``training_diverged`` (NaN or inf; the last checkpoint stays) or ``out_of_memory``.
    """
    workgroup = workgroup or Workgroup()
    try:
        return _train(task, spec, hardware, checkpoint, report, workgroup, log)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        examples = spec.micro_batch_size or math.ceil(spec.batch_size / workgroup.world)
        raise _out_of_memory(hardware, examples) from error


def _train(
    task: TrainingTask,
    spec: TrainSpec,
    hardware: Hardware,
    checkpoint: Path,
    report: Report,
    workgroup: Workgroup,
    log: Log,
) -> Run:
    model = workgroup.wrap(task.model, hardware)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    scaler = GradScaler(hardware.device.type, enabled=hardware.dtype is torch.float16)
    run = Run()
    if checkpoint.exists():
        run = Run(**load_checkpoint(checkpoint, model, optimizer, scaler))
    validate_every = task.steps_per_epoch * math.ceil(spec.steps / task.steps_per_epoch / VALIDATIONS)
    ledger = Ledger(run, spec, task.unit, scaler, checkpoint, report, log)
    pending: Step | None = None

    for step, batches in enumerate(_steps_from(run.step, task, workgroup), run.step):
        if step == spec.steps:
            break
        # A seed for each step, instead of a generator's state in the checkpoint.
        torch.manual_seed(_mixed(spec.seed, step, workgroup.rank))
        learning_rate = learning_rate_at(spec, step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate

        model.train()
        optimizer.zero_grad(set_to_none=True)
        count, loss = _accumulate(model, batches, task, hardware, scaler, workgroup)
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, spec.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()

        # The numbers of a step are looked at when the next one is queued, so that a GPU never waits for that.
        latest = Step(learning_rate, torch.stack([loss, whole(norm).double(), count]))
        if pending is not None:
            ledger.settle(pending)
        pending = latest
        ends = step + 1 == spec.steps
        validates = ends or (step + 1) % validate_every == 0
        saves = ends or (step + 1) % spec.checkpoint_every == 0
        if validates or saves:
            ledger.settle(pending)
            pending = None
        if validates:
            ledger.validate(run.step / task.steps_per_epoch, task.validate(model))
        if saves:
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
) -> tuple[Tensor, Tensor]:
    """Add the gradient of the mean loss over a whole step. Returns how many terms it has, and the loss: float64 []."""
    counts = [task.count(batch) for batch in batches]
    total = workgroup.sum(torch.full((), sum(counts), dtype=torch.float64, device=hardware.device))
    mean = torch.zeros_like(total)
    for batch, count in zip(batches, counts, strict=True):
        with ExitStack() as stack:
            if isinstance(model, DistributedDataParallel) and batch is not batches[-1]:
                stack.enter_context(model.no_sync())
            with hardware.autocast():
                loss = task.loss(model, batch)
            # Gradients are averaged over the workers, terms over the whole step.
            share = count / total
            scaler.scale(loss * (share * workgroup.world).to(loss.dtype)).backward()  # type: ignore[no-untyped-call]
        mean += loss.detach() * share
    return total, workgroup.sum(mean)


def _mixed(seed: int, step: int, rank: int) -> int:
    """A seed of its own for each (seed, step, rank)."""
    return hash((seed, step, rank)) % 2**63


def _out_of_memory(hardware: Hardware, examples: int) -> JobFailed:
    if examples > 1:
        advice = (
            "lower train.micro_batch_size (gradients then accumulate and the result stays that of batch_size)"
        )
    else:
        advice = "turn on train.gradient_checkpointing or lower task.max_length, or share the model with strategy: fsdp"
    return JobFailed(
        "out_of_memory",
        f"{hardware.name} ran out of memory with {examples} examples in a forward pass; {advice}",
        {"micro_batch_size": examples},
    )
