"""What varies in a family of plans: mechanism, options, verb and sites, as factors with levels.

The effect of a level is estimated by least squares on the accuracies of the plans, with the other factors in the model:
each level against the mean of the factor's other levels. Interactions are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foveate.families.family import Family
from foveate.spec import Literal, Placement, Plan, literal_text

__all__ = ["Factor", "FamilyRows", "factors_of", "groups_of", "level_weights", "levels_of"]

Array = npt.NDArray[np.float64]
Chosen = tuple[Placement | None, ...]


@dataclass(frozen=True)
class FamilyRows:
    """A family that was compared, and the labels of its plans.

    Args:
        family: its text, with names of sites.
        labels: of its plans in the family's order; the baseline's where nothing is placed.
    """

    family: str
    labels: tuple[str, ...]

    @classmethod
    def of(cls, family: Family, baseline: str, prefix: str = "") -> FamilyRows:
        """The rows of a family whose labels are the plans, behind a prefix."""
        return cls(str(family), tuple(_label(chosen, baseline, prefix) for chosen in family.choices()))

    def choices(self) -> dict[str, Chosen]:
        """For each label what was chosen."""
        return dict(zip(self.labels, Family.parse(self.family).choices(), strict=True))


def _label(chosen: Chosen, baseline: str, prefix: str) -> str:
    plan = Plan(tuple(placement for placement in chosen if placement))
    return f"{prefix}{plan}" if plan.placements else baseline


@dataclass(frozen=True)
class Factor:
    """Something that varies in a family.

    Args:
        name: "mechanism", "verb", "sites", "at SITE", or an option's name; with the number of the placement where
            several vary.
        levels: as text, in the family's order; numbers in ascending order.
        ordered: whether the levels are numbers.
        of: for each label that has the factor its level.
    """

    name: str
    levels: tuple[str, ...]
    ordered: bool
    of: Mapping[str, str]


def factors_of(rows: FamilyRows, baseline: str) -> tuple[Factor, ...]:
    """The factors of a family that was compared."""
    choices = rows.choices()
    placements = Family.parse(rows.family).placements
    found = []
    for number, placement in enumerate(placements):
        chosen = {label: parts[number] for label, parts in choices.items()}
        has_sets = any(place.way == "some of" for place in placement.places)
        if has_sets and len(placements) == 1:
            chosen.setdefault(baseline, None)  # the empty set
        suffix = f" (placement {number + 1})" if len(placements) > 1 else ""
        for name, of, numbers in _of_placement(chosen, has_sets):
            factor = _factor(f"{name}{suffix}", of, numbers)
            found += [factor] if len(factor.levels) > 1 else []
    return tuple(found)


def _of_placement(
    chosen: Mapping[str, Placement | None], has_sets: bool
) -> list[tuple[str, dict[str, str], dict[str, Literal]]]:
    """Name, level of each label, and the values behind the levels."""
    there = {label: placement for label, placement in chosen.items() if placement}
    names = {label: placement.spec.name if placement else "none" for label, placement in chosen.items()}
    mechanisms = {name for name in names.values() if name != "none"}
    found: list[tuple[str, dict[str, str], dict[str, Literal]]] = []
    if not has_sets or len(mechanisms) > 1:
        shown = names if not has_sets else {label: names[label] for label in there}
        found.append(("mechanism", shown, {}))
    for mechanism in sorted(mechanisms, key=list(names.values()).index):
        options = {label: p.spec.kwargs for label, p in there.items() if names[label] == mechanism}
        for key in dict.fromkeys(key for kwargs in options.values() for key in kwargs):
            levels = {label: _value(kwargs, key) for label, kwargs in options.items()}
            values = {literal_text(kwargs[key]): kwargs[key] for kwargs in options.values() if key in kwargs}
            found.append((key if len(mechanisms) == 1 else f"{mechanism} {key}", levels, values))
    found.append(("verb", {label: placement.verb for label, placement in there.items()}, {}))
    if has_sets:
        for site in dict.fromkeys(site for placement in there.values() for site in placement.sites):
            at = {label: "yes" if p and site in p.sites else "no" for label, p in chosen.items()}
            found.append((f"at {site}", at, {}))
    else:
        found.append(("sites", {label: ", ".join(placement.sites) for label, placement in there.items()}, {}))
    return found


def _value(kwargs: Mapping[str, Literal], key: str) -> str:
    return literal_text(kwargs[key]) if key in kwargs else "default"


def _factor(name: str, of: Mapping[str, str], values: Mapping[str, Literal]) -> Factor:
    levels = list(dict.fromkeys(of.values()))
    numbers = {level: values.get(level) for level in levels}
    ordered = all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers.values())
    if ordered and levels:
        levels.sort(key=lambda level: float(numbers[level] or 0))
    return Factor(name, tuple(levels), ordered and bool(levels), of)


def level_weights(factor: Factor, others: Sequence[Factor], labels: Sequence[str]) -> Array | None:
    """How the accuracies of plans make the adjusted mean of each level, less the mean over the levels.

    Args:
        factor: whose levels.
        others: the family's other factors; those that all plans with this factor have are in the model.
        labels: of all rows of the comparison.

    Returns:
        (levels, rows), each row with the sum 0; None where the factor cannot be told from others in these plans.
    """
    rows = [label for label in labels if label in factor.of]
    columns = [np.ones((len(rows), 1)), _coded(factor, rows)]
    columns += [_coded(other, rows) for other in others if all(label in other.of for label in rows)]
    design = np.concatenate(columns, 1)
    inverse = np.linalg.pinv(design)
    own = slice(1, len(factor.levels))
    # A coefficient can be estimated if the fit of a design without noise gives it back.
    if not np.allclose((inverse @ design)[own], np.eye(design.shape[1])[own], atol=1e-8):
        return None
    effects = _codes(len(factor.levels)) @ inverse[own]
    weights = np.zeros((len(factor.levels), len(labels)))
    weights[:, [labels.index(label) for label in rows]] = effects
    return weights


def _codes(levels: int) -> Array:
    """(levels, levels - 1): deviations from the mean over the levels."""
    return np.concatenate([np.eye(levels - 1), -np.ones((1, levels - 1))])


def _coded(factor: Factor, rows: Sequence[str]) -> Array:
    there = [level for level in factor.levels if any(factor.of[label] == level for label in rows)]
    if len(there) < 2:
        return np.zeros((len(rows), 0))
    return np.asarray(_codes(len(there))[[there.index(factor.of[label]) for label in rows]])


def levels_of(families: Sequence[FamilyRows], baseline: str) -> dict[str, dict[str, str]]:
    """For each factor of some families the level of each label that has it."""
    found: dict[str, dict[str, str]] = {}
    for factor in (factor for rows in families for factor in factors_of(rows, baseline)):
        for label, level in factor.of.items():
            found.setdefault(factor.name, {}).setdefault(label, level)
    return found


def groups_of(families: Sequence[FamilyRows]) -> dict[str, tuple[int, str]]:
    """For each plan its family and the level of the factor that changes most slowly: rows that belong together."""
    found: dict[str, tuple[int, str]] = {}
    for number, rows in enumerate(families):
        factors = factors_of(rows, "")
        first = factors[0].of if len(factors) > 1 else {}
        for label in rows.labels:
            found.setdefault(label, (number, first.get(label, "")))
    return found
