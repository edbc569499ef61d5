"""LoRA on the linear layers of an image tower: trained as factors, written as the whole weights W + (α/r)·B·A."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from taumerge.errors import InvalidRequest
from taumerge.schemas import AdapterSpec

BASE, DOWN, UP = "base_layer.weight", "lora_A.default.weight", "lora_B.default.weight"


def add_adapter(visual: nn.Module, spec: AdapterSpec) -> None:
    """Put a LoRA beside each linear layer that ``spec.targets`` names; nothing else of ``visual`` is trained any more.

    Raises:
        InvalidRequest: ``unknown_module``: no linear layer has that name.
    """
    linear = dict.fromkeys(_linear_layers(visual))
    chosen = []
    for target in spec.targets:
        found = [name for name in linear if f".{name}".endswith(f".{target}")]
        if not found:
            ends = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            message = (
                f"the image tower has no linear layer {target!r}; its linear layers are called {ends or '–'} "
                "(those inside of PyTorch's attention cannot have an adapter)"
            )
            raise InvalidRequest.at(("adapter", "targets"), "unknown_module", message)
        chosen += found
    config = LoraConfig(r=spec.rank, lora_alpha=spec.alpha, target_modules=chosen)  # type: ignore[arg-type]
    inject_adapter_in_model(config, visual)


def folded(weights: Mapping[str, Tensor], spec: AdapterSpec) -> dict[str, Tensor]:
    """The state dict that the model would have without adapters, their products added."""
    plain = {}
    for name, tensor in weights.items():
        if name.endswith(f".{BASE}"):
            layer = name.removesuffix(BASE)
            product = weights[layer + UP].float() @ weights[layer + DOWN].float()
            plain[f"{layer}weight"] = tensor + spec.alpha / spec.rank * product
        elif not name.endswith((f".{DOWN}", f".{UP}")):
            plain[name.replace(".base_layer.", ".")] = tensor  # a bias
    return plain


def _linear_layers(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Names of the linear layers, but for those that an attention of PyTorch reads without calling them."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            yield prefix + name
        elif not isinstance(child, nn.MultiheadAttention):
            yield from _linear_layers(child, f"{prefix}{name}.")
