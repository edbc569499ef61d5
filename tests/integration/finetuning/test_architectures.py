"""Towers of every kind that open_clip builds, each at toy size: trained, saved and loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from clip_files import TINY, TINY_RESNET
from safetensors.torch import load_file, save_file

from taumerge.schemas import FinetuneRequest
from workers.finetuning.heads import truncated_prompts
from workers.finetuning.towers import load_clip
from workers.finetuning.worker import finetune

VISION, TEXT = TINY["vision_cfg"], TINY["text_cfg"]
WEIGHTS = "open_clip_model.safetensors"
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "quick_gelu": TINY | {"quick_gelu": True},
    "resnet": TINY_RESNET,
    "timm": TINY
    | {
        "vision_cfg": {
            "timm_model_name": "test_vit",
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 160,
        }
    },
    "siglip": TINY
    | {
        "custom_text": True,
        "init_logit_bias": -10,
        "text_cfg": TEXT | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    },
    "coca": TINY
    | {
        "vision_cfg": VISION | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": TEXT,
        "custom_text": True,
    },
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_trained_and_loaded_again(name: str, shades: Path, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    preprocessing = {"mean": [0.5] * 3, "std": [0.25] * 3}
    config = {"model_cfg": ARCHITECTURES[name], "preprocess_cfg": preprocessing}
    (base / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    state = open_clip.create_model(f"local-dir:{base}", load_weights=False).state_dict()
    # open_clip leaves some of CoCa's as the memory was
    save_file({key: tensor.nan_to_num().clamp(-99, 99) for key, tensor in state.items()}, base / WEIGHTS)
    request = FinetuneRequest.model_validate(
        {
            "base": str(base),
            "task": {"kind": "clip", "dataset": {"uri": str(shades), "format": "image_folder"}},
            "train": {"steps": 2, "learning_rate": 1e-3, "batch_size": 6, "warmup_steps": 1},
            "output": str(out),
        }
    )
    result = finetune(request, out, lambda progress: None, threads=1)
    before, after = load_file(base / WEIGHTS), load_file(out / WEIGHTS)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert {key.partition(".")[0] for key in changed} == {"visual"}
    assert result.validation.keys() == {"accuracy", "loss"}
    loaded = open_clip.create_model(f"local-dir:{out}").state_dict()
    assert loaded.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in loaded.items())


def test_prompts_over_the_context_length_are_counted(tiny_clip: Path) -> None:
    tokenizer = load_clip(str(tiny_clip)).tokenizer
    assert tokenizer.context_length == 16
    fits = "gull " * 11  # with "a", and with start and end: 14 tokens
    assert truncated_prompts(tokenizer, ["gull", fits + "gull gull", fits + "gull gull gull"], ["a {}"]) == 1
