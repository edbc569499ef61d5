"""The table that the demo prints: the best merge of every rule, for the same and for different training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from rich import box
from rich.table import Table

from taumerge import DiagnoseResult, Scores, SearchResult

REFERENCE = "task_arithmetic"


@dataclass(frozen=True)
class Draw:
    """One set of fine-tuned models, searched and diagnosed."""

    name: str
    searched: SearchResult
    diagnosed: DiagnoseResult

    def test(self, rule: str) -> float:
        """Normalised test accuracy of the best merge by ``rule``."""
        scores = self.searched.best_by_method[rule].test
        assert scores is not None, "the search reports on test"
        return scores.score


def results_table(same: Draw, different: Sequence[Draw]) -> Table:
    """Normalised test accuracy of each rule: with the same training, with different training, and what that rule gains.

    Over several draws of different training: mean ± standard deviation, and the paired differences to task arithmetic.
    """
    table = Table(
        title="Average normalised test accuracy, λ and ρ chosen on validation data",
        caption="gain: over task arithmetic on the same models, with different training.\n"
        f"χ²(p‖w) of different training: {_spread([_chi_square(draw) for draw in different], '.2f')}; "
        f"of the same training: {_chi_square(same):.2f}.",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("model", no_wrap=True)
    for column in ("same training", "different training", "gain"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_row(
        "base (zero-shot)", _score(_base(same)), _spread([_base(draw).score for draw in different]), ""
    )
    for rule in same.searched.best_by_method:
        scores = [draw.test(rule) for draw in different]
        gains = [draw.test(rule) - draw.test(REFERENCE) for draw in different]
        table.add_row(
            rule,
            f"{same.test(rule):.3f}",
            _spread(scores),
            "" if rule == REFERENCE else _spread(gains, "+.3f"),
        )
    return table


def _base(draw: Draw) -> Scores:
    return draw.searched.zero_shot["test"]


def _score(scores: Scores) -> str:
    return f"{scores.score:.3f}"


def _chi_square(draw: Draw) -> float:
    assert draw.diagnosed.chi_square is not None, "every fine-tune writes its record"
    return draw.diagnosed.chi_square


def _spread(values: Sequence[float], form: str = ".3f") -> str:
    deviation = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):{form}}{deviation}"
