"""Each rule on a handful of numbers that were worked out on paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from taumerge.schemas import MethodSpec, Training
from workers.aggregation import Contribution, build_rule

Rows = Sequence[Sequence[float]]


def merged(
    name: str,
    rows: Rows,
    *,
    weights: Sequence[float] | None = None,
    coefficients: Sequence[float] | None = None,
    training: Sequence[Training] | None = None,
    **parameters: Any,
) -> list[float]:
    """V of float32 task vectors."""
    rule = build_rule(MethodSpec(name=name, **parameters))
    count = len(rows)
    total = sum(weights) if weights else count
    contributions = [
        Contribution(
            weight=(weights[index] if weights else 1.0) / total,
            coefficient=coefficients[index] if coefficients else None,
            training=training[index] if training else Training(),
        )
        for index in range(count)
    ]
    task_vectors = [torch.tensor(row) for row in rows]
    dense = np.array(rows)
    numbers = rule.coefficients(contributions, dense @ dense.T)
    values: list[float] = rule.aggregate(task_vectors, numbers).tolist()
    return values


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [4.0, -4.0]),
        ({"scale": "mean"}, [2.0, -2.0]),
        ({"weights": [3.0, 1.0]}, [3.0, -1.0]),
        ({"weights": [1.0, 0.0]}, [2.0, 2.0]),
        ({"weights": [3.0, 1.0], "scale": "mean"}, [1.5, -0.5]),
        ({"coefficients": [-1.0, 0.5]}, [0.5, -3.5]),
        ({"coefficients": [0.0, 0.0]}, [0.0, 0.0]),
    ],
)
def test_task_arithmetic(options: dict[str, Any], expected: list[float]) -> None:
    assert merged("task_arithmetic", [[1.0, 1.0], [3.0, -5.0]], **options) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # n = (1, 3), mean 2: ½·(2/1)·4 + ½·(2/3)·6 = 4 + 2
        ({}, [6.0]),
        ({"scale": "sum"}, [12.0]),
        # p = (¾, ¼), mean 1.5: ¾·1.5·4 + ¼·(1.5/3)·6 = 4.5 + 0.75
        ({"weights": [3.0, 1.0]}, [5.25]),
        # A = (2, 1), mean 1.5: ½·(1.5/2)·4 + ½·(1.5/1)·6 = 1.5 + 4.5
        ({"normalize_by": "lr_sum", "scale": "sum"}, [12.0]),
        ({"normalize_by": "lr_sum"}, [6.0]),
    ],
)
def test_fednova(options: dict[str, Any], expected: list[float]) -> None:
    training = [Training(steps=1, lr_sum=2.0), Training(steps=3, lr_sum=1.0)]
    assert merged("fednova", [[4.0], [6.0]], training=training, **options) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("rho", "expected"),
    [
        # signs + + + + (A = 1), + + + − (A = ½), + + − − (A = 0), + 0 0 0 (A = ¼); sums 4, 2, 0, 1
        (0.0, [4.0, 2.0, 0.0, 1.0]),
        (0.25, [4.0, 2.0, 0.0, 1.0]),
        (0.26, [4.0, 2.0, 0.0, 0.25]),
        (0.5, [4.0, 2.0, 0.0, 0.25]),
        (0.51, [4.0, 1.0, 0.0, 0.25]),
        (1.0, [4.0, 1.0, 0.0, 0.25]),
    ],
)
def test_fedgma_damps_by_the_agreement_below_rho(rho: float, expected: list[float]) -> None:
    rows = [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, -1.0, 0.0], [1.0, -1.0, -1.0, 0.0]]
    assert merged("fedgma", rows, rho=rho) == expected
    assert merged("fedgma", rows, rho=rho, scale="mean") == [value / 4 for value in expected]


def test_fedgma_weighs_the_signs() -> None:
    # p = (½, ¼, ¼): A = |½ + ¼ − ¼| = ½, sum 3·(½ + ¼ − ¼) = 1.5; A = |−½ + ¼ + ¼| = 0
    rows = [[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]
    assert merged("fedgma", rows, rho=0.5, weights=[2.0, 1.0, 1.0]) == [1.5, 0.0]
    assert merged("fedgma", rows, rho=0.6, weights=[2.0, 1.0, 1.0]) == [0.75, 0.0]


@pytest.mark.parametrize("models", range(1, 11))
@pytest.mark.parametrize("tenths", range(1, 11))
def test_fedgma_counts_an_agreement_equal_to_rho_as_agreement(models: int, tenths: int) -> None:
    """A takes the values k/T; where k/T is exactly ρ nothing is damped."""
    agreeing = [count for count in range(models + 1) if (models - 2 * count) * 10 == tenths * models]
    for opposed in agreeing:
        rows = [[-1.0] if index < opposed else [1.0] for index in range(models)]
        rho = float(f"0.{tenths}") if tenths < 10 else 1.0
        assert merged("fedgma", rows, rho=rho) == [models - 2.0 * opposed]
        # A model without weight changes no agreement, and takes the path of unequal weights.
        weighed = merged("fedgma", [*rows, [5.0]], rho=rho, weights=[1.0] * models + [0.0], scale="mean")
        assert weighed == pytest.approx([1.0 - 2.0 * opposed / models])


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        ([[1.0, -2.0], [5.0, 0.0], [3.0, 7.0]], {}, [3.0, 0.0]),
        ([[1.0], [2.0], [4.0], [9.0]], {}, [3.0]),
        ([[9.0], [4.0], [2.0], [1.0]], {"even": "lower"}, [2.0]),
        ([[9.0], [4.0], [2.0], [1.0]], {"even": "lower", "scale": "sum"}, [8.0]),
        ([[1.0], [2.0], [4.0], [9.0]], {"scale": "sum"}, [12.0]),
        ([[1.5]], {}, [1.5]),
        ([[1.0], [2.0]], {"even": "lower"}, [1.0]),
    ],
)
def test_median(rows: Rows, options: dict[str, Any], expected: list[float]) -> None:
    assert merged("median", rows, **options) == expected


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        # norms 5 and 1: the first is clipped to radius 1
        ([[3.0, 4.0], [1.0, 0.0]], {"rho": 1.0}, [1.6, 0.8]),
        ([[3.0, 4.0], [1.0, 0.0]], {"rho": 1.0, "scale": "mean"}, [0.8, 0.4]),
        ([[3.0, 4.0], [1.0, 0.0]], {"rho": 5.0}, [4.0, 4.0]),
        ([[3.0, 4.0], [1.0, 0.0]], {"rho": 1.0, "weights": [3.0, 1.0]}, [1.4, 1.2]),
        # v: 0 → 2 → 2 + 2 → …, one model at distance 10 and clipped to 2 a step
        ([[10.0]], {"rho": 2.0, "iterations": 3}, [6.0]),
        ([[10.0]], {"rho": 2.0, "iterations": 9}, [10.0]),
        # v = 0 → ½(1 − 1) = 0: opposed vectors cancel at every radius
        ([[3.0], [-8.0]], {"rho": 1.0, "iterations": 4}, [0.0]),
        ([[0.0, 0.0], [0.0, 0.0]], {"rho": 1.0}, [0.0, 0.0]),
        ([[0.0, 0.0], [0.0, 0.0]], {"rho": 1.0, "iterations": 3}, [0.0, 0.0]),
    ],
)
def test_cclip(rows: Rows, options: dict[str, Any], expected: list[float]) -> None:
    assert merged("cclip", rows, **options) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["task_arithmetic", "fednova", "fedgma", "median", "cclip"])
def test_task_vectors_stay_as_they_are(name: str) -> None:
    rule = build_rule(MethodSpec(name=name, **({"rho": 0.5} if name in ("fedgma", "cclip") else {})))
    for count in (1, 2, 5):
        task_vectors = [torch.full((3,), float(index)) for index in range(count)]
        out = rule.aggregate(task_vectors, [0.5] * count)
        out.fill_(-1.0)
        assert [row[0].item() for row in task_vectors] == list(range(count))
