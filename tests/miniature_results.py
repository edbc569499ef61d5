"""Results of jobs of the miniature, as the service answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def scores(score: float, **tasks: float) -> dict[str, Any]:
    """Scores of a model."""
    return {"score": score, "average": sum(tasks.values()) / len(tasks), "tasks": tasks}


def search_of(**rules: float) -> dict[str, Any]:
    """A search whose best of each rule has this normalised test accuracy."""
    best = {
        name: {
            "method": {"name": name, "scale": "mean"},
            "scaling": 0.25,
            "seconds": 1.0,
            **scores(0.5, signs=0.5, land=0.25),
            "test": scores(score, signs=0.625, land=0.375),
        }
        for name, score in rules.items()
    }
    return {
        "output": "/search",
        "evaluations": [],
        "best": best[max(rules, key=lambda name: rules[name])],
        "best_by_method": best,
        "individual": {"test": scores(1.0, signs=0.75, land=0.875)},
        "zero_shot": {"test": scores(0.4, signs=0.5, land=0.125)},
        "complete": True,
        "files": [],
        "seconds": {},
    }


def diagnosis_of(norms: Sequence[float] = (), chi_square: float = 3.25) -> dict[str, Any]:
    """A diagnosis of orthogonal task vectors."""
    count = len(norms)
    return {
        "models": [
            {"uri": f"/models/{index}", "norm": norm, "weight": 1 / count} for index, norm in enumerate(norms)
        ],
        "cosine": [[float(row == column) for column in range(count)] for row in range(count)],
        "merged_norm": 1.0,
        "agreement": [],
        "chi_square": chi_square,
        "groups": [],
        "verdict": [],
        "seconds": {},
    }
