"""Which tensors of the models can be merged into the base, and what stands in the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from taumerge.errors import ErrorItem
from workers.checkpoints.adapter import Delta, place
from workers.checkpoints.checkpoint import Checkpoint, StoredTensor
from workers.checkpoints.dtypes import FLOATS

LISTED = 20
"""At most so many tensors of one kind of problem are listed one by one; then comes the total."""


@dataclass(slots=True)
class Comparison:
    """The tensors of a base and its models, sorted by what a merge does with them."""

    merged: list[str] = field(default_factory=list)
    """Float tensors of the base that every model has in the same shape and type."""
    copied: list[str] = field(default_factory=list)
    """The other tensors of the base: non-float, or outside the intersection."""
    dropped: list[list[str]] = field(default_factory=list)
    """For each model its tensors that the output does not have."""
    adapters: dict[int, Mapping[str, Delta]] = field(default_factory=dict)
    """For each model that is an adapter what it does to the tensors of the base."""
    errors: list[ErrorItem] = field(default_factory=list)


def compare(
    base: Checkpoint, models: Sequence[Checkpoint], keys: Literal["strict", "intersection"]
) -> Comparison:
    """Compare headers. ``errors`` are located at ``base`` and ``models.<index>.uri``."""
    if base.adapter is not None:
        message = "it is an adapter; the base must be the whole model that the adapter was trained on"
        return Comparison(errors=[ErrorItem(loc=("base",), code="unsupported_adapter", msg=message)])
    result = Comparison(errors=_unsupported(base, ("base",)))
    absent: set[str] = set()
    for index, model in enumerate(models):
        loc = ("models", index, "uri")
        if model.adapter is not None:
            result.adapters[index], refused = place(model, base)
            result.errors += _shortened(
                [ErrorItem(loc=loc, code=one.code, msg=one.message) for one in refused]
            )
            result.dropped.append([])
            continue
        problems = _unsupported(model, loc)
        for name, stored in base.tensors.items():
            problem = _problem(loc, name, stored, model.find(name))
            if stored.info.dtype not in FLOATS or problem is None:
                continue
            if problem.code != "dtype_mismatch":
                absent.add(name)
                if keys == "intersection":
                    continue
            problems.append(problem)
        found = {id(model.find(name)) for name in base.tensors}
        extra = {name: stored for name, stored in model.tensors.items() if id(stored) not in found}
        result.dropped.append(list(extra))
        if keys == "strict":
            problems += [
                _unexpected(loc, name) for name, stored in extra.items() if stored.info.dtype in FLOATS
            ]
        result.errors += _shortened(problems)
    for name, stored in base.tensors.items():
        mergeable = stored.info.dtype in FLOATS and name not in absent
        (result.merged if mergeable else result.copied).append(name)
    if not result.merged and not result.errors:
        message = "no float tensor of the base is in every model: are these models of this base?"
        result.errors.append(ErrorItem(loc=("models",), code="nothing_to_merge", msg=message))
    return result


def _problem(
    loc: tuple[str | int, ...], name: str, base: StoredTensor, model: StoredTensor | None
) -> ErrorItem | None:
    if model is None:
        message = f"tensor {name} of the base is missing; keys: intersection would copy it from the base"
        return ErrorItem(loc=loc, code="missing_tensor", msg=message)
    if model.info.shape != base.info.shape:
        message = (
            f"tensor {name} has shape {list(model.info.shape)}, in the base {list(base.info.shape)}: "
            "is this a model of this base?"
        )
        return ErrorItem(loc=loc, code="shape_mismatch", msg=message)
    if model.info.dtype != base.info.dtype:
        message = (
            f"tensor {name} has type {model.info.dtype}, in the base {base.info.dtype}: convert one of them"
        )
        return ErrorItem(loc=loc, code="dtype_mismatch", msg=message)
    return None


def _unexpected(loc: tuple[str | int, ...], name: str) -> ErrorItem:
    message = f"tensor {name} is not in the base; keys: intersection would leave it out"
    return ErrorItem(loc=loc, code="unexpected_tensor", msg=message)


def _shortened(problems: Sequence[ErrorItem]) -> list[ErrorItem]:
    """The first ``LISTED`` problems of each code, and the total where there are more."""
    by_code: dict[str, list[ErrorItem]] = {}
    for problem in problems:
        by_code.setdefault(problem.code, []).append(problem)
    short = []
    for code, items in by_code.items():
        short += items[:LISTED]
        if len(items) > LISTED:
            message = f"{len(items)} tensors in all; the first {LISTED} are listed"
            short.append(ErrorItem(loc=items[0].loc, code=code, msg=message))
    return short


def _unsupported(checkpoint: Checkpoint, loc: tuple[str | int, ...]) -> list[ErrorItem]:
    # 8-bit floats come with scales: averaging them element by element would be silently wrong.
    dtypes = {stored.info.dtype for stored in checkpoint.tensors.values()}
    odd = sorted(dtype for dtype in dtypes - FLOATS if dtype[0] in "FC")
    if not odd:
        return []
    message = f"it has tensors of type {', '.join(odd)}, which cannot be averaged; convert them to a plain float type"
    return [ErrorItem(loc=loc, code="unsupported_dtype", msg=message)]
