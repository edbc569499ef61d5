"""Layer groups: tensors that belong to one layer, by what their names begin with."""

from __future__ import annotations

import re
from collections.abc import Sequence

MOST = 60
"""Groups that are shown at most."""
OTHERS = "(others)"

_LAYER = re.compile(r"(?P<stack>(?:[^.]+\.)*?)(?P<layer>\d+)\.")
_DIGITS = re.compile(r"(\d+)")


def layer_groups(names: Sequence[str]) -> dict[str, list[int]]:
    """Group name → indices of its tensors, in natural order, at most ``MOST``.

    A group is a prefix up to the first layer number (``model.layers.7``), or for a tensor outside of numbered layers
    the first two components of its module (``model.embed_tokens``). Where there are too many, neighbouring layers are
    taken together (``model.layers.6-7``), and at last the groups with the fewest tensors as ``(others)``.
    """
    width = 1
    layers = [int(match["layer"]) for name in names if (match := _LAYER.match(name))]
    groups = _grouped(names, width)
    while len(groups) > MOST and width <= max(layers, default=0):
        width += 1
        groups = _grouped(names, width)
    kept = sorted(groups, key=lambda name: -len(groups[name]))[
        : len(groups) if len(groups) <= MOST else MOST - 1
    ]
    shown = {name: groups[name] for name in sorted(kept, key=_natural)}
    if rest := [index for name in groups.keys() - shown.keys() for index in groups[name]]:
        shown[OTHERS] = sorted(rest)
    return shown


def _grouped(names: Sequence[str], width: int) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(_group(name, width), []).append(index)
    return groups


def _group(name: str, width: int) -> str:
    if match := _LAYER.match(name):
        first = int(match["layer"]) // width * width
        return f"{match['stack']}{first}" if width == 1 else f"{match['stack']}{first}-{first + width - 1}"
    return ".".join(name.split(".")[:-1][:2]) or name


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that puts layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(name)]
