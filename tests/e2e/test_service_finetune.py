"""A fine-tune through the running service, and a merge that finds its training record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

from taumerge import Client, InvalidRequest, JobCancelled, JobFailed

ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def inputs(service: Any) -> Path:
    directory = Path(service.directory) / "finetuning"
    base = directory / "base"
    base.mkdir(parents=True)
    (base / "open_clip_config.json").write_text(json.dumps({"model_cfg": ARCHITECTURE, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{base}", load_weights=False)
    save_file(model.state_dict(), base / "open_clip_model.safetensors", metadata={"format": "pt"})
    for name, shade in (("dark", 30), ("light", 220)):
        (directory / "data" / name).mkdir(parents=True)
        for index in range(10):
            pixels = np.full((32, 32, 3), shade + index, np.uint8)
            PIL.Image.fromarray(pixels).save(directory / "data" / name / f"{index}.png")
    return directory


def body(inputs: Path, output: str, **train: Any) -> dict[str, Any]:
    spec = {"steps": 10, "learning_rate": 1e-3, "batch_size": 4, "warmup_steps": 2}
    return {
        "base": str(inputs / "base"),
        "task": {"kind": "clip", "dataset": {"uri": str(inputs / "data"), "format": "image_folder"}},
        "train": spec | train,
        "output": str(inputs / output),
    }


def test_fine_tunes_of_different_lengths_are_merged_by_their_records(service: Any, inputs: Path) -> None:
    """FedNova scales each model by mean(K) / K_t / T, without being told K."""
    lengths = (10, 30)
    with Client(service.url) as client:
        jobs = [client.finetune(body(inputs, f"ft-{steps}", steps=steps)) for steps in lengths]
        for job, steps in zip(jobs, lengths, strict=True):
            ended = client.wait(job.id, timeout=120)
            assert ended.result.trials[0].lr_sum == pytest.approx(1e-3 * (steps / 2 + 1))
            assert ended.progress.phase == "save"
        merge = client.merge(
            base=str(inputs / "base"),
            models=[str(inputs / f"ft-{steps}") for steps in lengths],
            method="fednova",
            output=str(inputs / "merged"),
        )
        merged = client.wait(merge.id, timeout=60)
    coefficients = [model.coefficient for model in merged.result.models]
    assert coefficients == pytest.approx([20 / steps / 2 for steps in lengths])
    assert open_clip.create_model(f"local-dir:{inputs / 'merged'}").visual.image_size == (32, 32)


def test_refusals_failures_and_cancellation_reach_the_user(service: Any, inputs: Path) -> None:
    with Client(service.url) as client:
        with pytest.raises(InvalidRequest) as refused:
            client.finetune(body(inputs, "x") | {"base": str(inputs / "nobody")})
        assert refused.value.errors[0].loc == ("base",)

        diverging = client.finetune(body(inputs, "diverged", learning_rate=1e12))
        with pytest.raises(JobFailed) as failed:
            client.wait(diverging.id, timeout=120)
        assert failed.value.code == "training_diverged"

        endless = client.finetune(body(inputs, "endless", steps=10_000_000))
        for _ in client.follow(endless.id):
            if (job := client.job(endless.id)).progress and job.progress.phase == "train":
                client.cancel(endless.id)
                break
        with pytest.raises(JobCancelled):
            client.wait(endless.id, timeout=60)
        assert not [path for path in inputs.iterdir() if "endless" in path.name]
