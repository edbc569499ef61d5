"""The pictures of a diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from math import comb

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from taumerge.schemas import DiagnoseResult
from workers.diagnostics.verdict import mean_agreement, short_names
from workers.drawing import COLOURS, FAINT, GRID, INK, quiet_axes
from workers.reports import Picture, png

COSINE, NORMS, WEIGHTS, AGREEMENT = "cosine.png", "norms.png", "weights.png", "agreement.png"
LAYERS, GRADIENTS = "layers.png", "gradients.png"

NUMBERED = 14
"""The heat map of more models has no room for numbers, and a legend none for their names."""
MOST_TICKS = 40
LONGEST = 24
"""Characters of a name beside an axis."""
CHARACTER, LINE = 0.085, 0.22
"""Width of a character and height of a line, in inches, generously."""
WIDE_RANGE = 10.0
"""Norms that differ by so much or more are on a log axis."""
NORM, GRADIENT = "‖τₜ‖₂", "‖∇Lₜ(θ*)‖₂"


def draw(result: DiagnoseResult) -> dict[str, Picture]:
    """File name → picture, those that the numbers allow."""
    full = short_names([model.uri for model in result.models])
    names = labels(full)
    norms = [model.norm for model in result.models]
    pictures = {}

    def add(file: str, draw_it: Callable[[], Figure], alt: str, caption: str) -> None:
        with quiet_axes():
            pictures[file] = Picture(png(draw_it()), alt, caption)

    if len(names) > 1:
        add(
            COSINE,
            lambda: _cosines(result, names),
            f"Heat map of the cosines. {_described_cosines(result, full)}",
            "1: the same direction, 0: nothing in common, −1: opposed. Grey: a model equal to the base has none.",
        )
    add(
        NORMS,
        lambda: _bars(norms, names, NORM),
        f"Bar chart of the norms: {_listed(full, norms)}.",
        "How far each model is from the base.",
    )
    add(
        WEIGHTS,
        lambda: _weights(result, names),
        f"Bar chart of weights and shares: {_described_weights(result, full)}.",
        "pₜ: weight in the average. wₜ: part in the sum of all learning rates. Share of ‖V‖²: what the average is made "
        "of.",
    )
    if len(names) > 1:
        add(
            AGREEMENT,
            lambda: _agreement(result),
            f"Histogram of sign agreement: {_listed(range(len(names) + 1), result.agreement)}.",
            "Coordinates by how far the signs agree, among those that any model changed: 0 is a tie, "
            f"{len(names)} is unanimous. Dots: what independent signs would give.",
        )
    add(
        LAYERS,
        lambda: _layers(result, names),
        "Line charts over the layer groups; the table below has the same numbers.",
        "Norm of each model, mean cosine of all pairs, and mean agreement of signs, by layer group.",
    )
    if result.gradients is not None:
        gradients = result.gradients.norms
        add(
            GRADIENTS,
            lambda: _bars(gradients, names, GRADIENT),
            f"Bar chart of the gradient norms: {_listed(full, gradients)}.",
            "How much each task would still change the merged model θ* = θ₀ + V, on validation data.",
        )
    return pictures


def labels(names: Sequence[str]) -> list[str]:
    """The names, all different, each short enough to stand beside an axis.

    From long ones what all begin or end with is left out, then the middle. A number says which row of the table is
    meant where that makes two alike.
    """
    if max(map(len, names)) <= LONGEST:
        return list(names)
    begin, end = _shared(names), _shared([name[::-1] for name in names])
    if begin + end >= min(map(len, names)):
        begin = end = 0
    short = [_elided(name[begin : len(name) - end]) for name in names]
    if len(set(short)) < len(short):
        return [f"{number}: {name}" for number, name in enumerate(short, 1)]
    return short


def _shared(names: Sequence[str]) -> int:
    """Characters that all names begin with, up to the last that is no letter and no digit: words are not cut."""
    same = [signs[0] for signs in takewhile(lambda signs: len(set(signs)) == 1, zip(*names, strict=False))]
    return max((place + 1 for place, sign in enumerate(same) if not sign.isalnum()), default=0)


def _elided(name: str) -> str:
    half = (LONGEST - 1) // 2
    return name if len(name) <= LONGEST else f"{name[:half]}…{name[-half:]}"


def _cosines(result: DiagnoseResult, names: Sequence[str]) -> Figure:
    matrix = np.array([[np.nan if one is None else one for one in row] for row in result.cosine])
    count = len(names)
    size = min(12.0, 2.5 + 0.45 * count)
    longest = CHARACTER * max(map(len, names))
    below = longest if _turned(names) else LINE
    figure = Figure(figsize=(size + 1.0 + longest, size + below), layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colormaps["RdBu_r"].with_extremes(bad="0.85")
    image = axes.imshow(matrix, cmap=colours, vmin=-1, vmax=1)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    _name_ticks(axes, names)
    shown = _ticks(count)
    axes.set_yticks(shown, [names[index] for index in shown])
    if count <= NUMBERED:
        for (row, column), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                colour = "white" if abs(value) > 0.6 else INK
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=18)
    bar.outline.set_visible(False)
    return figure


def _bars(values: Sequence[float], names: Sequence[str], label: str) -> Figure:
    figure, axes = _wide(len(names), names)
    axes.bar(range(len(values)), values, color=COLOURS[0], width=0.7)
    axes.set(ylabel=label)
    _name_ticks(axes, names)
    return figure


def _weights(result: DiagnoseResult, names: Sequence[str]) -> Figure:
    figure, axes = _wide(len(names), names)
    series = _weight_series(result)
    width = 0.8 / len(series)
    places = np.arange(len(names)) - 0.4 + width / 2
    for number, (label, values) in enumerate(series.items()):
        axes.bar(places + number * width, values, width, label=label, color=COLOURS[number])
    axes.axhline(0, color=FAINT, linewidth=0.8)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    _name_ticks(axes, names)
    return figure


def _weight_series(result: DiagnoseResult) -> dict[str, list[float]]:
    series: dict[str, list[float | None]] = {
        "pₜ": [model.weight for model in result.models],
        "wₜ": [model.effective_weight for model in result.models],
        "share of ‖V‖²": [model.share for model in result.models],
    }
    known = {label: [one for one in values if one is not None] for label, values in series.items()}
    return {label: values for label, values in known.items() if len(values) == len(result.models)}


def _agreement(result: DiagnoseResult) -> Figure:
    count, moved = len(result.models), sum(model.norm > 0 for model in result.models)
    figure, axes = _wide(count + 1)
    axes.bar(range(count + 1), result.agreement, color=COLOURS[0], width=0.8)
    chance = np.zeros(moved + 1)
    for heads in range(moved + 1):
        chance[abs(2 * heads - moved)] += comb(moved, heads) / 2**moved
    possible = range(moved % 2, moved + 1, 2)
    axes.plot(possible, chance[possible], "o", color=COLOURS[1], label="independent signs")
    axes.set(xlabel="|Σ sign τₜ|", ylabel="share of coordinates")
    axes.set_xticks(_ticks(count + 1))
    figure.legend(loc="outside upper center", frameon=False)
    return figure


def _layers(result: DiagnoseResult, names: Sequence[str]) -> Figure:
    groups = result.groups
    width = min(18.0, max(8.0, 3.0 + 0.25 * len(groups)))
    columns = max(1, min(4, int(width / (0.6 + CHARACTER * max(map(len, names))))))
    legend = LINE * -(-len(names) // columns) if len(names) <= NUMBERED else 0.0
    figure = Figure(figsize=(width, 8.0 + legend), layout="constrained")
    norm_axes, cosine_axes, sign_axes = figure.subplots(3, sharex=True, height_ratios=(2, 1, 1))
    places = range(len(groups))
    many = matplotlib.colormaps["viridis"]
    for index, name in enumerate(names):
        colour = COLOURS[index] if len(names) <= len(COLOURS) else many(index / (len(names) - 1))
        norms = [group.norms[index] or np.nan for group in groups]
        norm_axes.plot(places, norms, marker=".", linewidth=1.2, color=colour, label=name)
    norm_axes.set(ylabel=NORM)
    moved = [norm for group in groups for norm in group.norms if norm]
    if moved and max(moved) >= WIDE_RANGE * min(moved):
        norm_axes.set(yscale="log")
        norm_axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        norm_axes.yaxis.set_major_formatter("{x:g}")
        norm_axes.yaxis.set_minor_formatter(NullFormatter())
    if len(names) <= NUMBERED:
        figure.legend(loc="outside upper center", ncols=columns, frameon=False)
    cosine = [np.nan if group.mean_cosine is None else group.mean_cosine for group in groups]
    cosine_axes.plot(places, cosine, marker=".", color=FAINT)
    cosine_axes.axhline(0, color=GRID, linewidth=0.8, zorder=0)
    cosine_axes.set(ylabel="mean cosine")
    agreed = [mean_agreement(group.agreement) if any(group.agreement) else np.nan for group in groups]
    sign_axes.plot(places, agreed, marker=".", color=FAINT)
    sign_axes.set(ylabel="mean |Σ sign| / T", ylim=(0, 1.02))
    sign_axes.set_xticks(places, [group.name for group in groups], rotation=90, fontsize=8)
    for axes in (norm_axes, cosine_axes, sign_axes):
        axes.grid(axis="x", color=GRID)
        axes.set_axisbelow(True)
    return figure


def _wide(bars: int, names: Sequence[str] = ()) -> tuple[Figure, Axes]:
    """Axes for so many bars, with room for ``names`` below where these are turned."""
    below = CHARACTER * max(map(len, names)) if _turned(names) else 0.0
    figure = Figure(figsize=(min(16.0, max(6.0, 2.0 + 0.6 * bars)), 3.6 + below), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    return figure, axes


def _name_ticks(axes: Axes, names: Sequence[str]) -> None:
    shown = [names[index] for index in _ticks(len(names))]
    axes.set_xticks(_ticks(len(names)), shown, rotation=90 if _turned(names) else 0)


def _turned(names: Sequence[str]) -> bool:
    return sum(map(len, names)) > 60 or len(names) > 12


def _ticks(count: int) -> range:
    return range(0, count, -(-count // MOST_TICKS))


def _listed(names: Sequence[object], values: Sequence[float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in zip(names, values, strict=True))


def _described_cosines(result: DiagnoseResult, names: Sequence[str]) -> str:
    pairs = {
        f"{names[row]} and {names[column]}": cosine
        for row, values in enumerate(result.cosine)
        for column, cosine in enumerate(values[:row])
        if cosine is not None
    }
    if pairs and len(names) > NUMBERED:
        return f"They are between {min(pairs.values()):.2f} and {max(pairs.values()):.2f}."
    return _listed(list(pairs), list(pairs.values())) + "."


def _described_weights(result: DiagnoseResult, names: Sequence[str]) -> str:
    return "; ".join(f"{label}: {_listed(names, values)}" for label, values in _weight_series(result).items())
