"""The parts of a family: alternatives of a spec's options, of sites, and of one placement."""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from foveate.arguments import checked_class
from foveate.errors import FoveateError
from foveate.spec import Literal, Placement, Spec, literal_text

__all__ = ["Place", "PlacementFamily", "SiteLists", "SpecFamily"]

_MOST_SPECS = 10_000  # of one placement


@checked_class
@dataclass(frozen=True)
class SpecFamily:
    """A mechanism whose options have alternatives, such as ``ulsam(groups=1|2|4)``.

    Args:
        name: as in ``Spec``.
        options: (key, its alternatives) in the order written.
    """

    name: str
    options: tuple[tuple[str, tuple[Literal, ...]], ...] = ()

    def __str__(self) -> str:
        inside = ", ".join(f"{key}={'|'.join(map(literal_text, values))}" for key, values in self.options)
        return f"{self.name}({inside})" if inside else self.name

    def __len__(self) -> int:
        return math.prod(len(values) for _, values in self.options)

    def __iter__(self) -> Iterator[Spec]:
        keys = [key for key, _ in self.options]
        for values in itertools.product(*(values for _, values in self.options)):
            yield Spec(self.name, tuple(zip(keys, values, strict=True)))


@checked_class
@dataclass(frozen=True)
class Place:
    """One alternative of where a mechanism goes, or several.

    Args:
        sites: site patterns.
        way: "": all of them; ``any of``: one of them; ``some of``: each set of them that is not empty.
    """

    sites: tuple[str, ...]
    way: str = ""

    def __str__(self) -> str:
        return f"{self.way} {', '.join(self.sites)}".lstrip()

    @property
    def needs_network(self) -> bool:
        """Whether only a network tells how many alternatives this is."""
        return bool(self.way) and any("*" in site or ":" in site for site in self.sites)


@checked_class
@dataclass(frozen=True)
class PlacementFamily:
    """The alternatives of one placement.

    Args:
        specs: what is placed; None: nothing.
        verbs: as in ``Placement``.
        places: where; none for ``as pool``, and for ``as head`` without ``on``.
    """

    specs: tuple[SpecFamily | None, ...]
    verbs: tuple[str, ...]
    places: tuple[Place, ...] = ()

    def __str__(self) -> str:
        specs = "|".join("none" if spec is None else str(spec) for spec in self.specs)
        on = "on " if self.verbs == ("as head",) and self.places else ""
        return f"{specs} {'|'.join(self.verbs)} {on}{' | '.join(map(str, self.places))}".rstrip()

    @cached_property
    def heads(self) -> tuple[tuple[Spec, str] | None, ...]:
        """The different specs with each verb, in the order written; None: nothing is placed.

        Raises:
            FoveateError: there are too many.
        """
        if sum(len(spec) for spec in self.specs if spec) * len(self.verbs) > _MOST_SPECS:
            raise FoveateError(f"'{self}' has more than {_MOST_SPECS:,} specs: leave out some values")
        found: dict[str, tuple[Spec, str] | None] = {}
        for family in self.specs:
            for spec, verb in itertools.product(family, self.verbs) if family else [(None, "")]:
                found.setdefault(f"{spec} {verb}", (spec, verb) if spec else None)
        return tuple(found.values())

    @cached_property
    def site_lists(self) -> SiteLists:
        """The different lists of sites, in the order written.

        Raises:
            FoveateError: only a network tells them, or a site stands in two ``some of``.
        """
        if any(place.needs_network for place in self.places):
            raise FoveateError(f"'{self}' depends on the network: give it, as in fv.resolve_family(model, family)")
        return SiteLists(self.places)

    @cached_property
    def size(self) -> int:
        """The number of alternatives, with that of placing nothing."""
        return len(self.heads) * self.site_lists.size - (self.site_lists.size - 1) * (None in self.heads)

    @cached_property
    def nothing(self) -> int | None:
        """The number of the alternative that places nothing; None where there is none."""
        return self.heads.index(None) * self.site_lists.size if None in self.heads else None

    def __getitem__(self, number: int) -> Placement | None:
        """An alternative; None: nothing is placed."""
        if self.nothing is not None and number >= self.nothing:
            if number == self.nothing:
                return None
            number += self.site_lists.size - 1
        head, sites = divmod(number, self.site_lists.size)
        found = self.heads[head]
        return Placement(*found, self.site_lists[sites]) if found else None

    def overlaps(self, other: PlacementFamily) -> bool:
        """Whether it may have an alternative in common with another."""
        heads = {str(head) for head in self.heads if head} & {str(head) for head in other.heads if head}
        sites = [{site for place in each.places for site in place.sites} for each in (self, other)]
        return bool(heads) and (bool(sites[0] & sites[1]) or not any(sites))


class SiteLists:
    """The lists of sites that some places mean, each once; the sets of a ``some of`` are counted, not written out.

    Args:
        places: alternatives; without any there is one list, the empty one.

    Raises:
        FoveateError: a site stands in two ``some of``.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        sets = [dict.fromkeys(place.sites) for place in places if place.way == "some of"]
        twice = [site for site, count in Counter(itertools.chain(*sets)).items() if count > 1]
        if twice:
            raise FoveateError(f"site {twice[0]!r} stands in two 'some of' of one placement: join them into one")
        found: dict[tuple[tuple[str, ...], bool], None] = {}  # a list, or the whole of a set
        for place in places or [Place(())]:
            if place.way == "some of":
                found[tuple(dict.fromkeys(place.sites)), True] = None
                continue
            for sites in [(site,) for site in place.sites] if place.way else [place.sites]:
                if not any(sites and sites == tuple(s for s in whole if s in sites) for whole in sets):
                    found[sites, False] = None
        self.parts = tuple(found)
        self._ends = list(itertools.accumulate(2 ** len(sites) - 1 if is_set else 1 for sites, is_set in found))
        self.size = self._ends[-1]

    def __getitem__(self, number: int) -> tuple[str, ...]:
        part = bisect.bisect_right(self._ends, number)
        sites, is_set = self.parts[part]
        members = number - (self._ends[part - 1] if part else 0) + 1
        return tuple(site for k, site in enumerate(sites) if members >> k & 1) if is_set else sites
