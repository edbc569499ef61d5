"""How a merge is cut into slices and units, and who gets them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import random_checkpoints

from taumerge.schemas import MergeRequest
from workers.aggregation.kernel import BLOCK
from workers.checkpoints.dtypes import ITEMSIZE
from workers.merging import plan as plan_module
from workers.merging.plan import MergePlan
from workers.merging.preflight import plan_merge
from workers.merging.unit import Slice

Request = tuple[str, list[str]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Request:
    mixed = [torch.float32, torch.bfloat16, torch.float64, torch.float16]
    return random_checkpoints(tmp_path_factory.mktemp("units"), 3, mixed)


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "SLICE", BLOCK // 2)


def planned(inputs: Request, tmp_path: Path, workers: int, **options: Any) -> MergePlan:
    base, models = inputs
    body = {"base": base, "models": models, "method": "median", "output": str(tmp_path / "out"), **options}
    return plan_merge(MergeRequest.model_validate(body), workers=workers, worker_memory=0)


@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("size", ["5GB", "100KB", "1KB"])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_byte_of_the_output_is_in_one_slice(
    inputs: Request, tmp_path: Path, workers: int, size: str, dtype: str | None
) -> None:
    plan = planned(inputs, tmp_path, workers, max_shard_size=size, dtype=dtype)
    units = plan.units()
    for file in plan.files:
        covered = [
            (part.offset, part.offset + part.output_bytes)
            for unit in units
            if unit.file == file.name
            for part in unit.slices
        ]
        ends = [len(file.header), *(end for _, end in covered)]
        assert [begin for begin, _ in covered] == ends[:-1]
        assert ends[-1] == file.size


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7])
def test_shares_differ_by_one_unit_at_most(inputs: Request, tmp_path: Path, workers: int) -> None:
    plan = planned(inputs, tmp_path, workers)
    units = plan.units()
    shares = [sum(unit.input_bytes for unit in units if unit.worker == worker) for worker in range(workers)]
    assert max(shares) - min(shares) <= max(unit.input_bytes for unit in units)
    described = plan.describe()
    assert [shard.bytes for shard in described.shards] == shares
    assert described.input_bytes == sum(shares)
    assert described.output_bytes == sum(file.size for file in plan.files)


def test_slices_do_not_depend_on_the_workers(inputs: Request, tmp_path: Path) -> None:
    def slices(workers: int) -> list[Slice]:
        units = planned(inputs, tmp_path, workers, max_shard_size="100KB").units()
        return [part for unit in units for part in unit.slices]

    assert slices(1) == slices(2) == slices(9)
    assert any(part.start for part in slices(1))


def test_slices_lie_where_the_headers_say(inputs: Request, tmp_path: Path) -> None:
    plan = planned(inputs, tmp_path, 2)
    for unit in plan.units():
        for part in unit.slices:
            name = plan.names[part.tensor]
            for checkpoint, source in zip((plan.base, *plan.models), (part.base, *part.models), strict=True):
                info = checkpoint.tensors[name].info
                assert source.offset == info.offset + part.start * ITEMSIZE[info.dtype]
                assert source.dtype == info.dtype


def test_dropped_models_and_tensors_are_not_read(inputs: Request, tmp_path: Path) -> None:
    plan = planned(inputs, tmp_path, 2)
    parts = [part for unit in plan.units([0, 2], frozenset({"proj"})) for part in unit.slices]
    for part in parts:
        if plan.names[part.tensor] == "proj":
            assert (part.merged, part.models) == (False, ())
        else:
            assert len(part.models) == 2


def test_output_of_no_elements_has_no_units(inputs: Request, tmp_path: Path) -> None:
    plan = planned(inputs, tmp_path, 2)
    empty = replace(plan, files=())
    assert empty.units() == []
