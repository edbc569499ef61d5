"""What can be seen on the pictures, and how captions speak of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from examples.miniature.drawing.figures import COUNTS, DIRECTIONS, SHAPES, draw_arrow, draw_count, draw_shape
from examples.miniature.drawing.glyphs import DIGITS, draw_digit, draw_house_number
from examples.miniature.drawing.land import LAND, draw_land
from examples.miniature.drawing.picture import Picture
from examples.miniature.drawing.signs import SIGNS, draw_sign
from examples.miniature.drawing.textures import TEXTURES, draw_texture


@dataclass(frozen=True)
class Subject:
    """A kind of picture with its classes."""

    classes: tuple[str, ...]
    draw: Callable[[Picture, int], None]
    """Draws a class, by its number."""
    templates: tuple[str, ...]
    """Captions with ``{}`` for the class."""
    coloured: tuple[str, ...] = ()
    """Captions that also have ``{ink}`` or ``{paper}`` for the colours of figure and ground."""


SUBJECTS: dict[str, Subject] = {
    "digits": Subject(
        DIGITS,
        draw_digit,
        ("the digit {}", "a picture of the digit {}", "the number {}"),
        ("the {ink} digit {}", "the digit {} on {paper}", "a {ink} digit {} on {paper}"),
    ),
    "house_numbers": Subject(
        DIGITS,
        draw_house_number,
        ("the house number {}", "the number {} on a house"),
        ("a {ink} house number {}", "the number {} on a {paper} house"),
    ),
    "shapes": Subject(
        SHAPES,
        draw_shape,
        ("a {}", "a picture of a {}", "the shape of a {}"),
        ("a {ink} {}", "a {} on {paper}", "a {ink} {} on {paper}"),
    ),
    "counting": Subject(
        COUNTS,
        draw_count,
        ("{} things", "a picture of {} things", "{} of them"),
        ("{} {ink} things", "{} things on {paper}", "{} {ink} things on {paper}"),
    ),
    "arrows": Subject(
        DIRECTIONS,
        draw_arrow,
        ("an arrow pointing {}", "a picture of an arrow pointing {}"),
        ("a {ink} arrow pointing {}", "an arrow pointing {} on {paper}"),
    ),
    "textures": Subject(
        tuple(TEXTURES),
        draw_texture,
        ("a {} texture", "a {} surface", "something {}"),
        ("a {} texture in {ink} and {paper}", "a {} surface in {ink} and {paper}"),
    ),
    "signs": Subject(
        tuple(SIGNS),
        draw_sign,
        ("a {} sign", "a picture of a {} sign", "the traffic sign {}"),
        ("a {} sign before something {paper}",),
    ),
    "land": Subject(
        tuple(LAND),
        draw_land,
        ("{} from above", "an aerial picture of {}", "land with {}"),
    ),
}
