"""A fine-tune through the running service, and a merge that finds its training record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest

from taumerge import Client, InvalidRequest, JobCancelled, JobFailed

Body = Callable[..., dict[str, Any]]


def test_fine_tunes_of_different_lengths_are_merged_by_their_records(
    service: Any, inputs: Path, body: Body
) -> None:
    """FedNova scales each model by mean(K) / K_t / T, without being told K."""
    lengths = (10, 30)
    with Client(service.url) as client:
        jobs = [client.finetune(body(f"ft-{steps}", steps=steps)) for steps in lengths]
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


def test_refusals_failures_and_cancellation_reach_the_user(service: Any, inputs: Path, body: Body) -> None:
    with Client(service.url) as client:
        with pytest.raises(InvalidRequest) as refused:
            client.finetune(body("x") | {"base": str(inputs / "nobody")})
        assert refused.value.errors[0].loc == ("base",)

        diverging = client.finetune(body("diverged", learning_rate=1e12))
        with pytest.raises(JobFailed) as failed:
            client.wait(diverging.id, timeout=120)
        assert failed.value.code == "training_diverged"

        endless = client.finetune(body("endless", steps=10_000_000))
        for _ in client.follow(endless.id):
            if (job := client.job(endless.id)).progress and job.progress.phase == "train":
                client.cancel(endless.id)
                break
        with pytest.raises(JobCancelled):
            client.wait(endless.id, timeout=60)
        assert not [path for path in inputs.iterdir() if "endless" in path.name]
