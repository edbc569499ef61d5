"""Tasks of lm-evaluation-harness with their data: by name, or from a YAML file of one's own."""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lm_eval.utils
from jinja2.sandbox import SandboxedEnvironment
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from taumerge.errors import InvalidRequest
from workers.checkpoints.checkpoint import local_path
from workers.evaluation.evaluator import Location
from workers.evaluation.preflight import is_file
from workers.evaluation.task_files import METRICS, TaskFileError, read_task_file

__all__ = ["HarnessTask", "load_harness_task"]


@dataclass(frozen=True)
class HarnessTask:
    """A task, or a group of tasks with one score."""

    name: str
    """Of its results."""
    tasks: Mapping[str, Any]
    """By name, the ``lm_eval.api.task.Task``s: one, or those of the group."""
    groups: Mapping[str, Any] = field(default_factory=dict)
    metric: str | None = None
    """Its score, ``METRIC`` or ``METRIC,FILTER``; null: the first that the task's own code makes."""

    def as_dict(self) -> dict[str, Any]:
        """As ``TaskManager.load`` gives it and ``lm_eval.evaluate`` takes it."""
        return {"tasks": dict(self.tasks), "groups": dict(self.groups)}


def load_harness_task(name: str, metric: str | None, loc: Location, *, code_allowed: bool) -> HarnessTask:
    """The task that the harness calls ``name``, or that the YAML file at the URI ``name`` describes.

    Args:
        metric: what its score shall be, as in ``EvaluationTask``.
        loc: place of the task in the request, for errors.

    Raises:
        InvalidRequest: ``unknown_task``, ``several_tasks``, ``malformed_task``, ``unsafe_task``, ``task_unloadable``,
            ``unknown_metric`` or ``unsuitable_metric``.
    """
    _confine_templates()
    if code_allowed:  # what HumanEval's metric asks its user to set
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    loc_name = (*loc, "name")
    try:
        if is_file(name):
            found = _load_file(local_path(name), loc_name, code_allowed)
        else:
            found = _load_named(name, loc_name, code_allowed)
    except InvalidRequest:
        raise
    except Exception as error:
        message = f"lm-evaluation-harness cannot load {name}: {type(error).__name__}: {error}"
        raise InvalidRequest.at(loc_name, "task_unloadable", message) from error
    if not code_allowed and any(getattr(task, "UNSAFE_CODE", False) for task in found.tasks.values()):
        raise _unsafe(name, loc_name)
    return replace(found, metric=_check_metric(found, metric, (*loc, "metric")))


def _confine_templates() -> None:
    """Let the templates of tasks see their document and nothing else: in jinja's plain environment they run code."""
    plain = lm_eval.utils.env
    if not isinstance(plain, SandboxedEnvironment):
        confined = SandboxedEnvironment(
            loader=plain.loader,
            undefined=plain.undefined,
            keep_trailing_newline=plain.keep_trailing_newline,
        )
        confined.filters.update(plain.filters)
        lm_eval.utils.env = confined


def _load_file(path: Path, loc: Location, code_allowed: bool) -> HarnessTask:
    try:
        fields = read_task_file(path)
    except TaskFileError as error:
        if error.code != "unsafe_task" or not code_allowed:
            raise InvalidRequest.at(loc, error.code, error.message) from error
        with contextlib.chdir(path.parent):  # so that it may name its files by relative paths, as others do
            loaded = TaskManager(include_defaults=False).load(str(path))
        return _single(loaded, loc)
    task = ConfigurableTask(config=fields)
    return HarnessTask(task.task_name, {task.task_name: task})


def _load_named(name: str, loc: Location, code_allowed: bool) -> HarnessTask:
    manager = task_manager()
    if name not in manager.task_index:
        near = difflib.get_close_matches(name, manager.all_tasks)
        hint = f"; there is {', '.join(near)}" if near else ""
        message = f"lm-evaluation-harness has no task {name!r}{hint}. A file of your own is named by its URI"
        raise InvalidRequest.at(loc, "unknown_task", message)
    entry = manager.task_index[name]
    if not code_allowed and (entry.cfg or {}).get("unsafe_code"):
        raise _unsafe(name, loc)
    return _single(manager.load(name), loc)


@functools.cache
def task_manager() -> TaskManager:
    """The harness's index of its own tasks; reading it takes seconds."""
    return TaskManager()


def _single(loaded: Mapping[str, Any], loc: Location) -> HarnessTask:
    """What was loaded, if it has one score: a task, or a group that says how it is averaged."""
    tasks, groups = loaded["tasks"], loaded["groups"]
    inner = {name for children in loaded.get("group_map", {}).values() for name in children}
    outer = [name for name in (*groups, *tasks) if name not in inner]
    if len(outer) == 1 and not (outer[0] in groups and not groups[outer[0]].aggregate_metric_list):
        return HarnessTask(outer[0], tasks, groups)
    message = f"these are several tasks without a score in common; give each as a task: {', '.join(tasks)}"
    raise InvalidRequest.at(loc, "several_tasks", message)


def _check_metric(found: HarnessTask, metric: str | None, loc: Location) -> str | None:
    """The metric that is the score. Refuses one that the tasks do not have, or that is better when lower."""
    directions: dict[str, bool] = {}
    for task in found.tasks.values():
        directions |= task.higher_is_better()
    if found.name in found.groups:  # which has those that it averages, and no others
        averaged = [one.metric for one in found.groups[found.name].aggregate_metric_list]
        directions = {name: directions.get(name, True) for name in averaged}
    wanted = metric.partition(",")[0] if metric else next(iter(directions), None)
    known = ", ".join(directions)
    # A task's own code may make other metrics of those listed (pass@1 of pass_at_k).
    if wanted not in directions and METRICS.issuperset(directions):
        raise InvalidRequest.at(loc, "unknown_metric", f"{found.name} has no metric {wanted!r}, only {known}")
    if directions.get(wanted or "") is False:
        message = f"{wanted} is better when lower, so it is no score; name another in metric: {known}"
        raise InvalidRequest.at(loc, "unsuitable_metric", message)
    return metric or (wanted if wanted in METRICS else None)


def _unsafe(name: str, loc: Location) -> InvalidRequest:
    message = (
        f"{name} runs code that models write; such tasks run only where the service's operator sets "
        "TAUMERGE_ALLOW_CODE_EXECUTION"
    )
    return InvalidRequest.at(loc, "unsafe_task", message)
