from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from taumerge.schemas import MethodSpec
from workers.aggregation import build_rule
from workers.aggregation.kernel import (
    BLOCK,
    Workspace,
    accumulation_dtype,
    add_scaled,
    aggregate,
    fits,
    gram_matrix,
    sums_of_squares,
)
from workers.aggregation.rule import Rule

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTHS = [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 12345]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in a shard worker: several threads would cut a sum as they please."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def randn(length: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(seed), dtype=dtype) * scale


def merge(
    rule: Rule, base: Tensor, rows: list[Tensor], scaling: float, out: Tensor, *, narrowed: bool = True
) -> tuple[float, bool]:
    """‖V‖₂² and whether θ₀ + λ·V, written to ``out``, is in its range; every model counts 1/T."""
    merged, square = aggregate(rule, rows, [1.0 / len(rows)] * len(rows))
    return square, add_scaled(base, merged, scaling, square, out, narrowed=narrowed)


def exact_square(vector: Tensor) -> float:
    return math.fsum(value * value for value in vector.double().tolist())


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_sums_of_squares_are_exact_to_1e_6(length: int, scale: float) -> None:
    vectors = [randn(length, seed, scale) for seed in range(3)]
    expected = [exact_square(vector) for vector in vectors]
    assert sums_of_squares(vectors) == pytest.approx(expected, rel=1e-6)
    assert np.diag(gram_matrix(vectors)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e-24, 1e-20, 1e18, 1e25])
def test_squares_beyond_float32_are_exact_too(scale: float) -> None:
    vector = randn(BLOCK + 1, 0, scale)
    assert sums_of_squares([vector, torch.zeros(BLOCK + 1)]) == pytest.approx(
        [exact_square(vector), 0], rel=1e-6
    )


def test_gram_matrix_is_the_matrix_of_dot_products() -> None:
    vectors = [randn(2 * BLOCK + 5, seed) for seed in range(4)]
    gram = gram_matrix(vectors)
    dense = torch.stack(vectors).double().numpy()
    np.testing.assert_allclose(gram, dense @ dense.T, rtol=1e-12)


def test_squares_beyond_float32_are_summed_in_float64() -> None:
    vector = torch.full((3,), 1e30)
    assert sums_of_squares([vector, torch.ones(3)]) == pytest.approx([3e60, 3.0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sum_is_finite_only_if_every_element_is(bad: float, dtype: torch.dtype) -> None:
    vector = torch.ones(BLOCK + 3, dtype=dtype)
    vector[BLOCK + 1] = bad
    sums = sums_of_squares([torch.ones(BLOCK + 3, dtype=dtype), vector])
    assert np.isfinite(sums).tolist() == [True, False]


@pytest.mark.parametrize(
    ("dtype", "fitting", "too_large"),
    [
        (torch.float16, 65519.0, 65520.0),
        (torch.bfloat16, 3.3895e38, 3.4e38),
        (torch.float32, 3.4028235e38, 3.5e38),
    ],
)
def test_fits_knows_the_largest_value_of_a_type(dtype: torch.dtype, fitting: float, too_large: float) -> None:
    for sign in (1.0, -1.0):
        wide = torch.zeros(9, dtype=torch.float64)
        wide[4] = sign * fitting
        assert fits(wide, dtype)
        wide[4] = sign * too_large
        assert not fits(wide, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_never_fits(dtype: torch.dtype, bad: float) -> None:
    assert not fits(torch.tensor([1.0, bad, 2.0]), dtype)


def test_float64_is_kept_where_any_input_has_it() -> None:
    assert accumulation_dtype([torch.bfloat16, torch.float16]) == torch.float32
    assert accumulation_dtype([torch.bfloat16, torch.float64]) == torch.float64


def test_task_vectors_of_16_bit_models_are_differences_in_float32() -> None:
    base, model = randn(100).bfloat16(), randn(100, seed=1).bfloat16()
    wide_base, (task_vector,) = Workspace(1, 200, torch.float32, torch.device("cpu")).task_vectors(
        base, [model]
    )
    assert torch.equal(wide_base, base.float())
    assert torch.equal(task_vector, model.float() - base.float())


@pytest.mark.parametrize(
    "method",
    [
        {"name": "task_arithmetic"},
        {"name": "fedgma", "rho": 0.6},
        {"name": "median"},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_merged_values_do_not_depend_on_the_chunks(
    method: dict[str, str | float], dtype: torch.dtype
) -> None:
    rule = build_rule(MethodSpec.model_validate(method))
    length = 5 * BLOCK + 77
    base = randn(length, dtype=dtype)
    rows = [randn(length, seed, 0.01, dtype) for seed in range(1, 6)]

    def merged(chunk: int) -> Tensor:
        out = torch.empty(length, dtype=torch.bfloat16)
        for start in range(0, length, chunk):
            part = slice(start, start + chunk)
            _, in_range = merge(rule, base[part], [row[part] for row in rows], 0.7, out[part])
            assert in_range
        return out

    whole = merged(length)
    assert all(torch.equal(merged(blocks * BLOCK), whole) for blocks in (1, 2, 4))


def test_merge_reports_the_norm_before_scaling_and_what_does_not_fit() -> None:
    rule = build_rule(MethodSpec(name="task_arithmetic"))
    base = torch.zeros(2)
    out = torch.empty(2, dtype=torch.float16)
    row = torch.tensor([3.0, 4.0])
    assert merge(rule, base, [row], 0.5, out) == (25.0, True)
    assert out.tolist() == [1.5, 2.0]
    assert merge(rule, base, [row], 1e5, out) == (25.0, False)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("sums", [sums_of_squares, gram_matrix])
def test_sums_do_not_depend_on_the_chunks(sums: Callable[..., NDArray[np.float64]], length: int) -> None:
    vectors = [randn(length, seed, 10.0**seed) for seed in range(-3, 3)]
    for chunk in (BLOCK, 2 * BLOCK):
        so_far = None
        for start in range(0, length, chunk):
            so_far = sums([vector[start : start + chunk] for vector in vectors], so_far)
        assert so_far is not None
        assert so_far.tolist() == sums(vectors).tolist()


def test_running_sums_do_not_depend_on_the_chunks() -> None:
    vectors = [randn(3 * BLOCK + 5, seed, 10.0**seed) for seed in (-3, 0, 3)]
    for measure in (sums_of_squares, gram_matrix):
        whole = measure(vectors)
        part = None
        for start in range(0, len(vectors[0]), BLOCK):
            part = measure([vector[start : start + BLOCK] for vector in vectors], part)
        assert part is not None
        assert (part == whole).all()


def test_a_scaling_that_float32_cannot_hold_breaks_no_tie() -> None:
    """1/128 + 0.3·805/128 = 242.5/128 lies in the middle of two bfloat16; the even one is right."""
    rule = build_rule(MethodSpec(name="task_arithmetic"))
    out = torch.empty(1, dtype=torch.bfloat16)
    merge(rule, torch.tensor([1 / 128]), [torch.tensor([805 / 128])], 0.3, out)
    assert out.item() == 242 / 128


@pytest.mark.parametrize("narrowed", [False, True])
def test_a_base_at_the_edge_of_the_type_is_checked_where_it_is_narrowed(narrowed: bool) -> None:
    rule = build_rule(MethodSpec(name="task_arithmetic"))
    base = torch.tensor([torch.finfo(torch.float32).max if narrowed else 3.3895e38])
    out = torch.empty(1, dtype=torch.bfloat16)
    _, in_range = merge(rule, base, [torch.zeros(1)], 1.0, out, narrowed=narrowed)
    assert in_range is not narrowed
    assert bool(torch.isfinite(out).all()) is not narrowed
