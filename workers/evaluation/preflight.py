"""What can be refused before an evaluation: no torch, no data read."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from taumerge.errors import ErrorItem
from taumerge.schemas import EvaluationSpec, EvaluationTask
from workers.checkpoints.checkpoint import Checkpoint, CheckpointError, local_path
from workers.checkpoints.files import names_in
from workers.evaluation.evaluator import BUILT_IN, Location, added_kinds, unknown_kind
from workers.evaluation.task_files import TaskFileError, read_task_file
from workers.finetuning.preflight import Refuse, check_dataset, check_templates, dataset_places

__all__ = ["check_evaluation", "is_file", "places"]

CONFIGS = {"clip": "open_clip_config.json", "classification": "config.json", "lm_eval": "config.json"}
"""What the directory of a base must hold, by kind."""
USED = {
    "clip": {"dataset", "classes", "templates", "limit"},
    "classification": {"dataset", "classes", "max_length", "limit"},
    "lm_eval": {"name", "metric", "num_fewshot", "limit"},
}
"""The fields of a task that a kind has a use for."""


def check_evaluation(base: Checkpoint, spec: EvaluationSpec, *, code_allowed: bool) -> list[ErrorItem]:
    """Everything that is wrong with ``spec``, as ``evaluation`` in a request, but for what only data and model show.

    Args:
        code_allowed: whether tasks may run code that models write, and code beside a task's YAML.
    """
    errors: list[ErrorItem] = []

    def refuse(loc: Location, code: str, message: str) -> None:
        errors.append(ErrorItem(loc=loc, code=code, msg=message))

    if spec.kind not in BUILT_IN:
        if spec.kind not in added_kinds():
            refuse(("evaluation", "kind"), "unknown_evaluator", unknown_kind(spec.kind))
        return errors
    _check_base(base, spec.kind, refuse)
    if spec.kind == "lm_eval" and importlib.util.find_spec("lm_eval") is None:
        message = "lm-evaluation-harness is not installed; install taumerge-server[eval] on every node"
        refuse(("evaluation", "kind"), "harness_missing", message)
    for name, task in spec.tasks.items():
        loc = ("evaluation", "tasks", name)
        _check_fields(spec.kind, task, loc, refuse)
        if spec.kind == "lm_eval":
            _check_task_file(task.name or name, (*loc, "name"), code_allowed, refuse)
        elif task.dataset is None:
            refuse((*loc, "dataset"), "missing", f"{spec.kind} needs a data set")
        else:
            check_dataset(spec.kind, task.dataset, (*loc, "dataset"), refuse)
    return errors


def places(spec: EvaluationSpec) -> list[tuple[Location, str]]:
    """Every URI that ``spec`` reads, with its place in a request.

    What a task file reads lies below its directory, but where the operator allows code.
    """
    found: list[tuple[Location, str]] = []
    for name, task in spec.tasks.items():
        loc = ("evaluation", "tasks", name)
        if task.dataset is not None:
            found += [((*loc, "dataset", field), uri) for field, uri in dataset_places(task.dataset)]
        if spec.kind == "lm_eval" and is_file(task.name or name):
            found.append(((*loc, "name"), task.name or name))
    return found


def is_file(task: str) -> bool:
    """Whether the name of a harness task is the URI of a YAML file. The harness's own names have no slash."""
    return "/" in task


def _check_base(base: Checkpoint, kind: str, refuse: Refuse) -> None:
    if base.adapter is not None:
        refuse(("base",), "unsupported_checkpoint", "it is an adapter; give the whole model")
        return
    try:
        there = CONFIGS[kind] in names_in(base.directory)
    except OSError as error:
        refuse(("base",), "checkpoint_unreadable", f"it cannot be listed: {error.strerror}")
        return
    if not there:
        message = f"the base is no directory with {CONFIGS[kind]}, which {kind} needs"
        refuse(("evaluation", "kind"), "wrong_kind", message)


def _check_fields(kind: str, task: EvaluationTask, loc: Location, refuse: Refuse) -> None:
    defaults: dict[str, Any] = EvaluationTask().model_dump()
    for field, default in defaults.items():
        if field not in USED[kind] and getattr(task, field) != default:
            refuse((*loc, field), "wrong_kind", f"{kind} has no use for it; leave it out")
    check_templates(task.templates, loc, refuse)


def _check_task_file(task: str, loc: Location, code_allowed: bool, refuse: Refuse) -> None:
    if not is_file(task):
        return
    try:
        path: Path = local_path(task)
        read_task_file(path)
    except (CheckpointError, TaskFileError) as error:
        if error.code != "unsafe_task" or not code_allowed:
            refuse(loc, error.code, error.message)
