"""LoRA adapters as task vectors: which tensors of the base an adapter changes, and how. Headers only, no torch.

peft names a tensor of an adapter after the module that it belongs to: ``base_model.model.`` + the module's name in
the base, which is where ΔW = scaling·B·A goes, or a tensor of the base that the adapter replaces as a whole
(``modules_to_save``, trained biases).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from workers.checkpoints.checkpoint import Checkpoint, StoredTensor
from workers.checkpoints.dtypes import FLOATS
from workers.checkpoints.errors import CheckpointError

_Number = TypeVar("_Number", int, float)

__all__ = ["Delta", "LowRank", "place"]

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?:(?P<linear>[AB])\.weight|embedding_(?P<embedding>[AB]))")

_SECOND_COPY = re.compile(r"\.(modules_to_save|original_module)(?=\.)")
"""With ``bias="all"`` peft saves the biases of ``modules_to_save`` under these names too."""

_NOT_A_DELTA = {
    "use_dora": "DoRA",
    "lora_bias": "lora_bias",
    "layer_replication": "layer_replication",
    "trainable_token_indices": "trainable_token_indices",
    "target_parameters": "target_parameters",
    "alora_invocation_tokens": "Activated LoRA",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow",
    "monteclora_config": "MonteCLoRA",
    "kasa_config": "KaSA",
}
"""Fields of peft's LoraConfig that make an adapter something else than ΔW = scaling·B·A, and what it is then."""

_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base as it is."""

_REMEDY = "merge it into its base with peft's merge_and_unload, save that model, and give it instead"


class _LoraConfig(BaseModel):
    """What of ``adapter_config.json`` decides ΔW."""

    r: int = Field(default=8, ge=1)
    lora_alpha: FiniteFloat = 8
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, FiniteFloat] | None = None
    init_lora_weights: bool | str | None = True

    def rank(self, module: str) -> int:
        return _matching(self.rank_pattern or {}, module, self.r)

    def scaling(self, module: str) -> float:
        alpha = _matching(self.alpha_pattern or {}, module, self.lora_alpha)
        rank = self.rank(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


@dataclass(frozen=True, slots=True)
class LowRank:
    """ΔW = scaling·B·A of one tensor, its axes after the first taken as one."""

    a: StoredTensor
    """A, shape (rank, inputs…)."""
    b: StoredTensor
    """B, shape (outputs, rank, 1…)."""
    scaling: float
    transposed: bool
    """The tensor is stored as (inputs, outputs): a Conv1D of GPT-2, or an embedding."""

    @property
    def rank(self) -> int:
        return self.a.info.shape[0]

    @property
    def inputs(self) -> int:
        return math.prod(self.a.info.shape[1:])

    @property
    def outputs(self) -> int:
        return self.b.info.shape[0]


@dataclass(frozen=True, slots=True)
class Delta:
    """What an adapter does to one tensor of its base: θ_t = (replacement, else θ₀) + ΔW."""

    replacement: StoredTensor | None = None
    low_rank: LowRank | None = None


def place(adapter: Checkpoint, base: Checkpoint) -> tuple[dict[str, Delta], list[CheckpointError]]:
    """What ``adapter`` does to the tensors of ``base``, by their names, and what stands in the way.

    The problems have the codes ``unsupported_adapter`` (not a plain ΔW of this base), ``malformed_adapter``,
    ``unplaced_tensor`` (nothing in the base has that name), ``shape_mismatch`` and ``unsupported_dtype``.
    """
    config, refusals = _read_config(adapter.adapter or {})
    if config is None:
        return {}, refusals
    problems: list[CheckpointError] = []
    replacements: dict[str, StoredTensor] = {}
    pairs: dict[tuple[str, bool], dict[str, StoredTensor]] = {}
    for full_name, stored in adapter.tensors.items():
        first_copy = _SECOND_COPY.sub("", full_name)
        if first_copy != full_name and first_copy in adapter.tensors:
            continue
        name = full_name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        factor = _FACTOR.fullmatch(name)
        target = f"{factor['module']}.weight" if factor else name
        if target not in base.tensors:
            problems.append(_unplaced(full_name, target))
        elif stored.info.dtype not in FLOATS and base.tensors[target].info.dtype in FLOATS:
            message = f"tensor {full_name} has type {stored.info.dtype}; convert it to a plain float type"
            problems.append(CheckpointError("unsupported_dtype", message))
        elif factor:
            pair = pairs.setdefault((factor["module"], factor["embedding"] is not None), {})
            pair[factor["linear"] or factor["embedding"]] = stored
        elif target in replacements:
            message = f"two of its tensors stand for {target} of the base; save the adapter anew"
            problems.append(CheckpointError("malformed_adapter", message))
        elif stored.info.shape != base.tensors[target].info.shape:
            problems.append(_misshapen(full_name, stored, target, base.tensors[target]))
        else:
            replacements[target] = stored
    low_ranks: dict[str, LowRank] = {}
    for (module, embedding), pair in pairs.items():
        try:
            low_rank = _low_rank(module, embedding, pair, base.tensors[f"{module}.weight"], config)
            low_ranks[f"{module}.weight"] = low_rank
        except CheckpointError as error:
            problems.append(error)
    linear = [f"{module}.weight" for module, embedding in pairs if not embedding]
    problems += _doubtful([low_ranks[name] for name in linear if name in low_ranks], config)
    names = [name for name in base.tensors if name in replacements or name in low_ranks]
    return {name: Delta(replacements.get(name), low_ranks.get(name)) for name in names}, problems


def _read_config(raw: Mapping[str, object]) -> tuple[_LoraConfig | None, list[CheckpointError]]:
    """The configuration, or why this is no adapter that a merge can take."""
    kind = raw.get("peft_type")
    if kind != "LORA":
        message = f"it is an adapter of type {str(kind)[:50]!a}, and only LORA is a plain ΔW = scaling·B·A; {_REMEDY}"
        return None, [CheckpointError("unsupported_adapter", message)]
    refusals = [
        CheckpointError(
            "unsupported_adapter", f"it uses {what}, which is not a plain ΔW = scaling·B·A; {_REMEDY}"
        )
        for field, what in _NOT_A_DELTA.items()
        if raw.get(field)
    ]
    try:
        config = _LoraConfig.model_validate(raw)
        for pattern in (*(config.rank_pattern or {}), *(config.alpha_pattern or {})):
            re.compile(pattern)
    except (ValidationError, re.error) as error:
        problem = error.errors()[0] if isinstance(error, ValidationError) else None
        place = (
            f"{problem['loc'][0]}: {problem['msg']}"
            if problem
            else f"a pattern is no regular expression: {error}"
        )
        message = f"adapter_config.json: {place}; save the adapter anew"
        return None, [*refusals, CheckpointError("malformed_adapter", message)]
    start = config.init_lora_weights
    if (start.lower() if isinstance(start, str) else start) not in _PLAIN_STARTS:
        message = (
            f"init_lora_weights {start!a} starts from a changed base; save the adapter with "
            "path_initial_model_for_weight_conversion, which makes it a plain LoRA of the original base"
        )
        refusals.append(CheckpointError("unsupported_adapter", message))
    return (None if refusals else config), refusals


def _low_rank(
    module: str, embedding: bool, pair: Mapping[str, StoredTensor], base: StoredTensor, config: _LoraConfig
) -> LowRank:
    if pair.keys() != {"A", "B"}:
        message = (
            f"module {module} has lora_{next(iter(pair))} alone, not lora_A and lora_B; save the adapter anew"
        )
        raise CheckpointError("malformed_adapter", message)
    if base.info.dtype not in FLOATS:
        message = (
            f"the base has tensor {module}.weight in type {base.info.dtype}, to which no ΔW can be added; take the "
            "base that is not quantised"
        )
        raise CheckpointError("unsupported_adapter", message)
    a, b, rank = pair["A"], pair["B"], config.rank(module)
    (outputs, *inner), (outer, *inputs) = b.info.shape or (0,), a.info.shape or (0,)
    shapes = f"lora_A {list(a.info.shape)}, lora_B {list(b.info.shape)}, in the base {list(base.info.shape)}"
    if not inputs or not inner or outer != rank or math.prod(inner) != rank:
        message = (
            f"module {module} has rank {rank} in adapter_config.json, but {shapes}; save the adapter anew"
        )
        raise CheckpointError("malformed_adapter", message)
    as_linear = base.info.shape == (outputs, *inputs) and not embedding
    as_transposed = base.info.shape == (*inputs, outputs) and len(inputs) == 1
    if not as_linear and not as_transposed:
        message = f"module {module} does not fit: {shapes}; is this an adapter of this base?"
        raise CheckpointError("shape_mismatch", message)
    transposed = as_transposed and (not as_linear or config.fan_in_fan_out)
    return LowRank(a, b, config.scaling(module), transposed)


def _doubtful(linear: Sequence[LowRank], config: _LoraConfig) -> list[CheckpointError]:
    # peft keeps one fan_in_fan_out for all modules, and sets it by the last one. Shapes tell where it is wrong,
    # but not for square weights.
    square = [one for one in linear if one.inputs == one.outputs]
    wrong = [one for one in linear if one.transposed != config.fan_in_fan_out]
    if not square or not wrong:
        return []
    message = (
        f"it adapts transposed (Conv1D) and plain linear modules together, and {square[0].a.info.name} belongs to a "
        f"square one of which the files do not tell which it is; {_REMEDY}"
    )
    return [CheckpointError("unsupported_adapter", message)]


def _unplaced(name: str, target: str) -> CheckpointError:
    message = f"tensor {name} finds no place: the base has no {target}; is this an adapter of this base?"
    return CheckpointError("unplaced_tensor", message)


def _misshapen(name: str, stored: StoredTensor, target: str, base: StoredTensor) -> CheckpointError:
    message = (
        f"tensor {name} has shape {list(stored.info.shape)}, {target} of the base {list(base.info.shape)}: "
        "is this an adapter of this base?"
    )
    return CheckpointError("shape_mismatch", message)


def _matching(patterns: Mapping[str, _Number], module: str, default: _Number) -> _Number:
    """The value of the first pattern that the module's name ends with, as peft chooses it."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
