"""What a search costs beside its forward passes: ``python -m benchmarks.search``, and part of ``make bench``.

A model of the shapes of CLIP ViT-B/32 (151 M parameters, most of them in the image tower) is searched along 40 λ
by an evaluator whose forward passes take no time. Beside it stands the plain loop as the paper's authors wrote it:
for each λ load the base, add λ·V tensor by tensor, load the sum into the model.
"""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import sys
import time
from pathlib import Path

import ray
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from taumerge.schemas import Progress, SearchRequest
from workers.search import run_search
from workers.settings import WorkerSettings

MODELS = 2
LOOPS = 5
PLUGINS = Path(__file__).parent / "plugins"
TYPES = {"float32": torch.float32, "float16": torch.float16}


def shapes() -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of CLIP ViT-B/32."""
    tensors: dict[str, tuple[int, ...]] = {
        "visual.conv1.weight": (768, 3, 32, 32),
        "visual.positional_embedding": (50, 768),
        "visual.proj": (768, 512),
        "token_embedding.weight": (49408, 512),
        "positional_embedding": (77, 512),
        "text_projection": (512, 512),
    }
    for tower, width in (("visual.transformer", 768), ("transformer", 512)):
        for layer in range(12):
            prefix = f"{tower}.resblocks.{layer}"
            tensors |= {
                f"{prefix}.attn.in_proj_weight": (3 * width, width),
                f"{prefix}.attn.in_proj_bias": (3 * width,),
                f"{prefix}.attn.out_proj.weight": (width, width),
                f"{prefix}.mlp.c_fc.weight": (4 * width, width),
                f"{prefix}.mlp.c_proj.weight": (width, 4 * width),
                f"{prefix}.ln_1.weight": (width,),
                f"{prefix}.ln_2.weight": (width,),
            }
    return tensors


def main() -> None:
    """Run everything and print the table."""
    console = Console()
    directory = Path(".taumerge/bench/search").resolve()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PLUGINS), os.environ.get("PYTHONPATH", "")])
    sys.path.append(str(PLUGINS))
    parameters = sum(torch.Size(shape).numel() for shape in shapes().values())
    table = Table(
        title=f"One λ of {parameters / 1e6:.0f} M parameters, beside the forward passes; {os.cpu_count()} cores"
    )
    for heading in ("stored as", "what the models changed", "evaluators", "search", "plain loop", "ratio"):
        table.add_column(heading, justify="left" if "a" in heading[:8] else "right")
    ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        for name, changed in (("float32", ""), ("float32", "visual"), ("float16", "visual")):
            with console.status("generating checkpoints"):
                places = generate(directory / f"{name}-{changed or 'all'}", TYPES[name], changed)
            loop = statistics.median(plain_loop(*places))
            for evaluators in (1, 2):
                seconds = step_seconds(places, directory / "best", evaluators)
                table.add_row(
                    name,
                    "the image tower" if changed else "everything",
                    str(evaluators),
                    f"{seconds * 1e3:.0f} ms",
                    f"{loop * 1e3:.0f} ms",
                    f"{loop / seconds:.1f}",
                )
            shutil.rmtree(directory)
    finally:
        ray.shutdown()
    console.print(table)


def generate(directory: Path, dtype: torch.dtype, changed: str) -> list[Path]:
    """Write a base, and models that differ from it in the tensors whose names begin with ``changed``."""
    noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0))

    def filled(shape: tuple[int, ...], seed: int, scale: float) -> Tensor:
        elements = torch.Size(shape).numel()
        copies = -(-(elements + seed) // noise.numel())
        return noise.repeat(copies)[seed : seed + elements].view(shape) * scale

    base = {name: filled(shape, 0, 0.02) for name, shape in shapes().items()}
    places = []
    for number in range(MODELS + 1):
        tensors = {
            name: tensor + filled(tuple(tensor.shape), number, 1e-4)
            if number and name.startswith(changed)
            else tensor
            for name, tensor in base.items()
        }
        places.append(directory / ("base" if number == 0 else f"ft-{number}"))
        places[-1].mkdir(parents=True, exist_ok=True)
        stored = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
        save_file(stored, places[-1] / "model.safetensors")
    return places


def step_seconds(places: list[Path], output: Path, evaluators: int) -> float:
    """Seconds of one λ of a search, from one evaluation to the next."""
    shutil.rmtree(output, ignore_errors=True)
    base, *models = places
    request = SearchRequest.model_validate(
        {
            "base": str(base),
            "models": [{"uri": str(model), "task": model.name} for model in models],
            "methods": ["task_arithmetic"],
            "evaluation": {
                "kind": "idle",
                "tasks": {model.name: {} for model in models},
                "report_on": None,
                "evaluators": evaluators,
            },
            "output": str(output),
        }
    )
    result = run_search(request, WorkerSettings(worker_memory=0), ignore)
    return statistics.median(one.seconds for one in result.evaluations[1:])


def ignore(progress: Progress) -> None:
    """A report that nobody listens to."""


def plain_loop(base: Path, *models: Path) -> list[float]:
    """Seconds of each λ of the authors' loop, without the forward passes."""
    loaded = load_file(base / "model.safetensors")
    vector = {
        name: sum(
            (load_file(model / "model.safetensors")[name] - tensor for model in models),
            start=torch.zeros_like(tensor),
        )
        for name, tensor in loaded.items()
    }
    model = torch.nn.Module()
    for name, tensor in loaded.items():
        model.register_parameter(name.replace(".", "/"), torch.nn.Parameter(tensor.float()))
    seconds = []
    for scaling in range(1, LOOPS + 1):
        begun = time.perf_counter()
        pretrained = load_file(base / "model.safetensors")
        merged = {name: tensor + 0.05 * scaling * vector[name] for name, tensor in pretrained.items()}
        model.load_state_dict({name.replace(".", "/"): tensor for name, tensor in merged.items()})
        seconds.append(time.perf_counter() - begun)
    return seconds


if __name__ == "__main__":
    main()
