"""What the files of a checkpoint are called."""

from __future__ import annotations

__all__ = ["ADAPTER", "ADAPTER_CONFIG", "COMPANIONS", "STEMS"]

STEMS = ("model", "open_clip_model")
"""What transformers and open_clip call the weights, without ``.safetensors``."""

ADAPTER = "adapter_model"
"""What peft calls the weights of an adapter, without ``.safetensors``."""
ADAPTER_CONFIG = "adapter_config.json"

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
