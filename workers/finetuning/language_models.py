"""Language models of transformers from a local directory, whole or with a LoRA adapter to train."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
)

from taumerge.errors import InvalidRequest
from taumerge.schemas import AdapterSpec, FinetuneRequest
from workers.checkpoints.checkpoint import CheckpointError, open_checkpoint
from workers.checkpoints.local_copy import on_disk
from workers.hardware import Hardware

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LOCAL = {"local_files_only": True, "trust_remote_code": False}
_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, ImportError)
"""What transformers raises for directories that it cannot load."""


@dataclass(frozen=True)
class BaseModel:
    """The base of a fine-tune as it lies on disk, its weights not yet loaded."""

    directory: Path
    config: PretrainedConfig
    tokenizer: Any
    dtypes: Mapping[str, torch.dtype]
    """Stored types of the float tensors, by name."""

    @property
    def dtype(self) -> torch.dtype:
        """The type that most tensors are stored in."""
        return Counter(self.dtypes.values()).most_common(1)[0][0]

    @property
    def context(self) -> int | None:
        """Tokens that the model takes, where model or tokenizer say it."""
        positions = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        known = [
            length for length in (positions, self.tokenizer.model_max_length) if length and length < 10**9
        ]
        return min(known, default=None)

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes of a classifier, by label; None where it has none, or only numbers them."""
        names = [name for _, name in sorted((self.config.id2label or {}).items())]
        return names if self.is_classifier and names != [f"LABEL_{i}" for i in range(len(names))] else None

    @property
    def is_classifier(self) -> bool:
        return any(name.endswith("ForSequenceClassification") for name in self.config.architectures or ())

    @property
    def padding(self) -> int | None:
        """Id of the token that fills up batches; never a new one."""
        tokens = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((token for token in tokens if token is not None), None)


def open_base(uri: str) -> BaseModel:
    """Read configuration, tokenizer and headers of the transformers directory at ``uri``.

    Raises:
        InvalidRequest: at ``base``: ``unsupported_checkpoint``, ``tokenizer_unreadable``, or what
            ``open_checkpoint`` finds.
    """
    try:
        checkpoint, directory = on_disk(open_checkpoint(uri))
    except CheckpointError as error:
        raise InvalidRequest.at(["base"], error.code, error.message) from None
    if checkpoint.adapter is not None:
        raise _refused("unsupported_checkpoint", "it is an adapter; give the whole model")
    try:
        config = AutoConfig.from_pretrained(directory, **_LOCAL)
    except _UNREADABLE as error:
        raise _refused(
            "unsupported_checkpoint", f"transformers cannot read its config.json: {error}"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, **_LOCAL)
    except _UNREADABLE as error:
        raise _refused("tokenizer_unreadable", f"transformers finds no tokenizer in it: {error}") from error
    dtypes = {
        name: _DTYPES[stored.info.dtype]
        for name, stored in checkpoint.tensors.items()
        if stored.info.dtype in _DTYPES
    }
    return BaseModel(directory, config, tokenizer, dtypes)


def load_model(
    request: FinetuneRequest, base: BaseModel, classes: Sequence[str] | None, hardware: Hardware
) -> tuple[nn.Module, list[str]]:
    """The model to train, on the device, and the names of its tensors that the base lacks (a new classifier's).

    What is trained is float32; what an adapter leaves frozen has the type that is computed in, or NF4.

    Args:
        classes: names of the classes; None for a causal language model.

    Raises:
        InvalidRequest: ``qlora_unavailable``, ``class_count``, ``unsupported_checkpoint``, ``missing_weights``,
            ``unknown_module``.
    """
    adapter, quantised = request.adapter, request.adapter is not None and request.adapter.kind == "qlora"
    options: dict[str, Any] = {"dtype": hardware.dtype if adapter else torch.float32}
    if quantised:
        options |= _nf4(hardware)
    if classes is not None:
        set_classes(base, classes)
    model, info = load_pretrained(base, classifier=classes is not None, **options)
    missing = sorted(info["missing_keys"])
    _check_missing(missing, model, classes is not None)
    if quantised:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # type: ignore[no-untyped-call]
    else:
        model.to(hardware.device)
    if request.train.gradient_checkpointing:
        try:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            message = f"{type(model).__name__} cannot compute activations twice; leave it out"
            raise InvalidRequest.at(("train", "gradient_checkpointing"), "unsupported", message) from error
    if adapter:
        model = _with_adapter(model, adapter, "CAUSAL_LM" if classes is None else "SEQ_CLS")
    return model, missing


def load_pretrained(base: BaseModel, *, classifier: bool, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The model as transformers loads it, on the CPU, and its ``missing_keys`` and ``unexpected_keys``.

    Args:
        classifier: of sequences, rather than a causal language model.
        options: of ``from_pretrained``, for example ``dtype``.

    Raises:
        InvalidRequest: ``unsupported_checkpoint``.
    """
    auto_class: Any = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    try:
        model, info = auto_class.from_pretrained(
            base.directory,
            config=base.config,
            use_safetensors=True,
            output_loading_info=True,
            **options,
            **_LOCAL,
        )
    except _UNREADABLE as error:
        raise _refused("unsupported_checkpoint", f"transformers cannot load it: {error}") from error
    return model, info


def set_classes(base: BaseModel, classes: Sequence[str]) -> None:
    """Put the classes and the padding into the configuration of ``base``.

    Raises:
        InvalidRequest: ``class_count`` or ``no_padding_token``.
    """
    config = base.config
    if base.is_classifier and config.num_labels != len(classes):
        message = f"the base tells {config.num_labels} classes apart and the data has {len(classes)}"
        raise InvalidRequest.at(("task", "classes"), "class_count", message)
    if base.padding is None:
        raise _refused(
            "no_padding_token", "its tokenizer has no padding token and no end token to fill batches with"
        )
    config.num_labels = len(classes)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: label for label, name in enumerate(classes)}
    config.problem_type = "single_label_classification"
    config.pad_token_id = base.padding


def _nf4(hardware: Hardware) -> dict[str, Any]:
    problem = None
    if hardware.device.type != "cuda":
        problem = "it needs a CUDA GPU, and this worker has none"
    elif importlib.util.find_spec("bitsandbytes") is None:
        problem = "bitsandbytes is not installed on the worker"
    if problem:
        message = f"{problem}; use kind lora, which trains the same adapter on weights that are not quantised"
        raise InvalidRequest.at(("adapter", "kind"), "qlora_unavailable", message)
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=hardware.dtype,
    )
    return {"quantization_config": config, "device_map": {"": hardware.device}}


def _check_missing(missing: Sequence[str], model: Any, classifier: bool) -> None:
    """A classifier's head (and the pooler below it) may be new; everything else must be in the base."""
    body = f"{model.base_model_prefix}."
    needed = [
        name for name in missing if not classifier or (name.startswith(body) and ".pooler." not in name)
    ]
    if needed:
        message = (
            f"it has no tensor {needed[0]} ({len(needed)} in all), which {type(model).__name__} needs; take the "
            "checkpoint of such a model"
        )
        raise _refused("missing_weights", message)


def _with_adapter(model: Any, spec: AdapterSpec, task_type: str) -> nn.Module:
    config = LoraConfig(
        task_type=task_type,
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # a plain number to peft
        target_modules=list(spec.targets),
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
    )
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    }
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        message = f"{error}; its linear modules are {', '.join(sorted(linear))}"
        raise InvalidRequest.at(("adapter", "targets"), "unknown_module", message) from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:  # gradients of 16 bits could not be scaled and clipped
            parameter.data = parameter.data.float()
    return adapted


def _refused(code: str, message: str) -> InvalidRequest:
    return InvalidRequest.at(("base",), code, message)
