"""What merges on Ray write: the golden cases, the same bytes on any number of workers, resident inputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from taumerge.errors import JobFailed
from taumerge.schemas import MergeResult
from workers.merging import stop_shard_actors
from workers.settings import WorkerSettings

Merge = Callable[..., MergeResult]
CASES = ["task_arithmetic", "fednova", "fedgma", "median", "cclip"]


@pytest.mark.parametrize("case", CASES)
def test_golden_case(merge: Merge, golden: Path, tmp_path: Path, case: str) -> None:
    body = json.loads((golden / "expected/cases.json").read_text())[case]
    body["models"] = [str(golden / name) for name in body["models"]]
    result = merge(body | {"base": str(golden / "base"), "output": str(tmp_path / "out")})
    found = load_file(tmp_path / "out/model.safetensors")
    expected = load_file(golden / f"expected/{case}.safetensors")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-6, err_msg=name)
    assert result.tensors.merged == len(expected)
    base = load_file(golden / "base/model.safetensors")
    vector = np.concatenate(
        [(expected[name].astype(np.float64) - base[name]).ravel() / body["scaling"] for name in base]
    )
    assert result.merged_norm == pytest.approx(np.linalg.norm(vector), rel=1e-4)


def test_result_and_receipt_say_what_was_measured(merge: Merge, golden_body: dict[str, Any]) -> None:
    result = merge(golden_body, job_id="merge-1")
    base = load_file(Path(golden_body["base"]) / "model.safetensors")
    rows = []
    for uri in golden_body["models"]:
        model = load_file(Path(uri) / "model.safetensors")
        rows.append(np.concatenate([(model[name].astype(np.float64) - base[name]).ravel() for name in base]))
    norms = [float(np.linalg.norm(row)) for row in rows]
    assert [model.norm for model in result.models] == pytest.approx(norms, rel=1e-6)
    assert result.cosine is not None
    cosines = np.array([[row @ other for other in rows] for row in rows]) / np.outer(norms, norms)
    np.testing.assert_allclose(np.array(result.cosine, dtype=float), cosines, atol=1e-6)
    assert [model.weight for model in result.models] == pytest.approx([0.2] * 5)
    for report in result.models:
        assert report.clipped_by is not None
        assert report.coefficient == pytest.approx(0.3 * report.clipped_by)
    output = Path(golden_body["output"])
    receipt = json.loads((output / "taumerge.json").read_text())
    assert receipt["result"]["files"] == [one.model_dump() for one in result.files]
    status = (Path(golden_body["base"]) / "model.safetensors").stat()
    (file,) = receipt["inputs"]["base"]["files"]
    assert (file["bytes"], file["mtime_ns"], file["ctime_ns"]) == (
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
    assert receipt["method"] == {
        "name": "cclip",
        "rho": 2.0,
        "iterations": 2,
        "norm_scope": "model",
        "scale": "sum",
    }
    merged = np.mean(rows, axis=0)
    assert receipt["heterogeneity"]["shares"] == pytest.approx(
        [row @ merged / (5 * merged @ merged) for row in rows], rel=1e-6
    )
    lr_sums = [
        json.loads((Path(uri) / "training.json").read_text())["lr_sum"] for uri in golden_body["models"]
    ]
    effective = [one / sum(lr_sums) for one in lr_sums]
    assert receipt["heterogeneity"]["effective_weights"] == pytest.approx(effective)
    chi_square = sum((0.2 - one) ** 2 / one for one in effective)
    assert receipt["heterogeneity"]["chi_square"] == pytest.approx(chi_square)
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {one.name for one in result.files}
    assert {path.name for path in output.iterdir()} == {
        *(one.name for one in result.files),
        "taumerge.json",
        "model.safetensors.index.json",
    }


def test_the_configuration_names_the_type_that_was_asked_for(
    merge: Merge, golden: Path, golden_body: dict[str, Any], tmp_path: Path
) -> None:
    base = shutil.copytree(golden / "base", tmp_path / "base")
    config = {"dtype": "float32", "vision_config": {"torch_dtype": "float32", "layers": 2}}
    (base / "config.json").write_text(json.dumps(config))
    body = golden_body | {"base": str(base), "output": str(tmp_path / "kept")}
    merge(body)
    assert (tmp_path / "kept/config.json").read_bytes() == (base / "config.json").read_bytes()
    merge(body | {"dtype": "bfloat16", "output": str(tmp_path / "narrow")})
    assert json.loads((tmp_path / "narrow/config.json").read_text()) == {
        "dtype": "bfloat16",
        "vision_config": {"torch_dtype": "bfloat16", "layers": 2},
    }


def test_same_bytes_with_one_two_and_four_workers(
    merge: Merge, golden_body: dict[str, Any], tmp_path: Path
) -> None:
    outcomes = [merge(golden_body)]
    stop_shard_actors()  # they hold two of the four GPUs
    for count in (1, 4):
        settings = WorkerSettings(workers=count, accelerator_type="V100", worker_memory=0)
        output = str(tmp_path / f"out-{count}")
        outcomes.append(merge(golden_body | {"output": output}, settings=settings))
    assert len({tuple(one.sha256 for one in outcome.files) for outcome in outcomes}) == 1
    assert len({outcome.merged_norm for outcome in outcomes}) == 1
    assert len({str(outcome.cosine) for outcome in outcomes}) == 1


def test_second_merge_of_the_same_inputs_reads_nothing(
    merge: Merge, golden_body: dict[str, Any], tmp_path: Path
) -> None:
    merge(golden_body)
    for index, method in enumerate(["median", {"name": "fedgma", "rho": 0.4}, "task_arithmetic"]):
        body = golden_body | {"method": method, "scaling": 0.1 * index, "output": str(tmp_path / f"o{index}")}
        assert merge(body).bytes_read == 0
    settings = WorkerSettings(workers=1, accelerator_type="V100", worker_memory=0)
    cold = merge(body | {"output": str(tmp_path / "cold")}, settings=settings)
    assert cold.bytes_read > 0
    warm = json.loads((tmp_path / "o2/taumerge.json").read_text())
    assert warm["result"]["files"] == [one.model_dump() for one in cold.files]


def test_an_absent_accelerator_fails_the_job_at_once(merge: Merge, golden_body: dict[str, Any]) -> None:
    with pytest.raises(JobFailed, match="A100") as caught:
        merge(golden_body, settings=WorkerSettings(workers=1, accelerator_type="A100"))
    assert caught.value.code == "capacity_unavailable"
    with pytest.raises(JobFailed) as caught:
        merge(golden_body, settings=WorkerSettings(workers=9, accelerator_type="V100"))
    assert caught.value.code == "capacity_unavailable"
    assert not Path(golden_body["output"]).exists()
