"""Traffic signs."""

from __future__ import annotations

from collections.abc import Callable

from examples.miniature.drawing.figures import arrow, regular
from examples.miniature.drawing.picture import Colour, Picture

RED, WHITE, BLUE, YELLOW, BLACK = (
    (205, 35, 40),
    (240, 240, 240),
    (40, 85, 185),
    (240, 205, 50),
    (25, 25, 25),
)


def draw_sign(picture: Picture, label: int) -> None:
    """One of ``SIGNS``."""
    place = Place(picture)
    tuple(SIGNS.values())[label](place)


class Place:
    """Where a sign stands, and how large it is."""

    def __init__(self, picture: Picture) -> None:
        self.picture = picture
        self.x, self.y = picture.between(0.42, 0.58), picture.between(0.42, 0.58)
        self.radius = picture.between(0.3, 0.42)
        self.tilt = picture.tilt() / 2

    def disc(self, size: float, colour: Colour) -> None:
        """A round plate; ``size`` 1 is the whole sign."""
        self.picture.disc((self.x, self.y), size * self.radius, colour)

    def plate(self, corners: int, turn: float, size: float, colour: Colour) -> None:
        """A plate with so many corners."""
        radius = size * self.radius
        points = [(self.x + radius * x, self.y + radius * y) for x, y in regular(corners, turn + self.tilt)]
        self.picture.polygon(points, colour)

    def text(self, text: str, height: float, colour: Colour, down: float = 0.0) -> None:
        """Letters in the middle, or a part of the radius below it."""
        self.picture.glyph(text, (self.x, self.y + down * self.radius), height * self.radius, colour)

    def bar(self, height: float, colour: Colour) -> None:
        """A horizontal bar across the middle."""
        half, high = 0.65 * self.radius, height * self.radius
        x, y = self.x, self.y
        corners = [(x - half, y - high), (x + half, y - high), (x + half, y + high), (x - half, y + high)]
        self.picture.polygon(corners, colour)


def _speed_limit(limit: str) -> Callable[[Place], None]:
    def draw(place: Place) -> None:
        place.disc(1, RED)
        place.disc(0.78, WHITE)
        place.text(limit, 0.75, BLACK)

    return draw


def _turn(angle: float) -> Callable[[Place], None]:
    def draw(place: Place) -> None:
        place.disc(1, BLUE)
        picture = place.picture
        ink, picture.ink = picture.ink, WHITE
        arrow(picture, angle + place.tilt, (place.x, place.y), 0.65 * place.radius)
        picture.ink = ink

    return draw


def _stop(place: Place) -> None:
    place.plate(8, 22.5, 1.05, WHITE)
    place.plate(8, 22.5, 0.95, RED)
    place.text("STOP", 0.5, WHITE)


def _yield(place: Place) -> None:
    place.plate(3, 180, 1.1, RED)
    place.plate(3, 180, 0.65, WHITE)


def _no_entry(place: Place) -> None:
    place.disc(1, RED)
    place.bar(0.18, WHITE)


def _danger(place: Place) -> None:
    place.plate(3, 0, 1.15, RED)
    place.plate(3, 0, 0.75, WHITE)
    place.text("!", 0.6, BLACK, down=0.05)


def _priority(place: Place) -> None:
    place.plate(4, 0, 1.1, WHITE)
    place.plate(4, 0, 0.85, YELLOW)


def _parking(place: Place) -> None:
    place.plate(4, 45, 1.15, BLUE)
    place.text("P", 1.0, WHITE)


SIGNS: dict[str, Callable[[Place], None]] = {
    "stop": _stop,
    "yield": _yield,
    "no entry": _no_entry,
    "danger": _danger,
    "priority": _priority,
    "parking": _parking,
    "turn left": _turn(180),
    "turn right": _turn(0),
    "straight ahead": _turn(270),
    "limit 30": _speed_limit("30"),
    "limit 50": _speed_limit("50"),
    "limit 80": _speed_limit("80"),
}
"""What draws a sign, by its name."""
