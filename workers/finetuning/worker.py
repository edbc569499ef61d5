"""One training on this process: from the request to the files of the fine-tuned checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from taumerge.errors import JobFailed
from taumerge.schemas import FinetuneRequest, OutputFile, Progress, TrialResult
from workers.checkpoints.writing import sha256_of, sync
from workers.finetuning.curves import EVENTS, Events, write_plot
from workers.finetuning.ledger import Report, Run
from workers.finetuning.loop import train
from workers.finetuning.record import build_record, write_record
from workers.finetuning.task import build_task
from workers.finetuning.workgroup import Workgroup
from workers.hardware import choose_hardware

CHECKPOINT = ".checkpoint.pt"
LOSS_STEPS = 50
"""The loss of a result is the mean over so many last steps."""


def finetune(
    request: FinetuneRequest,
    directory: Path,
    report: Report,
    *,
    threads: int | None = None,
    workgroup: Workgroup | None = None,
) -> TrialResult:
    """Carry out ``request`` (its grid left aside) and write the checkpoint into the existing ``directory``.

    Goes on from the checkpoint that an earlier attempt left there, and removes it at the end. Of several workers all
    call it; the first writes.

    Args:
        threads: CPU threads of torch; default: every CPU of this process.

    Raises:
        InvalidRequest: what only the data or the model shows.
        JobFailed: ``training_diverged``, ``out_of_memory``, ``unsupported_device``, …
    """
    workgroup = workgroup or Workgroup()
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    report(Progress(phase="load", total=request.train.steps, unit="steps"))
    hardware = choose_hardware(request.train.precision)
    torch.manual_seed(request.train.seed)  # for what a task initialises at random
    task = build_task(request, hardware)
    checkpoint = directory / CHECKPOINT
    if workgroup.rank:
        run = train(task, request.train, hardware, checkpoint, report, workgroup)
    else:
        with Events(directory / EVENTS) as events:
            run = train(task, request.train, hardware, checkpoint, report, workgroup, events.write)
    weights = workgroup.whole_weights(task.model)
    if workgroup.rank:
        return _result(request, run, [])

    report(Progress(phase="save", done=run.step, total=run.step, unit="steps"))
    try:
        task.save(directory, weights)
        write_plot(run, directory)
        checkpoint.unlink()
        files = [_described(path) for path in sorted(directory.iterdir()) if path.is_file()]
        result = _result(request, run, files)
        # last of all: whoever finds a record finds a complete checkpoint
        write_record(build_record(request, task, run, hardware, result), directory)
    except OSError as error:
        raise JobFailed(
            "output_unwritable",
            f"the fine-tuned checkpoint cannot be written: {error.strerror}. Is the disk full?",
        ) from error
    return result


def _result(request: FinetuneRequest, run: Run, files: list[OutputFile]) -> TrialResult:
    last = run.losses[-LOSS_STEPS:]
    metrics = run.validations[-1] if run.validations else {}
    return TrialResult(
        output=request.output,
        learning_rate=request.train.learning_rate,
        steps=run.step,
        lr_sum=run.lr_sum,
        loss=sum(last) / len(last),
        validation={name: value for name, value in metrics.items() if name not in {"step", "epoch"}},
        files=files,
    )


def _described(path: Path) -> OutputFile:
    path.chmod(0o644)  # safetensors writes files that only their owner reads
    sync(path)
    return OutputFile(name=path.name, bytes=path.stat().st_size, sha256=sha256_of(path))
