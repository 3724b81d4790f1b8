"""What a training run gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

from typing_extensions import TypeVar

from foveate.html import html_curves, html_lines
from foveate.training.metrics import Evaluation
from foveate.training.recipes.recipe import Recipe

__all__ = ["Fit"]

EvaluationT_co = TypeVar("EvaluationT_co", covariant=True, default=Evaluation)


@dataclass(frozen=True, eq=False)
class Fit(Generic[EvaluationT_co]):
    """What a training run gave.

    Args:
        history: a row per epoch, with the columns of ``summary.csv``.
        evaluation: of the final weights on the validation images.
        seconds: wall time of the whole run, the parts before a ``resume`` included.
        images_per_second: training images per second of training steps, of all processes together.
        folder: the output folder, or None.
        recipe: the recipe.
        notes: what a reader of the numbers should know, such as that guessing is as good.
        chosen: ``amp`` and ``compile`` as the run trained, where the recipe left them open or asked to compile.
    """

    history: tuple[dict[str, float], ...]
    evaluation: EvaluationT_co
    seconds: float
    images_per_second: float
    folder: Path | None
    recipe: Recipe = field(repr=False)
    notes: tuple[str, ...] = ()
    chosen: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        kept = f", kept in {self.folder}" * (self.folder is not None)
        return f"<Fit of {len(self.history)} epochs in {self.seconds:.0f} s{kept}: {self.evaluation!r}>"

    def _repr_html_(self) -> str:
        found: Any = self.evaluation  # of any task: see Measured
        epochs = len(self.history)
        speed = f"{epochs} epochs, {self.seconds:.0f} s, {self.images_per_second:.0f} images/s in training steps"
        curves = {text: [row[name] for row in self.history if name in row] for name, text in found.curves.items()}
        kept = f"kept in {self.folder}" if self.folder else ""
        return html_lines(found.headline, [speed, kept, *self.notes]) + html_curves(
            {name: values for name, values in curves.items() if values}
        )
