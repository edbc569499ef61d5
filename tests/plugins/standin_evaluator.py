"""An evaluator that a deployment might add: a small perceptron on random inputs, scored by what another one says.

Options of a task: ``teacher``, a checkpoint that labels the inputs; ``log``, a file that gets a line for each
evaluation; ``wait``, a file: no evaluation ends while it exists; ``flip``, the share of wrong labels; ``refuse``,
a reason to refuse the task; ``fail``, what the evaluation ends with.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from taumerge.errors import InvalidRequest
from taumerge.schemas import EvaluationSpec, Split
from workers.checkpoints.checkpoint import open_checkpoint
from workers.checkpoints.local_copy import on_disk

EXAMPLES = 200
BATCH = 64


class StandInError(Exception):
    """One that no other process can unpickle, as many in the wild."""

    def __init__(self, task: str, message: str) -> None:
        super().__init__(message)


class Perceptron:
    """Body, nonlinearity, head; the frozen tensors shift and scale its inputs."""

    def __init__(self, directory: str) -> None:
        stored = load_file(on_disk(open_checkpoint(directory))[1] / "model.safetensors")
        self.parameters: Mapping[str, Tensor] = {
            name: nn.Parameter(tensor.float(), requires_grad=False)
            for name, tensor in stored.items()
            if tensor.is_floating_point()
        }

    def __call__(self, inputs: Tensor) -> Tensor:
        weights = self.parameters
        hidden = torch.tanh((inputs * weights["scale"] + weights["frozen"]) @ weights["body.weight"].T)
        return hidden @ weights["head.weight"].T + weights["head.bias"]


class StandIn:
    """A ``Perceptron`` under evaluation."""

    def __init__(self, base: str, spec: EvaluationSpec) -> None:
        self._model = Perceptron(base)
        self.parameters = self._model.parameters
        self._options = {task: one.options for task, one in spec.tasks.items()}
        self._data: dict[tuple[str, Split], tuple[Tensor, Tensor]] = {}

    def evaluate(self, task: str, split: Split) -> float:
        options = self._options[task]
        if "log" in options:
            with Path(options["log"]).open("a") as file:
                file.write(f"{task} {split}\n")
        while "wait" in options and Path(options["wait"]).exists():
            time.sleep(0.01)
        if "fail" in options:
            raise StandInError(task, options["fail"])
        inputs, labels = self._examples(task, split, options)
        with torch.inference_mode():
            return float((self._model(inputs).argmax(dim=1) == labels).double().mean())

    def losses(self, task: str, split: Split) -> Iterator[tuple[Tensor, int]]:
        inputs, labels = self._examples(task, split, self._options[task])
        for batch in torch.arange(len(labels)).split(BATCH):
            yield torch.nn.functional.cross_entropy(self._model(inputs[batch]), labels[batch]), len(batch)

    def _examples(self, task: str, split: Split, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        if (task, split) not in self._data:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{task} {split}".encode()))
            inputs = torch.randn(EXAMPLES, self.parameters["body.weight"].shape[1], generator=generator)
            labels = Perceptron(options["teacher"])(inputs).argmax(dim=1)
            wrong = torch.rand(EXAMPLES, generator=generator) < options.get("flip", 0.1)
            labels[wrong] = options.get("classes", 10) - 1 - labels[wrong]
            self._data[task, split] = inputs, labels
        return self._data[task, split]


def build(base: str, spec: EvaluationSpec, tasks: Sequence[str], hardware: object) -> StandIn:
    """The entry point."""
    for task in tasks:
        if refusal := spec.tasks[task].options.get("refuse"):
            raise InvalidRequest.at(("evaluation", "tasks", task), "refused", refusal)
    return StandIn(base.removeprefix("file://"), spec)
