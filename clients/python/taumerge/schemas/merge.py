"""Merges: the request, what a dry run answers, and the result."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, field_validator

from taumerge.schemas._parts import (
    LARGEST_FACTOR,
    LARGEST_STEPS,
    MAX_MODELS,
    AnswerPart,
    DType,
    OutputFile,
    RequestPart,
    byte_size,
)


class Training(RequestPart):
    """How a model was trained, as far as the rules need it."""

    steps: int | None = Field(default=None, ge=1, le=LARGEST_STEPS)
    """K_t, the number of optimiser steps."""
    lr_sum: FiniteFloat | None = Field(default=None, gt=0)
    """A_t = Σ_k η_t^(k), the sum of the learning rates over those steps."""


class ModelRef(RequestPart):
    """One fine-tuned model θ_t of a merge. A plain string stands for its URI."""

    uri: str = Field(min_length=1)
    """A checkpoint directory in Hugging Face or open_clip layout, or one ``.safetensors`` file."""
    weight: FiniteFloat | None = Field(default=None, ge=0, le=LARGEST_FACTOR)
    """p_t before normalisation to Σ p_t = 1. Absent: 1, so that models without weights have 1/T each."""
    coefficient: FiniteFloat | None = Field(default=None, ge=-LARGEST_FACTOR, le=LARGEST_FACTOR)
    """c_t of V = Σ c_t τ_t (``task_arithmetic`` only, on every model; may be negative), instead of weight and scale."""
    training: Training | None = None
    """Wins over ``training.json`` beside the checkpoint, field by field. That of a single file counts where no other
    weights lie beside it."""


class MethodSpec(BaseModel):
    """A rule and its parameters, for example ``{"name": "fedgma", "rho": 0.5}``.

    A plain string stands for a rule with its defaults. The parameters belong to the rule, so the
    service validates them; ``GET /methods`` describes them.
    """

    model_config = ConfigDict(extra="allow")

    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        """What was given beside the name."""
        return dict(self.__pydantic_extra__ or {})


def uri_to_model(value: object) -> object:
    return {"uri": value} if isinstance(value, str) else value


def name_to_method(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


AnyModelRef = Annotated[ModelRef, BeforeValidator(uri_to_model)]
AnyMethodSpec = Annotated[MethodSpec, BeforeValidator(name_to_method)]


class MergeRequest(RequestPart):
    """Merge ``models`` into ``base``: θ = θ₀ + λ·V, written to ``output``."""

    base: str = Field(min_length=1)
    """URI of the base model θ₀."""
    models: list[AnyModelRef] = Field(min_length=1, max_length=MAX_MODELS)
    method: AnyMethodSpec
    scaling: FiniteFloat = Field(default=1.0, ge=0, le=LARGEST_FACTOR)
    """λ."""
    output: str = Field(min_length=1)
    """URI of the directory to create."""
    dtype: DType | None = None
    """Element type of the merged float tensors; null keeps the base's, tensor by tensor."""
    max_shard_size: str = "5GB"
    """Largest output file, as Hugging Face writes it (GB is 10⁹ bytes, GiB is 2³⁰)."""
    nonfinite: Literal["reject", "drop_model", "drop_tensor"] = "reject"
    """What NaN or inf in a model does: fail the job, leave the model out, or take that tensor from
    the base as if the model did not have it."""
    statistics: Literal["none", "norms", "full"] = "norms"
    """``norms``: each ‖τ_t‖₂ and ‖V‖₂; ``full``: the T×T cosine matrix too; ``none``: neither."""
    keys: Literal["strict", "intersection"] = "strict"
    """``strict``: every model has exactly the base's float tensors. ``intersection``: what some
    model lacks, or has in another shape, is copied from the base and listed."""
    overwrite: bool = False
    """Replace what exists at ``output`` when the merge has succeeded: on a disk in one step; in a store file by file,
    where an upload that breaks off after the first of them leaves neither."""

    @field_validator("max_shard_size")
    @classmethod
    def _readable_size(cls, value: str) -> str:
        if byte_size.validate_python(value) < 1:
            raise ValueError("must be at least one byte")
        return value

    @property
    def max_shard_bytes(self) -> int:
        """``max_shard_size`` in bytes."""
        return int(byte_size.validate_python(self.max_shard_size))


class TensorCounts(AnswerPart):
    """How many tensors went which way."""

    merged: int
    copied: int
    """Taken from the base: non-float, or not in the intersection."""
    dropped: int
    """Tensors of models that are not in the output."""


class ModelReport(AnswerPart):
    """What a merge found out about one model."""

    uri: str
    norm: float | None = None
    """‖τ_t‖₂ over all merged tensors; null with ``statistics: none``."""
    weight: float | None = None
    """p_t as used; null where the request gave coefficients."""
    coefficient: float | None = None
    """Factor of τ_t in θ − θ₀, λ included, where the rule has one for the whole model."""
    clipped_by: float | None = None
    """``cclip`` over the whole model: what clipping left of the model, coefficient / (λ·s·p_t)."""
    nonfinite: int = 0
    """NaN and inf elements found."""
    dropped: bool = False
    """Left out by ``nonfinite: drop_model``."""


class MergeResult(AnswerPart):
    """What a merge wrote and measured."""

    output: str
    files: list[OutputFile]
    tensors: TensorCounts
    models: list[ModelReport]
    cosine: list[list[float | None]] | None = None
    """T×T cosines of the task vectors, with ``statistics: full``; null for a zero task vector."""
    merged_norm: float | None = None
    """‖V‖₂, before λ."""
    scaling: float
    seconds: dict[str, float]
    """Wall time by phase."""
    bytes_read: int
    """Tensor bytes read from files; zero where everything was resident."""
    bytes_written: int
    warnings: list[str] = Field(default_factory=list)


class Shard(AnswerPart):
    """A worker's share of a merge."""

    worker: int
    bytes: int
    """Bytes of input that it reads."""


class Plan(AnswerPart):
    """What a merge would do, from headers only."""

    tensors: int
    parameters: int
    input_bytes: int
    output_bytes: int
    workers: int
    shards: list[Shard]
    peak_memory_bytes: int
    """Private memory that the merge adds to one worker, resident tensors included."""
    warnings: list[str] = Field(default_factory=list)


class MethodInfo(AnswerPart):
    """A rule, as ``GET /methods`` describes it."""

    name: str
    summary: str
    description: str
    source: str
    """Where the rule comes from: paper and equation."""
    parameters: dict[str, Any]
    """JSON Schema of the parameters."""
    defaults: dict[str, Any]
    """Value of every parameter that may be left out."""
