"""What a comparison was asked for, kept beside its runs, so that it can be read again without its data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from foveate.errors import FoveateError
from foveate.io import json_text, write_atomically
from foveate.studies.comparison.lr_search import Tuning
from foveate.training.recipes.recipe import Recipe

__all__ = ["BASELINE", "RUNS", "Setup"]

BASELINE = "none"
RUNS, _GRID = "runs", "grid.json"


@dataclass(frozen=True)
class Setup:
    """What was asked for, as plain values: ``grid.json``.

    Args:
        network: its name, or its class.
        data: name of the data set.
        note: how its parts were made.
        licence: its terms of use, or None.
        train_images: how many it has to learn from.
        val_images: how many the accuracies are measured on.
        seeds: each used for every plan.
        recipe: of every run, but for the seed and, with tuning, the learning rate.
        runs: for each label the names of its runs, one for each seed.
        tuning: how the learning rates were chosen; None: one recipe for all.
        margin: in points: whether a plan is worse by more than that was asked for; None: it was not.
    """

    network: str
    data: str
    note: str
    licence: str | None
    train_images: int
    val_images: int
    seeds: tuple[int, ...]
    recipe: Recipe
    runs: Mapping[str, tuple[str, ...]]
    tuning: Tuning | None
    margin: float | None = None

    def learning_rate(self, label: str) -> float:
        """Of a plan's runs."""
        return self.tuning.chosen[label] if self.tuning else self.recipe.learning_rate

    def write(self, folder: Path) -> None:
        """Write ``grid.json``."""
        text = json_text(dataclasses.asdict(self), indent=1)
        write_atomically(folder / _GRID, text)

    @classmethod
    def read(cls, folder: Path) -> Setup:
        """Read ``grid.json``.

        Raises:
            FoveateError: there is none, or it is damaged.
        """
        try:
            values = json.loads((folder / _GRID).read_text("utf-8"))
            tuning = values.pop("tuning")
            return cls(
                **values
                | {
                    "seeds": tuple(values["seeds"]),
                    "recipe": Recipe.from_dict(values["recipe"]),
                    "runs": {label: tuple(names) for label, names in values["runs"].items()},
                    "tuning": tuning and Tuning.of(tuning),
                }
            )
        except FileNotFoundError:
            raise FoveateError(f"{folder} holds no comparison: name the --output of foveate compare") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FoveateError(
                f"{folder / _GRID} is damaged: run foveate compare again, which keeps the runs"
            ) from error
