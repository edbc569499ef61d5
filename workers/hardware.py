"""The device that a worker trains on, and the arithmetic that suits it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from taumerge.errors import JobFailed

Precision = Literal["auto", "float32", "float16", "bfloat16"]

AMPERE = (8, 0)
"""The first compute capability with bfloat16 units; Volta (7, 0) has float16 units only."""


@dataclass(frozen=True)
class Hardware:
    """Where and how a worker computes."""

    device: torch.device
    dtype: torch.dtype
    """Of the autocast regions. Weights and optimizer state are float32."""

    @property
    def name(self) -> str:
        """What to call the device in a record, for example ``Tesla V100-SXM2-16GB``."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def autocast(self) -> torch.autocast:
        """The context in which models compute."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32)


def choose_hardware(precision: Precision) -> Hardware:
    """This process's first GPU where there is one, else the CPU.

    ``auto`` is float16 before sm_80, bfloat16 from there on, and float32 on a CPU.

    Raises:
        JobFailed: ``unsupported_device``: the installed torch has no kernels for the GPU, or the device cannot
            compute in ``precision``.
    """
    if not torch.cuda.is_available():
        return Hardware(torch.device("cpu"), _cpu_dtype(precision))
    device = torch.device("cuda", torch.cuda.current_device())
    capability = torch.cuda.get_device_capability(device)
    check_kernels(capability, torch.cuda.get_arch_list())
    if precision == "auto":
        return Hardware(device, torch.bfloat16 if capability >= AMPERE else torch.float16)
    if precision == "bfloat16" and capability < AMPERE:
        raise JobFailed(
            "unsupported_device",
            f"a GPU of compute capability {capability[0]}.{capability[1]} has no bfloat16 units; "
            "use precision: auto or float16",
        )
    return Hardware(device, getattr(torch, precision))


def check_kernels(capability: tuple[int, int], architectures: list[str]) -> None:
    """Check that a torch built for ``architectures`` (``sm_70``, ``compute_90``, …) runs on this GPU.

    Binary code runs on GPUs of the same major version from its minor version on; PTX on every later GPU.

    Raises:
        JobFailed: ``unsupported_device``, with what to install.
    """
    for architecture in architectures:
        kind, _, digits = architecture.partition("_")
        number = digits.rstrip("af")
        built = (int(number[:-1]), int(number[-1]))
        if built <= capability and (kind == "compute" or built[0] == capability[0]):
            return
    raise JobFailed(
        "unsupported_device",
        f"torch {torch.__version__} has no kernels for a GPU of compute capability {capability[0]}.{capability[1]} "
        f"(it has {', '.join(architectures)}); install a torch built for it: 2.10 is the last with sm_70 (V100)",
    )


def _cpu_dtype(precision: Precision) -> torch.dtype:
    if precision == "float16":
        raise JobFailed("unsupported_device", "float16 training needs a GPU; use precision: auto or float32")
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def lacks_memory(error: Exception) -> bool:
    """Whether ``error`` says that the GPU, or the machine, is out of memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
