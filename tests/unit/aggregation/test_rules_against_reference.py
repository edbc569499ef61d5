"""Every rule against the float64 reference, on whatever hypothesis comes up with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from taumerge.schemas import MethodSpec, Training
from workers.aggregation import Contribution, build_rule
from workers.aggregation.kernel import gram_matrix

scales = st.sampled_from(["sum", "mean"])
rhos = st.integers(0, 10).map(lambda tenths: tenths / 10) | st.floats(0, 1, width=16)
methods = st.one_of(
    st.fixed_dictionaries({"name": st.just("task_arithmetic"), "scale": scales}),
    st.fixed_dictionaries(
        {
            "name": st.just("fednova"),
            "scale": scales,
            "normalize_by": st.sampled_from(["steps", "lr_sum"]),
        }
    ),
    st.fixed_dictionaries({"name": st.just("fedgma"), "scale": scales, "rho": rhos}),
    st.fixed_dictionaries(
        {"name": st.just("median"), "scale": scales, "even": st.sampled_from(["midpoint", "lower"])}
    ),
    st.fixed_dictionaries(
        {
            "name": st.just("cclip"),
            "scale": scales,
            "rho": st.floats(0.0625, 50, width=32),
            "iterations": st.integers(1, 4),
        }
    ),
)
values = st.sampled_from([0.0, -0.0, 1.0, -1.0]) | st.floats(-4, 4, width=16)


@st.composite
def merges(
    draw: st.DrawFn,
) -> tuple[dict[str, Any], np.ndarray[Any, np.dtype[np.float64]], list[float] | None]:
    """A method, task vectors of shape (T, …), and weights or None."""
    method = draw(methods)
    shape = draw(array_shapes(min_dims=1, max_dims=3, max_side=5))
    count = draw(st.integers(1, 9))
    rows = draw(arrays(np.float64, (count, *shape), elements=values))
    weight = st.integers(0, 9).map(float) | st.integers(0, 30).map(lambda tenths: tenths / 10)
    weights = st.lists(weight, min_size=count, max_size=count).filter(any)
    return method, rows, None if method["name"] == "median" else draw(st.none() | weights)


@settings(max_examples=200, deadline=None)
@example(({"name": "fedgma", "rho": 0.6, "scale": "sum"}, np.array([[1.0]] * 4 + [[-1.0]]), None))
@example(({"name": "fedgma", "rho": 0.1, "scale": "sum"}, np.array([[1.0], [1.0], [-1.0]]), [0.3, 0.1, 0.3]))
@given(merges())
def test_rule_agrees_with_the_reference(
    case: tuple[dict[str, Any], np.ndarray[Any, np.dtype[np.float64]], list[float] | None],
) -> None:
    method, rows, weights = case
    count = len(rows)
    training = [Training(steps=10 * index + 1, lr_sum=1 / (index + 1)) for index in range(count)]
    field = method.get("normalize_by", "steps")
    flat = rows.reshape(count, -1)
    expected = reference.merged_vector(
        flat, method, weights, amounts=[getattr(one, field) for one in training]
    )
    rule = build_rule(MethodSpec(**method))
    total = sum(weights) if weights else float(count)
    contributions = [
        Contribution((weights[index] if weights else 1.0) / total, training=training[index])
        for index in range(count)
    ]
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 3e-5)):
        task_vectors = [torch.tensor(row, dtype=dtype) for row in rows]
        gram = gram_matrix([task_vector.flatten() for task_vector in task_vectors])
        merged = rule.aggregate(task_vectors, rule.coefficients(contributions, gram))
        assert merged.shape == rows.shape[1:]
        assert merged.dtype == dtype
        np.testing.assert_allclose(merged.flatten().numpy(), expected, rtol=tolerance, atol=tolerance)


@settings(deadline=None)
@given(case=merges(), data=st.data())
def test_equal_models_may_change_places(
    case: tuple[dict[str, Any], np.ndarray[Any, np.dtype[np.float64]], list[float] | None],
    data: st.DataObject,
) -> None:
    """Bit by bit for the median, which adds at most two values; else but for the order of additions."""
    method, rows, _ = case
    order = data.draw(st.permutations(range(len(rows))))
    rule = build_rule(MethodSpec(**method))
    contributions = [Contribution(1 / len(rows), training=Training(steps=7, lr_sum=0.5)) for _ in rows]
    task_vectors = [torch.tensor(row).flatten() for row in rows]
    shuffled = [task_vectors[index] for index in order]
    first, second = (
        rule.aggregate(vectors, rule.coefficients(contributions, gram_matrix(vectors)))
        for vectors in (task_vectors, shuffled)
    )
    if method["name"] == "median":
        assert torch.equal(first, second)
    else:
        torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 4)])
@pytest.mark.parametrize("name", ["task_arithmetic", "fednova", "fedgma", "median", "cclip"])
def test_chunks_may_have_any_shape(name: str, shape: tuple[int, ...]) -> None:
    rule = build_rule(MethodSpec(name=name, **({"rho": 0.5} if name in ("fedgma", "cclip") else {})))
    task_vectors = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    whole = rule.aggregate(task_vectors, [0.25] * 4)
    flat = rule.aggregate([task_vector.flatten() for task_vector in task_vectors], [0.25] * 4)
    assert whole.shape == shape
    assert torch.equal(whole.flatten(), flat)
