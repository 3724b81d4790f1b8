"""What a comparison was asked for, kept beside its runs, so that it can be read again without its data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from foveate.errors import FoveateError
from foveate.families.family import Family
from foveate.io import json_text, write_atomically
from foveate.spec import Plan
from foveate.studies.comparison.factors.levels import FamilyRows
from foveate.studies.comparison.lr_search import Tuning
from foveate.studies.comparison.measure import TOP1, Measure, measure_of
from foveate.training.recipes.recipe import Recipe

__all__ = ["BASELINE", "MOST_PLANS", "RUNS", "Plans", "Setup", "labelled_plans"]

Plans: TypeAlias = str | Plan | Family | Sequence[str | Plan | Family] | Mapping[str, str | Plan | Family]

BASELINE = "none"
MOST_PLANS = 64
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
        val_images: how many the scores are measured on.
        seeds: each used for every plan.
        recipe: of every run, but for the seed and, with tuning, the learning rate.
        runs: for each label the names of its runs, one for each seed.
        tuning: how the learning rates were chosen; None: one recipe for all.
        margin: in points: whether a plan is worse by more than that was asked for; None: it was not.
        families: those that were asked for, with the labels of their plans.
        task: what the networks were trained for.
        classes: of the data.
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
    families: tuple[FamilyRows, ...] = ()
    task: str = TOP1.task
    classes: tuple[str, ...] = ()

    @property
    def measure(self) -> Measure:
        """What the plans are compared by."""
        return measure_of(self.task)

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
                    "classes": tuple(values.get("classes", ())),
                    "families": tuple(
                        FamilyRows(rows["family"], tuple(rows["labels"])) for rows in values.get("families", ())
                    ),
                }
            )
        except (FileNotFoundError, NotADirectoryError):
            raise FoveateError(f"{folder} holds no comparison: name the --output of foveate compare") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FoveateError(
                f"{folder / _GRID} is damaged: run foveate compare again, which keeps the runs"
            ) from error


def labelled_plans(
    plans: Plans, resolve: Callable[[Family], Family], most_plans: int
) -> tuple[dict[str, Plan | None], tuple[FamilyRows, ...]]:
    """The plans of a comparison by label, the baseline first, and the families among them.

    Args:
        plans: as in ``compare``.
        resolve: puts names of sites in the place of a family's patterns.
        most_plans: how many there may be.

    Raises:
        FoveateError: a plan or family cannot be read, is given twice, or there are none or too many.
    """
    if isinstance(plans, str | Plan | Family):
        plans = [plans]
    pairs = plans.items() if isinstance(plans, Mapping) else [("", plan) for plan in plans]
    found: dict[str, Plan | None] = {BASELINE: None}
    families = []
    for label, written in pairs:
        if str(written) == BASELINE:
            continue
        family = Family.parse(written)
        if family.is_plan:
            label = label or str(written)
            if label in found:
                raise FoveateError(f"the plan {label!r} is given twice")
            found[label] = Plan.parse(str(written))
            continue
        family = resolve(family)
        if family.size > most_plans:
            raise FoveateError(
                f"the family '{written}' has {family.size:,} plans, and compare takes {most_plans} at most: allow more "
                "(most_plans=, --most-plans), write fewer alternatives, or let fv.search choose"
            )
        families.append(FamilyRows.of(family, BASELINE, f"{label}: " if label else ""))
        for name, chosen in families[-1].choices().items():
            found.setdefault(name, Plan(tuple(placement for placement in chosen if placement)) if any(chosen) else None)
    if len(found) == 1:
        raise FoveateError("compare needs at least one plan, such as 'ulsam after blocks.4.2'")
    if families and len(found) - 1 > most_plans:
        raise FoveateError(
            f"there are {len(found) - 1} plans, and compare takes {most_plans} with families (most_plans=)"
        )
    return found, tuple(families)
