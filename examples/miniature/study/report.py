"""Table and figure of a study. Words that stand beside them in its page are kept."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.miniature.study.laboratory import Finding
from examples.miniature.study.studies import PLAIN, Study
from examples.miniature.table import spread, tested
from taumerge import Scores
from workers.drawing import COLOURS, FAINT, GRID, quiet_axes
from workers.reports import png

BEGIN, END = "<!-- table: written by the study -->", "<!-- end of the table -->"
RULE_COLOURS = dict(zip(("fednova", "fedgma", "median", "cclip"), COLOURS[1:], strict=False))

Setting = tuple[str, str]
"""Dial and level."""


def write(study: Study, findings: Sequence[Finding], directory: Path) -> str:
    """Write ``NAME.png`` and the table in ``NAME.md``; returns the table."""
    directory.mkdir(parents=True, exist_ok=True)
    with quiet_axes():
        (directory / f"{study.name}.png").write_bytes(png(draw(study, findings)))
    shown = f"{table(study, findings)}\n\n![{study.title}]({study.name}.png)"
    page = directory / f"{study.name}.md"
    before, after = f"# {study.title}\n\n", "\n"
    if page.exists():
        before, _, rest = page.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{shown}\n{END}{after}")
    return shown


def table(study: Study, findings: Sequence[Finding]) -> str:
    """Markdown: a row for each level; mean ± standard deviation over the seeds."""
    rules = compared(findings)
    facts: dict[str, Callable[[Finding], float | None]] = {
        "χ²": lambda one: one.diagnosis.chi_square,
        "largest / smallest ‖τ‖": norm_ratio,
        "mean cosine": mean_pair_cosine,
        "base": lambda one: measured(study, one.search.zero_shot["test"]),
        "single models": lambda one: measured(study, one.search.individual["test"]),
        PLAIN: lambda one: rule_score(study, one, PLAIN),
    }
    if study.measure == "normalised":  # of the single models it is 1
        del facts["single models"]
    header = ["", "", *facts, *(f"{rule} − {PLAIN}" for rule in rules)]
    lines = [header, ["---"] * len(header)]
    for (dial, level), group in by_setting(findings).items():
        cells = [dial, level]
        for fact in facts.values():
            cells.append(told([fact(one) for one in group]))
        for rule in rules:
            cells.append(spread(differences(study, group, rule), sign="+"))
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def draw(study: Study, findings: Sequence[Finding]) -> Figure:
    """A column for each dial: scores above, paired differences below; a dot for each seed, a line for the means."""
    settings = by_setting(findings)
    dials = list(dict.fromkeys(dial for dial, _ in settings))
    figure = Figure(figsize=(1.2 + 4.2 * len(dials), 6.6), layout="constrained")
    grid = figure.subplots(2, len(dials), sharey="row", sharex="col", squeeze=False)
    for column, dial in enumerate(dials):
        levels = {level: group for (one, level), group in settings.items() if one == dial}
        scores: dict[str, Callable[[Finding], float]] = {
            PLAIN: lambda one: rule_score(study, one, PLAIN),
            "base": lambda one: measured(study, one.search.zero_shot["test"]),
        }
        if study.measure != "normalised":
            scores["single models"] = lambda one: measured(study, one.search.individual["test"])
        for (label, score), colour in zip(scores.items(), (COLOURS[0], FAINT, COLOURS[7]), strict=False):
            _dots(
                grid[0, column], [[score(one) for one in group] for group in levels.values()], label, colour
            )
        rules = compared(findings)
        for number, rule in enumerate(rules):
            values = [differences(study, group, rule) for group in levels.values()]
            offset = (number - (len(rules) - 1) / 2) * 0.1
            _dots(grid[1, column], values, rule, RULE_COLOURS.get(rule, COLOURS[5]), offset)
        grid[1, column].axhline(0, color=FAINT, linewidth=0.8)
        grid[1, column].set_xticks(range(len(levels)), list(levels))
        grid[1, column].set_xlabel(dial)
    unit = "normalised test accuracy" if study.measure == "normalised" else "test accuracy"
    grid[0, 0].set_ylabel(unit)
    grid[1, 0].set_ylabel(f"difference to {PLAIN}")
    for row in grid:
        row[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure


def by_setting(findings: Sequence[Finding]) -> Mapping[Setting, list[Finding]]:
    """The findings of each dial and level, in their order."""
    groups: dict[Setting, list[Finding]] = {}
    for one in findings:
        groups.setdefault((one.draw.dial, one.draw.level), []).append(one)
    return groups


def compared(findings: Sequence[Finding]) -> list[str]:
    """The rules beside task arithmetic."""
    return [rule for rule in findings[0].search.best_by_method if rule != PLAIN]


def differences(study: Study, group: Sequence[Finding], rule: str) -> list[float]:
    """By how much the best of ``rule`` is above the best of task arithmetic, on the same models."""
    return [rule_score(study, one, rule) - rule_score(study, one, PLAIN) for one in group]


def rule_score(study: Study, finding: Finding, rule: str) -> float:
    """Test score of the best of ``rule``, chosen on validation data."""
    return measured(study, tested(finding.search.best_by_method[rule]))


def measured(study: Study, scores: Scores) -> float:
    """The score that the study shows."""
    return scores.score if study.measure == "normalised" else scores.average


def norm_ratio(finding: Finding) -> float:
    """Norm of the longest task vector over that of the shortest."""
    norms = [model.norm for model in finding.diagnosis.models]
    return max(norms) / min(norms)


def mean_pair_cosine(finding: Finding) -> float:
    """Mean over all pairs of models."""
    return statistics.mean(_pairs(finding))


def told(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation; an en dash where something is not known."""
    known = [value for value in values if value is not None]
    return spread(known) if len(known) == len(values) else "–"


def _pairs(finding: Finding) -> Iterator[float]:
    for row, cosines in enumerate(finding.diagnosis.cosine):
        yield from (cosine for cosine in cosines[:row] if cosine is not None)


def _dots(
    axes: Axes, values: Sequence[Sequence[float]], label: str, colour: str, offset: float = 0.0
) -> None:
    places = [place + offset for place in range(len(values))]
    axes.plot(places, [statistics.mean(one) for one in values], color=colour, linewidth=1.4, label=label)
    for place, one in zip(places, values, strict=True):
        axes.plot([place] * len(one), one, ".", color=colour, alpha=0.6)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
