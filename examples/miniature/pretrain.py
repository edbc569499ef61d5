"""``python -m examples.miniature.pretrain DIRECTORY``: train the base, a CLIP of toy size, on drawn pictures."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from examples.miniature.captions import CONTEXT_LENGTH, vocabulary, write_tokenizer
from examples.miniature.drawing import SIZE
from examples.miniature.world import SEED, draw_world

PICTURES = 50_000
CHUNK = 500
STEPS = 2000
WARMUP_STEPS = 100
BATCH_SIZE = 128
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1
LARGEST_LOGIT_SCALE = math.log(100)
LARGEST_SHIFT = 2
"""Pictures are shifted by at most so many pixels."""
WIDTH, HEAD_WIDTH = 96, 24
"""Of the image tower. The text tower is the same for every width."""


def configuration(width: int = WIDTH) -> dict[str, Any]:
    """Contents of ``open_clip_config.json``.

    Args:
        width: of the image tower, a multiple of ``HEAD_WIDTH``.
    """
    vision = {"image_size": SIZE, "patch_size": 8, "width": width, "layers": 4, "head_width": HEAD_WIDTH}
    return {
        "model_cfg": {
            "embed_dim": 64,
            "vision_cfg": vision,
            "text_cfg": {
                "context_length": CONTEXT_LENGTH,
                "vocab_size": len(vocabulary()),
                "hf_tokenizer_name": "tokenizer.json",
                "width": 64,
                "heads": 4,
                "layers": 2,
            },
        },
        "preprocess_cfg": {
            "mean": [0.5, 0.5, 0.5],
            "std": [0.3, 0.3, 0.3],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def pretrain(directory: Path, steps: int = STEPS, pictures: int = PICTURES, width: int = WIDTH) -> None:
    """Write the base, or one whose image tower has another ``width``, into ``directory``, in open_clip's own layout."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "open_clip_config.json").write_text(json.dumps(configuration(width), indent=2) + "\n")
    write_tokenizer(directory)
    torch.manual_seed(SEED)
    model = open_clip.create_model(f"local-dir:{directory}", load_weights=False)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{directory}")
    began = time.monotonic()
    with ProcessPoolExecutor() as pool:
        chunks = pictures // CHUNK
        drawn = list(pool.map(draw_world, range(chunks), [CHUNK] * chunks))
    images = (
        torch.from_numpy(np.concatenate([chunk for chunk, _, _ in drawn])).permute(0, 3, 1, 2).contiguous()
    )
    texts = tokenizer([caption for _, captions, _ in drawn for caption in captions])
    print(f"drew {len(images)} pictures in {time.monotonic() - began:.0f} s", flush=True)

    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
    model.train()
    losses = []
    for step, batch in zip(range(steps), _batches(len(images)), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * _schedule(step, steps)
        loss = contrastive_loss(model, _shifted(images[batch]), texts[batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, LARGEST_LOGIT_SCALE)
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - began
            print(f"step {step + 1}/{steps}  loss {np.mean(losses[-50:]):.3f}  {seconds:.0f} s", flush=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, directory / "open_clip_model.safetensors", metadata={"format": "pt"})


def contrastive_loss(model: torch.nn.Module, images: Tensor, texts: Tensor) -> Tensor:
    """CLIP's: each image finds its caption among those of the batch, and each caption its image."""
    pictured, told, scale = model(images, texts)
    logits = scale * pictured @ told.T
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def _schedule(step: int, steps: int) -> float:
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return (1 + math.cos(math.pi * (step - WARMUP_STEPS) / (steps - WARMUP_STEPS))) / 2


def _batches(count: int) -> Iterator[Tensor]:
    while True:
        yield from torch.split(torch.randperm(count), BATCH_SIZE)


def _shifted(pictures: Tensor) -> Tensor:
    """Pictures, uint8 [n, 3, 32, 32], as the tower takes them, shifted a little by turns."""
    images = (pictures.float() / 255 - 0.5) / 0.3
    padded = F.pad(images, (LARGEST_SHIFT,) * 4, mode="replicate")
    down, right = torch.randint(0, 2 * LARGEST_SHIFT + 1, (2, len(images)))
    return torch.stack(
        [image[:, y : y + SIZE, x : x + SIZE] for image, y, x in zip(padded, down, right, strict=True)]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument(
        "--width", type=int, default=WIDTH, help=f"of the image tower, a multiple of {HEAD_WIDTH}"
    )
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    pretrain(arguments.directory, width=arguments.width)
