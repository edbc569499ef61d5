"""The table that the demo prints: base, fine-tuned and merged models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from examples.digits.evaluation import average, normalised
from taumerge.schemas import MergeResult


@dataclass(frozen=True)
class Finetuned:
    """A model fine-tuned on one task: its training record, and its accuracy on every task by split."""

    record: Mapping[str, Any]
    validation: Mapping[str, float]
    test: Mapping[str, float]


@dataclass(frozen=True)
class Merged:
    """A merged model: the rule with its parameters, what the service reports, and its test accuracy."""

    method: Mapping[str, Any]
    result: MergeResult
    test: Mapping[str, float]


def results_table(
    base: Mapping[str, float], finetuned: Mapping[str, Finetuned], merged: Sequence[Merged]
) -> Table:
    """Test accuracy in percent of every model, with the norms, cosines and coefficients of the merges."""
    individual = {name: model.test[name] for name, model in finetuned.items()}
    geometry = merged[0].result
    table = Table(
        title="Test accuracy in %",
        caption="norm: ‖τ‖ of a fine-tuned model, ‖V‖ of a merged one.  A: sum of the learning rates.\n"
        "cosine: mean over the other task vectors; of a merged model, over all pairs.\n"
        "c: factor of each model's task vector in the merged model; none where a rule has no single one.",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("model", no_wrap=True)
    for name in ("λ", "norm", "cosine", *base, "average", "normalised"):
        table.add_column(name, justify="right", no_wrap=True)

    table.add_row("base", "", "", "", *_scores(base, individual), end_section=True)
    for row, (name, model) in enumerate(finetuned.items()):
        label = f"{name} [dim]{model.record['steps']} steps, A={model.record['lr_sum']:.4f}[/]"
        others = [cosine for column, cosine in enumerate(_cosines(geometry)[row]) if column != row]
        table.add_row(
            label,
            "",
            _number(geometry.models[row].norm, 2),
            _mean(others),
            *_scores(model.test, individual),
            end_section=row == len(finetuned) - 1,
        )
    for merge in merged:
        result = merge.result
        rho = f" ρ={merge.method['rho']:.3g}" if "rho" in merge.method else ""
        cosines = _cosines(result)
        pairs = [cosine for row, line in enumerate(cosines) for cosine in line[:row]]
        table.add_row(
            f"{merge.method['name']}{rho}",
            f"{result.scaling:.2f}",
            _number(result.merged_norm, 2),
            _mean(pairs),
            *_scores(merge.test, individual),
        )
        coefficients = [_number(report.coefficient, 3) for report in result.models]
        table.add_row("  c", "", "", "", *coefficients, "", "", style="dim")
    return table


def _scores(accuracies: Mapping[str, float], individual: Mapping[str, float]) -> list[str]:
    scores = (*accuracies.values(), average(accuracies), normalised(accuracies, individual))
    return [f"{100 * score:.1f}" for score in scores]


def _cosines(result: MergeResult) -> list[list[float | None]]:
    assert result.cosine is not None, "merged with statistics: full"
    return result.cosine


def _mean(cosines: Sequence[float | None]) -> str:
    known = [cosine for cosine in cosines if cosine is not None]
    return f"{sum(known) / len(known):.3f}" if known else "–"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
