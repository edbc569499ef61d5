"""Zero-shot heads: the text tower's embeddings of the classes, as a frozen linear layer."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

PROMPTS_AT_ONCE = 512


def zero_shot_head(
    clip: nn.Module, tokenizer: Any, classes: Sequence[str], templates: Sequence[str], device: torch.device
) -> Tensor:
    """The head of a task, float32 [embedding, classes], on the CPU.

    For each class the mean of its L2-normalised prompt embeddings, renormalised, times exp(logit_scale). It is kept
    in the user's cache directory, by text tower, classes and templates.
    """
    path = _cache_directory() / f"{_key(clip, classes, templates)}.safetensors"
    if path.exists():
        return load_file(path)["head"]
    head = _build(clip, tokenizer, classes, templates, device)
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
def _build(
    clip: nn.Module, tokenizer: Any, classes: Sequence[str], templates: Sequence[str], device: torch.device
) -> Tensor:
    clip.to(device).eval()
    prompts = _prompts(classes, templates)
    embeddings = torch.cat(
        [
            clip.encode_text(tokenizer(prompts[start : start + PROMPTS_AT_ONCE]).to(device), normalize=True)  # type: ignore[operator]
            for start in range(0, len(prompts), PROMPTS_AT_ONCE)
        ]
    )
    means = embeddings.float().view(len(classes), len(templates), -1).mean(dim=1)
    scale = clip.logit_scale.exp()  # type: ignore[operator]
    head = (F.normalize(means, dim=-1) * scale).T.contiguous().cpu()
    clip.cpu()
    return head


def _prompts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    return [template.format(name) for name in classes for template in templates]


def _key(clip: nn.Module, classes: Sequence[str], templates: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps([list(classes), list(templates)]).encode())
    for name, tensor in clip.state_dict().items():
        if not name.startswith("visual."):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _cache_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "taumerge" / "heads"
