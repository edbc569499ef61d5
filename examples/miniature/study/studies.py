"""The four studies: which sets of fine-tunes each compares, and by which rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from examples.miniature.experiment import BASE, draw_tasks
from examples.miniature.pretrain import WIDTH, pretrain
from examples.miniature.study.clients import (
    CLIENTS,
    Kind,
    Skew,
    client_recipes,
    clients_version,
    write_clients,
)
from examples.miniature.study.draws import (
    LORA,
    SEEDS,
    TASKS,
    Draw,
    Training,
    draw_trainings,
    task_recipes,
)
from examples.miniature.study.laboratory import Finding, Laboratory

PLAIN = "task_arithmetic"
BALANCED = "norms balanced"
RULES: list[dict[str, Any]] = [  # of centred clipping, the laboratory sets ρ
    {"name": PLAIN, "scale": "mean"},
    {"name": "fednova", "scale": "mean", "normalize_by": "lr_sum"},
    {"name": "fedgma", "scale": "mean"},
    {"name": "median", "scale": "mean"},
    {"name": "cclip", "scale": "mean"},
]
SAME_TRAINING = [rule for rule in RULES if rule["name"] != "fednova"]
"""Where every model has the same sum of learning rates, FedNova is task arithmetic."""

SKEWS = (0.0, 0.5, 0.9)
"""Not 1: a fine-tune wants a picture of each of its classes."""
RATE_RATIOS = (1, 5, 30)
STEP_RATIOS = (1, 3, 9)
WIDTHS = (48, WIDTH)
LARGEST_RATE_RATIO = RATE_RATIOS[-1]


@dataclass(frozen=True)
class Study:
    """A question of the paper, put to the miniature."""

    name: str
    title: str
    measure: str
    """``normalised`` or ``accuracy``: which score of the merged models on test data is shown."""
    carry_out: Callable[[Laboratory], list[Finding]]


def _data(laboratory: Laboratory) -> list[Finding]:
    dials: list[Kind] = ["label", "style"]
    skews = [Skew(kind, share, seed) for kind in dials for share in SKEWS for seed in SEEDS]
    directory = laboratory.directory / f"clients-{clients_version()}"
    write_clients(directory, set(skews))
    plain = draw_trainings(0)[TASKS[0]]
    draws = []
    for skew in skews:
        recipes = client_recipes(directory, skew)
        models = {
            client: replace(plain, seed=CLIENTS * skew.seed + number) for number, client in enumerate(recipes)
        }
        draws.append(Draw(f"{skew.kind} skew", f"{skew.share:g}", skew.seed, BASE, models, recipes))
    return laboratory.find(draws, SAME_TRAINING)


def _training(laboratory: Laboratory) -> list[Finding]:
    rates = [
        _task_draw(
            laboratory, "learning-rate ratio", str(ratio), seed, draw_trainings(seed, rate_ratio=ratio)
        )
        for ratio in RATE_RATIOS
        for seed in SEEDS
    ]
    steps = [
        _task_draw(laboratory, "step ratio", str(ratio), seed, draw_trainings(seed, step_ratio=ratio))
        for ratio in STEP_RATIOS
        for seed in SEEDS
    ]
    return laboratory.find([*rates, *steps], RULES)


def _method(laboratory: Laboratory) -> list[Finding]:
    """Also a search whose weights make every p_t‖τ_t‖ the same."""
    half = len(TASKS) // 2
    mixes: dict[str, list[Any]] = {
        "all full": [None] * len(TASKS),
        "half LoRA": [None] * half + [LORA] * half,
        "all LoRA": [LORA] * len(TASKS),
    }
    draws = [
        _task_draw(laboratory, "method", level, seed, draw_trainings(seed, adapters=adapters))
        for level, adapters in mixes.items()
        for seed in SEEDS
    ]
    findings = laboratory.find(draws, SAME_TRAINING)
    models = [
        dict(zip(one.draw.models, (model.uri for model in one.diagnosis.models), strict=True))
        for one in findings
    ]
    weights = [balancing_weights([model.norm for model in one.diagnosis.models]) for one in findings]
    balanced = laboratory.search(draws, models, [RULES[:1]] * len(draws), weights)
    return [
        replace(
            one,
            search=one.search.model_copy(
                update={"best_by_method": one.search.best_by_method | {BALANCED: other.best_by_method[PLAIN]}}
            ),
        )
        for one, other in zip(findings, balanced, strict=True)
    ]


def _size(laboratory: Laboratory) -> list[Finding]:
    draws = []
    for kind, ratio in (("same training", 1), ("different training", LARGEST_RATE_RATIO)):
        for width in WIDTHS:
            base = _base(laboratory.directory, width)
            draws += [
                replace(
                    _task_draw(laboratory, kind, str(width), seed, draw_trainings(seed, rate_ratio=ratio)),
                    base=base,
                )
                for seed in SEEDS
            ]
    return laboratory.find(draws, RULES)


STUDIES: Mapping[str, Study] = {
    study.name: study
    for study in (
        Study("data", "Heterogeneous data", "accuracy", _data),
        Study("training", "Heterogeneous training", "normalised", _training),
        Study("method", "Full fine-tuning and LoRA", "normalised", _method),
        Study("size", "Model size", "normalised", _size),
    )
}


def balancing_weights(norms: Sequence[float]) -> list[float]:
    """Weights p_t, of sum 1, with which every p_t‖τ_t‖ is the same."""
    total = sum(1 / norm for norm in norms)
    return [1 / norm / total for norm in norms]


def _task_draw(
    laboratory: Laboratory, dial: str, level: str, seed: int, models: Mapping[str, Training]
) -> Draw:
    return Draw(dial, level, seed, BASE, models, task_recipes(draw_tasks(laboratory.directory)))


def _base(directory: Path, width: int) -> Path:
    """The base of this width; trained where it is not there, as the demo's was."""
    if width == WIDTH:
        return BASE
    base = directory / f"base-{width}"
    if not (base / "open_clip_model.safetensors").exists():
        pretrain(base, width=width)
    return base
