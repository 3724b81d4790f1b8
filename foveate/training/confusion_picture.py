"""The confusion matrix as a picture."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from foveate.errors import FoveateError, printable
from foveate.io import write_atomically

__all__ = ["draw", "picture"]

_FORMATS = (".png", ".svg", ".pdf")
_WITH_COUNTS, _WITH_NAMES = 20, 60  # classes, at most, whose counts and names can be read
_LONGEST = 24  # letters of a name


def draw(confusion: Tensor, classes: Sequence[str], top1: float, path: Path) -> Path:
    """Draw a confusion matrix: each row's colours are shares of the class's images, its numbers are images.

    Args:
        confusion: (K, K) images of each class (row) that were predicted as each class (column).
        classes: K names.
        top1: share of all images that are on the diagonal.
        path: a name that ends in .png, .svg or .pdf.

    Raises:
        FoveateError: the name ends in something else, or the file cannot be written.
    """
    if path.suffix.lower() not in _FORMATS:
        raise FoveateError(
            f"cannot draw to {str(path)!r}: end the name in {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}"
        )
    return write_atomically(path, picture(confusion, classes, top1, path.suffix.lower()[1:]))


def picture(confusion: Tensor, classes: Sequence[str], top1: float, kind: str = "png") -> bytes:
    """The bytes of that picture, in a format of Matplotlib's."""
    count = len(confusion)
    shares = confusion.double() / confusion.sum(dim=1, keepdim=True).clamp_min(1)
    side = min(max(4.0, 0.45 * count), 14.0)
    figure = Figure(figsize=(side + 2.0, side + 1.2), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(shares.numpy(), cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
    figure.colorbar(drawn, ax=axes, label="share of the class's images", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="true class", title=f"{int(confusion.sum())} images, {top1:.1%} right")
    if count <= _WITH_NAMES:
        names = [_short(name) for name in classes]
        axes.set_xticks(range(count), names, rotation=90)
        axes.set_yticks(range(count), names)
    if count <= _WITH_COUNTS:
        for row in range(count):
            for column in range(count):
                colour = "white" if float(shares[row, column]) > 0.5 else "black"
                axes.text(column, row, str(int(confusion[row, column])), ha="center", va="center", color=colour)
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # of letters that the font lacks: a box stands there
        figure.savefig(data, format=kind, dpi=120)
    return data.getvalue()


def _short(name: str) -> str:
    name = printable(name).encode("utf-8", "replace").decode()  # no font has what is not text
    name = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    return name.replace("$", r"\$")  # else Matplotlib takes what is between two for a formula
