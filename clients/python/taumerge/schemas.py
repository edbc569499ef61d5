"""The contract: every request, job and result, defined once.

The client, the service and the workers import these models; a recipe is a request as YAML or JSON.
Symbols are those of the paper (Tao et al., arXiv 2411.18607): base θ₀, models θ_t, task vectors
τ_t = θ_t − θ₀, weights p_t, scaling coefficient λ, merged task vector V.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    FiniteFloat,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)

from taumerge.errors import ErrorItem

MAX_MODELS = 256
LARGEST_FACTOR = 1e30
"""Larger factors could not be multiplied with in float32."""

JobKind = Literal["merge", "finetune"]
JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
DType = Literal["float32", "float16", "bfloat16"]

ENDED: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled"})
"""States that a job never leaves."""

_byte_size = TypeAdapter(ByteSize)


class _Request(BaseModel):
    """A part of a request: unknown fields are refused, so that a typo is never ignored."""

    model_config = ConfigDict(extra="forbid")


class _Answer(BaseModel):
    """A part of an answer: a newer service may send fields that an older client does not know."""

    model_config = ConfigDict(extra="ignore")


# ---------------------------------------------------------------------------------------- requests


class Training(_Request):
    """How a model was trained, as far as the rules need it."""

    steps: int | None = Field(default=None, ge=1)
    """K_t, the number of optimiser steps."""
    lr_sum: FiniteFloat | None = Field(default=None, gt=0)
    """A_t = Σ_k η_t^(k), the sum of the learning rates over those steps."""


class ModelRef(_Request):
    """One fine-tuned model θ_t of a merge. A plain string stands for its URI."""

    uri: str = Field(min_length=1)
    """A checkpoint directory in Hugging Face or open_clip layout, or one ``.safetensors`` file."""
    weight: FiniteFloat | None = Field(default=None, ge=0)
    """p_t before normalisation to Σ p_t = 1. Absent on every model: 1/T."""
    coefficient: FiniteFloat | None = Field(default=None, ge=-LARGEST_FACTOR, le=LARGEST_FACTOR)
    """c_t of V = Σ c_t τ_t (``task_arithmetic`` only, on every model; may be negative)."""
    training: Training | None = None
    """Wins over ``training.json`` beside the checkpoint, field by field."""


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


def _uri_to_model(value: object) -> object:
    return {"uri": value} if isinstance(value, str) else value


def _name_to_method(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class MergeRequest(_Request):
    """Merge ``models`` into ``base``: θ = θ₀ + λ·V, written to ``output``."""

    base: str = Field(min_length=1)
    """URI of the base model θ₀."""
    models: list[Annotated[ModelRef, BeforeValidator(_uri_to_model)]] = Field(
        min_length=1, max_length=MAX_MODELS
    )
    method: Annotated[MethodSpec, BeforeValidator(_name_to_method)]
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
    """Replace what exists at ``output``, in one step and only when the merge has succeeded."""

    @field_validator("max_shard_size")
    @classmethod
    def _readable_size(cls, value: str) -> str:
        if _byte_size.validate_python(value) < 1:
            raise ValueError("must be at least one byte")
        return value

    @property
    def max_shard_bytes(self) -> int:
        """``max_shard_size`` in bytes."""
        return int(_byte_size.validate_python(self.max_shard_size))


class Dataset(_Request):
    """A named data set below ``root``, or files of one's own at ``uri``."""

    name: str | None = None
    """``cars``, ``dtd``, ``eurosat``, ``gtsrb``, ``mnist``, ``resisc45``, ``sun397`` or ``svhn``."""
    root: str | None = None
    """URI of the directory that holds the named data set."""
    uri: str | None = None
    """URI of a directory or file."""
    format: Literal["image_folder", "parquet", "jsonl"] | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    """What a column is for → its name: ``image`` and ``label``, ``text`` and ``label``, or ``prompt`` and
    ``response``. A column that is not listed is called as what it is for."""
    skip_corrupt: bool = False
    """Leave out and count images that cannot be decoded, instead of refusing the data set."""

    @model_validator(mode="after")
    def _named_or_own(self) -> Dataset:
        named, own = (self.name, self.root), (self.uri, self.format)
        if not (all(named) and not any(own) and not self.columns) and not (all(own) and not any(named)):
            raise ValueError("give either name and root, or uri and format (and columns)")
        return self


class FinetuneTask(_Request):
    """What a model is fine-tuned on."""

    kind: Literal["clip", "causal_lm", "classification"]
    dataset: Dataset
    classes: list[str] | None = Field(default=None, min_length=2)
    """Names of the classes, by label; null: the data set's."""
    templates: list[str] | None = Field(default=None, min_length=1)
    """``clip``: prompts with ``{}`` for the class name; null: the data set's."""
    max_length: int | None = Field(default=None, ge=2)
    """Language models: tokens that an example is cut to; null: the model's context length."""
    packing: bool = False
    """``causal_lm``: fill every sequence with whole examples, instead of batching examples of similar length."""

    @field_validator("templates")
    @classmethod
    def _with_a_place_for_the_name(cls, templates: list[str] | None) -> list[str] | None:
        for template in templates or ():
            if template.count("{}") != 1:
                raise ValueError(
                    f"a template holds {{}} once, where the class name goes; {template!r} does not"
                )
        return templates


class TrainSpec(_Request):
    """AdamW; learning rate linear up to its peak, then cosine to zero, step by step."""

    steps: int = Field(default=2000, ge=1)
    """K, the number of optimizer steps."""
    learning_rate: FiniteFloat = Field(default=1e-5, gt=0)
    """Peak learning rate η."""
    batch_size: int = Field(default=128, ge=1)
    """Examples of one optimizer step, over all workers."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Examples of one forward pass of a worker; gradients accumulate to ``batch_size``. Null: all at once."""
    warmup_steps: int = Field(default=500, ge=0)
    weight_decay: FiniteFloat = Field(default=0.1, ge=0)
    max_grad_norm: FiniteFloat = Field(default=1.0, gt=0)
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """``auto``: float16 on Volta, bfloat16 from sm_80, float32 on a CPU."""
    gradient_checkpointing: bool = False
    """Language models: compute activations twice instead of keeping them."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints from which a killed job goes on."""
    seed: int = Field(default=0, ge=0, lt=2**32)


class AdapterSpec(_Request):
    """Train a low-rank adapter instead of the whole model: ΔW = (alpha / rank)·B·A."""

    kind: Literal["lora", "qlora"]
    rank: int = Field(default=16, ge=1)
    alpha: FiniteFloat = Field(default=32, gt=0)
    targets: list[str] = Field(default=["q_proj", "v_proj"], min_length=1)
    """Names of the modules that get an adapter, or the ends of their names."""


class Grid(_Request):
    """Values to try, each with each. What is left out is taken from ``train``."""

    learning_rate: list[Annotated[FiniteFloat, Field(gt=0)]] = Field(default_factory=list)
    steps: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)


class Resources(_Request):
    """What a fine-tune runs on; null: the server's settings."""

    gpus: FiniteFloat | None = Field(default=None, ge=0, le=1)
    """GPUs of each worker: 1, 0 for a CPU, or the share of one; null: 1 where the cluster has any."""
    accelerator_type: str | None = None
    """Ray accelerator type, for example ``V100``."""
    workers: int = Field(default=1, ge=1)
    """Workers that share each step."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """``ddp``: a whole model on each worker; ``fsdp``: weights, gradients and optimizer state shared out."""


class FinetuneRequest(_Request):
    """Fine-tune ``base`` on a task; the checkpoint and its training record go to ``output``."""

    base: str = Field(min_length=1)
    """``open_clip://NAME/PRETRAINED``, or URI of a directory in open_clip or transformers layout."""
    task: FinetuneTask
    train: TrainSpec = Field(default_factory=TrainSpec)
    adapter: AdapterSpec | None = None
    grid: Literal["paper"] | Grid | None = None
    """``paper``: learning rates 1e-4, 1e-5, 1e-6 × 1000, 2000, 3000, 4000 steps."""
    resources: Resources = Field(default_factory=Resources)
    output: str = Field(min_length=1)
    """URI of the directory to create; with a grid, of the one that holds a directory for each trial."""


# ----------------------------------------------------------------------------------------- answers


class Progress(_Answer):
    """How far a running job is."""

    phase: str
    done: int = 0
    total: int = 0
    unit: str = "bytes"
    eta_seconds: float | None = None
    """Estimated from the pace of this phase so far; null until there is one."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Of a fine-tune: ``loss``, ``learning_rate`` and ``images_per_second`` or ``tokens_per_second``, as of now."""


class JobError(_Answer):
    """Why a job failed."""

    code: str
    message: str
    details: dict[str, Any] = Field(default_factory=dict)


class OutputFile(_Answer):
    """One file of a merged checkpoint."""

    name: str
    bytes: int
    sha256: str


class TensorCounts(_Answer):
    """How many tensors went which way."""

    merged: int
    copied: int
    """Taken from the base: non-float, or not in the intersection."""
    dropped: int
    """Tensors of models that are not in the output."""


class ModelReport(_Answer):
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


class MergeResult(_Answer):
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


class TrialResult(_Answer):
    """One run of a fine-tune: the only one, or a trial of its grid."""

    output: str
    learning_rate: float
    steps: int
    lr_sum: float | None = None
    """A_t, summed as trained."""
    loss: float | None = None
    """Training loss at the end, averaged over the last steps."""
    validation: dict[str, float] = Field(default_factory=dict)
    """Metrics of the last validation, ``accuracy`` among them."""
    files: list[OutputFile] = Field(default_factory=list)
    error: JobError | None = None
    """Why the trial failed; the others go on."""


class FinetuneResult(_Answer):
    """What a fine-tune wrote and measured."""

    output: str
    trials: list[TrialResult]
    """One, or with a grid one for each of its points, in their order."""
    seconds: dict[str, float]
    """Wall time by phase."""
    warnings: list[str] = Field(default_factory=list)


JobResult = MergeResult | FinetuneResult
_RESULTS: dict[str, type[JobResult]] = {"merge": MergeResult, "finetune": FinetuneResult}


class Job(_Answer):
    """One accepted request."""

    id: str
    kind: JobKind
    state: JobState
    attempt: int = 0
    """How often the job was started; more than 1 after a crash."""
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    progress: Progress | None = None
    request: dict[str, Any]
    result: JobResult | None = None
    error: JobError | None = None

    @field_validator("result", mode="before")
    @classmethod
    def _result_of_kind(cls, value: object, info: ValidationInfo) -> object:
        kind = info.data.get("kind")
        return _RESULTS[kind].model_validate(value) if kind and isinstance(value, dict) else value

    @property
    def ended(self) -> bool:
        """Whether the job has reached a state that it never leaves."""
        return self.state in ENDED


class JobPage(_Answer):
    """Jobs, newest first."""

    jobs: list[Job]
    next_cursor: str | None = None
    """Pass as ``cursor`` for the next page; null on the last."""


class Shard(_Answer):
    """A worker's share of a merge."""

    worker: int
    bytes: int
    """Bytes of input that it reads."""


class Plan(_Answer):
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


class MethodInfo(_Answer):
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


class Problem(_Answer):
    """An error answer (RFC 9457, ``application/problem+json``)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    errors: list[ErrorItem] = Field(default_factory=list)
