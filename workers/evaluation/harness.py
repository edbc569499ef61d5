"""Language-model tasks, scored by lm-evaluation-harness on a model of transformers that stays loaded."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lm_eval
import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from taumerge.errors import InvalidRequest, JobFailed
from taumerge.schemas import EvaluationSpec, EvaluationTask, Split
from workers.checkpoints.checkpoint import open_checkpoint
from workers.evaluation.evaluator import Location
from workers.evaluation.harness_tasks import HarnessTask, load_harness_task
from workers.evaluation.parameters import checkpoint_parameters
from workers.finetuning.datasets.images import fixed_order
from workers.finetuning.language_models import load_pretrained, open_base
from workers.hardware import Hardware, lacks_memory

VALIDATION_SHARE = 20
"""One in so many examples is validation data, drawn with a fixed seed; the others are the test data."""
SEED = 1234
"""What the harness seeds torch, numpy and the choice of worked examples with, where nobody says otherwise."""


@dataclass(frozen=True)
class Scored:
    """A task of the request as the harness runs it."""

    loaded: HarnessTask
    examples: Mapping[Split, Mapping[str, list[int]]]
    """By split, of each of its tasks the examples, by their place among those that the harness evaluates."""


class HarnessEvaluator:
    """A causal language model inside the harness; see ``Evaluator`` for the methods."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        model: HFLM,
        tasks: Mapping[str, Scored],
        *,
        code_allowed: bool,
    ) -> None:
        self.parameters = parameters
        self._model, self._tasks, self._code_allowed = model, tasks, code_allowed

    def evaluate(self, task: str, split: Split) -> float:
        """The metric of the task, as the harness aggregates it.

        Raises:
            JobFailed: ``unknown_metric``, ``harness_failed``.
        """
        scored = self._tasks[task]
        random.seed(0)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        for one in scored.loaded.tasks.values():
            one.set_fewshot_seed(seed=SEED)
        try:
            # The harness draws a bar of progress for each step of each evaluation.
            with contextlib.redirect_stderr(io.StringIO()):
                found = lm_eval.evaluate(
                    self._model,
                    scored.loaded.as_dict(),
                    samples=dict(scored.examples[split]),
                    bootstrap_iters=0,
                    log_samples=False,
                    confirm_run_unsafe_code=self._code_allowed,
                )
        except Exception as error:  # whatever a task's own code raises
            if lacks_memory(error):
                raise
            raise JobFailed(
                "harness_failed", f"task {task!r} failed in lm-evaluation-harness: {error}"
            ) from error
        return _metric(task, scored.loaded.metric, found["results"][scored.loaded.name])

    def losses(self, task: str, split: Split) -> Iterator[tuple[Tensor, int]]:
        """Refused: generated texts and choices have no gradient."""
        raise JobFailed(
            "no_gradients",
            f"the score of task {task!r} in lm-evaluation-harness has no gradient; leave evaluation out, or give tasks "
            "of kind clip or classification",
        )


def build_harness_evaluator(
    base: str, spec: EvaluationSpec, tasks: Sequence[str], hardware: Hardware, *, code_allowed: bool
) -> HarnessEvaluator:
    """Load the model and ``tasks`` with their data; see ``build_evaluator``."""
    scored = {task: _scored(task, spec.tasks[task], code_allowed) for task in tasks}
    opened = open_base(base)
    # Whole large models take half the memory in the type that a GPU computes in, and nothing is trained.
    dtype = hardware.dtype if hardware.device.type == "cuda" else torch.float32
    model, info = load_pretrained(opened, classifier=False, dtype=dtype)
    model.to(hardware.device).eval()
    wrapped = HFLM(pretrained=model, tokenizer=opened.tokenizer, backend="causal", batch_size=spec.batch_size)
    parameters = checkpoint_parameters(open_checkpoint(base), model, info["unexpected_keys"])
    return HarnessEvaluator(parameters, wrapped, scored, code_allowed=code_allowed)


def _scored(name: str, task: EvaluationTask, code_allowed: bool) -> Scored:
    loc = ("evaluation", "tasks", name)
    loaded = load_harness_task(task.name or name, task.metric, loc, code_allowed=code_allowed)
    examples: dict[Split, dict[str, list[int]]] = {"validation": {}, "test": {}}
    for key, one in loaded.tasks.items():
        if task.num_fewshot is not None or one.get_config("num_fewshot") is None:
            one.set_config("num_fewshot", task.num_fewshot or 0)
        examples["validation"][key], examples["test"][key] = _split(len(one.eval_docs), task.limit, loc)
    return Scored(loaded, examples)


def _split(count: int, limit: int | None, loc: Location) -> tuple[list[int], list[int]]:
    if count < 2:
        message = f"it has {count} examples, too few for validation and test data"
        raise InvalidRequest.at(loc, "no_evaluation_data", message)
    order = fixed_order(count)
    size = max(1, count // VALIDATION_SHARE)
    return sorted(order[:size][:limit]), sorted(order[size:][:limit])


def _metric(task: str, metric: str | None, results: Mapping[str, Any]) -> float:
    """The value of ``metric``, or of the first, in what the harness calls ``METRIC,FILTER``."""
    values = {
        name: value
        for name, value in results.items()
        if "," in name and not name.partition(",")[0].endswith("_stderr")
    }
    for name, value in values.items():
        if metric is None or metric in (name, name.partition(",")[0]):
            return float(value)
    raise JobFailed(
        "unknown_metric", f"task {task!r} has no metric {metric!r}, only {', '.join(values) or 'none'}"
    )
