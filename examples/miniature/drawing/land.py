"""Land seen from above."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from examples.miniature.drawing.picture import CANVAS, Colour, Picture, Point

MEADOW, WOOD, WATER, ROAD, SAND, ROOF, SOIL = (
    (120, 155, 80),
    (45, 85, 45),
    (50, 90, 150),
    (120, 120, 125),
    (215, 195, 140),
    (175, 80, 60),
    (150, 115, 75),
)


def draw_land(picture: Picture, label: int) -> None:
    """One of ``LAND``, in the colours of a season; the two colours of the picture play no part."""
    tuple(LAND.values())[label](picture)


def _cover(picture: Picture, colour: Colour) -> None:
    """Ground of one colour, with blots a little lighter and darker."""
    picture.draw.rectangle((0, 0, CANVAS, CANVAS), fill=_tinted(picture, colour, 0.12))
    base = _tinted(picture, colour, 0.05)
    for _ in range(5):
        _blob(picture, picture.between(0.05, 0.2), _tinted(picture, base, 0.06))


def _blob(picture: Picture, radius: float, colour: Colour) -> None:
    picture.disc((picture.between(0, 1), picture.between(0, 1)), radius, colour)


def _forest(picture: Picture) -> None:
    _cover(picture, WOOD)
    for _ in range(60):
        _blob(picture, picture.between(0.025, 0.06), _tinted(picture, WOOD, 0.35))


def _fields(picture: Picture) -> None:
    angle = picture.between(0, math.pi)
    columns, rows = (
        sorted(picture.between(-0.6, 0.6) for _ in range(3)),
        [-0.8, picture.between(-0.2, 0.2), 0.8],
    )
    edges = [-0.8, *columns, 0.8]
    for left, right in itertools.pairwise(edges):
        for top, bottom in itertools.pairwise(rows):
            corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
            colour = picture.one_of((MEADOW, SOIL, SAND, (160, 170, 70), (95, 130, 60)))
            picture.polygon([_turned(point, angle) for point in corners], _tinted(picture, colour, 0.1))


def _river(picture: Picture) -> None:
    _cover(picture, MEADOW)
    picture.path(_winding(picture, 0.12), picture.between(0.1, 0.18), _tinted(picture, WATER, 0.1))


def _lake(picture: Picture) -> None:
    _cover(picture, MEADOW)
    x, y = picture.between(0.4, 0.6), picture.between(0.4, 0.6)
    radius = picture.between(0.2, 0.32)
    points = []
    for step in range(12):
        angle, reach = math.tau * step / 12, radius * picture.between(0.75, 1.15)
        points.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    picture.polygon(points, _tinted(picture, WATER, 0.1))


def _road(picture: Picture) -> None:
    _cover(picture, picture.one_of((MEADOW, SOIL)))
    angle, offset = picture.between(0, math.tau), picture.between(-0.15, 0.15)
    ends = [_turned((-0.8, offset), angle), _turned((0.8, offset), angle)]
    width = picture.between(0.08, 0.14)
    picture.path(ends, width, _tinted(picture, ROAD, 0.1))
    picture.path(ends, width / 6, (235, 235, 230))


def _houses(picture: Picture) -> None:
    _cover(picture, MEADOW)
    angle, gap = picture.between(0, math.pi / 2), picture.between(0.24, 0.32)
    roofs = [_tinted(picture, picture.one_of((ROOF, (130, 70, 60), (150, 140, 135))), 0.15) for _ in range(3)]
    for row in range(-3, 4):
        for column in range(-3, 4):
            if picture.chance(0.85):
                w, h = picture.between(0.05, 0.09), picture.between(0.05, 0.09)
                x, y = column * gap, row * gap
                corners = [(x - w, y - h), (x + w, y - h), (x + w, y + h), (x - w, y + h)]
                picture.polygon([_turned(point, angle) for point in corners], picture.one_of(roofs))


def _orchard(picture: Picture) -> None:
    _cover(picture, picture.one_of((SOIL, MEADOW)))
    angle, gap = picture.between(0, math.pi / 2), picture.between(0.14, 0.19)
    tree = _tinted(picture, WOOD, 0.2)
    for row in range(-6, 7):
        for column in range(-6, 7):
            picture.disc(_turned((column * gap, row * gap), angle), 0.33 * gap, tree)


def _coast(picture: Picture) -> None:
    _cover(picture, WATER)
    shore = _winding(picture, 0.06)
    far = picture.one_of((-1.5, 1.5))
    angle = math.atan2(shore[-1][1] - shore[0][1], shore[-1][0] - shore[0][0]) + math.pi / 2
    away = far * math.cos(angle), far * math.sin(angle)
    beyond = [(x + away[0], y + away[1]) for x, y in (shore[-1], shore[0])]
    picture.polygon([*shore, *beyond], _tinted(picture, SAND, 0.1))
    inland = [(x + away[0] / 10, y + away[1] / 10) for x, y in shore]
    picture.polygon([*inland, *beyond], _tinted(picture, MEADOW, 0.15))


def _winding(picture: Picture, amplitude: float) -> list[Point]:
    """A line that winds from one side of the picture to the other."""
    angle, phase, waves = picture.between(0, math.tau), picture.between(0, math.tau), picture.between(3, 7)
    return [
        _turned((x, amplitude * math.sin(waves * x + phase)), angle)
        for x in (-0.8 + 1.6 * step / 20 for step in range(21))
    ]


def _turned(point: Point, angle: float) -> Point:
    """A point around the middle of the picture, turned by ``angle`` in radians."""
    x, y = point
    return 0.5 + x * math.cos(angle) - y * math.sin(angle), 0.5 + x * math.sin(angle) + y * math.cos(angle)


def _tinted(picture: Picture, colour: Colour, amount: float) -> Colour:
    """The colour, lighter or darker by at most ``amount``, with a little more of one channel."""
    light = picture.between(1 - amount, 1 + amount)
    red, green, blue = (
        max(0, min(255, round(channel * light * picture.between(0.95, 1.05)))) for channel in colour
    )
    return red, green, blue


LAND: dict[str, Callable[[Picture], None]] = {
    "forest": _forest,
    "fields": _fields,
    "river": _river,
    "lake": _lake,
    "road": _road,
    "houses": _houses,
    "orchard": _orchard,
    "coast": _coast,
}
"""What draws a kind of land, by its name."""
