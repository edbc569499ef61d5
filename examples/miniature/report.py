"""The demo's report: one HTML file with the tables, the pictures and the verdicts of its searches and diagnoses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from examples.miniature.experiment import Outcome
from examples.miniature.finetunes import KINDS
from examples.miniature.table import PLAIN, TITLES, compare, heading, spread, tested
from workers.reports import Column, Notices, Part, Picture, Section, Table, page

LEAD = (
    "Eight copies of a small CLIP, each fine-tuned on one task, merged into one model by five rules; ρ and λ of each "
    "rule are chosen on validation images."
)
PICTURES = (
    ("search", "score.png", "Validation score over λ, for each rule at its best ρ."),
    ("search", "tasks.png", "Score on each task of the best model of each rule."),
    ("diagnosis", "weights.png", "Effective weights w_t beside the intended p_t."),
    ("diagnosis", "norms.png", "Norms of the task vectors."),
    ("diagnosis", "cosine.png", "Cosines between the task vectors."),
)


def write_report(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write the report of ``outcomes``; of several draws the first is shown whole."""
    draws = {one.draw for one in outcomes}
    sections = []
    if len(draws) > 1:
        sections.append(Section(f"All rules over {len(draws)} draws", [_comparison(outcomes)]))
    sections += [_section(one) for one in outcomes if one.draw == min(draws)]
    path.write_text(page("taumerge: the paper in miniature", LEAD, sections))


def _section(outcome: Outcome) -> Section:
    place = Path(outcome.search.output).parent
    parts: list[Part] = [_results(outcome), Notices(outcome.diagnosis.verdict)]
    parts += [
        Picture((place / directory / name).read_bytes(), alt=caption, caption=caption)
        for directory, name, caption in PICTURES
        if (place / directory / name).exists()
    ]
    title = TITLES[outcome.kind]
    return Section(f"{title[0].upper()}{title[1:]}: χ² = {outcome.diagnosis.chi_square:.2f}", parts)


def _results(outcome: Outcome) -> Table:
    search, best = outcome.search, outcome.search.best_by_method.values()
    rows = {
        "zero-shot": (None, search.zero_shot["test"]),
        "fine-tuned, each on its task": (None, search.individual["test"]),
        **{" ".join(heading(one.method)): (one.scaling, tested(one)) for one in best},
    }
    winner = " ".join(heading(search.best.method))
    return Table(
        [Column("model"), Column("λ", ".2f"), Column("normalised", ".3f"), Column("average", ".3f")],
        [[name, scaling, scores.score, scores.average] for name, (scaling, scores) in rows.items()],
        "Accuracy on test images; normalised: relative to the model fine-tuned on the task.",
        sortable=True,
        marked=frozenset({list(rows).index(winner)}),
        quiet=frozenset({0, 1}),
    )


def _comparison(outcomes: Sequence[Outcome]) -> Table:
    rows = []
    for kind in KINDS:
        for rule, scores, differences in compare(outcomes, kind):
            paired: list[str | float | None] = [None, None, None]
            if rule != PLAIN:
                paired = [spread(differences, sign="+"), min(differences), max(differences)]
            rows.append([TITLES[kind], rule, spread(scores), *paired])
    return Table(
        [
            Column("training"),
            Column("rule"),
            Column("normalised test accuracy"),
            Column("difference to task arithmetic"),
            Column("smallest", "+.3f"),
            Column("largest", "+.3f"),
        ],
        rows,
        "Mean ± standard deviation over the draws; differences are on the same models.",
    )
