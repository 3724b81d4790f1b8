"""What ``faithfulness`` measured, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foveate.errors import FoveateError, near
from foveate.html import html_lines, html_table
from foveate.io import JsonObject

__all__ = ["Faithfulness", "bootstrapped"]

_DRAWS = 2000
_BETTER = {"insertion": "+", "deletion": "-", "drop": "-", "increase": "+", "pointing": "+", "iou": "+"}


def bootstrapped(values: Tensor, seed: int = 0) -> tuple[float, float, float]:
    """The mean of values (N,) and its 95% percentile interval when the images are drawn again, with replacement."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (_DRAWS, len(values)), generator=generator)
    low, high = values[drawn].mean(dim=1).quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return float(values.mean()), low, high


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """How much the maps of several methods say about the prediction.

    Args:
        data: name of the data set.
        images: how many.
        models: their names; one empty name for a single model.
        methods: as asked for, and the two baselines.
        measures: as asked for.
        values: for each (model, method, measure) a number for each image, (N,).
        seed: of the intervals.
    """

    data: str
    images: int
    models: tuple[str, ...]
    methods: tuple[str, ...]
    measures: tuple[str, ...]
    values: Mapping[tuple[str, str, str], Tensor] = field(repr=False)
    seed: int = 0

    def interval(self, method: str, measure: str, model: str | None = None) -> tuple[float, float, float]:
        """Mean, and lower and upper end of its 95% interval over the images."""
        return bootstrapped(self._values(method, measure, model), self.seed)

    def difference(
        self, method: str, other: str, measure: str, model: str | None = None, other_model: str | None = None
    ) -> tuple[float, float, float]:
        """One method minus another, paired over the images: mean and 95% interval. Two models can be compared, too.

        Raises:
            FoveateError: the method, the measure or the model was not measured.
        """
        values = self._values(method, measure, model) - self._values(other, measure, other_model or model)
        return bootstrapped(values, self.seed)

    def _values(self, method: str, measure: str, model: str | None) -> Tensor:
        asked = ((method, self.methods), (measure, self.measures), (self._model(model), self.models))
        for name, exist in asked:
            if name not in exist:
                raise FoveateError(f"{name!r} was not measured; {near(name, exist)}")
        return self.values[self._model(model), method, measure]

    def _model(self, model: str | None) -> str:
        return self.models[0] if model is None else model

    def as_dicts(self) -> list[JsonObject]:
        """Plain values, one dict for each model, method and measure."""
        rows = []
        for model, method, measure in self.values:
            mean, low, high = self.interval(method, measure, model)
            rows.append({"model": model, "method": method, "measure": measure, "mean": mean, "low": low, "high": high})
        return rows

    def __str__(self) -> str:
        labels = [" ".join(filter(None, (model, method))) for model in self.models for method in self.methods]
        first = min(max(len(label) for label in [*labels, "method"]), 36)
        lines = [f"{self.data}: {self.images} images; mean [95% interval over the images]; + large is good, - small"]
        lines.append(
            f"{'method':<{first}}" + "".join(f" {measure + ' ' + _BETTER[measure]:>20}" for measure in self.measures)
        )
        for model in self.models:
            for method in self.methods:
                cells = [self.interval(method, measure, model) for measure in self.measures]
                label = " ".join(filter(None, (model, method)))[-first:]
                lines.append(f"{label:<{first}}" + "".join(f" {_cell(*cell):>20}" for cell in cells))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [
            (model, method, *(_cell(*self.interval(method, measure, model)) for measure in self.measures))
            for model in self.models
            for method in self.methods
        ]
        note = "mean [95% interval over the images]; + large is good, - small"
        headings = [f"{measure} {_BETTER[measure]}" for measure in self.measures]
        table = html_table(("model", "method", *headings), rows, right=range(2, 2 + len(headings)))
        return html_lines(f"{self.data}: {self.images} images", [note]) + table

    def print(self) -> None:
        """Print the table."""
        print(self)


def _cell(mean: float, low: float, high: float) -> str:
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"
