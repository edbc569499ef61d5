"""Shapes, arrows and counted things: figures of one colour on a ground of another."""

from __future__ import annotations

import math
from collections.abc import Sequence

from examples.miniature.drawing.picture import Picture, Point

SHAPES = (
    "circle",
    "square",
    "triangle",
    "pentagon",
    "hexagon",
    "star",
    "cross",
    "heart",
    "crescent",
    "ring",
)
DIRECTIONS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")
COUNTS = ("one", "two", "three", "four", "five", "six")
COUNTED = ("circle", "square", "triangle", "star", "cross")


def draw_shape(picture: Picture, label: int) -> None:
    """One of ``SHAPES``, of any size near the middle."""
    centre = picture.between(0.4, 0.6), picture.between(0.4, 0.6)
    shape(picture, SHAPES[label], centre, picture.between(0.24, 0.38), picture.tilt(), picture.outline())


def draw_count(picture: Picture, label: int) -> None:
    """As many equal figures as ``COUNTS[label]`` says, apart from each other."""
    name = picture.one_of(COUNTED)
    radius = picture.between(0.08, 0.11)
    places: list[Point] = []
    while len(places) <= label:
        place = picture.between(0.13, 0.87), picture.between(0.13, 0.87)
        if any(math.dist(place, other) < 2.5 * radius for other in places):
            places = []  # begin again: some beginnings leave no room for the others
        places.append(place)
    outline = picture.outline()
    for place in places:
        shape(picture, name, place, radius, picture.tilt(), outline)


def draw_arrow(picture: Picture, label: int) -> None:
    """An arrow in one of eight ``DIRECTIONS``."""
    centre = picture.between(0.43, 0.57), picture.between(0.43, 0.57)
    arrow(picture, 45 * label + picture.tilt(), centre, picture.between(0.28, 0.42), picture.outline())


def arrow(picture: Picture, angle: float, centre: Point, half: float, outline: float = 0.0) -> None:
    """An arrow of length 2·``half`` that points ``angle`` degrees clockwise from the right."""
    shaft, head, neck = picture.between(0.1, 0.22), picture.between(0.4, 0.6), picture.between(-0.1, 0.25)
    tip = [(1.0, 0.0), (neck, head), (neck, shaft), (-1.0, shaft)]
    points = tip + [(x, -y) for x, y in reversed(tip[1:])]
    picture.polygon(_placed(points, centre, half, angle), outline=outline)


def shape(
    picture: Picture, name: str, centre: Point, radius: float, angle: float = 0.0, outline: float = 0.0
) -> None:
    """The figure called ``name``, turned by ``angle`` degrees."""
    if name == "circle":
        picture.disc(centre, radius, outline=outline)
    elif name == "ring":
        picture.disc(centre, radius, outline=radius * picture.between(0.3, 0.45))
    elif name == "crescent":
        picture.disc(centre, radius)
        [bite] = _placed([(0.45, 0.0)], centre, radius, angle + picture.one_of((0, 180)))
        picture.disc(bite, 0.8 * radius, picture.paper)
    else:
        picture.polygon(_placed(_OUTLINES[name], centre, radius, angle), outline=outline)


def regular(corners: int, turn: float = 0.0) -> list[Point]:
    """The corners of a regular polygon around 0 with radius 1; the first is at the top."""
    return [
        (math.sin(angle), -math.cos(angle))
        for angle in (math.tau * (index / corners) + math.radians(turn) for index in range(corners))
    ]


def _star() -> list[Point]:
    inner = [(0.42 * x, 0.42 * y) for x, y in regular(5, 36)]
    return [point for pair in zip(regular(5), inner, strict=True) for point in pair]


def _cross() -> list[Point]:
    arm = 0.3
    quarter = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
    points = []
    for _ in range(4):
        points += quarter
        quarter = [(-y, x) for x, y in quarter]
    return points


def _heart() -> list[Point]:
    angles = [math.tau * index / 40 for index in range(40)]
    return [
        (
            math.sin(a) ** 3,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16,
        )
        for a in angles
    ]


def _placed(points: Sequence[Point], centre: Point, scale: float, angle: float) -> list[Point]:
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return [
        (centre[0] + scale * (x * cos - y * sin), centre[1] + scale * (x * sin + y * cos)) for x, y in points
    ]


_OUTLINES = {
    "square": regular(4, 45),
    "triangle": regular(3),
    "pentagon": regular(5),
    "hexagon": regular(6, 30),
    "star": _star(),
    "cross": _cross(),
    "heart": _heart(),
}
