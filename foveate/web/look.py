"""One image that was looked at, as the page shows it, and what of it a visitor may choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

import foveate as fv

__all__ = ["Look", "asked"]

ALL, BOX = "all boxes", "box "  # of a detector, what is explained in the place of a class
_BOXES = 20  # boxes to choose from: those with the highest scores
_SHOWN = 400  # pixels, at least, of a picture on the page


@dataclass(frozen=True)
class Look:
    """One image, looked at by one network.

    Args:
        explanation: the maps and the prediction.
        note: what a visitor should know, such as that the weights are random.
    """

    explanation: fv.Explanation
    note: str

    @property
    def maps(self) -> tuple[str, ...]:
        """The names of the maps."""
        return tuple(found.name for found in self.explanation.maps)

    def overlay(self, name: str | None, opacity: float, *, smooth: bool = True) -> Image.Image:
        """The picture with one map over it; the picture alone where there is no such map."""
        if name in self.maps:
            number = self.maps.index(name)
            picture = self.explanation.overlay(number, opacity=min(max(opacity, 0.0), 1.0), smooth=smooth)
        else:
            picture = self.explanation.pictures[0]
        return self._large(picture)

    @property
    def found(self) -> Image.Image | None:
        """Of a network of pixels or objects: the picture with their classes in colour, and a legend; else None."""
        return self.explanation.picture_with_classes()

    @property
    def choices(self) -> tuple[str, ...]:
        """What else can be explained in this image: boxes, by number, and all of them; none of other networks."""
        if not self.explanation.objects:
            return ()
        count = min(len(self.explanation.objects[0].scores), _BOXES)
        return (ALL, *(f"{BOX}{number}" for number in range(1, count + 1))) if count else ()

    @property
    def scores(self) -> tuple[str, dict[str, float]]:
        """What the numbers of the classes are, and the largest of them."""
        what = "Prediction"
        if self.explanation.masks is not None:
            what = "Share of the pixels"
        elif self.explanation.objects:
            what = "Best score of each class"
        return what, {name: value for name, value in self.explanation.top().items() if value > 0}

    @staticmethod
    def _large(picture: Image.Image) -> Image.Image:
        larger = max(1, -(-_SHOWN // picture.width))
        return picture.resize((larger * picture.width, larger * picture.height), Image.Resampling.BICUBIC)


def asked(what: str, classes: tuple[str, ...]) -> dict[str, Any]:
    """The options of ``explain`` for what a visitor chose.

    Args:
        what: as in ``Explorer.look``.
        classes: the names of the network's classes.
    """
    what = what.strip()
    if not what:
        return {}
    if what in classes:
        return {"target": what}
    if what == ALL:
        return {"box": "all"}
    number = what.removeprefix(BOX)
    if number != what and number.isdecimal():
        return {"box": int(number)}
    return {"target": int(what) if what.isdecimal() else what}
