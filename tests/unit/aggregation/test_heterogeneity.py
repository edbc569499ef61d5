"""The closed forms of METHODS, against the numbers that stand there and against dense vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workers.aggregation.agreement import sign_agreement
from workers.aggregation.heterogeneity import (
    average_norm,
    chi_square,
    cosines,
    effective_weights,
    mean_cosine,
    shares,
)

VECTORS = np.random.default_rng(0).normal(size=(4, 50)) * [[1.0], [3.0], [0.2], [10.0]]
GRAM = VECTORS @ VECTORS.T
WEIGHTS = [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize("ratio", [0.1, 1.0, 3.0, 10.0])
def test_chi_square_of_two_models(ratio: float) -> None:
    effective = effective_weights([2e-3, 2e-3 * ratio])
    assert effective is not None
    assert effective == pytest.approx([1 / (1 + ratio), ratio / (1 + ratio)])
    assert chi_square([0.5, 0.5], effective) == pytest.approx((ratio - 1) ** 2 / (4 * ratio), abs=1e-15)


def test_chi_square_of_a_tenfold_ratio_is_that_of_methods() -> None:
    effective = effective_weights([1.0, 10.0])
    assert effective is not None
    assert chi_square([0.5, 0.5], effective) == pytest.approx(2.025)


def test_equal_training_is_homogeneous() -> None:
    effective = effective_weights([0.01] * 8)
    assert effective is not None
    assert chi_square([1 / 8] * 8, effective) == 0.0


def test_an_unknown_sum_of_learning_rates_leaves_all_weights_unknown() -> None:
    assert effective_weights([0.1, None, 0.2]) is None


@pytest.mark.parametrize("lr_sums", [[1e-200, 1e200], [1e308, 1e308], [1e-320, 1e10]])
def test_sums_of_learning_rates_beyond_float64_leave_all_weights_unknown(lr_sums: list[float]) -> None:
    assert effective_weights(lr_sums) is None


def test_a_chi_square_beyond_float64_is_unknown() -> None:
    effective = effective_weights([1e-310, 1.0])
    assert effective == [1e-310, 1.0]
    assert chi_square([0.5, 0.5], effective) is None


def test_the_gram_matrix_gives_what_dense_vectors_give() -> None:
    merged = np.array(WEIGHTS) @ VECTORS
    assert average_norm(GRAM, WEIGHTS) == pytest.approx(np.linalg.norm(merged))
    parts = [p * vector @ merged / (merged @ merged) for p, vector in zip(WEIGHTS, VECTORS, strict=True)]
    assert shares(GRAM, WEIGHTS) == pytest.approx(parts)
    assert sum(parts) == pytest.approx(1.0)
    for row in range(4):
        for column in range(4):
            one, other = VECTORS[row], VECTORS[column]
            expected = one @ other / (np.linalg.norm(one) * np.linalg.norm(other))
            assert cosines(GRAM)[row][column] == pytest.approx(expected)


def test_a_zero_task_vector_has_no_cosines_and_no_share() -> None:
    gram = np.diag([4.0, 0.0, 9.0])
    gram[0, 2] = gram[2, 0] = 3.0
    assert cosines(gram) == [[1.0, None, 0.5], [None, None, None], [0.5, None, 1.0]]
    assert mean_cosine(cosines(gram)) == 0.5
    assert shares(gram, [1 / 3] * 3)[1] == 0.0
    assert mean_cosine(cosines(np.zeros((1, 1)))) is None


def test_shares_of_nothing() -> None:
    """τ and −τ cancel, but for the rounding of ‖τ‖²."""
    gram = np.array([[0.3, -0.3], [-0.3, 0.3 + 1e-17]])
    assert shares(gram, [0.5, 0.5]) == [None, None]
    assert shares(np.zeros((2, 2)), [0.5, 0.5]) == [None, None]


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_sign_agreement_counts_what_numpy_counts(count: int) -> None:
    random = np.random.default_rng(count)
    vectors = random.integers(-2, 3, size=(count, 999)).astype(np.float32)
    vectors[:, 100:300] = 0.0
    votes, changed = np.abs(np.sign(vectors).sum(0)), (vectors != 0).any(0)
    expected = np.bincount(votes[changed].astype(int), minlength=count + 1)
    found = sign_agreement([torch.from_numpy(vector.reshape(3, 333)) for vector in vectors])
    assert found.tolist() == expected.tolist()
    assert found.sum() == changed.sum() <= 799


def test_sign_agreement_takes_the_smallest_numbers_and_leaves_its_inputs() -> None:
    vectors = [torch.tensor([1e-45, -0.0, 1e30]), torch.tensor([-1e-45, 0.0, 1e-30])]
    copies = [vector.clone() for vector in vectors]
    assert sign_agreement(vectors).tolist() == [1, 0, 1]
    assert all(torch.equal(one, other) for one, other in zip(vectors, copies, strict=True))
