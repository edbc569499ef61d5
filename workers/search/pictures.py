"""The pictures of a search: score over λ, and task scores of the best models."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from taumerge.schemas import Evaluation, SearchResult
from workers.drawing import COLOURS, FAINT, GRID, INK, quiet_axes
from workers.reports import png

POINTS_SHOWN = 15
"""Lines of fewer points show where they were evaluated."""
NAME_LENGTH = 28
NUMBERED_TASKS = 24
"""A heat map of more tasks has no room for numbers in its cells."""


@dataclass(frozen=True)
class Row:
    """A model in the heat map."""

    label: str
    tasks: Mapping[str, float]
    score: float
    """Average normalised score."""


def score_picture(result: SearchResult, labels: Mapping[str, str], zero_shot: float | None) -> bytes:
    """A PNG of the average normalised score over λ: a line for each rule and parameters, the best of each rule bold.

    Args:
        labels: of the best of each rule, by its name, in the order of the legend.
        zero_shot: average normalised score of the base.
    """
    directions: dict[str, list[Evaluation]] = defaultdict(list)
    for one in sorted(result.evaluations, key=lambda one: one.scaling):
        directions[_key(one.method)].append(one)
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(sorted(labels))}
    with quiet_axes():
        figure = Figure(figsize=(9, 5.2), layout="constrained")
        axes = figure.subplots()
        for y, text in ((1.0, "individual"), (zero_shot, "zero-shot")):
            if y is not None:
                axes.axhline(y, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
                axes.annotate(
                    text, (1, y), xycoords=("axes fraction", "data"), xytext=(-4, 3), textcoords="offset points",
                    color=FAINT, ha="right", fontsize=9,
                )  # fmt: skip
        for name in labels:
            best = _key(result.best_by_method[name].method)
            for key, line in directions.items():
                if line[0].method["name"] == name and key != best:
                    _draw(axes, line, colours[name], bold=False)
        for name, label in labels.items():
            _draw(
                axes,
                directions[_key(result.best_by_method[name].method)],
                colours[name],
                bold=True,
                label=label,
            )
        axes.set(xlabel="λ", ylabel="average normalised score")
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.margins(x=0.02, y=0.06)
        figure.legend(
            loc="outside lower center", ncols=2 if len(labels) > 1 else 1, frameon=False, fontsize=9.5
        )
        return png(figure)


def task_picture(rows: Sequence[Row], individual: Mapping[str, float]) -> bytes:
    """A PNG of the score of each task and model; the colour is the share of the individual model's score."""
    tasks = list(individual)
    scores = np.array([[row.tasks[task] for task in tasks] for row in rows])
    shares = scores / np.array([individual[task] for task in tasks])
    shares = np.column_stack([shares, [row.score for row in rows]])
    written = np.column_stack([scores, [row.score for row in rows]])
    numbered = len(tasks) <= NUMBERED_TASKS
    with quiet_axes():
        width = 2.8 + (0.82 if numbered else 0.3) * (len(tasks) + 1)
        figure = Figure(figsize=(min(max(width, 6.0), 40.0), 1.5 + 0.42 * len(rows)), layout="constrained")
        axes = figure.subplots()
        low = min(float(np.nanmin(shares)), 0.99)
        image = axes.imshow(
            shares, cmap="YlGnBu", vmin=low, vmax=max(1.0, float(shares.max())), aspect="auto"
        )
        axes.set_xticks(range(len(tasks) + 1), [_short(task) for task in tasks] + ["normalised"])
        axes.tick_params(
            axis="x", rotation=0 if len(tasks) <= 4 else 35 if numbered else 90, top=False, length=0
        )
        axes.tick_params(axis="y", length=0)
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set_xticks(np.arange(len(tasks) + 2) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=2)
        axes.tick_params(which="minor", length=0)
        axes.axvline(len(tasks) - 0.5, color="white", linewidth=8)
        axes.spines[:].set_visible(False)
        middle = (low + 1.0) / 2 + 0.08 * (1.0 - low)
        for (row, column), share in np.ndenumerate(shares):
            if numbered:
                axes.text(
                    column, row, f"{written[row, column]:.3f}", ha="center", va="center", fontsize=9,
                    color="white" if share > middle else INK,
                )  # fmt: skip
        bar = figure.colorbar(image, ax=axes, pad=0.015, aspect=18)
        bar.outline.set_visible(False)
        bar.set_label("share of the individual score", color=FAINT, fontsize=9)
        return png(figure)


def _draw(
    axes: Axes, line: Sequence[Evaluation], colour: str, *, bold: bool, label: str | None = None
) -> None:
    top = max(line, key=lambda one: one.score)
    axes.plot(
        [one.scaling for one in line],
        [one.score for one in line],
        color=colour,
        linewidth=2.2 if bold else 0.9,
        alpha=1.0 if bold else 0.4,
        marker="." if len(line) < POINTS_SHOWN else None,
        label=label,
        zorder=3 if bold else 2,
    )
    axes.plot(
        top.scaling,
        top.score,
        color=colour,
        alpha=1.0 if bold else 0.5,
        marker="o",
        markersize=9 if bold else 4,
        markeredgecolor="white",
        markeredgewidth=1.5 if bold else 0.5,
        zorder=5 if bold else 4,
    )


def _key(method: Mapping[str, Any]) -> str:
    return json.dumps(method, sort_keys=True)


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"
