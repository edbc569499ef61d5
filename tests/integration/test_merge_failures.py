"""Merges that fail, are cancelled or meet what is there already: the output is whole or as it was."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import save
from safetensors.torch import load_file

from taumerge.errors import InvalidRequest, JobCancelled, JobFailed
from taumerge.schemas import MergeResult, Progress

Merge = Callable[..., MergeResult]
NAN = float("nan")


@pytest.fixture
def body(tmp_path: Path) -> dict[str, Any]:
    """Three models, of which the second has a NaN in one of twelve tensors."""

    def tensors(value: float) -> dict[str, torch.Tensor]:
        return {f"layer.{index:02d}": torch.full((1000,), value) for index in range(12)}

    bad = tensors(2.0)
    bad["layer.07"][3] = NAN
    models = [tensors(1.0), bad, tensors(3.0)]
    return {
        "base": save(tmp_path / "base", tensors(0.0)),
        "models": [save(tmp_path / f"ft-{index}", model) for index, model in enumerate(models)],
        "method": {"name": "task_arithmetic", "scale": "mean"},
        "output": str(tmp_path / "results/out"),
        "max_shard_size": "9KB",
    }


def left_behind(body: dict[str, Any]) -> list[str]:
    """Everything beside the output."""
    parent = Path(body["output"]).parent
    return sorted(path.name for path in parent.iterdir()) if parent.exists() else []


def values(body: dict[str, Any]) -> dict[str, float]:
    """The value that all elements of a tensor have."""
    found: dict[str, float] = {}
    for path in sorted(Path(body["output"]).glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            (found[name],) = set(tensor.tolist())
    return found


def test_reject_names_what_is_not_finite_and_writes_nothing(merge: Merge, body: dict[str, Any]) -> None:
    with pytest.raises(JobFailed) as caught:
        merge(body)
    assert caught.value.code == "nonfinite"
    assert caught.value.details == {
        "found": [
            {"model": body["models"][1], "loc": ["models", 1, "uri"], "tensor": "layer.07", "count": 1}
        ],
        "total": 1,
    }
    assert left_behind(body) == []


def test_drop_model(merge: Merge, body: dict[str, Any]) -> None:
    result = merge(body | {"nonfinite": "drop_model", "statistics": "full"})
    assert set(values(body).values()) == {2.0}  # (1 + 3) / 2
    assert [model.dropped for model in result.models] == [False, True, False]
    assert [model.nonfinite for model in result.models] == [0, 1, 0]
    assert [model.weight for model in result.models] == [0.5, None, 0.5]
    assert result.cosine is not None
    assert result.cosine[1] == [None, None, None]
    assert result.cosine[0][2] == pytest.approx(1.0)
    assert "models.1 has NaN or inf and was left out" in result.warnings


def test_drop_tensor(merge: Merge, body: dict[str, Any]) -> None:
    result = merge(body | {"nonfinite": "drop_tensor"})
    found = values(body)
    assert found.pop("layer.07") == 0.0
    assert set(found.values()) == {2.0}
    assert (result.tensors.merged, result.tensors.copied) == (11, 1)
    assert any("layer.07" in warning for warning in result.warnings)
    receipt = json.loads((Path(body["output"]) / "taumerge.json").read_text())
    assert receipt["tensors"]["copied"] == ["layer.07"]


def test_an_existing_output_is_replaced_only_by_success(merge: Merge, body: dict[str, Any]) -> None:
    output = Path(body["output"])
    output.mkdir(parents=True)
    (output / "precious").write_text("old")
    with pytest.raises(InvalidRequest) as caught:
        merge(body)
    assert [item.code for item in caught.value.errors] == ["output_exists"]
    with pytest.raises(JobFailed):
        merge(body | {"overwrite": True})
    assert (output / "precious").read_text() == "old"
    assert left_behind(body) == ["out"]
    merge(body | {"overwrite": True, "nonfinite": "drop_model"})
    assert not (output / "precious").exists()
    assert (output / "taumerge.json").exists()
    assert left_behind(body) == ["out"]


def test_an_output_that_appears_during_the_merge_stays(merge: Merge, body: dict[str, Any]) -> None:
    def appear(progress: Progress) -> None:
        Path(body["output"]).mkdir(parents=True, exist_ok=True)

    with pytest.raises(JobFailed) as caught:
        merge(body | {"nonfinite": "drop_model"}, appear)
    assert caught.value.code == "output_exists"
    assert list(Path(body["output"]).iterdir()) == []
    assert left_behind(body) == ["out"]


def test_an_input_that_changes_during_the_merge_fails_it(merge: Merge, body: dict[str, Any]) -> None:
    def touch(progress: Progress) -> None:
        if progress.phase == "aggregate" and progress.done:
            os.utime(Path(body["models"][0]) / "model.safetensors")

    with pytest.raises(JobFailed) as caught:
        merge(body | {"nonfinite": "drop_model"}, touch)
    assert caught.value.code == "input_changed"
    assert left_behind(body) == []


@pytest.mark.parametrize("phase", ["measure", "aggregate"])
def test_cancelling_takes_effect_within_two_seconds(merge: Merge, tmp_path: Path, phase: str) -> None:
    """A merge of 16 slices of 8 MB in four models; it is stopped in the middle."""
    generator = torch.Generator().manual_seed(0)
    names = [f"layer.{index:02d}" for index in range(16)]
    checkpoints = [
        save(tmp_path / place, {name: torch.randn(1 << 21, generator=generator).half() for name in names})
        for place in ("base", "a", "b", "c", "d")
    ]
    body = {
        "base": checkpoints[0],
        "models": checkpoints[1:],
        "method": {"name": "cclip", "rho": 100.0, "iterations": 5},
        "output": str(tmp_path / "results/out"),
        "max_shard_size": "5MB",
    }
    cancelled_at = 0.0

    def cancel(progress: Progress) -> None:
        nonlocal cancelled_at
        if progress.phase == phase and progress.done:
            assert progress.done < progress.total
            cancelled_at = time.monotonic()
            raise JobCancelled("enough")

    with pytest.raises(JobCancelled):
        merge(body, cancel)
    assert time.monotonic() - cancelled_at < 2.0
    assert left_behind(body) == []


def test_progress_only_grows_and_ends_at_the_total(merge: Merge, golden_body: dict[str, Any]) -> None:
    seen: list[Progress] = []
    merge(golden_body, lambda progress: seen.append(progress.model_copy()))
    for phase in ("measure", "aggregate"):
        done = [one.done for one in seen if one.phase == phase]
        assert done == sorted(done)
        assert (done[0], done[-1]) == (0, seen[0].total)
