"""Zero-shot heads: the text tower's embeddings of the classes, as a frozen linear layer."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from workers.checkpoints.local_copy import cache_directory
from workers.finetuning.towers import Clip

PROMPTS_AT_ONCE = 512


def zero_shot_head(
    clip: Clip, classes: Sequence[str], templates: Sequence[str], device: torch.device
) -> Tensor:
    """The head of a task, float32 [embedding, classes], on the CPU.

    For each class the mean of its L2-normalised prompt embeddings, renormalised, times exp(logit_scale). It is kept
    in the user's cache directory, by what it is computed from: text tower, configuration and tokens.
    """
    tokens = clip.tokenizer(_prompts(classes, templates)).view(len(classes), len(templates), -1)
    path = cache_directory() / "heads" / f"{_key(clip, tokens)}.safetensors"
    if path.exists():
        return load_file(path)["head"]
    head = _build(clip.model, tokens, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    save_file({"head": head}, temporary)
    temporary.replace(path)
    return head


def truncated_prompts(tokenizer: Any, classes: Sequence[str], templates: Sequence[str]) -> int:
    """How many prompts are longer than the text tower reads, and are cut: the end token then stands elsewhere."""
    prompts, length = _prompts(classes, templates), tokenizer.context_length
    longer = tokenizer(prompts, context_length=length + 1)[:, :length]
    return int((longer != tokenizer(prompts)).any(dim=1).sum())


@torch.no_grad()
def _build(model: Any, tokens: Tensor, device: torch.device) -> Tensor:
    """The head from token ids, int64 [classes, templates, context length]."""
    model.to(device).eval()
    parts = torch.split(tokens.flatten(0, 1), PROMPTS_AT_ONCE)
    embeddings = torch.cat([model.encode_text(part.to(device), normalize=True) for part in parts])
    means = embeddings.float().view(*tokens.shape[:2], -1).mean(dim=1)
    head: Tensor = (F.normalize(means, dim=-1) * model.logit_scale.exp()).T.contiguous().cpu()
    model.cpu()
    return head


def _prompts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    # Other braces are text.
    return [template.replace("{}", name) for name in classes for template in templates]


def _key(clip: Clip, tokens: Tensor) -> str:
    digest = hashlib.sha256(json.dumps([clip.config, *tokens.shape], sort_keys=True).encode())
    tower = {
        name: tensor for name, tensor in clip.model.state_dict().items() if not name.startswith("visual.")
    }
    for name, tensor in {**tower, "tokens": tokens}.items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
