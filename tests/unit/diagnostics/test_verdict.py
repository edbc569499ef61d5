"""The rules of thumb, each on numbers that call for it and on numbers that do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from taumerge.schemas import DiagnoseResult, GradientDiagnosis, ModelDiagnosis
from workers.aggregation.heterogeneity import (
    average_norm,
    chi_square,
    cosines,
    effective_weights,
    shares,
)
from workers.diagnostics.verdict import (
    CAVEAT,
    agreement_of_independent_signs,
    mean_agreement,
    short_names,
    verdict,
)

ORTHOGONAL = np.eye(4)


def diagnosis(
    vectors: Sequence[Sequence[float]] | np.ndarray[Any, Any],
    lr_sums: Sequence[float | None] | None = None,
    **more: Any,
) -> DiagnoseResult:
    """What would be measured of these task vectors, with equal weights."""
    rows = np.array(vectors, dtype=float)
    count = len(rows)
    gram, weights = rows @ rows.T, [1 / count] * count
    effective = effective_weights(lr_sums or [None] * count)
    votes = np.abs(np.sign(rows).sum(0))[(rows != 0).any(0)].astype(int)
    agreement = np.bincount(votes, minlength=count + 1) / max(len(votes), 1)
    return DiagnoseResult(
        models=[
            ModelDiagnosis(
                uri=f"/models/ft-{index}",
                norm=float(np.sqrt(gram[index, index])),
                weight=1 / count,
                effective_weight=effective[index] if effective else None,
                share=part,
            )
            for index, part in enumerate(shares(gram, weights))
        ],
        cosine=cosines(gram),
        merged_norm=average_norm(gram, weights),
        agreement=agreement.tolist(),
        chi_square=chi_square(weights, effective) if effective else None,
        groups=[],
        verdict=[],
        seconds={},
        **more,
    )


def says(result: DiagnoseResult, *words: str) -> bool:
    return any(all(word in sentence for word in words) for sentence in verdict(result))


def test_it_always_ends_with_what_it_is_worth() -> None:
    for vectors in (np.zeros((2, 3)), ORTHOGONAL, [[1.0]]):
        assert verdict(diagnosis(vectors))[-1] == CAVEAT
    assert "rules of thumb" in CAVEAT


def test_heterogeneous_training_names_who_carries_the_weight() -> None:
    result = diagnosis(ORTHOGONAL, [1.0, 1.0, 10.0, 1.0])
    assert result.chi_square is not None
    assert result.chi_square > 0.25
    assert says(
        result,
        f"training is heterogeneous: χ² = {result.chi_square:.2f}",
        "ft-2 carries 77 % of the effective weight (its p is 25 %)",
        "prefer cclip or fednova with normalize_by lr_sum",
    )


def test_homogeneous_and_mildly_heterogeneous_training() -> None:
    assert says(diagnosis(ORTHOGONAL, [1.0, 1.0, 1.1, 1.0]), "homogeneous", "task_arithmetic")
    mild = diagnosis(ORTHOGONAL, [1.0, 1.0, 2.0, 1.0])
    assert mild.chi_square is not None
    assert 0.05 < mild.chi_square < 0.25
    assert says(mild, "mildly heterogeneous", "ft-2")
    assert not says(mild, "prefer")


def test_without_records_nothing_is_said_of_training() -> None:
    assert not says(diagnosis(ORTHOGONAL), "training")


def test_a_model_that_dominates_the_average() -> None:
    scaled = ORTHOGONAL * [[1.0], [1.5], [8.0], [2.0]]
    assert says(diagnosis(scaled), "ft-2 dominates", "90 % of ‖V‖²", "8.0-fold", "cclip, with rho about 1.75")
    assert says(diagnosis([[1.0, 0.0], [0.0, 4.0]]), "ft-1 dominates", "94 %")


def test_norms_that_differ_without_one_that_dominates() -> None:
    result = diagnosis(ORTHOGONAL * [[1.0], [4.0], [4.0], [1.0]])
    assert says(result, "norms differ 4.0-fold (ft-1 4, ft-0 1)", "rho from 1 to 4")
    assert not says(result, "dominates")
    assert not says(diagnosis(ORTHOGONAL * [[1.0], [2.0], [2.9], [1.0]]), "norms differ")


def test_nearly_orthogonal_task_vectors_do_not_interfere() -> None:
    assert says(diagnosis(ORTHOGONAL), "nearly orthogonal", "task_arithmetic")
    assert not says(diagnosis([[1.0, 0.0], [0.5, 1.0]]), "orthogonal")


def test_task_vectors_that_are_alike() -> None:
    assert says(diagnosis([[1.0, 0.0], [1.0, 0.5]]), "alike (mean cosine 0.89)", "scale mean")


def test_task_vectors_that_pull_against_each_other() -> None:
    pair = diagnosis([[1.0, 0.0, 0.0], [-0.5, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert says(pair, "ft-0 and ft-1 pull against each other (cosine -0.45)", "fedgma or median")
    three = np.eye(3) * 1.1 - 0.1
    assert says(diagnosis(three), "pull against each other (mean cosine", "fedgma")


def test_signs_that_conflict() -> None:
    random = np.random.default_rng(0)
    common, own = random.normal(size=1000), random.normal(size=(2, 1000))
    opposed = [common + 0.5 * own[0], -common + 0.5 * own[1]]
    assert says(diagnosis(opposed), "signs conflict", "0.50 for independent signs", "fedgma")
    assert not says(diagnosis(own), "signs")


def test_a_model_equal_to_the_base_has_no_part_in_the_signs() -> None:
    independent = [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, -1.0, -1.01], [0.0] * 4]
    assert not says(diagnosis(independent), "signs conflict")
    opposed = [[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, -1.0, -1.0], [0.0] * 4]
    assert says(diagnosis(opposed), "signs conflict", "is 0.25 on average, and 0.50 for independent signs")


def test_models_that_change_different_coordinates_do_not_conflict() -> None:
    result = diagnosis(ORTHOGONAL)
    assert mean_agreement(result.agreement) == 0.25 < 0.8 * agreement_of_independent_signs(4)
    assert not says(result, "signs")


def test_the_same_model_twice() -> None:
    assert says(diagnosis([[1.0, 0.0], [0.0, 1.0], [1.0, 1e-9]]), "ft-0 and ft-2 are nearly the same model")
    assert not says(diagnosis([[1.0, 0.0], [2.0, 0.0]]), "same model")  # one is the other scaled


def test_one_model_and_models_equal_to_the_base() -> None:
    assert says(diagnosis([[1.0, 2.0]], [0.1]), "one model", "nothing to compare")
    assert len(verdict(diagnosis([[1.0, 2.0]], [0.1]))) == 2
    assert says(diagnosis([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]), "ft-1 is equal to the base")
    assert verdict(diagnosis([[0.0], [0.0]])) == [
        "every model is equal to the base: there is nothing to merge",
        CAVEAT,
    ]


MINIATURE = {
    "handwriting": (0.1965, 10.01),
    "house_numbers": (0.2415, 10.81),
    "shapes": (0.034, 2.37),
    "counting": (0.0064, 0.63),
    "arrows": (0.02175, 1.85),
    "textures": (0.258, 11.83),
    "signs": (0.00395, 0.42),
    "land": (0.04425, 2.55),
}
"""Sum of learning rates and norm of the models of one heterogeneous draw of examples/miniature."""


def test_the_miniature_trained_alike_and_trained_differently() -> None:
    lr_sums, norms = zip(*MINIATURE.values(), strict=True)
    alike = diagnosis(np.eye(8) * 2.2, [0.0305] * 8)
    assert says(alike, "training is homogeneous: χ² = 0.00")
    assert says(alike, "nearly orthogonal")
    assert len(verdict(alike)) == 3
    different = diagnosis(np.diag(norms), lr_sums)
    assert says(different, "training is heterogeneous: χ² = 5.5", "ft-5 carries 32 %", "fednova")
    assert says(different, "norms differ 28.2-fold", "cclip with rho from 0.42 to 11.8")


def test_gradients_that_do_not_agree() -> None:
    def with_gradients(norms: list[float], diversity: float) -> DiagnoseResult:
        square = sum(norm**2 for norm in norms) / len(norms)
        gradients = GradientDiagnosis(zeta_square=square, diversity=diversity, norms=norms)
        return diagnosis(ORTHOGONAL, gradients=gradients)

    diverse = with_gradients([1.0, 1.0, 1.0, 1.0], 0.95)
    assert says(diverse, "data are heterogeneous", "diversity 0.95, 0.25 if they all did", "trade-offs")
    assert not says(diverse, "ζ*²")
    assert says(with_gradients([1.0, 3.0, 1.0, 1.0], 0.5), "ft-1 makes up 75 % of ζ*²")
    assert not says(with_gradients([1.0, 1.0, 1.0, 1.0], 0.5), "data are heterogeneous")


@pytest.mark.parametrize(
    ("uris", "names"),
    [
        (["/m/ft-a", "/m/ft-b"], ["ft-a", "ft-b"]),
        (["file:///m/a/best", "file:///m/b/best"], ["a/best", "b/best"]),
        (["/m/same", "/m/same"], ["same", "same"]),
        (["/a", "/m/a"], ["a", "m/a"]),
    ],
)
def test_models_are_called_by_the_shortest_names_that_tell_them_apart(
    uris: list[str], names: list[str]
) -> None:
    assert short_names(uris) == names


def test_agreement_of_independent_signs() -> None:
    assert agreement_of_independent_signs(1) == 1.0
    assert agreement_of_independent_signs(2) == 0.5
    signs = np.random.default_rng(0).choice([-1, 1], size=(7, 200_000))
    drawn = np.abs(signs.sum(0)).mean() / 7
    assert agreement_of_independent_signs(7) == pytest.approx(drawn, abs=2e-3)
