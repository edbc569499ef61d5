"""LoRA adapters as task vectors: which tensors of the base an adapter changes, and how. Headers only, no torch.

peft names a tensor of an adapter after the module that it belongs to: ``base_model.model.`` + the module's name in
the base, which is where ΔW = scaling·B·A goes, or a tensor of the base that the adapter replaces as a whole
(``modules_to_save``, trained biases).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import regex
from pydantic import BaseModel, Field, FiniteFloat, PrivateAttr, ValidationError

from taumerge.schemas import LARGEST_FACTOR
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

PATTERN_SECONDS = 5.0
"""All patterns of an adapter may take so long to match: some would take for ever."""
PATTERN_CHARACTERS = 100_000
"""All patterns of an adapter may be so long together: enough for the name of every module."""

_REMEDY = "merge it into its base with peft's merge_and_unload, save that model, and give it instead"


class _LoraConfig(BaseModel):
    """What of ``adapter_config.json`` decides ΔW."""

    r: int = Field(default=8, ge=1)
    lora_alpha: FiniteFloat = 8
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] | None = None
    alpha_pattern: dict[str, FiniteFloat] | None = None
    init_lora_weights: bool | str | None = True
    ensure_weight_tying: bool = False
    """What is trained of a tied weight is saved under both of its names."""
    _patterns: dict[str, re.Pattern[str] | regex.Pattern[str]] = PrivateAttr(default_factory=dict)
    _deadline: float = PrivateAttr(default_factory=lambda: time.monotonic() + PATTERN_SECONDS)

    def compile_patterns(self) -> None:
        """Raises ``ValueError``, or whatever provokes the parsers of regular expressions."""
        patterns = [*(self.rank_pattern or {}), *(self.alpha_pattern or {})]
        if sum(map(len, patterns)) > PATTERN_CHARACTERS:
            raise ValueError(f"they have more than {PATTERN_CHARACTERS} characters")
        for pattern in patterns:
            self._patterns[pattern] = re.compile(_ending(pattern))
            if set(pattern) & set("*+?{|"):  # else it ends soon, and this library is ten times as fast
                self._patterns[pattern] = regex.compile(_ending(pattern))

    def rank(self, module: str) -> int:
        return self._matching(self.rank_pattern or {}, module, self.r)

    def scaling(self, module: str) -> float:
        alpha = self._matching(self.alpha_pattern or {}, module, self.lora_alpha)
        rank = self.rank(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def _matching(self, patterns: Mapping[str, _Number], module: str, default: _Number) -> _Number:
        """The value of the first pattern that the module's name ends with, as peft chooses it.

        Raises ``TimeoutError`` beyond the deadline.
        """
        for pattern, value in patterns.items():
            compiled = self._patterns[pattern]
            if isinstance(compiled, re.Pattern):
                found = compiled.match(module) is not None
            else:
                left = max(0.0, self._deadline - time.monotonic())
                found = compiled.match(module, timeout=left) is not None
            if found:
                return value
        return default


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
    found, problems = _sort(adapter)
    replacements: dict[str, StoredTensor] = {}
    low_ranks: dict[str, LowRank] = {}
    for target, stored in found.replacements.items():
        if target in base.tensors:
            if problem := _unfit(stored, base.tensors[target]):
                problems.append(problem)
            else:
                replacements[target] = stored
    linear: list[LowRank] = []
    for (module, embedding), pair in found.pairs.items():
        target = f"{module}.weight"
        if target not in base.tensors:
            continue
        try:
            if target in low_ranks:
                raise _twice(target)
            low_ranks[target] = _low_rank(module, embedding, pair, base.tensors[target], config)
            linear += [] if embedding else [low_ranks[target]]
        except CheckpointError as error:
            problems.append(error)
        except TimeoutError:
            problems.append(_malformed(f"the patterns take more than {PATTERN_SECONDS:g} s to match"))
            break
    problems += _doubtful(linear, config)
    problems += _unplaced(found, base, replacements, low_ranks, tied=config.ensure_weight_tying)
    names = [name for name in base.tensors if name in replacements or name in low_ranks]
    return {name: Delta(replacements.get(name), low_ranks.get(name)) for name in names}, problems


@dataclass(frozen=True, slots=True)
class _Found:
    """The tensors of an adapter by what of a base they are for."""

    replacements: dict[str, StoredTensor]
    """By the name of the tensor that they replace."""
    pairs: dict[tuple[str, bool], dict[str, StoredTensor]]
    """A and B by their module and whether it is an embedding."""


def _sort(adapter: Checkpoint) -> tuple[_Found, list[CheckpointError]]:
    found = _Found({}, {})
    problems: list[CheckpointError] = []
    for full_name, stored in adapter.tensors.items():
        first_copy = _SECOND_COPY.sub("", full_name)
        if first_copy != full_name and first_copy in adapter.tensors:
            continue
        name = full_name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        factor = _FACTOR.fullmatch(name)
        slots, slot = found.replacements, name
        if factor:
            slots = found.pairs.setdefault((factor["module"], factor["embedding"] is not None), {})
            slot = factor["linear"] or factor["embedding"]
        if slot in slots:
            problems.append(_twice(f"{factor['module']}.weight" if factor else name))
        slots[slot] = stored
    return found, problems


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
        config.compile_patterns()
    except (ValueError, re.error, regex.error, RecursionError, OverflowError) as error:
        problem = error.errors()[0] if isinstance(error, ValidationError) else None
        place = (
            f"{problem['loc'][0]}: {problem['msg']}"
            if problem
            else f"the patterns are no regular expressions: {error}"
        )
        return None, [*refusals, _malformed(f"adapter_config.json: {place}")]
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
        raise _malformed(f"module {module} has lora_{next(iter(pair))} alone, not lora_A and lora_B")
    if base.info.dtype not in FLOATS:
        message = (
            f"the base has tensor {module}.weight in type {base.info.dtype}, to which no ΔW can be added; take the "
            "base that is not quantised"
        )
        raise CheckpointError("unsupported_adapter", message)
    for stored in pair.values():
        if stored.info.dtype not in FLOATS:
            raise _no_float(stored)
    a, b, rank = pair["A"], pair["B"], config.rank(module)
    (outputs, *inner), (outer, *inputs) = b.info.shape or (0,), a.info.shape or (0,)
    shapes = f"lora_A {list(a.info.shape)}, lora_B {list(b.info.shape)}, in the base {list(base.info.shape)}"
    if not inputs or not inner or outer != rank or math.prod(inner) != rank:
        raise _malformed(f"module {module} has rank {rank} in adapter_config.json, but {shapes}")
    as_linear = base.info.shape == (outputs, *inputs) and not embedding
    as_transposed = base.info.shape == (*inputs, outputs) and len(inputs) == 1
    if not as_linear and not as_transposed:
        message = f"module {module} does not fit: {shapes}; is this an adapter of this base?"
        raise CheckpointError("shape_mismatch", message)
    transposed = as_transposed and (not as_linear or config.fan_in_fan_out)
    scaling = config.scaling(module)
    if abs(scaling) > LARGEST_FACTOR:
        raise _malformed(
            f"module {module} has the scaling {scaling:g} in adapter_config.json, above {LARGEST_FACTOR:g}"
        )
    return LowRank(a, b, scaling, transposed)


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


def _unplaced(
    found: _Found,
    base: Checkpoint,
    replacements: Mapping[str, StoredTensor],
    low_ranks: Mapping[str, LowRank],
    *,
    tied: bool,
) -> list[CheckpointError]:
    """Problems with the tensors whose names the base does not have.

    None where the weight is ``tied``: then it was placed under its other name, which the metadata of the base gives,
    or the shape where only one tensor has it.
    """
    absent = [
        (target, stored.info.shape, replacements.keys(), [stored])
        for target, stored in found.replacements.items()
    ]
    absent += [
        (f"{module}.weight", _shape(pair, embedding), low_ranks.keys(), list(pair.values()))
        for (module, embedding), pair in found.pairs.items()
    ]
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, one in base.tensors.items():
        by_shape.setdefault(one.info.shape, []).append(name)
    problems = []
    for target, shape, placed, tensors in absent:
        if target in base.tensors:
            continue
        other = base.find(target)
        alike = [other.info.name] if other else by_shape.get(shape, []) if len(shape) == 2 else []
        if tied and len(alike) == 1 and alike[0] in placed:
            continue
        why = "is this an adapter of this base?"
        if len(alike) == 1:
            why = (
                f"if it is tied to {alike[0]}, train the adapter with ensure_weight_tying, or save the base and its "
                "models untied"
            )
        for stored in tensors:
            message = f"tensor {stored.info.name} finds no place: the base has no {target}; {why}"
            problems.append(CheckpointError("unplaced_tensor", message))
    return problems


def _shape(pair: Mapping[str, StoredTensor], embedding: bool) -> tuple[int, ...]:
    """Of the weight that A and B belong to; () for one of them alone."""
    if pair.keys() != {"A", "B"}:
        return ()
    outputs, inputs = pair["B"].info.shape[:1], pair["A"].info.shape[1:]
    return inputs + outputs if embedding else outputs + inputs


def _unfit(stored: StoredTensor, base: StoredTensor) -> CheckpointError | None:
    """Why a tensor cannot replace one of the base."""
    name, dtype, target = stored.info.name, stored.info.dtype, base.info.name
    if dtype not in FLOATS and base.info.dtype in FLOATS:
        return _no_float(stored)
    if dtype != base.info.dtype and base.info.dtype not in FLOATS:
        message = (
            f"the base has tensor {target} in type {base.info.dtype}, which {name} of type {dtype} cannot replace; "
            "take the base that is not quantised"
        )
        return CheckpointError("unsupported_adapter", message)
    if stored.info.shape != base.info.shape:
        message = (
            f"tensor {name} has shape {list(stored.info.shape)}, {target} of the base {list(base.info.shape)}: "
            "is this an adapter of this base?"
        )
        return CheckpointError("shape_mismatch", message)
    return None


def _no_float(stored: StoredTensor) -> CheckpointError:
    message = f"tensor {stored.info.name} has type {stored.info.dtype}; convert it to a plain float type"
    return CheckpointError("unsupported_dtype", message)


def _twice(target: str) -> CheckpointError:
    return _malformed(f"two of its tensors stand for {target} of the base")


def _malformed(problem: str) -> CheckpointError:
    return CheckpointError("malformed_adapter", f"{problem}; save the adapter anew")


def _ending(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"
