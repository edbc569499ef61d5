"""The eight data sets of the paper: their class names and prompt templates. No torch: the API reads it too."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_TEMPLATES = ("a photo of a {}.",)
"""For data sets of one's own."""


@dataclass(frozen=True)
class NamedDataset:
    """A data set by its name in a recipe; ``layouts`` knows how it lies on disk."""

    folder: str
    """Where all of it lies, below the root."""
    templates: tuple[str, ...]
    """Prompts, ``{}`` for the name of a class."""
    class_names: tuple[str, ...] | None = None
    """By label; null: the data set's own files say."""


_DIGITS = tuple(str(digit) for digit in range(10))

_LAND_USE = (
    "land with annual crops",
    "forest",
    "herbaceous vegetation",
    "highway or road",
    "industrial buildings",
    "pasture",
    "land with permanent crops",
    "residential buildings",
    "river",
    "sea or lake",
)

_TRAFFIC_SIGNS = (
    "speed limit of 20 km/h",
    "speed limit of 30 km/h",
    "speed limit of 50 km/h",
    "speed limit of 60 km/h",
    "speed limit of 70 km/h",
    "speed limit of 80 km/h",
    "end of the speed limit of 80 km/h",
    "speed limit of 100 km/h",
    "speed limit of 120 km/h",
    "no passing",
    "no passing for trucks",
    "right of way at the next crossing",
    "priority road",
    "yield",
    "stop",
    "no vehicles",
    "no trucks",
    "no entry",
    "general danger",
    "dangerous curve to the left",
    "dangerous curve to the right",
    "double curve",
    "bumpy road",
    "slippery road",
    "road narrows on the right",
    "road work",
    "traffic lights ahead",
    "pedestrians",
    "children crossing",
    "bicycles crossing",
    "snow or ice",
    "wild animals crossing",
    "end of all speed and passing limits",
    "turn right ahead",
    "turn left ahead",
    "straight ahead only",
    "straight ahead or right",
    "straight ahead or left",
    "keep right",
    "keep left",
    "roundabout",
    "end of no passing",
    "end of no passing for trucks",
)

CATALOGUE: dict[str, NamedDataset] = {
    "cars": NamedDataset(
        "stanford_cars",
        (
            "a photo of a {}.",
            "a photo of a {}, a type of car.",
            "a {} parked outside.",
            "a picture of my {}.",
        ),
    ),
    "dtd": NamedDataset(
        "dtd", ("a photo of a {} texture.", "a surface with a {} pattern.", "a close-up of something {}.")
    ),
    "eurosat": NamedDataset(
        "eurosat", ("a satellite photo of {}.", "{} seen from space.", "an aerial view of {}."), _LAND_USE
    ),
    "gtsrb": NamedDataset(
        "gtsrb", ('a photo of a "{}" traffic sign.', 'a blurry photo of the road sign "{}".'), _TRAFFIC_SIGNS
    ),
    "mnist": NamedDataset(
        "MNIST", ('a photo of the handwritten digit "{}".', 'the number "{}" written by hand.'), _DIGITS
    ),
    "resisc45": NamedDataset(
        "resisc45", ("a satellite photo of a {}.", "an aerial view of a {}.", "{} seen from above.")
    ),
    "sun397": NamedDataset("SUN397", ("a photo of a {}.", "a photo taken at a {}.", "the scene of a {}.")),
    "svhn": NamedDataset(
        "svhn", ('a photo of the house number "{}".', 'a street photo of the number "{}".'), _DIGITS
    ),
}
