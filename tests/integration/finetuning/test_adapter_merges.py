"""LoRA fine-tunes of this code: merging them is merging the dense models that ``merge_and_unload`` gives."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import language_files
import numpy as np
import peft
import pytest
import torch
from in_process import merge_in_process
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel

from taumerge.schemas import FinetuneRequest, MergeRequest
from workers.finetuning.worker import finetune
from workers.merging.plan import MergePlan
from workers.merging.preflight import plan_merge
from workers.merging.shard import ShardWorker

# peft reads what transformers 5 calls by another name
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

METHODS: list[dict[str, Any]] = [
    {"name": "task_arithmetic"},
    {"name": "fednova"},
    {"name": "fedgma", "rho": 0.5},
    {"name": "median"},
    {"name": "cclip", "rho": 0.5},
]
STEPS = (6, 9, 15)


@dataclass(frozen=True)
class Family:
    """A base, its adapters, and each adapter merged into the base by peft."""

    base: Path
    adapters: list[Path]
    dense: list[Path]


def llama_family(directory: Path) -> Family:
    rows = [{"prompt": f"{row}?", "response": "yes" if row % 2 else "no"} for row in range(24)]
    texts = language_files.write_jsonl(directory / "pairs.jsonl", rows)
    targets = (["q_proj", "v_proj"], ["down_proj", "o_proj"], ["k_proj", "v_proj", "up_proj"])
    return family(directory, language_files.llama, "causal_lm", texts, targets, peft.AutoPeftModelForCausalLM)


def bert_family(directory: Path) -> Family:
    rows = [{"text": f"{row}", "label": "good" if row % 2 else "bad"} for row in range(24)]
    texts = language_files.write_jsonl(directory / "reviews.jsonl", rows)

    def build() -> PreTrainedModel:
        return language_files.bert_classifier("good", "bad")

    targets = (["query", "value"], ["key", "dense"], ["value"])
    loader = peft.AutoPeftModelForSequenceClassification
    return family(directory, build, "classification", texts, targets, loader)


def family(
    directory: Path,
    build: Callable[[], PreTrainedModel],
    kind: str,
    texts: Path,
    targets: tuple[list[str], ...],
    loader: Any,
) -> Family:
    """Three fine-tunes of different modules, ranks and lengths."""
    torch.manual_seed(0)
    found = Family(language_files.save(build(), directory / "base"), [], [])
    for seed, (steps, names) in enumerate(zip(STEPS, targets, strict=True)):
        adapter, dense = directory / f"adapter-{seed}", directory / f"dense-{seed}"
        request = FinetuneRequest.model_validate(
            {
                "base": str(found.base),
                "task": {"kind": kind, "dataset": {"uri": str(texts), "format": "jsonl"}},
                "train": {
                    "steps": steps,
                    "learning_rate": 0.02,
                    "batch_size": 8,
                    "warmup_steps": 2,
                    "seed": seed,
                },
                "adapter": {"kind": "lora", "rank": 2 + seed, "alpha": 5, "targets": names},
                "output": str(adapter),
            }
        )
        adapter.mkdir()
        finetune(request, adapter, lambda progress: None, threads=1)
        loader.from_pretrained(adapter).merge_and_unload().save_pretrained(dense)
        shutil.copy(adapter / "training.json", dense)
        found.adapters.append(adapter)
        found.dense.append(dense)
    return found


@pytest.fixture(scope="module", params=[llama_family, bert_family], ids=["llama", "bert"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    found: Family = request.param(tmp_path_factory.mktemp("family"))
    return found


def plan(base: Path, models: list[Path], method: dict[str, Any], output: Path) -> MergePlan:
    body = {"base": str(base), "models": list(map(str, models)), "method": method, "scaling": 0.7}
    request = MergeRequest.model_validate(body | {"output": str(output)})
    return plan_merge(request, workers=1, worker_memory=0)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["name"])
def test_adapters_merge_as_the_dense_models(made: Family, method: dict[str, Any], tmp_path: Path) -> None:
    found, expected = (
        merge_in_process(plan(made.base, models, method, tmp_path / name), [ShardWorker(0)]).load()
        for name, models in (("adapters", made.adapters), ("dense", made.dense))
    )
    base = load_file(made.base / "model.safetensors")
    assert found.keys() == expected.keys() == base.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, rtol=2e-6, atol=2e-6, err_msg=name)
    assert any(not torch.equal(found[name], base[name]) for name in base)


def test_every_tensor_has_its_place(made: Family, tmp_path: Path) -> None:
    merge_plan = plan(made.base, made.adapters, METHODS[1], tmp_path / "out")
    assert [training and training.steps for training in merge_plan.training] == list(STEPS)
    for index, adapter in enumerate(made.adapters):
        deltas = merge_plan.comparison.adapters[index]
        placed = [delta.replacement.info.name for delta in deltas.values() if delta.replacement]
        for delta in deltas.values():
            if delta.low_rank:
                placed += [delta.low_rank.a.info.name, delta.low_rank.b.info.name]
        with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
            assert sorted(placed) == sorted(file.keys())
