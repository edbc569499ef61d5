"""What a request that can be carried out is planned to do: warnings, intersection, ties, layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import save

from taumerge.errors import InvalidRequest
from taumerge.schemas import MergeRequest
from workers.merging.plan import MergePlan
from workers.merging.preflight import plan_merge

TENSORS = {"weight": torch.ones(4, 3), "bias": torch.zeros(3)}


def planned(base: str, models: list[str], output: Path, **options: Any) -> MergePlan:
    body = {"base": base, "models": models, "method": "task_arithmetic", "output": str(output), **options}
    return plan_merge(MergeRequest.model_validate(body), workers=2, worker_memory=0)


@pytest.fixture
def base(tmp_path: Path) -> str:
    return save(tmp_path / "base", TENSORS)


def tuned(directory: Path, **tensors: torch.Tensor) -> str:
    return save(directory, TENSORS | {"bias": torch.ones(3)} | tensors)


def test_a_model_that_is_the_base_is_warned_of(base: str, tmp_path: Path) -> None:
    plan = planned(base, [tuned(tmp_path / "a"), base], tmp_path / "out")
    assert plan.warnings == ("models.1 is the base itself; its task vector is zero",)
    (tmp_path / "link").symlink_to(base)
    assert (
        "models.0 is the base itself" in planned(base, [str(tmp_path / "link")], tmp_path / "o").warnings[0]
    )


def test_the_same_model_twice_is_warned_of(base: str, tmp_path: Path) -> None:
    a, b = tuned(tmp_path / "a"), tuned(tmp_path / "b", weight=torch.zeros(4, 3))
    plan = planned(base, [a, b, f"file://{a}"], tmp_path / "out")
    assert plan.warnings == ("models.2 is the same checkpoint as models.0",)
    assert plan.describe().warnings == list(plan.warnings)


def test_a_base_that_looks_quantised_is_warned_of(tmp_path: Path) -> None:
    packed = {"qweight": torch.zeros(100, dtype=torch.int32), "scales": torch.ones(100)}
    base = save(tmp_path / "base", packed)
    model = save(tmp_path / "a", packed | {"scales": torch.zeros(100)})
    (warning,) = planned(base, [model], tmp_path / "out").warnings
    assert warning.startswith("50% of the base are non-float tensors")


def test_a_few_integers_are_not_warned_of(tmp_path: Path) -> None:
    tensors = {"position_ids": torch.arange(2), "weight": torch.ones(1000)}
    base = save(tmp_path / "base", tensors)
    model = save(tmp_path / "a", tensors)
    plan = planned(base, [model], tmp_path / "out")
    assert plan.warnings == ()
    assert (plan.comparison.merged, plan.comparison.copied) == (["weight"], ["position_ids"])


def test_intersection_copies_from_the_base_and_leaves_out_the_rest(tmp_path: Path) -> None:
    base = save(tmp_path / "base", TENSORS | {"head": torch.ones(2), "steps": torch.tensor([3])})
    models = [
        tuned(tmp_path / "a", head=torch.ones(5)),
        tuned(tmp_path / "b", extra=torch.ones(1), head=torch.zeros(2)),
    ]
    with pytest.raises(InvalidRequest):
        planned(base, models, tmp_path / "out")
    plan = planned(base, models, tmp_path / "out", keys="intersection")
    assert sorted(plan.comparison.merged) == ["bias", "weight"]
    assert sorted(plan.comparison.copied) == ["head", "steps"]
    assert plan.comparison.dropped == [[], ["extra"]]
    assert any("1 float tensors" in one and "head" in one for one in plan.warnings)
    assert any("models.1 are left out" in one for one in plan.warnings)
    head = next(part for unit in plan.units() for part in unit.slices if plan.names[part.tensor] == "head")
    assert (head.merged, head.models) == (False, ())


def test_intersection_still_refuses_another_element_type(base: str, tmp_path: Path) -> None:
    model = tuned(tmp_path / "a", weight=torch.ones(4, 3).half())
    with pytest.raises(InvalidRequest, match="F16"):
        planned(base, [model], tmp_path / "out", keys="intersection")


def test_extra_integers_are_no_fault(base: str, tmp_path: Path) -> None:
    plan = planned(base, [tuned(tmp_path / "a", position_ids=torch.arange(3))], tmp_path / "out")
    assert plan.comparison.dropped == [["position_ids"]]


def test_tied_tensors_are_found_under_either_name(tmp_path: Path) -> None:
    """Two savings of one model may have kept different names of a shared tensor."""
    base = save(
        tmp_path / "base",
        {"embed": torch.zeros(3), "w": torch.zeros(2)},
        metadata={"format": "pt", "head": "embed"},
    )
    model = save(
        tmp_path / "a",
        {"head": torch.ones(3), "w": torch.ones(2)},
        metadata={"format": "pt", "embed": "head"},
    )
    plan = planned(base, [model], tmp_path / "out")
    assert sorted(plan.comparison.merged) == ["embed", "w"]
    assert plan.comparison.dropped == [[]]
    assert b'"head":"embed"' in plan.files[0].header


def test_output_keeps_the_bases_types_or_takes_the_one_asked_for(tmp_path: Path) -> None:
    mixed = {"a": torch.ones(2).bfloat16(), "b": torch.ones(2), "n": torch.arange(2)}
    base, model = save(tmp_path / "base", mixed), save(tmp_path / "m", mixed)

    def types(**options: Any) -> dict[str, str]:
        plan = planned(base, [model], tmp_path / "out", **options)
        return {plan.names[part.tensor]: part.dtype for unit in plan.units() for part in unit.slices}

    assert types() == {"a": "BF16", "b": "F32", "n": "I64"}
    assert types(dtype="float16") == {"a": "F16", "b": "F16", "n": "I64"}


def test_weights_are_normalised_among_those_that_take_part(base: str, tmp_path: Path) -> None:
    models: list[Any] = [
        {"uri": tuned(tmp_path / name), "weight": weight} for name, weight in (("a", 1), ("b", 3), ("c", 4))
    ]
    plan = planned(base, models, tmp_path / "out")
    assert [one.weight for one in plan.contributions([0, 1, 2])] == [0.125, 0.375, 0.5]
    assert [one.weight for one in plan.contributions([0, 1])] == [0.25, 0.75]


def test_identity_changes_with_whatever_decides_the_output(base: str, tmp_path: Path) -> None:
    model = tuned(tmp_path / "a")
    first = planned(base, [model], tmp_path / "out")
    assert planned(base, [model], tmp_path / "out").identity == first.identity
    assert planned(base, [model], tmp_path / "out", scaling=0.5).identity != first.identity
    assert planned(base, [model], tmp_path / "out", scaling=0.5).inputs == first.inputs
    record = Path(model) / "training.json"
    record.write_text('{"steps": 10}')
    recorded = planned(base, [model], tmp_path / "out")
    assert recorded.identity != first.identity
    record.write_text('{"steps": 20}')
    assert planned(base, [model], tmp_path / "out").identity not in (first.identity, recorded.identity)
    weights = Path(model) / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    assert planned(base, [model], tmp_path / "out").inputs != first.inputs
