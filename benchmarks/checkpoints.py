"""Generated checkpoints of a Llama's shape: a base and fine-tunes of it, in bfloat16 and shards of 500 MB."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

VOCABULARY, WIDTH, HIDDEN, LAYERS, KEY_WIDTH = 36_000, 2_048, 5_632, 16, 256
SHARD_BYTES = 500_000_000
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of the model: 0.85 B parameters."""
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        tensors |= {
            f"{prefix}.input_layernorm.weight": (WIDTH,),
            f"{prefix}.mlp.down_proj.weight": (WIDTH, HIDDEN),
            f"{prefix}.mlp.gate_proj.weight": (HIDDEN, WIDTH),
            f"{prefix}.mlp.up_proj.weight": (HIDDEN, WIDTH),
            f"{prefix}.post_attention_layernorm.weight": (WIDTH,),
            f"{prefix}.self_attn.k_proj.weight": (KEY_WIDTH, WIDTH),
            f"{prefix}.self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{prefix}.self_attn.q_proj.weight": (WIDTH, WIDTH),
            f"{prefix}.self_attn.v_proj.weight": (KEY_WIDTH, WIDTH),
        }
    return tensors | {"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)}


def parameters() -> int:
    """Number of parameters of one model."""
    return sum(torch.Size(shape).numel() for shape in shapes().values())


def generate(directory: Path, models: int) -> tuple[Path, list[Path]]:
    """Write (or find) the base and ``models`` fine-tunes below ``directory``."""
    places = [directory / "base", *(directory / f"ft-{index}" for index in range(models))]
    noise = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0))
    for seed, place in enumerate(places):
        if not (place / "model.safetensors.index.json").exists():
            _write(place, seed, noise)
    return places[0], places[1:]


def _write(place: Path, seed: int, noise: Tensor) -> None:
    place.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for number, (name, shape) in enumerate(shapes().items()):
        count = torch.Size(shape).numel()
        if size + 2 * count > SHARD_BYTES:
            shards.append({})
            size = 0
        values = _rolled(noise, 7 * number, count) * 0.02
        if seed:  # a fine-tune: the base plus a small step
            values += _rolled(noise, 1013 * seed + 31 * number, count) * 0.0005
        shards[-1][name] = values.to(torch.bfloat16).view(shape)
        size += 2 * count
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, place / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    record = {"steps": 1000 * (seed + 1), "lr_sum": 0.01 * (seed + 1)}
    (place / "training.json").write_text(json.dumps(record))
    (place / "config.json").write_text(json.dumps(CONFIG))
    index = {"metadata": {"total_size": 2 * parameters()}, "weight_map": weight_map}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))


def _rolled(noise: Tensor, offset: int, count: int) -> Tensor:
    repeats = -(-count // noise.numel())
    return noise.roll(offset).repeat(repeats)[:count]
