"""The points of a search: every rule with every value of its parameters, and the λ to try with each."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from taumerge.errors import ErrorItem, InvalidRequest
from taumerge.schemas import MethodSpec, SearchRequest
from workers.aggregation import Rule, build_rule

PAPER = ("task_arithmetic", "fednova", "fedgma", "median", "cclip")
FEDGMA_RHO = tuple(number / 10 for number in range(1, 10))
CCLIP_RADII = 5
MAX_CANDIDATES = 10_000
"""Of one entry of ``methods``."""


@dataclass(frozen=True)
class Candidate:
    """A rule with its parameters: a direction V, along which λ is searched."""

    rule: Rule

    @property
    def method(self) -> dict[str, Any]:
        """The name and every parameter, as JSON has them."""
        return {"name": self.rule.name, **self.rule.model_dump(mode="json")}


def expand(request: SearchRequest, norms: Sequence[float] | None) -> list[Candidate]:
    """The candidates of ``request``, each once: in the order of the rules, the last parameter varying fastest.

    Args:
        norms: ‖τ_t‖₂ of each model, from which come the radii of ``cclip`` that the request leaves out. None before
            they are measured, when all is validated: a radius of 1 then stands for those to come.

    Raises:
        InvalidRequest: every problem found, at ``methods.i.…``.
    """
    methods = [MethodSpec(name=name) for name in PAPER] if request.methods == "paper" else request.methods
    errors: list[ErrorItem] = []
    rules: list[Rule] = []
    for index, method in enumerate(methods):
        try:
            rules += _rules(method, norms)
        except InvalidRequest as error:
            errors += [
                item.model_copy(update={"loc": ("methods", index, *item.loc[1:])}) for item in error.errors
            ]
    if errors:
        raise InvalidRequest(errors)
    return [
        Candidate(rule) for rule in dict.fromkeys(rules)
    ]  # equal rules are one, whatever was left to defaults


def line(request: SearchRequest) -> list[float]:
    """The λ to try, ascending, each once."""
    return sorted(set(request.scalings))


def draw(request: SearchRequest, candidates: Sequence[object]) -> list[tuple[int, float]]:
    """What ``random`` evaluates, in this order: as many points of the grid as the budget has evaluations, or all.

    Each point is the index of a candidate and a λ. The same request draws the same points.
    """
    scalings = line(request)
    total = len(candidates) * len(scalings)
    wanted = total if request.budget.evaluations is None else min(request.budget.evaluations, total)
    drawn = random.Random(request.seed).sample(range(total), wanted)
    return [(point // len(scalings), scalings[point % len(scalings)]) for point in drawn]


def _rules(method: MethodSpec, norms: Sequence[float] | None) -> list[Rule]:
    """The rules that one entry of ``methods`` stands for; errors are located as in a merge, at ``method.…``."""
    lists = {name: value for name, value in method.parameters.items() if isinstance(value, list)}
    if empty := [name for name, values in lists.items() if not values]:
        raise InvalidRequest(
            [
                ErrorItem(loc=("method", name), code="too_short", msg="give at least one value")
                for name in empty
            ]
        )
    if math.prod(map(len, lists.values())) > MAX_CANDIDATES:
        raise InvalidRequest.at(
            ["method"],
            "too_many_candidates",
            f"the lists of parameters make more than {MAX_CANDIDATES} combinations; shorten them",
        )
    found: list[Rule] = []
    errors: dict[tuple[str | int, ...], ErrorItem] = {}
    for places in itertools.product(*(range(len(values)) for values in lists.values())):
        chosen = dict(zip(lists, places, strict=True))
        values = method.parameters | {name: lists[name][place] for name, place in chosen.items()}
        try:
            found += [build_rule(one) for one in _with_rho(MethodSpec(name=method.name, **values), norms)]
        except InvalidRequest as error:
            for item in error.errors:
                loc = _into_list(item.loc, chosen)
                errors.setdefault(loc, item.model_copy(update={"loc": loc}))
    if errors:
        raise InvalidRequest(list(errors.values()))
    return found


def _into_list(loc: tuple[str | int, ...], chosen: dict[str, int]) -> tuple[str | int, ...]:
    """``("method", "rho")``, and the place in the list that the value was taken from."""
    if len(loc) > 1 and loc[1] in chosen:
        return (*loc[:2], chosen[str(loc[1])], *loc[2:])
    return loc


def _with_rho(method: MethodSpec, norms: Sequence[float] | None) -> list[MethodSpec]:
    """``method`` once for each ρ of the paper where it leaves it out and its rule has one."""
    if "rho" in method.parameters or method.name not in ("fedgma", "cclip"):
        return [method]
    if method.name == "cclip" and method.parameters.get("norm_scope") == "tensor":
        raise InvalidRequest.at(
            ["method", "rho"],
            "missing",
            "the paper's radii are norms of whole models; give rho where norm_scope is tensor",
        )
    return [
        MethodSpec(name=method.name, rho=rho, **method.parameters)
        for rho in (FEDGMA_RHO if method.name == "fedgma" else _radii(norms))
    ]


def _radii(norms: Sequence[float] | None) -> list[float]:
    """Evenly spaced from the smallest norm to the largest, which is excluded; equal norms give one radius."""
    if norms is None or not any(norms):  # not measured; or every V is zero, whatever the radius
        return [1.0]
    low, high = min(norms), max(norms)
    radii = [low + (high - low) * step / CCLIP_RADII for step in range(CCLIP_RADII)]
    return [radius for radius in dict.fromkeys(radii) if radius > 0]  # a model equal to the base has norm 0
