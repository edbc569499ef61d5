"""What the files of a checkpoint are called."""

from __future__ import annotations

import re

__all__ = ["ADAPTER", "ADAPTER_CONFIG", "COMPANIONS", "PICKLED", "RECORD", "STEMS"]

STEMS = ("model", "open_clip_model")
"""What transformers and open_clip call the weights, without ``.safetensors``."""

ADAPTER = "adapter_model"
"""What peft calls the weights of an adapter, without ``.safetensors``."""
ADAPTER_CONFIG = "adapter_config.json"

RECORD = "training.json"
"""How the checkpoint was trained; it lies beside the weights."""

PICKLED = re.compile(
    r"(?P<stem>.+?)(?:-(?P<number>\d{5})-of-(?P<count>\d{5}))?\.(?P<suffix>bin|pt|pth|ckpt)", re.DOTALL
)
"""Names of pickled weights, whole or in shards."""

COMPANIONS = (
    "config.json",
    "generation_config.json",
    "open_clip_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "vocab.bpe",
    "merges.txt",
    "*.model",  # sentencepiece
    "*.tiktoken",
    "chat_template.json",
    "chat_template.jinja",
    "processor_config.json",
    "preprocessor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
)
"""Patterns of configuration, tokenizer and preprocessor files beside the weights."""
