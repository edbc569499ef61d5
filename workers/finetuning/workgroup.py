"""The workers that share the steps of one training: this one alone, or a torch.distributed process group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from workers.hardware import Hardware


@dataclass(frozen=True)
class Workgroup:
    """This worker's place among those that train one model. With ``world`` > 1 a process group is running."""

    rank: int = 0
    world: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"

    def wrap(self, model: nn.Module, hardware: Hardware) -> nn.Module:
        """The model as it is trained: as it is, copied to each worker, or shared out over them."""
        if self.world == 1:
            return model
        if self.strategy == "fsdp":
            for module in model.modules():
                if isinstance(module, nn.ModuleList):  # the blocks of a transformer are gathered one by one
                    for block in module:
                        fully_shard(block)
            fully_shard(model)
            return model
        return DistributedDataParallel(model, [hardware.device] if hardware.device.type == "cuda" else None)

    def whole_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The state dict of ``model``, whole and on the CPU; empty on all workers but the first. All call it."""
        if self.world == 1 or self.strategy == "ddp":
            return {} if self.rank else {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: dict[str, Any] = get_model_state_dict(model, options=options)
        return weights

    def sum(self, value: Tensor) -> Tensor:
        """The sum of ``value``, float64 [] on the device of the training, over all workers."""
        if self.world > 1:
            torch.distributed.all_reduce(value)
        return value


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, gathered where it is shared out."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
