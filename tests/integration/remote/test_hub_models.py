"""Models of a hub on loopback, read by a process whose environment names it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import save
from fake_hub import fake_hub

READ = """
import hashlib, json, sys
from workers.checkpoints.checkpoint import CheckpointError, companions, open_checkpoint, read_training
from workers.checkpoints.local_copy import on_disk
from workers.checkpoints.reading import open_reader, unchanged
try:
    opened = open_checkpoint(sys.argv[1])
except CheckpointError as error:
    print(json.dumps({"code": error.code, "message": error.message}))
    sys.exit()
(file,) = opened.files
buffer = bytearray(file.state.size)
with open_reader(file) as reader:
    reader.prefetch([(0, file.state.size)])
    reader.read_into(memoryview(buffer), 0)
_, copy = on_disk(opened)
print(json.dumps({
    "copied": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in copy.iterdir()},
    "place": opened.directory.uri, "sha256": hashlib.sha256(buffer).hexdigest(), "steps": read_training(opened).steps,
    "companions": [path.name for path in companions(opened)], "unchanged": unchanged(file),
}))
"""

Read = Callable[[str], dict[str, Any]]


@pytest.fixture
def read(tmp_path: Path) -> Iterator[Read]:
    """Reads a checkpoint of a hub that has two commits of ``owner/model``."""
    for number, commit in enumerate(("a", "b")):
        directory = tmp_path / "hub" / "owner" / "model" / commit
        save(
            directory,
            {"w": torch.full((1000, 300), float(number))},
            training={"steps": number + 1, "lr_sum": 1.0},
        )
        (directory / "config.json").write_text("{}")
    with fake_hub(tmp_path / "hub") as address:

        def read(uri: str) -> dict[str, Any]:
            environment = {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
            environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
            ended = subprocess.run(
                [sys.executable, "-c", READ, uri],
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
                env=os.environ | environment,
            )
            answer: dict[str, Any] = json.loads(ended.stdout)
            return answer

        yield read


def test_a_revision_is_pinned_to_its_commit(read: Read, tmp_path: Path) -> None:
    for uri, commit, steps in (("hf://owner/model", "b", 2), ("hf://owner/model@a", "a", 1)):
        found = read(uri)
        content = (tmp_path / "hub/owner/model" / commit / "model.safetensors").read_bytes()
        assert found == {
            "place": f"hf://owner/model@{hashlib.sha1(commit.encode()).hexdigest()}",
            "sha256": hashlib.sha256(content).hexdigest(),
            "copied": {
                "model.safetensors": hashlib.sha256(content).hexdigest(),
                "config.json": hashlib.sha256(b"{}").hexdigest(),
            },
            "steps": steps,
            "companions": ["config.json"],
            "unchanged": True,
        }


@pytest.mark.parametrize("uri", ["hf://owner/none", "hf://owner/model@none", "hf://owner/model/none"])
def test_what_the_hub_does_not_have(read: Read, uri: str) -> None:
    assert read(uri)["code"] == "checkpoint_not_found"
