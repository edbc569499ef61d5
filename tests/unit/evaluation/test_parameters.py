"""The tensors of a model under the names of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from taumerge.errors import InvalidRequest
from workers.checkpoints.checkpoint import Checkpoint, open_checkpoint
from workers.evaluation.parameters import checkpoint_parameters


class Tied(nn.Module):
    """An embedding that is its own head, with a running average and a counter."""

    base_model_prefix = "body"

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.embedding = nn.Embedding(4, 3)
        self.body.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.body.embedding.weight


def stored(directory: Path, tensors: dict[str, Tensor]) -> Checkpoint:
    save_file(tensors, directory / "model.safetensors")
    return open_checkpoint(str(directory))


def tensors_of(model: nn.Module, *left_out: str) -> dict[str, Tensor]:
    return {
        name: tensor.detach().clone() for name, tensor in model.state_dict().items() if name not in left_out
    }


def test_each_float_tensor_is_there_once_and_tied_ones_under_the_stored_name(tmp_path: Path) -> None:
    model = Tied()
    found = checkpoint_parameters(stored(tmp_path, tensors_of(model, "body.embedding.weight")), model)
    assert set(found) == {
        "head.weight",
        "body.norm.weight",
        "body.norm.bias",
        "body.norm.running_mean",
        "body.norm.running_var",
    }
    found["head.weight"].fill_(7)
    found["body.norm.running_mean"].fill_(3)
    assert model.get_parameter("body.embedding.weight").eq(7).all()
    assert model.get_buffer("body.norm.running_mean").eq(3).all()


def test_names_may_lack_the_prefix_of_the_model_below_its_head(tmp_path: Path) -> None:
    model = Tied()
    bare = {name.removeprefix("body."): tensor for name, tensor in tensors_of(model, "head.weight").items()}
    found = checkpoint_parameters(stored(tmp_path, bare), model)
    found["embedding.weight"].fill_(7)
    assert model.head.weight.eq(7).all()


def test_what_the_loader_leaves_out_on_purpose_changes_nothing(tmp_path: Path) -> None:
    model = Tied()
    before = tensors_of(model)
    tensors = tensors_of(model, "head.weight") | {"body.inv_freq": torch.ones(5)}
    found = checkpoint_parameters(stored(tmp_path, tensors), model)
    found["body.inv_freq"].fill_(7)
    assert found["body.inv_freq"].shape == (5,)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_disagreements_name_the_tensors(tmp_path: Path) -> None:
    model = Tied()
    tensors = tensors_of(model, "head.weight", "body.norm.bias") | {"classifier.weight": torch.ones(5)}
    with pytest.raises(InvalidRequest) as refused:
        checkpoint_parameters(stored(tmp_path, tensors), model, unexpected={"classifier.weight"})
    (item,) = refused.value.errors
    assert (item.loc, item.code) == (("base",), "architecture_mismatch")
    assert "no place for classifier.weight" in item.msg
    assert "no body.norm.bias" in item.msg


def test_another_shape_is_a_disagreement(tmp_path: Path) -> None:
    tensors = tensors_of(Tied(), "head.weight") | {"body.embedding.weight": torch.ones(5, 3)}
    with pytest.raises(InvalidRequest, match=r"body\.embedding\.weight"):
        checkpoint_parameters(stored(tmp_path, tensors), Tied())
