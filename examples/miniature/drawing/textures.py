"""Surfaces with a pattern."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from examples.miniature.drawing.picture import CANVAS, SCALE, Picture

Field = NDArray[Any]
"""A value for each point of the canvas."""


def draw_texture(picture: Picture, label: int) -> None:
    """One of ``TEXTURES`` over the whole picture, its edges more or less sharp."""
    angle = math.radians(picture.tilt() + picture.one_of((0, 90)))
    x = _GRID[0] * math.cos(angle) - _GRID[1] * math.sin(angle)
    y = _GRID[0] * math.sin(angle) + _GRID[1] * math.cos(angle)
    period = picture.between(6, 12)
    phase = picture.between(0, math.tau)
    scale = math.tau / period
    field = TEXTURES[tuple(TEXTURES)[label]](picture, x * scale + phase, y * scale + phase)
    mask = np.clip(field * picture.between(1.5, 8) * 127 + 128, 0, 255).astype(np.uint8)
    picture.image.paste(picture.ink, (0, 0), PIL.Image.fromarray(mask))


def _striped(picture: Picture, x: Field, y: Field) -> Field:
    return np.sin(x) + picture.between(-0.4, 0.4)


def _chequered(picture: Picture, x: Field, y: Field) -> Field:
    return np.sin(x / 1.4) * np.sin(y / 1.4) * 2


def _dotted(picture: Picture, x: Field, y: Field) -> Field:
    return np.cos(x) + np.cos(y) - picture.between(0.6, 1.1)


def _gridded(picture: Picture, x: Field, y: Field) -> Field:
    return np.maximum(np.cos(x), np.cos(y)) - picture.between(0.6, 0.85)


def _wavy(picture: Picture, x: Field, y: Field) -> Field:
    return np.sin(x + picture.between(1.2, 2.2) * np.sin(y / picture.between(1.3, 1.8)))


def _zigzagged(picture: Picture, x: Field, y: Field) -> Field:
    waves = y / picture.between(1.3, 1.8)
    return np.sin(x + picture.between(1.5, 2.3) * 2 / math.pi * np.arcsin(np.sin(waves)))


def _bricked(picture: Picture, x: Field, y: Field) -> Field:
    row = np.floor(y / math.tau)
    return np.maximum(np.cos(y), np.cos(x / 2 + math.pi / 2 * (row % 2))) - 0.85


def _ringed(picture: Picture, x: Field, y: Field) -> Field:
    centre = int(picture.random.integers(CANVAS // 4, 3 * CANVAS // 4, 2)[0])
    return np.asarray(np.sin(np.hypot(x - x[centre, centre], y - y[centre, centre])))


def _speckled(picture: Picture, x: Field, y: Field) -> Field:
    cells = picture.random.random((16, 16), np.float32) - 0.5
    smooth = PIL.Image.fromarray(cells).resize((CANVAS, CANVAS), PIL.Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32) * 4


def _scaly(picture: Picture, x: Field, y: Field) -> Field:
    x, y = x / 1.6, y / 1.6
    across = np.mod(x + math.pi / 2 * (np.floor(y / math.pi) % 2), math.pi) - math.pi / 2
    arc = np.hypot(across, np.mod(y, math.pi))
    return 0.5 - np.abs(arc - 2.1) * 1.5


TEXTURES: dict[str, Callable[[Picture, Field, Field], Field]] = {
    "striped": _striped,
    "chequered": _chequered,
    "dotted": _dotted,
    "gridded": _gridded,
    "wavy": _wavy,
    "zigzagged": _zigzagged,
    "bricked": _bricked,
    "ringed": _ringed,
    "speckled": _speckled,
    "scaly": _scaly,
}
"""The pattern of a surface, by its name: above 0 is ink. x and y are in radians of the pattern's period."""

_PIXELS = np.arange(CANVAS, dtype=np.float32) / SCALE
_GRID = np.meshgrid(_PIXELS, _PIXELS)
