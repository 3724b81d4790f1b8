"""Families: many plans in one line of text, for ablations and for search.

    family    = placement (";" placement)*
    placement = specs verbs places | specs "as pool" | specs "as head" ["on" places]
    specs     = (spec | "none") ("|" (spec | "none"))*     in a spec also key=literal("|" literal)*
    verbs     = "after" | "replacing" | "after|replacing" | "replacing|after"
    places    = place ("|" place)*
    place     = sites | "any of" sites | "some of" sites

``|`` separates alternatives, of which a plan has one; ``a, b`` is both. ``any of SITES`` is one alternative for each of
them, ``some of SITES`` one for each set of them that is not empty. ``none`` leaves the placement out. Every plan is a
family of one. The rest of the notation is that of ``spec``; parsing executes nothing and imports no torch.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from foveate.arguments import checked_class
from foveate.errors import FoveateError
from foveate.families.alternatives import Place, PlacementFamily, SpecFamily
from foveate.html import html_text
from foveate.spec import Parser, Placement, Plan

__all__ = ["Family"]

Value = TypeVar("Value")
_MOST_COMPARED = 1_000_000  # plans, where one could come up twice


@checked_class
@dataclass(frozen=True)
class Family:
    """Plans that are alternatives to each other, as data: ``Family.parse(str(family)) == family``.

    Iteration gives each of its plans once; the alternatives that are written last change fastest. The network without
    attention, where every placement can be ``none``, is not among them. ``len`` is their number. Plans that
    put two mechanisms at one site are among them, and ``insert`` refuses these.

    Args:
        placements: the alternatives of each placement.
    """

    placements: tuple[PlacementFamily, ...] = ()
    _repr_html_ = html_text

    def __str__(self) -> str:
        return "; ".join(str(placement) for placement in self.placements)

    @classmethod
    def parse(cls, text: str | Plan | Family) -> Family:
        """Read a family from text.

        Args:
            text: the notation of this module's docstring; a plan is a family of one.

        Raises:
            FoveateError: the text is not a family; the message names the position and shows the place.
        """
        if isinstance(text, Family):
            return text
        if not isinstance(text, str | Plan):
            raise FoveateError(f"a family is text such as 'se|cbam after blocks.2.1', not {type(text).__name__}")
        parser = _FamilyParser(str(text), "family")
        placements = [parser.placement_family()]
        while parser.take(";"):
            if parser.at_end():
                break
            placements.append(parser.placement_family())
        parser.end()
        return cls(tuple(placements))

    @property
    def is_plan(self) -> bool:
        """Whether no alternative is written, so that it is a plan."""
        return not any(
            len(each.verbs) > 1
            or any(spec is None or len(spec) > 1 for spec in each.specs)
            or len(each.specs) > 1
            or len(each.places) > 1
            or any(place.way for place in each.places)
            for each in self.placements
        )

    @cached_property
    def size(self) -> int:
        """The number of plans, however large.

        Raises:
            FoveateError: only a network tells it (``fv.resolve_family``), or too many plans can come up twice.
        """
        if self._repeats:
            return sum(1 for _ in self)
        return self._combinations - (self._empty is not None)

    def __len__(self) -> int:
        if self.size > sys.maxsize:
            raise FoveateError("the family has too many plans for Python's len: ask for its size, or sample from it")
        return self.size

    def __iter__(self) -> Iterator[Plan]:
        return (_plan(chosen) for chosen in self.choices() if any(chosen))

    def choices(self) -> Iterator[tuple[Placement | None, ...]]:
        """For each plan what was chosen for each placement; also where nothing is placed at all.

        Raises:
            FoveateError: as ``size``.
        """
        if self._repeats and self._combinations > _MOST_COMPARED:
            raise FoveateError(
                f"the family has {self._combinations:,} combinations, and some are the same plan: more than "
                f"{_MOST_COMPARED:,} are not compared with each other. Write placements that can be none with "
                "different mechanisms or sites"
            )
        seen: set[str] = set()
        for number in range(self._combinations):
            chosen = self._chosen(number)
            if self._repeats:
                text = str(_plan(chosen))
                if text in seen:
                    continue
                seen.add(text)
            yield chosen

    def sample(self, seed: int) -> Plan:
        """One of its plans at random, each with the same probability.

        Args:
            seed: the same gives the same plan.

        Raises:
            FoveateError: as ``size``, or it has no plan.
        """
        if not self.size:
            raise FoveateError(f"the family {str(self)!r} has no plan to draw")
        number = random.Random(seed).randrange(self.size)  # noqa: S311 - nothing secret is drawn
        if self._repeats:
            return next(itertools.islice(self, number, None))
        return _plan(self._chosen(number + (self._empty is not None and number >= self._empty)))

    def replaced(self, find: Callable[[str], Sequence[str]]) -> Family:
        """The family with names of sites in the place of patterns.

        Args:
            find: gives the names for a pattern.
        """
        return Family(
            tuple(replace(each, places=tuple(_named(p, find) for p in each.places)) for each in self.placements)
        )

    def _chosen(self, number: int) -> tuple[Placement | None, ...]:
        chosen: list[Placement | None] = []
        for placement in reversed(self.placements):
            number, own = divmod(number, placement.size)
            chosen.append(placement[own])
        return tuple(reversed(chosen))

    @cached_property
    def _combinations(self) -> int:
        return math.prod(placement.size for placement in self.placements)

    @cached_property
    def _empty(self) -> int | None:
        """The number of the combination that places nothing."""
        number = 0
        for placement in self.placements:
            if placement.nothing is None:
                return None
            number = number * placement.size + placement.nothing
        return number

    @cached_property
    def _repeats(self) -> bool:
        """Whether two combinations may be one plan: two placements that can be none may give the same one."""
        optional = [placement for placement in self.placements if placement.nothing is not None]
        return any(one.overlaps(other) for one, other in itertools.combinations(optional, 2))


def _plan(chosen: Iterable[Placement | None]) -> Plan:
    return Plan(tuple(placement for placement in chosen if placement))


def _named(place: Place, find: Callable[[str], Sequence[str]]) -> Place:
    names = [name for site in place.sites for name in find(site)]
    return replace(place, sites=tuple(dict.fromkeys(names) if place.way else names))


class _FamilyParser(Parser):
    """Reads alternatives, too."""

    def alternatives(self, one: Callable[[], Value]) -> tuple[Value, ...]:
        """Read at least one, with ``|`` between them."""
        found = [one()]
        while self.take("|"):
            found.append(one())
        return tuple(found)

    def placement_family(self) -> PlacementFamily:
        """Read the alternatives of a placement."""
        specs = self.alternatives(self.spec_family)
        behind = "|".join("none" if spec is None else str(spec) for spec in specs)
        verbs = self.alternatives(lambda: self.verb(behind))
        if len(verbs) > 1 and any(verb.startswith("as ") for verb in verbs):
            raise self.error("'as pool' and 'as head' have no alternatives: only 'after' and 'replacing' have")
        if verbs == ("as pool",) or (verbs == ("as head",) and not self.take("on")):
            return PlacementFamily(specs, verbs)
        return PlacementFamily(specs, verbs, self.alternatives(self.place))

    def spec_family(self) -> SpecFamily | None:
        """Read a spec whose options have alternatives, or ``none``."""
        if self.take("none"):
            return None
        return SpecFamily(*self.name_and_options(lambda: self.alternatives(self.literal)))

    def place(self) -> Place:
        """Read a list of sites, and whether it is any or some of them."""
        ahead = [token.text for token in self.tokens[self.index : self.index + 2]]
        if ahead in (["any", "of"], ["some", "of"]):
            self.index += 2
            return Place(self.sites(), " ".join(ahead))
        return Place(self.sites())
