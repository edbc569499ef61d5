"""A picture while it is drawn: canvas, colours, and the style that they follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import matplotlib
import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageDraw, ImageFilter, ImageFont

SIZE = 32
"""Height and width of a finished picture in pixels."""
SCALE = 3
"""The canvas is so many times larger, so that edges come out smooth."""
CANVAS = SIZE * SCALE

T = TypeVar("T")
Colour = tuple[int, int, int]
Point = tuple[float, float]
"""x from left to right and y from top to bottom, each 0 to 1."""

PAPERS: dict[str, Colour] = {
    "white": (240, 240, 240),
    "yellow": (245, 220, 90),
    "pink": (245, 175, 200),
    "grey": (180, 180, 180),
    "orange": (245, 165, 75),
    "cyan": (130, 215, 225),
}
"""Light colours, by the names that captions give them."""
INKS: dict[str, Colour] = {
    "black": (25, 25, 25),
    "red": (190, 35, 35),
    "green": (30, 115, 50),
    "blue": (40, 70, 185),
    "purple": (110, 45, 140),
    "brown": (115, 70, 35),
}
"""Dark colours."""
COLOUR_JITTER = 18
"""A colour is off by at most so much in each channel."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """How things are drawn. The tasks differ in it from the pictures that the base has seen."""

    fonts: tuple[str, ...]
    """Names of fonts that matplotlib ships, without ``.ttf``."""
    outlined: float = 0.1
    """Share of figures that are drawn as outlines."""
    tilt: float = 8.0
    """Largest rotation in degrees."""
    reversed: float = 0.0
    """Share of pictures with light figures on a dark ground."""
    faint: float = 0.0
    """Largest share by which the ink may fade into the paper."""
    busy: float = 0.0
    """Share of pictures with blots on the background."""
    blur: float = 0.0
    """Largest radius in pixels."""
    noise: float = 8.0
    """Largest standard deviation of the noise of pixels, of 255."""
    light: float = 0.1
    """Largest change of contrast and brightness, as a share."""


class Picture:
    """A canvas, the colours of figure and ground, and what draws on it."""

    def __init__(self, random: np.random.Generator, style: Style) -> None:
        self.random, self.style = random, style
        self.paper_name, self.ink_name = self.one_of(tuple(PAPERS)), self.one_of(tuple(INKS))
        self.paper, self.ink = self._jittered(PAPERS[self.paper_name]), self._jittered(INKS[self.ink_name])
        self.ink = mixed(self.ink, self.paper, self.between(0, style.faint))
        if self.chance(style.reversed):
            self.paper, self.ink = self.ink, self.paper
        self.image = self._ground()
        self.draw = ImageDraw.Draw(self.image)

    # --------------------------------------------------------------------------------------- chance

    def between(self, low: float, high: float) -> float:
        """A number between ``low`` and ``high``."""
        return float(self.random.uniform(low, high))

    def chance(self, share: float) -> bool:
        """True in so many cases."""
        return bool(self.random.random() < share)

    def one_of(self, items: Sequence[T]) -> T:
        """One of ``items``, each as likely."""
        return items[int(self.random.integers(len(items)))]

    # ------------------------------------------------------------------------------------- figures

    def polygon(self, points: Sequence[Point], colour: Colour | None = None, *, outline: float = 0.0) -> None:
        """A filled polygon, or its outline of width ``outline``."""
        colour = colour or self.ink
        corners = [(x * CANVAS, y * CANVAS) for x, y in points]
        if outline:
            width = max(SCALE, round(outline * CANVAS))
            self.draw.line([*corners, *corners[:2]], fill=colour, width=width, joint="curve")
        else:
            self.draw.polygon(corners, fill=colour)

    def path(self, points: Sequence[Point], width: float, colour: Colour | None = None) -> None:
        """A line through ``points``."""
        corners = [(x * CANVAS, y * CANVAS) for x, y in points]
        self.draw.line(corners, fill=colour or self.ink, width=max(1, round(width * CANVAS)), joint="curve")

    def disc(
        self, centre: Point, radius: float, colour: Colour | None = None, *, outline: float = 0.0
    ) -> None:
        """A filled circle, or its outline of width ``outline``."""
        x, y = centre
        box = [(value * CANVAS) for value in (x - radius, y - radius, x + radius, y + radius)]
        if outline:
            self.draw.ellipse(box, outline=colour or self.ink, width=max(SCALE, round(outline * CANVAS)))
        else:
            self.draw.ellipse(box, fill=colour or self.ink)

    def glyph(self, text: str, centre: Point, height: float, colour: Colour | None = None) -> None:
        """``text`` in a font of the style, turned a little; ``height`` is that of its ink."""
        mask = _glyph(self.one_of(self.style.fonts), text)
        size = max(1, round(mask.width * height * CANVAS / mask.height)), max(1, round(height * CANVAS))
        mask = mask.resize(size, PIL.Image.Resampling.BILINEAR)
        mask = mask.rotate(self.tilt(), PIL.Image.Resampling.BILINEAR, expand=True)
        corner = round(centre[0] * CANVAS - mask.width / 2), round(centre[1] * CANVAS - mask.height / 2)
        self.image.paste(colour or self.ink, corner, mask)

    def tilt(self) -> float:
        """A rotation in degrees that the style allows."""
        return self.between(-self.style.tilt, self.style.tilt)

    def outline(self) -> float:
        """Width of the outline of a figure; 0: it is filled."""
        return self.between(0.04, 0.08) if self.chance(self.style.outlined) else 0.0

    # -------------------------------------------------------------------------------------- finish

    def finish(self) -> NDArray[np.uint8]:
        """The picture, [32, 32, 3]: made small, blurred, lit and with noise as the style says."""
        style = self.style
        small = self.image.reduce(SCALE)
        if style.blur:
            small = small.filter(ImageFilter.GaussianBlur(self.between(0, style.blur)))
        pixels = np.asarray(small, np.float32)
        gain, shift = self.between(1 - style.light, 1 + style.light), self.between(-style.light, style.light)
        pixels = (pixels - 128) * gain + 128 * (1 + shift)
        noise = self.random.standard_normal(pixels.shape, np.float32) * self.between(0, style.noise)
        return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)

    # -------------------------------------------------------------------------------------- colours

    def _jittered(self, colour: Colour) -> Colour:
        jitter = self.random.integers(-COLOUR_JITTER, COLOUR_JITTER, 3, endpoint=True)
        red, green, blue = np.clip(colour + jitter, 0, 255).tolist()
        return red, green, blue

    def _ground(self) -> PIL.Image.Image:
        """Paper: plain, or with a gradient of light; with blots where the style has them."""
        image = PIL.Image.new("RGB", (CANVAS, CANVAS), self.paper)
        if self.chance(self.style.busy):
            draw = ImageDraw.Draw(image)
            for _ in range(int(self.random.integers(3, 8))):
                x, y, radius = self.between(0, CANVAS), self.between(0, CANVAS), self.between(5, 22)
                amount = self.between(0.75, 1.2)
                colour = tuple(min(255, round(channel * amount)) for channel in self.paper)
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        if self.chance(0.5):
            light = PIL.Image.linear_gradient("L").resize((CANVAS, CANVAS))
            light = light.rotate(self.one_of((0, 90, 180, 270)))
            dark = tuple(round(channel * 0.75) for channel in self.paper)
            image.paste(dark, (0, 0), light.point(lambda value: value * 0.7))
        return image


def mixed(colour: Colour, other: Colour, share: float) -> Colour:
    """``colour`` with a share of ``other``."""
    red, green, blue = (round((1 - share) * a + share * b) for a, b in zip(colour, other, strict=True))
    return red, green, blue


@cache
def _glyph(font: str, text: str) -> PIL.Image.Image:
    """The ink of ``text`` in a font, cut to its bounds."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    drawn = ImageFont.truetype(str(path), CANVAS)
    left, top, right, bottom = (round(value) for value in drawn.getbbox(text))
    mask = PIL.Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=drawn)
    return mask
