"""Pictures of 32×32 pixels: what can be seen on them, and in which style it is drawn."""

from examples.miniature.drawing.picture import SIZE, Picture, Style
from examples.miniature.drawing.subjects import SUBJECTS, Subject

__all__ = ["SIZE", "SUBJECTS", "Picture", "Style", "Subject"]
