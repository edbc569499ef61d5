"""Fine-tunes: the request and the result."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator

from taumerge.schemas._parts import LARGEST_STEPS, AnswerPart, JobError, Number, OutputFile, RequestPart

MAX_TRIALS = 1000


class Dataset(RequestPart):
    """A named data set below ``root``, or data of one's own at ``uri``.

    Both take ``hf://datasets/OWNER/NAME@REVISION``, a data set of the Hugging Face hub, too; without a revision its
    newest commit.
    """

    name: str | None = None
    """``cars``, ``dtd``, ``eurosat``, ``gtsrb``, ``mnist``, ``resisc45``, ``sun397`` or ``svhn``."""
    root: str | None = None
    """URI of the directory that holds the named data set."""
    uri: str | None = None
    """URI of a directory or file."""
    format: Literal["image_folder", "parquet", "jsonl"] | None = None
    """Of the files at ``uri``; a data set of the hub has none."""
    subset: str | None = None
    """Which of the configurations of a data set of the hub; null: its default."""
    columns: dict[str, str] = Field(default_factory=dict)
    """What a column is for → its name: ``image`` and ``label``, ``text`` and ``label``, or ``prompt`` and
    ``response``. A column that is not listed is called as what it is for."""
    skip_corrupt: bool = False
    """Leave out and count images that cannot be decoded, instead of refusing the data set."""

    @model_validator(mode="after")
    def _named_or_own(self) -> Dataset:
        hub = (self.root or self.uri or "").startswith("hf://")
        named, own = (self.name, self.root), (self.uri, self.format)
        if any(named) == any(own) or not all(named if any(named) else (self.uri, self.format or hub)):
            raise ValueError("give either name and root, or uri and format (and columns)")
        if hub and self.format:
            raise ValueError("a data set of the hub has no format; leave it out")
        if not hub and self.subset:
            raise ValueError("only data sets of the hub have subsets; leave it out")
        if not hub and self.name and self.columns:
            raise ValueError("the layout of a named data set is known; leave columns out")
        return self


class FinetuneTask(RequestPart):
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


class TrainSpec(RequestPart):
    """AdamW; learning rate linear up to its peak, then cosine to zero, step by step."""

    steps: int = Field(default=2000, ge=1, le=LARGEST_STEPS)
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


class AdapterSpec(RequestPart):
    """Train a low-rank adapter instead of the whole model: ΔW = (alpha / rank)·B·A."""

    kind: Literal["lora", "qlora"]
    rank: int = Field(default=16, ge=1)
    alpha: FiniteFloat = Field(default=32, gt=0)
    targets: list[str] = Field(default=["q_proj", "v_proj"], min_length=1)
    """Names of the modules that get an adapter, or the ends of their names."""


class Grid(RequestPart):
    """Values to try, each with each. What is left out is taken from ``train``."""

    learning_rate: list[Annotated[FiniteFloat, Field(gt=0)]] = Field(default_factory=list)
    steps: list[Annotated[int, Field(ge=1, le=LARGEST_STEPS)]] = Field(default_factory=list)


class Resources(RequestPart):
    """What a fine-tune runs on; null: the server's settings."""

    gpus: FiniteFloat | None = Field(default=None, ge=0, le=1)
    """GPUs of each worker: 1, 0 for a CPU, or the share of one; null: where the cluster has any, one that it
    shares with nothing but a warm shard worker."""
    accelerator_type: str | None = None
    """Ray accelerator type, for example ``V100``."""
    workers: int = Field(default=1, ge=1)
    """Workers that share each step."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """``ddp``: a whole model on each worker; ``fsdp``: weights, gradients and optimizer state shared out."""


class FinetuneRequest(RequestPart):
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

    @field_validator("grid")
    @classmethod
    def _few_trials(cls, grid: Literal["paper"] | Grid | None) -> Literal["paper"] | Grid | None:
        if isinstance(grid, Grid):
            count = max(1, len(grid.learning_rate)) * max(1, len(grid.steps))
            if count > MAX_TRIALS:
                raise ValueError(
                    f"these are {count} trials, and a grid may have {MAX_TRIALS}; list fewer values"
                )
        return grid


class TrialResult(AnswerPart):
    """One run of a fine-tune: the only one, or a trial of its grid."""

    output: str
    learning_rate: float
    steps: int
    lr_sum: float | None = None
    """A_t, summed as trained."""
    loss: float | None = None
    """Training loss at the end, averaged over the last steps."""
    validation: dict[str, Number] = Field(default_factory=dict)
    """Metrics of the last validation, ``accuracy`` among them."""
    files: list[OutputFile] = Field(default_factory=list)
    error: JobError | None = None
    """Why the trial failed; the others go on."""


class FinetuneResult(AnswerPart):
    """What a fine-tune wrote and measured."""

    output: str
    trials: list[TrialResult]
    """One, or with a grid one for each of its points, in their order."""
    seconds: dict[str, float]
    """Wall time by phase."""
    warnings: list[str] = Field(default_factory=list)
