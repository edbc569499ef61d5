"""A merge of adapters is the merge of the dense models that peft's ``merge_and_unload`` gives."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from taumerge.errors import InvalidRequest
from taumerge.schemas import MergeRequest
from workers.checkpoints import adapter as adapter_module
from workers.checkpoints.writing import Staging
from workers.merging.low_rank import LowRankProduct
from workers.merging.mix import check_sound, decide
from workers.merging.plan import MergePlan
from workers.merging.preflight import plan_merge
from workers.merging.shard import ShardWorker
from workers.merging.sums import Sums
from workers.merging.unit import SLICE, Findings

METHODS: list[dict[str, Any]] = [
    {"name": "task_arithmetic"},
    {"name": "fednova"},
    {"name": "fedgma", "rho": 0.5},
    {"name": "median"},
    {"name": "cclip", "rho": 1.0},
    {"name": "cclip", "rho": 0.2, "norm_scope": "tensor", "iterations": 2},
]


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96, hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
        )
    )  # fmt: skip


def bert() -> PreTrainedModel:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=96, hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, num_labels=3,
        )
    )  # fmt: skip


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64))


class Convolutions(nn.Module):
    """Two convolutions, 3×3 and 1×1, with what peft and ``save`` ask of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 8, 3)
        self.narrow = nn.Conv2d(8, 6, 1)

    def save_pretrained(self, directory: Path) -> None:
        directory.mkdir()
        save_file(self.state_dict(), directory / "model.safetensors")


class Family:
    """A base and its adapters on disk, each adapter also merged into the base by peft."""

    def __init__(self, directory: Path, build: Callable[[], Any]) -> None:
        torch.manual_seed(0)
        self.directory = directory
        self.base = directory / "base"
        self._build = build
        model = build()
        self._state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.save_pretrained(self.base)
        self.adapters: list[Path] = []
        self.dense: list[Path] = []

    def add(self, config: LoraConfig, dtype: torch.dtype = torch.float32) -> Path:
        """An adapter with random weights; whatever it may train differs from the base."""
        seed = len(self.adapters)
        torch.manual_seed(100 + seed)
        base = self._build()
        base.load_state_dict(self._state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_peft_model(base, config)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.normal_(std=0.3).copy_(parameter.to(dtype))
            adapter, dense = self.directory / f"adapter-{seed}", self.directory / f"dense-{seed}"
            model.save_pretrained(adapter)
            weights = load_file(adapter / "adapter_model.safetensors")
            weights = {name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}
            save_file(weights, adapter / "adapter_model.safetensors")
            model.merge_and_unload().save_pretrained(dense)
        for path in (adapter, dense):
            (path / "training.json").write_text(json.dumps({"steps": 100 * (seed + 1)}))
        self.adapters.append(adapter)
        self.dense.append(dense)
        return adapter


def plan(base: Path, models: Sequence[Path], output: Path, **fields: Any) -> MergePlan:
    fields = {"method": "task_arithmetic", "scaling": 0.7, **fields}
    request = MergeRequest(
        base=str(base), models=[str(model) for model in models], output=str(output), **fields
    )
    return plan_merge(request, workers=1, worker_memory=0)


def merge(merge_plan: MergePlan, chunk: int | None = None, memory: int = 0) -> tuple[dict[str, Tensor], Sums]:
    """Carry out a plan in this process."""
    worker = ShardWorker(memory, chunk)
    measured: list[Findings] = []
    if merge_plan.rule.needs != "nothing":
        measured = [worker.measure(unit, "inputs", merge_plan.rule.needs) for unit in merge_plan.units()]
    mix = decide(merge_plan, Sums.of(measured))
    staging = Staging(merge_plan.output, "adapters")
    staging.create(merge_plan.files)
    sums = Sums.of(
        worker.merge(
            unit,
            "inputs",
            staging.path,
            merge_plan.rule,
            mix.of_unit(unit),
            merge_plan.request.scaling,
            "norms",
        )
        for unit in merge_plan.units()
    )
    check_sound(merge_plan, mix, sums)
    staging.commit(overwrite=False)
    return load_file(merge_plan.output / "model.safetensors"), sums


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name].numpy(), tensor.numpy(), rtol=2e-6, atol=2e-6, err_msg=name)


def refusals(base: Path, adapter: Path, tmp_path: Path) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequest) as caught:
        plan(base, [adapter], tmp_path / "refused")
    assert {item.loc for item in caught.value.errors} == {("models", 0, "uri")}
    return [(item.code, item.msg) for item in caught.value.errors]


ADAPTERS = {
    "llama": (
        llama,
        [
            LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"]),
            LoraConfig(
                task_type="CAUSAL_LM", r=4, lora_alpha=6, use_rslora=True, target_modules="all-linear",
                rank_pattern={"k_proj": 2, r"layers\.1\.mlp\..*": 8}, alpha_pattern={"^model.layers.0.mlp.up_proj": 3},
            ),
            LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["embed_tokens", "o_proj"], modules_to_save=["norm"]),
        ],
    ),
    "bert": (
        bert,
        [
            LoraConfig(task_type="SEQ_CLS", r=4, bias="all", target_modules=["query", "value"]),
            LoraConfig(task_type="SEQ_CLS", r=2, bias="lora_only", target_modules=["dense"]),
            LoraConfig(r=2, target_modules=["word_embeddings", "key"], modules_to_save=["classifier", "pooler"]),
        ],
    ),
    "gpt2": (
        gpt2,
        [
            LoraConfig(task_type="CAUSAL_LM", r=4, fan_in_fan_out=True, target_modules=["c_attn", "c_proj", "c_fc"]),
            LoraConfig(task_type="CAUSAL_LM", r=4, fan_in_fan_out=True, target_modules=["c_proj"], bias="all"),
            LoraConfig(task_type="CAUSAL_LM", r=2, fan_in_fan_out=True, target_modules=["wte", "c_fc"]),
        ],
    ),
    "convolutions": (
        Convolutions,
        [
            LoraConfig(r=2, target_modules=["wide", "narrow"], bias="all"),
            LoraConfig(r=3, target_modules=["wide"]),
            LoraConfig(r=1, target_modules=["narrow"], modules_to_save=["wide"]),
        ],
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=ADAPTERS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    build, configs = ADAPTERS[request.param]
    family = Family(tmp_path_factory.mktemp(request.param), build)
    for config in configs:
        family.add(config)
    return family


@pytest.mark.parametrize("method", METHODS, ids=lambda method: "-".join(map(str, method.values())))
def test_merging_adapters_is_merging_the_dense_models(
    family: Family, method: dict[str, Any], tmp_path: Path
) -> None:
    found, found_sums = merge(plan(family.base, family.adapters, tmp_path / "adapters", method=method))
    expected, expected_sums = merge(plan(family.base, family.dense, tmp_path / "dense", method=method))
    assert_close(found, expected)
    assert found_sums.merged_norm() == pytest.approx(expected_sums.merged_norm(), rel=1e-5)
    base = load_file(family.base / "model.safetensors")
    assert any(not torch.equal(found[name], base[name]) for name in base)


def test_one_adapter_gives_the_model_that_peft_gives(family: Family, tmp_path: Path) -> None:
    for number, (adapter, dense) in enumerate(zip(family.adapters, family.dense, strict=True)):
        found, _ = merge(plan(family.base, [adapter], tmp_path / str(number), scaling=1.0))
        assert_close(found, load_file(dense / "model.safetensors"))


def test_adapters_and_dense_models_mix(family: Family, tmp_path: Path) -> None:
    mixed = [family.adapters[0], family.dense[1], family.adapters[2]]
    found, _ = merge(plan(family.base, mixed, tmp_path / "mixed", method="median"))
    expected, _ = merge(plan(family.base, family.dense, tmp_path / "dense", method="median"))
    assert_close(found, expected)


def test_every_tensor_of_an_adapter_counts(family: Family, tmp_path: Path) -> None:
    for number, adapter in enumerate(family.adapters):
        deltas = plan(family.base, [adapter], tmp_path / str(number)).comparison.adapters[0].values()
        placed = {delta.replacement.info.name for delta in deltas if delta.replacement}
        placed |= {
            part.info.name
            for delta in deltas
            if delta.low_rank
            for part in (delta.low_rank.a, delta.low_rank.b)
        }
        saved = load_file(adapter / "adapter_model.safetensors").keys()
        assert placed == {
            name for name in saved if "modules_to_save" not in name and "original_module" not in name
        }


def test_half_precision_adapters_of_a_float32_base(tmp_path: Path) -> None:
    family = Family(tmp_path, llama)
    family.add(LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"]), torch.bfloat16)
    found, _ = merge(plan(family.base, family.adapters, tmp_path / "out", scaling=1.0))
    assert_close(found, load_file(family.dense[0] / "model.safetensors"))


def test_the_bytes_do_not_depend_on_chunks_or_memory(tmp_path: Path) -> None:
    elements = SLICE + 5000  # more than one slice, and rows that no chunk is a multiple of
    columns = 1031
    rows = elements // columns
    generator = torch.Generator().manual_seed(1)
    (tmp_path / "base").mkdir()
    save_file(
        {"m.weight": torch.randn(rows, columns, generator=generator)}, tmp_path / "base/model.safetensors"
    )
    write_adapter(
        tmp_path / "adapter",
        {
            "base_model.model.m.lora_A.weight": torch.randn(8, columns, generator=generator),
            "base_model.model.m.lora_B.weight": torch.randn(rows, 8, generator=generator),
        },
    )
    outputs = {}
    for chunk, memory in [(1 << 16, 0), (1 << 17, 0), (1 << 22, 0), (1 << 17, 1 << 30)]:
        output = tmp_path / f"out-{chunk}-{memory}"
        merge(plan(tmp_path / "base", [tmp_path / "adapter"], output), chunk, memory)
        outputs[(output / "model.safetensors").read_bytes()] = output
    assert len(outputs) == 1


def test_low_rank_products_are_those_of_the_whole_matrix() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(3, 700, generator=generator), torch.randn(500, 3, generator=generator)
    for transposed in (False, True):
        whole = (b @ a).T if transposed else b @ a
        start = 1 << 16
        values = torch.zeros(200_001)
        LowRankProduct(a, b, 0.5, transposed).add_to(values, start)
        expected = 0.5 * whole.reshape(-1)[start : start + values.numel()]
        torch.testing.assert_close(values, expected)


def test_the_plan_counts_what_is_read(family: Family, tmp_path: Path) -> None:
    merge_plan = plan(family.base, family.adapters, tmp_path / "out")
    _, sums = merge(merge_plan)
    assert sums.bytes_read == merge_plan.describe().input_bytes


# ---------------------------------------------------------------------------------------- refusals


def write_adapter(directory: Path, weights: Mapping[str, Tensor], **config: Any) -> Path:
    directory.mkdir()
    save_file(dict(weights), directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 8, **config})
    )
    return directory


@pytest.fixture
def square_base(tmp_path: Path) -> Path:
    """One square module and one wide one, in float32, and packed weights."""
    directory = tmp_path / "base"
    directory.mkdir()
    weights = {
        "square.weight": torch.ones(8, 8),
        "wide.weight": torch.ones(4, 12),
        "packed.weight": torch.ones(4, 6, dtype=torch.uint8),
    }
    save_file(weights, directory / "model.safetensors")
    return directory


def factors(module: str, outputs: int, inputs: int, rank: int = 8) -> dict[str, Tensor]:
    return {
        f"base_model.model.{module}.lora_A.weight": torch.ones(rank, inputs),
        f"base_model.model.{module}.lora_B.weight": torch.ones(outputs, rank),
    }


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
        ({"alora_invocation_tokens": [3]}, "Activated LoRA"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"init_lora_weights": "corda"}, "corda"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"peft_type": "VERA"}, "VERA"),
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
        ({"peft_type": None}, "None"),
    ],
)
def test_what_is_no_plain_delta_is_refused_by_name(
    config: dict[str, Any], named: str, square_base: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", factors("wide", 4, 12), **config)
    [(code, message)] = refusals(square_base, adapter, tmp_path)
    assert code == "unsupported_adapter"
    assert named in message


def test_a_real_dora_is_refused(tmp_path: Path) -> None:
    family = Family(tmp_path, llama)
    adapter = family.add(LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    [(code, message)] = refusals(family.base, adapter, tmp_path)
    assert (code, "DoRA" in message) == ("unsupported_adapter", True)


def test_a_pissa_that_was_converted_is_a_plain_delta(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = llama()
    base.save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"))
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(tmp_path / "start")
        model.peft_config["default"].init_lora_weights = "pissa"
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / "raw")
        model.save_pretrained(
            tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start")
        )
        model.set_adapter("default")
        original = LlamaForCausalLM.from_pretrained(tmp_path / "base")
        dense = PeftModel.from_pretrained(original, tmp_path / "plain").merge_and_unload().state_dict()
    [(code, _)] = refusals(tmp_path / "base", tmp_path / "raw", tmp_path)
    assert code == "unsupported_adapter"
    found, _ = merge(plan(tmp_path / "base", [tmp_path / "plain"], tmp_path / "out", scaling=1.0))
    assert_close(found, dense)


def test_tensors_without_a_place_are_listed(square_base: Path, tmp_path: Path) -> None:
    weights = {f"base_model.model.other.{index}.bias": torch.ones(2) for index in range(23)}
    found = refusals(square_base, write_adapter(tmp_path / "adapter", weights), tmp_path)
    assert [code for code, _ in found] == ["unplaced_tensor"] * 21
    assert "base_model.model.other.0.bias" in found[0][1]
    assert "23 tensors in all" in found[-1][1]


@pytest.mark.parametrize(
    ("weights", "config", "code"),
    [
        (factors("wide", 5, 12), {}, "shape_mismatch"),
        (factors("wide", 4, 12, rank=2), {}, "malformed_adapter"),
        ({"base_model.model.wide.lora_A.weight": torch.ones(8, 12)}, {}, "malformed_adapter"),
        (
            {"wide.lora_A.weight": torch.ones(8), "wide.lora_B.weight": torch.ones(4, 8)},
            {},
            "malformed_adapter",
        ),
        ({"base_model.model.wide.weight": torch.ones(4, 13)}, {}, "shape_mismatch"),
        (
            {"wide.weight": torch.ones(4, 12), "wide.base_layer.weight": torch.ones(4, 12)},
            {},
            "malformed_adapter",
        ),
        ({"wide.weight": torch.ones(4, 12, dtype=torch.int8)}, {}, "unsupported_dtype"),
        (factors("packed", 4, 6), {}, "unsupported_adapter"),
        ({"packed.weight": torch.ones(4, 6)}, {}, "unsupported_adapter"),
        ({"packed.weight": torch.ones(4, 6, dtype=torch.int8)}, {}, "unsupported_adapter"),
        (
            factors("wide", 4, 12) | {"wide.lora_A.weight": torch.zeros(8, 12)},
            {},
            "malformed_adapter",
        ),
        (
            factors("square", 8, 8)
            | {"square.lora_embedding_A": torch.ones(8, 8), "square.lora_embedding_B": torch.ones(8, 8)},
            {},
            "malformed_adapter",
        ),
        (factors("wide", 4, 12), {"r": 0}, "malformed_adapter"),
        (factors("wide", 4, 12), {"lora_alpha": "many"}, "malformed_adapter"),
        (factors("wide", 4, 12), {"lora_alpha": 1e300}, "malformed_adapter"),
        (factors("wide", 4, 12), {"alpha_pattern": {"wide": -1e300}}, "malformed_adapter"),
        (factors("wide", 4, 12, rank=0), {"rank_pattern": {"wide": 0}}, "malformed_adapter"),
        (factors("wide", 4, 12), {"rank_pattern": {"(": 8}}, "malformed_adapter"),
        (factors("wide", 4, 12), {"rank_pattern": {"(?i)WIDE": 8}}, "malformed_adapter"),
        (factors("wide", 4, 12), {"rank_pattern": {"(" * 9999 + ")" * 9999: 8}}, "malformed_adapter"),
        (factors("wide", 4, 12), {"rank_pattern": {"a|" * 60_000: 8}}, "malformed_adapter"),
        # one wide module is plain, so fan_in_fan_out says nothing about the square one
        (factors("square", 8, 8) | factors("wide", 4, 12), {"fan_in_fan_out": True}, "unsupported_adapter"),
    ],
)
def test_adapters_that_do_not_fit(
    weights: dict[str, Tensor], config: dict[str, Any], code: str, square_base: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", weights, **config)
    assert [found for found, _ in refusals(square_base, adapter, tmp_path)] == [code]


@pytest.mark.parametrize("pattern", ["(a|a)*[bc]", "(a|a)" * 40 + "[bc]"])
def test_a_pattern_that_would_take_for_ever_is_given_up(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_module, "PATTERN_SECONDS", 0.2)
    names = ["a" * 60 + str(number) for number in range(30)]
    (tmp_path / "base").mkdir()
    save_file({f"{name}.weight": torch.ones(4, 4) for name in names}, tmp_path / "base/model.safetensors")
    weights = {key: tensor for name in names for key, tensor in factors(name, 4, 4).items()}
    adapter = write_adapter(tmp_path / "adapter", weights, rank_pattern={pattern: 2})
    begun = time.monotonic()
    [(code, message)] = refusals(tmp_path / "base", adapter, tmp_path)
    assert (code, "take more than 0.2 s to match" in message) == ("malformed_adapter", True)
    assert time.monotonic() - begun < 10


def test_a_packed_tensor_that_an_adapter_replaces_is_listed(square_base: Path, tmp_path: Path) -> None:
    weights = factors("wide", 4, 12) | {"packed.weight": torch.zeros(4, 6, dtype=torch.uint8)}
    merge_plan = plan(square_base, [write_adapter(tmp_path / "adapter", weights)], tmp_path / "out")
    merged, sums = merge(merge_plan)
    assert torch.equal(merged["packed.weight"], torch.ones(4, 6, dtype=torch.uint8))
    assert {merge_plan.names[tensor] for tensor in sums.differing} == {"packed.weight"}


TIED = {
    "linear": {"target_modules": ["lm_head", "q_proj"]},
    "embedding": {"target_modules": ["embed_tokens"]},
    "replaced": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
}


def tied_llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96, hidden_size=32, intermediate_size=80, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
        )
    )  # fmt: skip


def train_tied(directory: Path, **config: Any) -> tuple[Path, Path, Tensor]:
    """A tied base, an adapter of it, and what the two answer together."""
    torch.manual_seed(0)
    base = tied_llama()
    base.save_pretrained(directory / "base")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, **config))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
        model.save_pretrained(directory / "adapter")
        return directory / "base", directory / "adapter", model.eval()(torch.arange(8)[None]).logits


@pytest.mark.parametrize("config", TIED.values(), ids=TIED)
@pytest.mark.parametrize("metadata", [{}, {"lm_head.weight": "model.embed_tokens.weight"}])
def test_what_is_trained_of_a_tied_weight_counts_once(
    config: dict[str, Any], metadata: dict[str, str], tmp_path: Path
) -> None:
    base, adapter, expected = train_tied(tmp_path, ensure_weight_tying=True, **config)
    save_file(load_file(base / "model.safetensors"), base / "model.safetensors", {"format": "pt", **metadata})
    merge(plan(base, [adapter], tmp_path / "out", scaling=1.0))
    model = tied_llama().eval()
    model.load_state_dict(load_file(tmp_path / "out/model.safetensors"), strict=False)
    with torch.no_grad():
        found = model(torch.arange(8)[None]).logits
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("modules", [["lm_head"], ["lm_head", "embed_tokens"]])
def test_an_adapter_that_unties_a_weight_is_told_so(modules: list[str], tmp_path: Path) -> None:
    base, adapter, _ = train_tied(tmp_path, target_modules=modules)
    found = refusals(base, adapter, tmp_path)
    assert {code for code, _ in found} == {"unplaced_tensor"}
    assert all(
        "if it is tied to model.embed_tokens.weight, train the adapter with" in one for _, one in found
    )


def test_a_base_that_is_an_adapter(square_base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", factors("wide", 4, 12))
    with pytest.raises(InvalidRequest) as caught:
        plan(adapter, [square_base], tmp_path / "out")
    assert [(item.loc, item.code) for item in caught.value.errors] == [(("base",), "unsupported_adapter")]


def test_nonfinite_factors_are_found(square_base: Path, tmp_path: Path) -> None:
    weights = factors("wide", 4, 12)
    weights["base_model.model.wide.lora_B.weight"][2, 0] = float("nan")
    merge_plan = plan(
        square_base, [square_base, write_adapter(tmp_path / "adapter", weights)], tmp_path / "out",
        nonfinite="drop_model",
    )  # fmt: skip
    worker = ShardWorker(0)
    sums = Sums.of(worker.measure(unit, "inputs", "norms") for unit in merge_plan.units())
    assert sums.nonfinite == {(1, merge_plan.names.index("wide.weight")): 12}
    assert decide(merge_plan, sums).models == (0,)
