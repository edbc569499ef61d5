"""Bases and data of the training benchmark: a small CLIP with JPEG files, a small Llama with instructions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import PIL.Image
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CLIP = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 128, "layers": 6, "width": 256, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
IMAGES = 1024
PIXELS = 224
LETTERS = 160
"""At most, of a prompt and of a response: a byte is a token here."""
INSTRUCTIONS = 256


def write_clip(directory: Path) -> tuple[Path, Path]:
    """A base in open_clip's layout and an image folder of JPEGs; found again where they exist."""
    base, data = directory / "clip", directory / "images"
    if (base / "open_clip_model.safetensors").exists():
        return base, data
    base.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": CLIP, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (base / "open_clip_config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    for index in range(IMAGES):
        folder = data / f"class-{index % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = PIL.Image.fromarray(random.integers(0, 256, (28, 28, 3), dtype=np.uint8))
        coarse.resize((PIXELS, PIXELS), PIL.Image.Resampling.BICUBIC).save(
            folder / f"{index}.jpg", quality=90
        )
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{base}", load_weights=False)
    save_file(model.state_dict(), base / "open_clip_model.safetensors")
    return base, data


def write_llama(directory: Path) -> tuple[Path, Path]:
    """A base in transformers' layout and a JSONL file of instructions; found again where they exist."""
    base, data = directory / "llama", directory / "instructions.jsonl"
    if (base / "model.safetensors").exists():
        return base, data
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefgh"), size=n)) for n in random.integers(2, 9, 200)]
    with data.open("w") as file:
        for _ in range(INSTRUCTIONS):
            prompt, response = (
                " ".join(random.choice(words, size=int(random.integers(4, 60))))[:LETTERS] for _ in range(2)
            )
            file.write(json.dumps({"prompt": prompt, "response": response}) + "\n")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=2 * LETTERS + 8,
    )
    _byte_tokenizer().save_pretrained(base)
    LlamaForCausalLM(config).save_pretrained(base)
    return base, data


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2}
    vocabulary |= {
        letter: 3 + index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=1024,
    )
