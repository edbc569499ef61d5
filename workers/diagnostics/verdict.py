"""A verdict in words: rules of thumb on the numbers of a diagnosis, as docs/diagnostics.md lists them. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median

from taumerge.schemas import DiagnoseResult
from workers.aggregation.heterogeneity import mean_cosine

HOMOGENEOUS, HETEROGENEOUS = 0.05, 0.25
"""χ² up to which training is called homogeneous, and from which heterogeneous."""
DOMINANT_SHARE, DOMINANT_EXCESS = 0.5, 1.5
"""Share of ‖V‖² from which a model is said to dominate, if it is also so many times its weight."""
NORM_RATIO = 3.0
"""Largest over smallest norm from which they are said to differ."""
SAME_COSINE, SAME_NORM = 0.9999, 1e-3
"""Cosine from which, and relative difference of norms up to which, two models are called the same."""
ORTHOGONAL_MEAN, ORTHOGONAL_PAIR = 0.1, 0.3
"""Mean cosine, and largest of a pair (by size), up to which task vectors are called nearly orthogonal."""
ALIKE_MEAN = 0.5
OPPOSED_MEAN, OPPOSED_PAIR = -0.05, -0.2
SIGN_CONFLICT = 0.8
"""Part of the agreement of independent signs below which signs are called conflicting."""
DIVERSE, DOMINANT_GRADIENT = 0.8, 0.5

CAVEAT = (
    "These are rules of thumb on a few numbers, not a prediction: only scores on validation data decide which rule is "
    "best (taumerge search)."
)


def verdict(result: DiagnoseResult) -> list[str]:
    """What stands out and which rule that speaks for, one sentence each; the last says what this is worth."""
    facts = _Facts(result)
    return [*(sentence for rule in RULES for sentence in rule(facts)), CAVEAT]


def short_names(uris: Sequence[str]) -> list[str]:
    """The last part of each URI, and as many parts before it as tell the models apart."""
    parts = [[part for part in uri.split("/") if part] for uri in uris]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(set(uris)):
            return names
    return list(uris)


class _Facts:
    """A diagnosis as the rules read it."""

    def __init__(self, result: DiagnoseResult) -> None:
        self.result = result
        self.names = short_names([model.uri for model in result.models])
        self.count = len(result.models)
        self.moved = [index for index, model in enumerate(result.models) if model.norm > 0]
        self.mean_cosine = mean_cosine(result.cosine)
        self.pairs = [
            (cosine, first, second)
            for first, row in enumerate(result.cosine)
            for second, cosine in enumerate(row[:first])
            if cosine is not None
        ]

    def listed(self, indices: Iterable[int]) -> str:
        return " and ".join(self.names[index] for index in indices)


def _size(facts: _Facts) -> list[str]:
    unmoved = [index for index in range(facts.count) if index not in facts.moved]
    if not facts.moved:
        return ["every model is equal to the base: there is nothing to merge"]
    found = []
    if unmoved:
        verb = "is" if len(unmoved) == 1 else "are"
        found.append(
            f"{facts.listed(unmoved)} {verb} equal to the base and only weaken{'s' if len(unmoved) == 1 else ''} the "
            "average: leave out, or check that it is the model you mean"
        )
    if facts.count == 1:
        found.append("there is one model, so there is nothing to compare: λ scales its task vector")
    return found


def _copies(facts: _Facts) -> list[str]:
    models = facts.result.models
    return [
        f"{facts.listed((second, first))} are nearly the same model (cosine {cosine:.4f}), which counts twice; leave "
        "one out"
        for cosine, first, second in facts.pairs
        if cosine >= SAME_COSINE and math.isclose(models[first].norm, models[second].norm, rel_tol=SAME_NORM)
    ]


def _training(facts: _Facts) -> list[str]:
    chi_square = facts.result.chi_square
    if chi_square is None or facts.count == 1:
        return []
    if chi_square <= HOMOGENEOUS:
        return [
            f"training is homogeneous: χ² = {chi_square:.2f}; in this respect plain averaging (task_arithmetic) is fine"
        ]
    models = facts.result.models
    heaviest = max(range(facts.count), key=lambda index: models[index].effective_weight or 0.0)
    leader = models[heaviest]
    carries = (
        f"{facts.names[heaviest]} carries {_percent(leader.effective_weight or 0.0)} of the effective weight (its p is "
        f"{_percent(leader.weight)})"
    )
    if chi_square < HETEROGENEOUS:
        return [
            f"training is mildly heterogeneous: χ² = {chi_square:.2f}, {carries}; the rules hardly differ then"
        ]
    return [
        f"training is heterogeneous: χ² = {chi_square:.2f}, {carries}; prefer cclip or fednova with normalize_by lr_sum"
    ]


def _norms(facts: _Facts) -> list[str]:
    models = facts.result.models
    if len(facts.moved) < 2:
        return []
    norms = {index: models[index].norm for index in facts.moved}
    largest, smallest = max(norms, key=norms.__getitem__), min(norms, key=norms.__getitem__)
    ratio = norms[largest] / norms[smallest]
    middle = median(norms.values())
    leader = max(facts.moved, key=lambda index: models[index].share or 0.0)
    share, weight = models[leader].share or 0.0, models[leader].weight
    if share >= max(DOMINANT_SHARE, DOMINANT_EXCESS * weight) and ratio >= NORM_RATIO:
        return [
            f"{facts.names[leader]} dominates the average: {_percent(share)} of ‖V‖² with a weight of "
            f"{_percent(weight)}, norms differ {ratio:.1f}-fold; prefer cclip, with rho about {middle:.3g} (the median "
            "norm) or below"
        ]
    if ratio >= NORM_RATIO:
        return [
            f"norms differ {ratio:.1f}-fold ({facts.names[largest]} {norms[largest]:.3g}, {facts.names[smallest]} "
            f"{norms[smallest]:.3g}): large task vectors count more in an average; try cclip with rho from "
            f"{norms[smallest]:.3g} to {norms[largest]:.3g}"
        ]
    return []


def _directions(facts: _Facts) -> list[str]:
    mean = facts.mean_cosine
    if mean is None:
        return []
    lowest, first, second = min(facts.pairs)
    strongest = max(abs(cosine) for cosine, _, _ in facts.pairs)
    damp = "prefer fedgma or median, which damp disputed coordinates"
    if lowest <= OPPOSED_PAIR:
        return [f"{facts.listed((second, first))} pull against each other (cosine {lowest:.2f}); {damp}"]
    if mean <= OPPOSED_MEAN:
        return [f"the task vectors pull against each other (mean cosine {mean:.2f}); {damp}"]
    if abs(mean) <= ORTHOGONAL_MEAN and strongest <= ORTHOGONAL_PAIR:
        return [
            f"the task vectors are nearly orthogonal (mean cosine {mean:.2f}, none beyond ±{strongest:.2f}) and hardly "
            "interfere; in this respect plain averaging (task_arithmetic) is fine"
        ]
    if mean >= ALIKE_MEAN:
        return [
            f"the task vectors are alike (mean cosine {mean:.2f}): with scale sum they add up; try small λ, or scale "
            "mean"
        ]
    return []


def _signs(facts: _Facts) -> list[str]:
    if len(facts.moved) < 2 or facts.mean_cosine is None or facts.mean_cosine >= 0:
        return []
    moved = len(facts.moved)  # the others have no sign anywhere
    found = mean_agreement(facts.result.agreement) * facts.count / moved
    chance = agreement_of_independent_signs(moved)
    # Without negative cosines little agreement only says that the models changed different coordinates.
    if found > SIGN_CONFLICT * chance:
        return []
    return [
        f"the signs conflict: |Σ sign τ_t| / T is {found:.2f} on average, and {chance:.2f} for independent signs; "
        "fedgma damps where they do"
    ]


def _data(facts: _Facts) -> list[str]:
    gradients = facts.result.gradients
    if gradients is None or facts.count < 2:
        return []
    found = []
    if gradients.diversity is not None and gradients.diversity >= DIVERSE:
        found.append(
            f"the data are heterogeneous: at the merged model the gradients of the tasks hardly agree (diversity "
            f"{gradients.diversity:.2f}, {1 / facts.count:.2f} if they all did); no rule removes that, expect "
            "trade-offs between the tasks"
        )
    squares = [norm**2 for norm in gradients.norms]
    worst = max(range(facts.count), key=squares.__getitem__)
    part = squares[worst] / sum(squares) if any(squares) else 0.0
    if facts.count > 2 and part >= DOMINANT_GRADIENT:
        found.append(
            f"the task of {facts.names[worst]} makes up {_percent(part)} of ζ*²: the average suits it least; a larger "
            "weight may help"
        )
    return found


RULES: tuple[Callable[[_Facts], list[str]], ...] = (
    _size,
    _copies,
    _training,
    _norms,
    _directions,
    _signs,
    _data,
)


def _percent(part: float) -> str:
    return f"{part * 100:.0f} %"


def mean_agreement(agreement: Sequence[float]) -> float:
    """Mean of |Σ_t sign τ_t| / T over the changed coordinates."""
    return sum(votes * share for votes, share in enumerate(agreement)) / max(len(agreement) - 1, 1)


def agreement_of_independent_signs(count: int) -> float:
    """The mean of |Σ_t sign τ_t| / T when T signs are drawn at random."""
    total = sum(math.comb(count, heads) * abs(2 * heads - count) for heads in range(count + 1))
    return total / (count << count)
