"""Checkpoints of a training under way: written whole or not at all, and read back to the bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)

from taumerge.errors import JobFailed
from workers.checkpoints.writing import sync
from workers.finetuning.workgroup import Workgroup


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: GradScaler,
    run: dict[str, Any],
    workgroup: Workgroup,
) -> None:
    """Replace ``path`` with trained weights, optimizer state, loss scale and ``run``. All workers call it."""
    # Whole tensors on the first worker, by name: the same file for one worker, DDP and FSDP.
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights, moments = get_state_dict(model, optimizer, options=options)
    if workgroup.rank:
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        torch.save(
            {"weights": weights, "optimizer": moments, "scaler": scaler.state_dict(), "run": run}, temporary
        )
        sync(temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise JobFailed(
            "checkpoint_unwritable",
            f"the checkpoint {path} cannot be written: {error}. Is the disk full?",
        ) from error


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: GradScaler
) -> dict[str, Any]:
    """Put what ``save_checkpoint`` wrote into model, optimizer and scaler; returns its ``run``."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    options = StateDictOptions(full_state_dict=True, strict=False)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=saved["weights"],
        optim_state_dict=saved["optimizer"],
        options=options,
    )
    scaler.load_state_dict(saved["scaler"])
    run: dict[str, Any] = saved["run"]
    return run
