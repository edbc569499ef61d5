"""The tensors of a model under the names that a checkpoint gives them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from taumerge.errors import InvalidRequest
from workers.checkpoints.checkpoint import Checkpoint

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
NAMED = 10


def checkpoint_parameters(
    checkpoint: Checkpoint, model: Any, unexpected: Collection[str] = ()
) -> dict[str, Tensor]:
    """Every float tensor of ``checkpoint`` → the one of ``model`` that holds it, to be written to in place.

    Names may differ by transformers' prefix of the model without its head (``bert.``, ``model.``).

    Args:
        model: loaded from the checkpoint.
        unexpected: names that the loader found no place for. What it silently left out (``rotary_emb.inv_freq`` of
            older Llama checkpoints) gets a tensor that changes nothing.

    Raises:
        InvalidRequest: ``architecture_mismatch``.
    """
    held = {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if tensor.is_floating_point()
    }
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    device = next(iter(held.values())).device
    found: dict[str, Tensor] = {}
    strangers: list[str] = []
    for name, stored in checkpoint.tensors.items():
        if stored.info.dtype not in FLOATS:
            continue
        tensor = _first(held, (name, prefix + name, name.removeprefix(prefix)))
        if tensor is None and name not in unexpected:
            tensor = torch.zeros(stored.info.shape, device=device)
        if tensor is None or tuple(tensor.shape) != tuple(stored.info.shape):
            strangers.append(name)
        else:
            found[name] = tensor
    reached = {tensor.data_ptr() for tensor in found.values()}
    missing = [name for name, tensor in held.items() if tensor.numel() and tensor.data_ptr() not in reached]
    if strangers or missing:
        raise InvalidRequest.at(("base",), "architecture_mismatch", _told(model, strangers, missing))
    for tensor in found.values():
        tensor.requires_grad_(False)
    return found


def _first(held: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor | None:
    return next((held[name] for name in names if name in held), None)


def _told(model: Any, strangers: list[str], missing: list[str]) -> str:
    parts = []
    if strangers:
        parts.append(f"{type(model).__name__} has no place for {_listed(strangers)} of the base")
    if missing:
        parts.append(f"the base has no {_listed(missing)}, which {type(model).__name__} needs")
    return f"{'; '.join(parts)}: choose the evaluation.kind that fits the base"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"
