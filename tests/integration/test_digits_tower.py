"""The demo's tower: an open_clip VisionTransformer, written and read as a checkpoint directory."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from examples.digits.model import load, new_tower, save


def test_tower_has_its_size_and_depends_on_the_seed() -> None:
    tower = new_tower(seed=0)
    assert sum(parameter.numel() for parameter in tower.parameters()) == 116_160
    assert tower(torch.zeros(2, 3, 32, 32)).shape == (2, 32)
    again, other = new_tower(seed=0).state_dict(), new_tower(seed=1).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in tower.state_dict().items())
    assert not torch.equal(again["proj"], other["proj"])


def test_checkpoint_directory_round_trip(tmp_path: Path) -> None:
    tower = new_tower(seed=7)
    save(tower, tmp_path / "ft", {"steps": 4, "lr_sum": 0.1})
    loaded = load(tmp_path / "ft").state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in tower.state_dict().items())
    assert json.loads((tmp_path / "ft/training.json").read_text()) == {"steps": 4, "lr_sum": 0.1}
