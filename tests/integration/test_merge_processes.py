"""Merges from other processes: two nodes that share one, and the foreground command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import save

from taumerge.schemas import MergeResult

Merge = Callable[..., MergeResult]


def test_two_nodes_share_one_merge(merge: Merge, golden_body: dict[str, Any], tmp_path: Path) -> None:
    expected = merge(golden_body)
    body = golden_body | {"output": str(tmp_path / "two-nodes")}
    script = Path(__file__).with_name("two_nodes.py")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    ended = subprocess.run(
        [sys.executable, str(script), json.dumps(body)],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment,
    )
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout.splitlines()[-1])
    first, second = answer["workers"]
    assert first["node"] != second["node"]
    assert first["bytes"] > 0
    assert second["bytes"] > 0
    assert answer["result"]["files"] == [one.model_dump() for one in expected.files]


@pytest.fixture
def run_recipe(
    merge: Merge, ray_session: str, tmp_path: Path
) -> Callable[[dict[str, Any]], subprocess.CompletedProcess[str]]:
    """``python -m workers.merge`` on the cluster of these tests."""

    def run(body: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(json.dumps(body))  # JSON is YAML
        settings = {"TAUMERGE_WORKERS": "1", "TAUMERGE_ACCELERATOR_TYPE": "V100"}
        return subprocess.run(
            [sys.executable, "-m", "workers.merge", str(recipe)],
            capture_output=True,
            text=True,
            timeout=150,
            env=os.environ | settings | {"RAY_ADDRESS": ray_session},
        )

    return run


def test_foreground_merge(run_recipe: Any, golden_body: dict[str, Any], merge: Merge, tmp_path: Path) -> None:
    done = run_recipe(golden_body)
    assert done.returncode == 0, done.stderr
    result = MergeResult.model_validate_json(done.stdout)
    assert result.files == merge(golden_body | {"output": str(tmp_path / "again")}).files
    assert "aggregate: 100 %" in done.stderr


def test_foreground_failure(run_recipe: Any, tmp_path: Path) -> None:
    body = {
        "base": save(tmp_path / "base", {"a": torch.zeros(3)}),
        "models": [save(tmp_path / "ft", {"a": torch.tensor([1.0, float("nan"), 2.0])})],
        "method": "median",
        "output": str(tmp_path / "out"),
    }
    failed = run_recipe(body)
    assert failed.returncode == 1
    assert "error: nonfinite:" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "out").exists()


def test_foreground_refusal(run_recipe: Any, golden_body: dict[str, Any], tmp_path: Path) -> None:
    refused = run_recipe(golden_body | {"lambda": 0.3})
    assert refused.returncode == 2
    assert "error: lambda:" in refused.stderr
    assert "Traceback" not in refused.stderr
    refused = run_recipe(golden_body | {"base": str(tmp_path / "nowhere")})
    assert refused.returncode == 2
    assert "error: base:" in refused.stderr
