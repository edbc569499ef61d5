"""What the demo prints: every rule beside the base and the fine-tuned models, and the comparison over draws."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich import box
from rich.table import Table

from examples.miniature.experiment import Outcome
from examples.miniature.finetunes import KINDS, Kind
from taumerge import BestEvaluation, Scores

TITLES: dict[Kind, str] = {
    "same": "same training everywhere",
    "different": "different training",
}
PLAIN = "task_arithmetic"
"""The rule that the others are compared with."""


def results_table(outcomes: Sequence[Outcome]) -> Table:
    """Test accuracy in percent of the base, the fine-tuned models and the best merge of each rule."""
    table = Table(
        title="Test accuracy in %; rule, ρ and λ chosen on validation images",
        caption="normalised: mean over tasks of the accuracy, relative to that of the model fine-tuned on the task.\n"
        "λ: step along the (robust, re-weighted, …) mean of the task vectors, for every rule.",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("model", no_wrap=True)
    tasks = list(outcomes[0].search.zero_shot["test"].tasks)
    for name in ("λ", *(task.replace("_", "\n") for task in tasks), "average", "normalised"):
        table.add_column(name, justify="right", no_wrap=True)
    for outcome in outcomes:
        search = outcome.search
        heterogeneity = f"χ² = {outcome.diagnosis.chi_square:.2f}"
        table.add_row(f"[bold]{TITLES[outcome.kind]}[/] ({heterogeneity})")
        table.add_row("zero-shot", "", *_scores(search.zero_shot["test"]))
        table.add_row("fine-tuned, each on its task", "", *_scores(search.individual["test"]))
        for best in search.best_by_method.values():
            winner = best.method == search.best.method
            table.add_row(
                _name(best), f"{best.scaling:.2f}", *_scores(tested(best)), style="green" if winner else ""
            )
        table.add_section()
    return table


def comparison_table(outcomes: Sequence[Outcome]) -> Table:
    """Normalised test accuracy over the draws: mean ± deviation, and the paired difference to task arithmetic."""
    table = Table(
        title=f"Normalised test accuracy, {len({one.draw for one in outcomes})} draws",
        caption="mean ± standard deviation; difference: to task arithmetic on the same models, with its extremes.",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("training")
    table.add_column("rule", no_wrap=True)
    for name in ("accuracy", "difference", "smallest", "largest", "draws above"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind in KINDS:
        title = TITLES[kind]
        for rule, scores, differences in compare(outcomes, kind):
            cells = [spread(scores)]
            if rule != PLAIN:
                above = sum(difference > 0 for difference in differences)
                cells += [
                    spread(differences, sign="+"),
                    f"{min(differences):+.3f}",
                    f"{max(differences):+.3f}",
                ]
                cells.append(f"{above} of {len(differences)}")
            table.add_row(title, rule, *cells)
            title = ""
        table.add_section()
    return table


def compare(outcomes: Sequence[Outcome], kind: Kind) -> list[tuple[str, list[float], list[float]]]:
    """For each rule its normalised test accuracy in each draw, and how much that is above task arithmetic's."""
    found = [one.search.best_by_method for one in outcomes if one.kind == kind]
    rows = []
    for rule in found[0]:
        scores = [tested(best[rule]).score for best in found]
        plain = [tested(best[PLAIN]).score for best in found]
        rows.append((rule, scores, [a - b for a, b in zip(scores, plain, strict=True)]))
    return rows


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean ± standard deviation of the sample."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.3f}{deviation}"


def tested(best: BestEvaluation) -> Scores:
    """Scores of the best of a rule on test data."""
    assert best.test is not None, "the search reports on test data"
    return best.test


def _scores(scores: Scores) -> list[str]:
    return [f"{100 * value:.1f}" for value in (*scores.tasks.values(), scores.average, scores.score)]


def _name(best: BestEvaluation) -> str:
    method = best.method
    extra = {"fednova": method.get("normalize_by"), "cclip": None}.get(method["name"])
    rho = f"ρ={method['rho']:.3g}" if "rho" in method else ""
    return " ".join(part for part in (method["name"], extra, rho) if part)
