"""LoRA of an image tower: what is trained, what is written, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from taumerge.errors import InvalidRequest
from taumerge.schemas import FinetuneRequest, Progress
from workers.finetuning.clip import build_clip_task
from workers.finetuning.worker import finetune
from workers.hardware import choose_hardware

RequestFor = Callable[..., FinetuneRequest]
RANK = 2


def ignore(progress: Progress) -> None:
    pass


def with_adapter(request: FinetuneRequest, **fields: object) -> FinetuneRequest:
    adapter = {"kind": "lora", "rank": RANK, "alpha": 8, "targets": ["c_fc", "c_proj"], **fields}
    return FinetuneRequest.model_validate(request.model_dump(mode="json") | {"adapter": adapter})


def test_the_factors_are_folded_into_the_whole_model(
    request_for: RequestFor, tiny_clip: Path, tmp_path: Path
) -> None:
    finetune(with_adapter(request_for(steps=30)), tmp_path, ignore, threads=1)
    base = load_file(tiny_clip / "open_clip_model.safetensors")
    tuned = load_file(tmp_path / "open_clip_model.safetensors")
    assert list(tuned) == list(base)
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert changed == {
        name
        for name in base
        if name.startswith("visual.") and name.endswith(("c_fc.weight", "c_proj.weight"))
    }
    for name in changed:
        assert torch.linalg.matrix_rank(tuned[name].double() - base[name].double(), rtol=1e-4) == RANK
    record = json.loads((tmp_path / "training.json").read_text())
    assert (record["method"], record["adapter"]["rank"]) == ("lora", RANK)
    open_clip.create_model(f"local-dir:{tmp_path}")


def test_what_is_written_computes_what_was_trained(request_for: RequestFor, tmp_path: Path) -> None:
    request = with_adapter(request_for())
    task = build_clip_task(request, choose_hardware("float32"))
    for name, parameter in task.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    task.save(tmp_path, task.model.state_dict())
    written = open_clip.create_model(f"local-dir:{tmp_path}").visual.eval()
    images = torch.randn(3, 3, *task._clip.size)
    with torch.inference_mode():
        torch.testing.assert_close(written(images), task.model.eval().visual(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("target", ["q_proj", "out_proj"])
def test_a_layer_that_cannot_have_an_adapter_is_refused(request_for: RequestFor, target: str) -> None:
    request = with_adapter(request_for(), targets=["c_fc", target])
    with pytest.raises(InvalidRequest, match=f"no linear layer '{target}'.*c_fc, c_proj") as caught:
        build_clip_task(request, choose_hardware("float32"))
    assert [(error.loc, error.code) for error in caught.value.errors] == [
        (("adapter", "targets"), "unknown_module")
    ]
