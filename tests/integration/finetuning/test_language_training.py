"""Language models end to end in one process: request in, transformers' and peft's layouts out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import language_files
import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from taumerge.errors import InvalidRequest
from taumerge.schemas import FinetuneRequest, MergeRequest, Progress
from workers.checkpoints.checkpoint import open_checkpoint, read_training
from workers.finetuning.language import LanguageTask, build_language_task
from workers.finetuning.worker import finetune
from workers.hardware import Hardware, choose_hardware
from workers.merging.preflight import plan_merge

# peft reads what transformers 5 calls by another name
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

CPU = Hardware(torch.device("cpu"), torch.float32)
COLOURS = {"grass": "green", "sky": "blue", "blood": "red", "snow": "white"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 questions about four things, of different lengths."""
    rows = [
        {"prompt": f"{'so ' * (row % 5)}{thing}?", "response": colour}
        for row, (thing, colour) in enumerate(list(COLOURS.items()) * 15)
    ]
    return language_files.write_jsonl(tmp_path_factory.mktemp("pairs") / "train.jsonl", rows)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 texts whose letters tell their class."""
    shuffle = random.Random(0)
    rows = [
        {"text": "".join(shuffle.choices(letters, k=3 + row % 9)), "label": label}
        for row in range(30)
        for letters, label in (("abcde", "good"), ("vwxyz", "bad"))
    ]
    return language_files.write_jsonl(tmp_path_factory.mktemp("reviews") / "train.jsonl", rows)


RequestFor = Callable[..., FinetuneRequest]


@pytest.fixture
def request_for(pairs: Path, reviews: Path, tmp_path: Path) -> RequestFor:
    """Makes a request; ``train`` fields by name, the rest of the task in ``task``."""

    def make(
        base: Path, kind: str = "causal_lm", adapter: Any = None, task: Any = None, **train: Any
    ) -> FinetuneRequest:
        data = {"uri": str(pairs if kind == "causal_lm" else reviews), "format": "jsonl"}
        spec = {
            "steps": 6,
            "learning_rate": 3e-3,
            "batch_size": 8,
            "warmup_steps": 2,
            "checkpoint_every": 100,
        }
        return FinetuneRequest.model_validate(
            {
                "base": str(base),
                "task": {"kind": kind, "dataset": data} | (task or {}),
                "train": spec | train,
                "adapter": adapter,
                "output": str(tmp_path / "named-in-the-request"),
            }
        )

    return make


def saved(
    build: Callable[[], PreTrainedModel], directory: Path, dtype: torch.dtype = torch.float32, **options: Any
) -> Path:
    torch.manual_seed(0)
    return language_files.save(build(), directory, dtype=dtype, **options)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(language_files.llama, tmp_path_factory.mktemp("bases") / "llama")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(
        lambda: language_files.bert_classifier("good", "bad"), tmp_path_factory.mktemp("bases") / "bert"
    )


def run(request: FinetuneRequest, directory: Path) -> list[Progress]:
    directory.mkdir()
    reports: list[Progress] = []
    finetune(request, directory, reports.append, threads=1)
    return reports


def weights(directory: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(directory / name)


# ------------------------------------------------------------------------------------ whole models


def test_a_causal_model_learns_what_to_answer(llama: Path, request_for: RequestFor, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reports = run(request_for(llama, steps=80), out)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    for thing, colour in COLOURS.items():
        prompt = tokenizer(f"{thing}?", return_tensors="pt")
        answer = model.generate(**prompt, max_new_tokens=8, do_sample=False, pad_token_id=2)
        assert tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :]) == f"{colour}</s>"
    metrics = reports[-2].metrics
    assert metrics.keys() == {"loss", "learning_rate", "tokens_per_second"}
    record = json.loads((out / "training.json").read_text())
    assert record["validation_accuracy"][-1] == 1.0
    assert (record["training_size"], record["validation_size"]) == (54, 6)
    assert (record["method"], record["adapter"], record["truncated_texts"]) == ("full", None, 0)
    training = read_training(open_checkpoint(str(out)))
    assert training.steps == 80
    assert training.lr_sum == pytest.approx(3e-3 * 41)


@pytest.mark.parametrize("build", [language_files.llama, language_files.gpt2])
def test_a_whole_model_keeps_names_types_and_ties(
    build: Callable[[], PreTrainedModel], request_for: RequestFor, tmp_path: Path
) -> None:
    base = saved(build, tmp_path / "base", torch.bfloat16)
    run(request_for(base), tmp_path / "out")
    before, after = weights(base), weights(tmp_path / "out")
    assert {name: (t.dtype, t.shape) for name, t in after.items()} == {
        name: (t.dtype, t.shape) for name, t in before.items()
    }
    assert all(not torch.equal(before[name], after[name]) for name in before if name.endswith("proj.weight"))
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    plan = plan_merge(
        MergeRequest(
            base=str(base), models=[str(tmp_path / "out")], method="fednova", output=str(tmp_path / "merged")
        ),
        workers=1,
        worker_memory=0,
    )
    assert plan.comparison.copied == []
    assert plan.training[0].steps == 6


def test_a_classifier_learns_its_classes(bert: Path, request_for: RequestFor, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reports = run(request_for(bert, "classification", steps=60), out)
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(out),
        AutoTokenizer.from_pretrained(out),
    )
    assert model.config.id2label == {0: "good", 1: "bad"}  # the base's order, not the alphabet's
    logits = model(**tokenizer(["abcabc", "xyz"], return_tensors="pt", padding=True)).logits
    assert logits.argmax(dim=-1).tolist() == [0, 1]
    assert "texts_per_second" in reports[-2].metrics
    record = json.loads((out / "training.json").read_text())
    assert record["validation_accuracy"][-1] == 1.0
    assert (record["classes"], record["initialised_tensors"]) == (["good", "bad"], [])


def test_a_language_model_gets_a_new_classifier(request_for: RequestFor, tmp_path: Path) -> None:
    for name, build, head in (
        ("bert", language_files.bert, "classifier.weight"),
        ("llama", language_files.llama, "score.weight"),
    ):
        base = saved(build, tmp_path / name)
        run(request_for(base, "classification"), tmp_path / f"{name}-out")
        record = json.loads((tmp_path / f"{name}-out/training.json").read_text())
        assert head in record["initialised_tensors"]
        assert record["classes"] == ["bad", "good"]


def test_the_same_request_gives_the_same_bytes_also_after_an_interruption(
    request_for: RequestFor, tmp_path: Path
) -> None:
    base = saved(language_files.gpt2, tmp_path / "base")  # with dropout and tied weights
    request = request_for(base, steps=9, checkpoint_every=4, micro_batch_size=3)
    run(request, tmp_path / "whole")

    class Killed(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.done == 6:
            raise Killed

    (tmp_path / "resumed").mkdir()
    with pytest.raises(Killed):
        finetune(request, tmp_path / "resumed", stop, threads=1)
    reports: list[Progress] = []
    finetune(request, tmp_path / "resumed", reports.append, threads=1)
    assert min(report.done for report in reports if report.phase == "train") == 5
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (
        tmp_path / "resumed/model.safetensors"
    ).read_bytes()


# --------------------------------------------------------------------------------- loss and batches


def gradients(task: LanguageTask, batches: Any) -> tuple[float, torch.Tensor]:
    """The loss of a step and its gradient, as the loop accumulates them."""
    total = sum(task.count(batch) for batch in batches)
    task.model.zero_grad()
    loss = sum(task.loss(task.model, batch) * task.count(batch) / total for batch in batches)
    loss.backward()
    found = [p.grad.flatten() for p in task.model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(found)


@pytest.mark.parametrize("kind", ["causal_lm", "classification"])
def test_accumulated_gradients_are_those_of_the_whole_batch(
    kind: str, llama: Path, bert: Path, request_for: RequestFor
) -> None:
    base = llama if kind == "causal_lm" else bert
    found = []
    for micro_batch_size in (None, 3):
        task = build_language_task(request_for(base, kind, micro_batch_size=micro_batch_size), CPU)
        task.model.eval()  # no dropout
        step = next(iter(task.train_batches(0, 0, 0, 1)))
        assert len(step) == (3 if micro_batch_size else 1)
        found.append(gradients(task, step))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


def test_two_workers_share_the_step_of_one(llama: Path, request_for: RequestFor) -> None:
    task = build_language_task(request_for(llama), CPU)
    [whole] = next(iter(task.train_batches(1, 2, 0, 1)))
    shares = [next(iter(task.train_batches(1, 2, rank, 2)))[0] for rank in (0, 1)]
    assert sum(len(share["input_ids"]) for share in shares) == len(whole["input_ids"])
    assert sum(task.count(share) for share in shares) == task.count(whole)


@pytest.mark.parametrize("build", [language_files.llama, language_files.gpt2])
def test_packing_changes_neither_loss_nor_gradient(
    build: Callable[[], PreTrainedModel], request_for: RequestFor, tmp_path: Path
) -> None:
    base = saved(build, tmp_path / "base")
    found = []
    for packing in (False, True):
        task = build_language_task(request_for(base, task={"packing": packing}, batch_size=10**6), CPU)
        task.model.eval()
        [step] = list(task.train_batches(0, 0, 0, 1))
        found.append((len(step[0]["input_ids"]), *gradients(task, step)))
    assert found[1][0] < found[0][0] / 2
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-4, atol=1e-6)


def test_a_model_that_mixes_packed_examples_is_refused(
    llama: Path, request_for: RequestFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def without_positions(self: Any, *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", without_positions)
    with pytest.raises(InvalidRequest) as error:
        build_language_task(request_for(llama, task={"packing": True}), CPU)
    assert error.value.errors[0].code == "packing_unsupported"


def test_gradient_checkpointing_changes_no_gradient(llama: Path, request_for: RequestFor) -> None:
    found = []
    for checkpointing in (False, True):
        adapter = {"kind": "lora", "rank": 2, "targets": ["v_proj"]}
        torch.manual_seed(0)
        request = request_for(llama, adapter=adapter, gradient_checkpointing=checkpointing)
        task = build_language_task(request, CPU)
        twice = {
            module.gradient_checkpointing
            for module in task.model.modules()
            if hasattr(module, "gradient_checkpointing")
        }
        assert twice == {checkpointing}
        task.model.train()
        found.append(gradients(task, next(iter(task.train_batches(0, 0, 0, 1)))))
    assert found[0][0] == found[1][0]
    assert found[0][1].abs().max() > 0
    torch.testing.assert_close(found[0][1], found[1][1])


def test_long_texts_are_counted_in_the_record(llama: Path, request_for: RequestFor, tmp_path: Path) -> None:
    run(request_for(llama, task={"max_length": 12}), tmp_path / "out")
    record = json.loads((tmp_path / "out/training.json").read_text())
    assert record["max_length"] == 12
    assert record["truncated_texts"] > 0
    assert record["training_size"] + record["validation_size"] == 60 - record["dropped_texts"]


# ---------------------------------------------------------------------------------------- adapters


def test_a_lora_is_saved_as_peft_saves_it_and_merges_into_its_base(
    llama: Path, request_for: RequestFor, tmp_path: Path
) -> None:
    adapter = {"kind": "lora", "rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj", "down_proj"]}
    out = tmp_path / "out"
    run(request_for(llama, adapter=adapter, steps=100, learning_rate=2e-2), out)
    record = json.loads((out / "training.json").read_text())
    assert record["method"] == "lora"
    assert record["adapter"] == {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj", "down_proj"]}
    losses = [one["loss"] for one in record["validations"]]
    task = build_language_task(request_for(llama), CPU)
    assert losses[-1] < losses[0] - 0.2 < task.validate(task.model)["loss"]
    loaded = AutoPeftModelForCausalLM.from_pretrained(out)
    assert task.validate(loaded)["loss"] == pytest.approx(losses[-1], rel=1e-4)

    request = MergeRequest(
        base=str(llama), models=[str(out)], method="fednova", output=str(tmp_path / "merged")
    )
    plan = plan_merge(request, workers=1, worker_memory=0)
    changed = {name for name, delta in plan.comparison.adapters[0].items() if delta.low_rank}
    assert len(changed) == 6
    assert plan.training[0].steps == 100
    assert not (out / "model.safetensors").exists()


def test_a_lora_of_a_classifier_trains_its_head(bert: Path, request_for: RequestFor, tmp_path: Path) -> None:
    adapter = {"kind": "lora", "rank": 2, "targets": ["query", "value"]}
    run(request_for(bert, "classification", adapter=adapter), tmp_path / "out")
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=2)
    assert loaded.config.num_labels == 2
    request = MergeRequest(
        base=str(bert), models=[str(tmp_path / "out")], method="median", output=str(tmp_path / "merged")
    )
    deltas = plan_merge(request, workers=1, worker_memory=0).comparison.adapters[0]
    assert {name for name, delta in deltas.items() if delta.replacement} == {
        "classifier.weight",
        "classifier.bias",
    }


def test_a_lora_of_transposed_modules(request_for: RequestFor, tmp_path: Path) -> None:
    base = saved(language_files.gpt2, tmp_path / "base")
    run(request_for(base, adapter={"kind": "lora", "targets": ["c_attn", "c_proj"]}), tmp_path / "out")
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["fan_in_fan_out"] is True


def test_a_frozen_base_takes_the_type_that_is_computed_in(llama: Path, request_for: RequestFor) -> None:
    adapter = {"kind": "lora", "targets": ["v_proj"]}
    task = build_language_task(request_for(llama, adapter=adapter), choose_hardware("bfloat16"))
    dtypes = {(p.requires_grad, p.dtype) for p in task.model.parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}


# ---------------------------------------------------------------------------------------- refusals


def refusal(request: FinetuneRequest) -> tuple[str, str, str]:
    with pytest.raises(InvalidRequest) as error:
        build_language_task(request, CPU)
    [item] = error.value.errors
    return ".".join(map(str, item.loc)), item.code, item.msg


def test_modules_that_are_not_there(bert: Path, request_for: RequestFor) -> None:
    request = request_for(bert, "classification", adapter={"kind": "lora", "targets": ["q_proj"]})
    loc, code, message = refusal(request)
    assert (loc, code) == ("adapter.targets", "unknown_module")
    assert "query" in message


def test_qlora_without_a_gpu(llama: Path, request_for: RequestFor) -> None:
    loc, code, message = refusal(request_for(llama, adapter={"kind": "qlora"}))
    assert (loc, code) == ("adapter.kind", "qlora_unavailable")
    assert "use kind lora" in message


def test_a_context_longer_than_the_models(llama: Path, request_for: RequestFor) -> None:
    assert refusal(request_for(llama, task={"max_length": 65}))[:2] == ("task.max_length", "over_context")


def test_a_tokenizer_of_another_model(request_for: RequestFor, tmp_path: Path) -> None:
    base = saved(lambda: language_files.llama(vocabulary=80), tmp_path / "base")
    assert refusal(request_for(base))[:2] == ("base", "token_out_of_vocabulary")


def test_a_base_without_tokenizer(request_for: RequestFor, tmp_path: Path) -> None:
    language_files.llama().save_pretrained(tmp_path / "base")
    assert refusal(request_for(tmp_path / "base"))[:2] == ("base", "tokenizer_unreadable")


def test_a_base_of_another_kind(bert: Path, request_for: RequestFor) -> None:
    loc, code, _ = refusal(request_for(bert))
    assert (loc, code) == ("base", "missing_weights")


def test_a_classifier_with_another_number_of_classes(request_for: RequestFor, tmp_path: Path) -> None:
    base = saved(lambda: language_files.bert_classifier("good", "bad", "ugly"), tmp_path / "base")
    request = request_for(base, "classification", task={"classes": ["good", "bad"]})
    assert refusal(request)[:2] == ("task.classes", "class_count")


def test_more_workers_than_sequences(llama: Path, request_for: RequestFor) -> None:
    request = request_for(llama, task={"packing": True}, batch_size=100)
    request.resources.workers = 60
    assert refusal(request)[:2] == ("resources.workers", "too_many_workers")


def test_remote_code_is_never_run(request_for: RequestFor, tmp_path: Path) -> None:
    base = saved(language_files.llama, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "code.Mine", "AutoModelForCausalLM": "code.Mine"},
    }
    (base / "config.json").write_text(json.dumps(config))
    (base / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert refusal(request_for(base))[:2] == ("base", "unsupported_checkpoint")
    assert not (tmp_path / "ran").exists()
