"""Searches for the best rule, its parameters and λ: the request and the result."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Literal

from pydantic import ConfigDict, Field, FiniteFloat, field_validator, model_validator

from taumerge.schemas._parts import LARGEST_FACTOR, MAX_MODELS, AnswerPart, Number, OutputFile, RequestPart
from taumerge.schemas.finetune import Dataset
from taumerge.schemas.merge import AnyMethodSpec, Training

Split = Literal["validation", "test"]

MAX_SCALINGS = 10_000


class TaskModel(RequestPart):
    """A fine-tuned model θ_t and the task that it was trained for."""

    uri: str = Field(min_length=1)
    """As in a merge."""
    task: str = Field(min_length=1)
    """A key of ``evaluation.tasks``; every task has one model, whose score normalises the others."""
    weight: FiniteFloat | None = Field(default=None, ge=0, le=LARGEST_FACTOR)
    """p_t before normalisation, as in a merge."""
    training: Training | None = None
    """As in a merge."""


class ScalingRange(RequestPart):
    """λ from ``from`` to ``to``, both included where the steps meet it."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=True)

    start: FiniteFloat = Field(default=0.05, ge=0, le=LARGEST_FACTOR, alias="from")
    to: FiniteFloat = Field(default=2.0, ge=0, le=LARGEST_FACTOR)
    step: FiniteFloat = Field(default=0.05, gt=0)

    def values(self) -> list[float]:
        """The λ, each the float nearest to its decimal: 0.15, not 0.15000000000000002."""
        start, to, step = (Fraction(repr(value)) for value in (self.start, self.to, self.step))
        return [float(start + index * step) for index in range(math.floor((to - start) / step) + 1)]

    @model_validator(mode="after")
    def _not_empty(self) -> ScalingRange:
        if self.to < self.start:
            raise ValueError(f"the range is empty: to is {self.to:g} and from is {self.start:g}")
        if (self.to - self.start) / self.step >= MAX_SCALINGS:
            raise ValueError(f"the range has more than {MAX_SCALINGS} values; make step larger")
        return self


class EvaluationTask(RequestPart):
    """Where a task's data is, and how it is scored."""

    dataset: Dataset | None = None
    """``clip`` and ``classification``: as in a fine-tune. Validation is what a fine-tune split off."""
    classes: list[str] | None = Field(default=None, min_length=2)
    """``clip`` and ``classification``: names of the classes, by label; null: the data set's."""
    templates: list[str] | None = Field(default=None, min_length=1)
    """``clip``: prompts with ``{}`` for the class name; null: the data set's."""
    max_length: int | None = Field(default=None, ge=2)
    """``classification``: tokens that a text is cut to; null: the model's context length."""
    name: str | None = None
    """``lm_eval``: a task of the harness, or the URI of a YAML file that describes one; null: the key of the task."""
    metric: str | None = None
    """``lm_eval``: which of the task's metrics is the score; null: its first."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """``lm_eval``: worked examples before each question; null: as the task says."""
    limit: int | None = Field(default=None, ge=1)
    """Examples of each split at most, drawn with a fixed seed; null: all."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What an evaluator of your own takes."""


class EvaluationSpec(RequestPart):
    """How merged models are scored."""

    kind: str = Field(min_length=1)
    """``clip`` (zero-shot), ``classification``, ``lm_eval``, or an evaluator that the service's operator added."""
    tasks: dict[str, EvaluationTask] = Field(min_length=1)
    select_on: Split = "validation"
    """The split that decides."""
    report_on: Split | None = "test"
    """The split on which the best of each rule are scored once more; null: none."""
    batch_size: int = Field(default=256, ge=1)
    """Examples of one forward pass."""
    evaluators: int | None = Field(default=None, ge=1)
    """Processes that share the tasks; null: one for each GPU, or for each CPU where there is none."""


class Budget(RequestPart):
    """Where a search ends early. It keeps what it has evaluated."""

    evaluations: int | None = Field(default=None, ge=1)
    """Evaluations of merged models on ``select_on``, at most."""
    minutes: FiniteFloat | None = Field(default=None, gt=0)
    """No evaluation begins later."""


class SearchRequest(RequestPart):
    """Find the merge of ``models`` with the highest average normalised score, and write it to ``output``."""

    base: str = Field(min_length=1)
    """URI of the base model θ₀."""
    models: list[TaskModel] = Field(min_length=1, max_length=MAX_MODELS)
    methods: Literal["paper"] | list[AnyMethodSpec] = "paper"
    """Rules to try. A parameter may be a list of values; ``rho`` left out takes the paper's."""
    scaling: ScalingRange | list[FiniteFloat] = Field(default_factory=ScalingRange)
    """λ to try."""
    evaluation: EvaluationSpec
    algorithm: Literal["grid", "adaptive", "random", "optuna"] = "grid"
    """``grid``: everything; ``adaptive``: for each rule and ρ a coarse grid of λ, refined around its best;
    ``random`` and ``optuna``: points of the grid, as many as ``budget.evaluations``."""
    patience: int | None = Field(default=None, ge=1)
    """``grid`` alone: leave a rule and ρ after so many λ in a row that are worse than its best; null: never."""
    budget: Budget = Field(default_factory=Budget)
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of ``random`` and ``optuna``."""
    output: str = Field(min_length=1)
    """URI of the directory to create: the best merged checkpoint, and the evidence."""
    keys: Literal["strict", "intersection"] = "strict"
    """As in a merge."""
    overwrite: bool = False
    """As in a merge."""

    @field_validator("methods")
    @classmethod
    def _some_method(cls, methods: object) -> object:
        if methods == []:
            raise ValueError("give at least one rule")
        return methods

    @field_validator("scaling")
    @classmethod
    def _usable_scalings(cls, scaling: ScalingRange | list[float]) -> ScalingRange | list[float]:
        if isinstance(scaling, list):
            if not scaling:
                raise ValueError("give at least one value")
            if min(scaling) < 0 or max(scaling) > LARGEST_FACTOR:
                raise ValueError(f"λ is between 0 and {LARGEST_FACTOR:g}")
            if len(set(scaling)) < len(scaling):
                raise ValueError("a value stands twice; list each once")
        return scaling

    @model_validator(mode="after")
    def _budget_where_needed(self) -> SearchRequest:
        if self.algorithm in ("random", "optuna") and self.budget.evaluations is None:
            raise ValueError(f"algorithm {self.algorithm} needs budget.evaluations")
        return self

    @model_validator(mode="after")
    def _patience_where_it_counts(self) -> SearchRequest:
        if self.patience is not None and self.algorithm != "grid":
            raise ValueError(f"algorithm {self.algorithm} knows no patience, which is for grid; leave it out")
        return self

    @property
    def scalings(self) -> list[float]:
        """The λ to try, in the order given."""
        return self.scaling.values() if isinstance(self.scaling, ScalingRange) else list(self.scaling)


# ----------------------------------------------------------------------------------------- answers


class Scores(AnswerPart):
    """What a model reaches on one split."""

    score: Number
    """Average normalised score: the mean over tasks of score(model, t) / score(θ_t, t), on this split."""
    average: Number
    """Mean over tasks of the score itself."""
    tasks: dict[str, Number]
    """Score of each task, usually an accuracy in [0, 1]."""


class Evaluation(Scores):
    """One merged model that was evaluated, on ``select_on``."""

    method: dict[str, Any]
    """Name and every parameter of the rule."""
    scaling: float
    """λ."""
    seconds: float
    """Wall time of the evaluation."""


class BestEvaluation(Evaluation):
    """The best of a rule, or of all."""

    test: Scores | None = None
    """On ``report_on``."""


class SearchResult(AnswerPart):
    """What a search evaluated and found. ``search.json`` holds the same."""

    output: str
    evaluations: list[Evaluation]
    best: BestEvaluation
    best_by_method: dict[str, BestEvaluation]
    individual: dict[str, Scores]
    """By split: each task scored with the model that was fine-tuned for it."""
    zero_shot: dict[str, Scores]
    """By split: the base θ₀."""
    complete: bool
    """Whether everything that was asked for was evaluated, rather than what the budget allowed."""
    files: list[OutputFile]
    """Weights of the best merged model."""
    seconds: dict[str, float]
    """Wall time by phase, and ``evaluate``: forward passes and scoring alone."""
    warnings: list[str] = Field(default_factory=list)
