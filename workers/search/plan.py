"""The preflight of a search: everything that can be refused before it is queued. No torch, no Ray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

from taumerge.errors import ErrorItem, InvalidRequest
from taumerge.schemas import MergeRequest, SearchRequest, Training
from workers.aggregation import Rule
from workers.checkpoints.checkpoint import CheckpointError, companions, open_checkpoint
from workers.checkpoints.files import each, state_of
from workers.evaluation.data_state import data_state
from workers.merging.plan import MergePlan
from workers.merging.preflight import plan_merge
from workers.search.points import Candidate, expand

_Kind = tuple[str | None, bool]
"""What a rule reads of training records, and whether it takes weights: rules of one kind have one preflight."""


@dataclass(frozen=True)
class SearchPlan:
    """A search that can be carried out."""

    request: SearchRequest
    merge: MergePlan
    """Of any candidate; the candidates differ in rule, λ and training records only."""
    training: Mapping[str | None, tuple[Training, ...]]
    """The training records, by the field that a rule needs of them."""

    @property
    def identity(self) -> str:
        """Fingerprint of what decides the evaluations: the request, the models with their records, and the data."""
        base = self.merge.base
        small = companions(base)  # tokenizers and the like
        states = each(state_of, small, base.directory)
        parts = [
            self.request.model_dump_json(),
            self.merge.inputs,
            {str(field): [one.model_dump() for one in training] for field, training in self.training.items()},
            [(path.name, *astuple(state)) for path, state in zip(small, states, strict=True)],
            data_state(self.request.evaluation),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def merge_of(self, rule: Rule, scaling: float = 1.0) -> MergePlan:
        """The plan of merging by ``rule`` with λ, as ``POST /merge`` would plan it."""
        request = merge_request(self.request, Candidate(rule).method, scaling)
        training = self.training[rule.training_field]
        return replace(self.merge, request=request, rule=rule, training=training)


def plan_search(
    request: SearchRequest, *, workers: int, worker_memory: int, code_allowed: bool
) -> SearchPlan:
    """Check ``request`` against the checkpoints and tasks that it names, and plan it.

    Args:
        code_allowed: whether tasks may run code that models write.

    Raises:
        InvalidRequest: with every problem found, each located in the request.
    """
    errors = [*_pairing_problems(request), *_evaluation_problems(request, code_allowed)]
    candidates: list[Candidate] = []
    try:
        candidates = expand(request, None)
    except InvalidRequest as error:
        errors += error.errors
    plans: dict[_Kind, MergePlan] = {}
    methods = {_kind(one.rule): one.method for one in candidates}
    for kind, method in (methods or {(None, True): {"name": "task_arithmetic"}}).items():
        try:
            plans[kind] = plan_merge(
                merge_request(request, method, 1.0), workers=workers, worker_memory=worker_memory
            )
        except InvalidRequest as error:
            errors += [item for item in error.errors if item not in errors]
    if errors:
        raise InvalidRequest(errors)
    training = {field: plan.training for (field, _), plan in plans.items()}
    return SearchPlan(request, next(iter(plans.values())), training)


def check_search(request: SearchRequest, *, code_allowed: bool) -> SearchPlan:
    """What the service checks before it queues a search; see ``plan_search``."""
    return plan_search(request, workers=1, worker_memory=0, code_allowed=code_allowed)


def merge_request(request: SearchRequest, method: Mapping[str, Any], scaling: float) -> MergeRequest:
    """The merge that makes a candidate of a search: the same numbers, on disk."""
    return MergeRequest.model_validate(
        {
            "base": request.base,
            "models": [model.model_dump(exclude={"task"}) for model in request.models],
            "method": method,
            "scaling": scaling,
            "output": request.output,
            "keys": request.keys,
            "overwrite": request.overwrite,
        }
    )


def _kind(rule: Rule) -> _Kind:
    return rule.training_field, rule.accepts_weights


def _pairing_problems(request: SearchRequest) -> list[ErrorItem]:
    """Tasks and models that are not one to one."""
    errors = []
    first: dict[str, int] = {}
    for index, model in enumerate(request.models):
        loc = ("models", index, "task")
        if model.task not in request.evaluation.tasks:
            known = ", ".join(request.evaluation.tasks)
            message = f"there is no task {model.task!r} in evaluation.tasks, only {known}"
            errors.append(ErrorItem(loc=loc, code="unknown_task", msg=message))
        elif model.task in first:
            message = f"models.{first[model.task]} has this task too; each task normalises by one model"
            errors.append(ErrorItem(loc=loc, code="task_twice", msg=message))
        first.setdefault(model.task, index)
    for task in request.evaluation.tasks:
        if task not in first:
            message = (
                "no model has this task, so its score cannot be normalised; leave it out, or add its model"
            )
            errors.append(
                ErrorItem(loc=("evaluation", "tasks", task), code="task_without_model", msg=message)
            )
    return errors


def _evaluation_problems(request: SearchRequest, code_allowed: bool) -> list[ErrorItem]:
    from workers.evaluation.preflight import check_evaluation

    try:
        base = open_checkpoint(request.base)
    except CheckpointError:  # which the preflight of the merge reports
        return []
    return list(check_evaluation(base, request.evaluation, code_allowed=code_allowed))
