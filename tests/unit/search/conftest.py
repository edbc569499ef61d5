"""A search that was never run, with every kind of row that a report shows."""

from __future__ import annotations

from typing import Any

import pytest

from taumerge.schemas import SearchRequest, SearchResult

TASKS = {"digits": 0.95, "a <b> & $x$": 0.8}
"""Task and score of its individual model; the second name is one that HTML and matplotlib would misread."""
HOSTILE = "</script><img src=x onerror=alert(1)>"


def scores(digits: float, other: float) -> dict[str, Any]:
    tasks = dict(zip(TASKS, (digits, other), strict=True))
    return {
        "tasks": tasks,
        "average": (digits + other) / 2,
        "score": sum(tasks[task] / individual for task, individual in TASKS.items()) / 2,
    }


@pytest.fixture
def asked() -> SearchRequest:
    return SearchRequest.model_validate(
        {
            "base": "/models/base",
            "models": [{"uri": f"/models/{HOSTILE}", "task": task, "weight": 0.5} for task in TASKS],
            "methods": ["median", {"name": "cclip", "rho": [1.5, 2.5]}],
            "scaling": [0.1, 0.25, 1.0],
            "evaluation": {"kind": "clip", "tasks": {task: {} for task in TASKS}},
            "budget": {"evaluations": 8, "minutes": 1.5},
            "output": "/models/best",
        }
    )


@pytest.fixture
def result() -> SearchResult:
    cclip = {"name": "cclip", "scale": "sum", "iterations": 1, "norm_scope": "model"}
    methods = [
        {"name": "median", "scale": "mean", "even": "midpoint"},
        cclip | {"rho": 1.5},
        cclip | {"rho": 2.5},
    ]
    evaluations = [
        {
            "method": method,
            "scaling": scaling,
            "seconds": 0.5,
            **scores(0.6 + 0.1 * index - 0.2 * abs(scaling - 0.25), 0.5),
        }
        for index, method in enumerate(methods)
        for scaling in (0.1, 0.25, 1.0)
    ][:8]
    bests = [evaluations[1] | {"test": scores(0.55, 0.45)}, evaluations[7] | {"test": scores(0.75, 0.4)}]
    references = {"validation": scores(*TASKS.values()), "test": scores(*TASKS.values())}
    return SearchResult.model_validate(
        {
            "output": "/models/best",
            "evaluations": evaluations,
            "best": bests[1],
            "best_by_method": {best["method"]["name"]: best for best in bests},
            "individual": references,
            "zero_shot": {"validation": scores(0.3, 0.2), "test": scores(0.25, 0.25)},
            "complete": False,
            "files": [{"name": "model.safetensors", "bytes": 8, "sha256": "ab"}],
            "seconds": {"search": 4.25, "evaluate": 4.0},
            "warnings": [f"{HOSTILE} is odd"],
        }
    )
