"""What takes part in a merge, and with which numbers: decided between the two passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taumerge.errors import JobFailed
from workers.checkpoints.dtypes import FLOATS
from workers.merging.plan import MergePlan
from workers.merging.sums import Sums
from workers.merging.unit import Unit

BASE = -1
"""Index of the base among the models of ``Sums.nonfinite``."""
NAMED = 20
PACKED_SHARE, PACKED_BYTES = 0.1, 1 << 20
"""What non-float tensors that differ take of a model, and in bytes, if they are quantised weights and no counters."""


@dataclass(frozen=True)
class Mix:
    """The models and tensors to merge, and the coefficients of the rule."""

    models: tuple[int, ...]
    """Indices of the models that take part."""
    copied: frozenset[str]
    """Tensors taken from the base because some model has NaN or inf there."""
    coefficients: tuple[float, ...]
    """For the whole model; empty where the rule has its own for each tensor."""
    by_tensor: dict[int, tuple[float, ...]]
    measured: Sums
    """What pass 1 found; empty where there was none."""

    def of_unit(self, unit: Unit) -> list[tuple[float, ...]]:
        """The coefficients of each slice."""
        return [self.by_tensor.get(part.tensor, self.coefficients) for part in unit.slices]


def needs_measuring(plan: MergePlan) -> bool:
    """Whether pass 1 is needed: for the rule, or to find what ``nonfinite`` drops."""
    return plan.rule.needs != "nothing" or plan.request.nonfinite != "reject"


def decide(plan: MergePlan, measured: Sums) -> Mix:
    """Apply ``nonfinite`` to what pass 1 found, and let the rule compute its coefficients.

    Raises:
        JobFailed: ``nonfinite`` under ``reject``, in the base, or in every model.
    """
    everyone = range(len(plan.models))
    names = plan.names
    bad = {model for model, _ in measured.nonfinite}
    if BASE in bad or (bad and plan.request.nonfinite == "reject"):
        raise nonfinite_failure(plan, measured, everyone)
    models = tuple(everyone)
    copied: frozenset[str] = frozenset()
    if plan.request.nonfinite == "drop_model":
        models = tuple(model for model in everyone if model not in bad)
        if all(plan.request.models[model].weight == 0 for model in models):  # or none is left
            raise nonfinite_failure(plan, measured, everyone)
    elif plan.request.nonfinite == "drop_tensor":
        copied = frozenset(names[tensor] for _, tensor in measured.nonfinite)
    contributions = plan.contributions(models)
    if plan.rule.needs == "nothing":
        return Mix(models, copied, tuple(plan.rule.coefficients(contributions)), {}, measured)
    chosen = np.ix_(models, models)
    grams = {tensor: gram[chosen] for tensor, gram in measured.gram.items() if names[tensor] not in copied}
    if plan.rule.per_tensor:
        by_tensor = {
            tensor: tuple(plan.rule.coefficients(contributions, gram)) for tensor, gram in grams.items()
        }
        return Mix(models, copied, (), by_tensor, measured)
    total = Sums(gram=grams).total_gram(len(models))
    return Mix(models, copied, tuple(plan.rule.coefficients(contributions, total)), {}, measured)


def check_sound(plan: MergePlan, mix: Mix, sums: Sums) -> None:
    """Refuse to commit NaN, inf, values outside the range of the output type, or quantised weights of different models.

    Raises:
        JobFailed: ``nonfinite``, ``overflow`` or ``quantised``, naming the tensors.
    """
    if sums.nonfinite:
        raise nonfinite_failure(plan, sums, mix.models)
    if sums.overflowed:
        tensors = [plan.names[tensor] for tensor in sorted(sums.overflowed)]
        raise JobFailed(
            "overflow",
            f"merged values of {len(tensors)} tensors are outside the range of their type, {tensors[0]} first; "
            "lower scaling, or choose dtype bfloat16 or float32",
            {"tensors": tensors[:NAMED], "total": len(tensors)},
        )
    stored = plan.base.tensors
    differing = [plan.names[tensor] for tensor in sorted(sums.differing)]
    packed = [name for name in differing if stored[name].info.dtype not in FLOATS]
    size = sum(stored[name].info.nbytes for name in packed)
    share = size / sum(one.info.nbytes for one in stored.values())
    if size > PACKED_BYTES and share > PACKED_SHARE:
        raise JobFailed(
            "quantised",
            f"{len(packed)} non-float tensors, {share:.0%} of the base, differ between models, {packed[0]} first; "
            "they seem to be quantised weights, which have no task vectors: dequantise the checkpoints",
            {"tensors": packed[:NAMED], "total": len(packed)},
        )


def nonfinite_failure(
    plan: MergePlan, sums: Sums, models: Sequence[int], *, droppable: bool = True
) -> JobFailed:
    """The failure that names model, tensor and count of every NaN and inf.

    Args:
        models: indices in the request of the models that were measured.
        droppable: whether the request may leave a model out.
    """
    found = [
        {
            "model": plan.request.base if model == BASE else plan.request.models[models[model]].uri,
            "loc": ["base"] if model == BASE else ["models", models[model], "uri"],
            "tensor": plan.names[tensor],
            "count": count,
        }
        for (model, tensor), count in sorted(sums.nonfinite.items())
    ]
    first = found[0]
    in_models = all(model != BASE for model, _ in sums.nonfinite)
    advisable = droppable and in_models and plan.request.nonfinite == "reject"
    advice = "repair it, or set nonfinite to drop_model" if advisable else "repair it"
    return JobFailed(
        "nonfinite",
        f"{first['model']} has {first['count']} NaN or inf elements in tensor {first['tensor']}"
        f"{'' if first['loc'] == ['base'] else ', itself or as differences from the base'}"
        f"{f' ({len(found)} tensors of models in all)' if len(found) > 1 else ''}; {advice}",
        {"found": found[:NAMED], "total": len(found)},
    )
