"""Digits and house numbers in the fonts of the style."""

from __future__ import annotations

import string

from examples.miniature.drawing.picture import CANVAS, Picture

DIGITS = tuple(string.digits)


def draw_digit(picture: Picture, label: int) -> None:
    """One digit."""
    picture.glyph(DIGITS[label], _middle(picture), picture.between(0.5, 0.8))


def draw_house_number(picture: Picture, label: int) -> None:
    """A digit in the middle of a plate, with parts of its neighbours at the sides."""
    height = picture.between(0.5, 0.7)
    level = picture.between(0.45, 0.55)
    if picture.chance(0.5):
        margin = picture.between(0.02, 0.12) * CANVAS
        box = (-margin, margin, CANVAS + margin, CANVAS - margin)
        picture.draw.rectangle(box, outline=picture.ink, width=3)
    middle = picture.between(0.45, 0.55)
    for side in (-1, 1):
        if picture.chance(0.6):
            place = middle + side * picture.between(0.42, 0.55), level
            picture.glyph(picture.one_of(DIGITS), place, height)
    picture.glyph(DIGITS[label], (middle, level), height)


def _middle(picture: Picture) -> tuple[float, float]:
    return picture.between(0.44, 0.56), picture.between(0.44, 0.56)
