"""Which plans of a family fit the network and the budget, found before anything is trained."""

from __future__ import annotations

import random
from dataclasses import dataclass

from foveate.accounting.cost import Cost
from foveate.errors import FoveateError
from foveate.families.family import Family
from foveate.spec import Plan
from foveate.studies.search.costs import Budget, CostTable

__all__ = ["Candidate", "Candidates"]

MOST_LISTED = 10_000  # plans of a family that are all judged; of a larger one, those that come up
_DRAWS = 200  # for each plan wanted of such a family


@dataclass(frozen=True)
class Candidate:
    """A plan and its cost."""

    plan: Plan
    cost: Cost


class Candidates:
    """The plans of a family that may be trained.

    Args:
        family: with names of sites.
        table: of costs.
        budget: of parameters and MACs.

    Raises:
        FoveateError: no plan fits the network, or none keeps the budget; the cheapest is named.
    """

    def __init__(self, family: Family, table: CostTable, budget: Budget) -> None:
        self.family, self.table, self.budget = family, table, budget
        self.listed: dict[str, Candidate] | None = None
        self.unfit = self.over = 0
        self._why = ""
        if family.size <= MOST_LISTED:
            self._list()

    def _list(self) -> None:
        cheapest: Candidate | None = None
        self.listed = {}
        for plan in self.family:
            found = self.judge(plan)
            if found is None:
                self.unfit += 1
            elif self.budget.excess(found.cost):
                self.over += 1
                if cheapest is None or found.cost.macs < cheapest.cost.macs:
                    cheapest = found
            else:
                self.listed[str(plan)] = found
        if not self.listed and cheapest is not None:
            raise FoveateError(
                f"no plan of the family keeps the budget ({self.budget}); the cheapest has {cheapest.cost.params:,} "
                f"parameters and {cheapest.cost.macs:,} MACs: '{cheapest.plan}'"
            )
        if not self.listed:
            raise FoveateError(f"no plan of the family fits the network: {self._why or 'it has none'}")

    def judge(self, plan: Plan) -> Candidate | None:
        """A plan with its cost; None where it does not fit the network, as with two mechanisms at one site."""
        try:
            return Candidate(plan, self.table(plan))
        except FoveateError as error:
            self._why = str(error)
            return None

    def allowed(self, plan: Plan) -> Candidate | None:
        """A plan with its cost if it fits the network and the budget."""
        if self.listed is not None:
            return self.listed.get(str(plan))
        found = self.judge(plan)
        return None if found is None or self.budget.excess(found.cost) else found

    def draw(self, count: int, seed: int) -> list[Candidate]:
        """Different plans at random, each with the same probability; all where there are not more, in order.

        Raises:
            FoveateError: of a large family, hardly any plan fits.
        """
        if self.listed is not None:
            every = list(self.listed.values())
            return every if len(every) <= count else random.Random(seed).sample(every, count)  # noqa: S311
        found: dict[str, Candidate] = {}
        for number in range(_DRAWS * count):
            drawn = self.allowed(self.family.sample(seed * 1_000_003 + number))
            if drawn is not None:
                found.setdefault(str(drawn.plan), drawn)
            if len(found) == count:
                return list(found.values())
        if not found:
            why = self._why or f"the budget is {self.budget}"
            raise FoveateError(f"none of {_DRAWS * count:,} plans drawn from the family fits: {why}")
        return list(found.values())
