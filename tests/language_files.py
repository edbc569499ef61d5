"""Language models small enough to train in seconds, with a tokenizer, as transformers stores them; and texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

CONTEXT = 64
CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def byte_tokenizer(*, chat_template: str | None = None, padding: bool = True) -> PreTrainedTokenizerFast:
    """A token for each byte, after ``<s>`` (0), ``</s>`` (1) and ``<pad>`` (2); vocabulary of 259."""
    letters = {
        letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), start=3)
    }
    tokenizer = Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, "<pad>": 2} | letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>" if padding else None,
        chat_template=chat_template,
        model_max_length=CONTEXT,
    )


def llama(vocabulary: int = 259) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            bos_token_id=0,
            eos_token_id=1,
        )
    )


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=259,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=CONTEXT,
            bos_token_id=0,
            eos_token_id=1,
        )
    )


def _bert_config(**fields: Any) -> BertConfig:
    return BertConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        pad_token_id=2,
        **fields,
    )


def bert_classifier(*classes: str) -> PreTrainedModel:
    return BertForSequenceClassification(_bert_config(id2label=dict(enumerate(classes))))


def bert() -> PreTrainedModel:
    return BertForMaskedLM(_bert_config())


def save(
    model: PreTrainedModel,
    directory: Path,
    tokenizer: PreTrainedTokenizerFast | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write model and tokenizer, by default ``byte_tokenizer()``."""
    model.to(dtype).save_pretrained(directory)
    (tokenizer or byte_tokenizer()).save_pretrained(directory)
    return directory


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
