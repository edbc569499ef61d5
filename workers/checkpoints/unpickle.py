"""``python -m workers.checkpoints.unpickle TARGET SOURCE…``: pickled tensors to safetensors, in a process that dies.

Started by ``pickles`` alone. Prints ``ok``, or one line that says what is wrong.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

OVERHEAD_BYTES = 1 << 30
"""Address space beyond the tensors and their copies."""


def main() -> None:
    """Convert; exits with 1 where it cannot be done."""
    target, *sources = (Path(name) for name in sys.argv[1:])
    _limit(sum(path.stat().st_size for path in sources))
    tensors: dict[str, Tensor] = {}
    try:
        for source in sources:
            more = _tensors(torch.load(source, map_location="cpu", weights_only=True))
            if twice := tensors.keys() & more.keys():
                raise ValueError(f"tensor {min(twice)} is in two of the files")
            tensors |= more
        if not tensors:
            raise ValueError("it holds no tensors")
        # clones, because safetensors stores no two names of one tensor
        save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, target)
    except MemoryError:
        _fail("it unpacks to more memory than a checkpoint of its size needs")
    except Exception as error:  # noqa: BLE001  (whatever such a file provokes)
        lines = str(error).strip().splitlines()
        memory = "alloc" in str(error) or "memory" in str(error)
        _fail(
            "it unpacks to more memory than a checkpoint of its size needs" if memory else (lines or ["?"])[0]
        )
    print("ok")


def _tensors(loaded: object) -> dict[str, Tensor]:
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
        for name, value in loaded.items()
    ):
        raise ValueError("it is not a dictionary of tensors by name")
    return loaded


def _limit(source_bytes: int) -> None:
    """No more memory than the file, its clones and the running program take, and files of its size only."""
    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * resource.getpagesize() + 3 * source_bytes + OVERHEAD_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * source_bytes + OVERHEAD_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _fail(problem: str) -> None:
    print(problem[:300])
    sys.exit(1)


if __name__ == "__main__":
    main()
