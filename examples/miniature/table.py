"""What the demo prints: every rule beside the base and the fine-tuned models, and the comparison over draws."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

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


def results_table(outcome: Outcome) -> Table:
    """Test accuracy in percent of the base, the fine-tuned models and the best merge of each rule."""
    search, best = outcome.search, list(outcome.search.best_by_method.values())
    table = Table(
        title=f"{TITLES[outcome.kind]}, χ² = {outcome.diagnosis.chi_square:.2f}",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    table.add_column("zero-\nshot", justify="right", no_wrap=True)
    table.add_column("fine-\ntuned", justify="right", no_wrap=True)
    for one in best:
        style = "green" if one.method == search.best.method else None
        table.add_column("\n".join(heading(one.method)), justify="right", no_wrap=True, style=style)
    columns = [search.zero_shot["test"], search.individual["test"], *(tested(one) for one in best)]
    for task in columns[0].tasks:
        table.add_row(task.replace("_", " "), *(_percent(scores.tasks[task]) for scores in columns))
    table.add_section()
    table.add_row("average", *(_percent(scores.average) for scores in columns))
    table.add_row("normalised", *(_percent(scores.score) for scores in columns), style="bold")
    table.add_section()
    table.add_row("λ", "", "", *(f"{one.scaling:.2f}" for one in best))
    table.add_row("ρ", "", "", *(f"{one.method['rho']:.3g}" if "rho" in one.method else "" for one in best))
    return table


def comparison_table(outcomes: Sequence[Outcome]) -> Table:
    """Normalised test accuracy over the draws: mean ± deviation, and the paired difference to task arithmetic."""
    table = Table(
        title=f"Normalised test accuracy, {len({one.draw for one in outcomes})} draws",
        caption="mean ± standard deviation; difference: to task arithmetic, same models; above: in how many draws.",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("rule", "accuracy", "difference", "smallest", "largest", "above"):
        table.add_column(name, justify="left" if name == "rule" else "right", no_wrap=True)
    for kind in KINDS:
        table.add_row(f"[bold]{TITLES[kind]}[/]")
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
            table.add_row(rule, *cells)
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


def heading(method: Mapping[str, Any]) -> tuple[str, ...]:
    """The words that name a rule, with what FedNova normalises by."""
    by = method.get("normalize_by")
    return (*method["name"].split("_"), *((f"({by})",) if by else ()))


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean ± standard deviation of the sample."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.3f}{deviation}"


def tested(best: BestEvaluation) -> Scores:
    """Scores of the best of a rule on test data."""
    assert best.test is not None, "the search reports on test data"
    return best.test


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
