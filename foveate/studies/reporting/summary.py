"""The box at the top of the report: what was compared, a sentence for each plan, the cheapest that is not worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.io import Row
from foveate.studies.comparison.margin import points_text
from foveate.studies.reporting.charts.scatter import is_number, kind_of
from foveate.studies.reporting.tables import Line, minus, signed

__all__ = ["Summary", "summary"]

_NOT_WORSE = ("not worse", "equivalent")


@dataclass(frozen=True)
class Summary:
    """What the box says.

    Args:
        facts: names and values: network, data, seeds, date.
        lines: a sentence for each plan.
        cheapest: the cheapest plan that is not worse, in a sentence; "" where nothing was tested.
    """

    facts: Sequence[tuple[str, str]]
    lines: Sequence[Line]
    cheapest: str


def summary(rows: Sequence[Row], facts: Sequence[tuple[str, str]] = ()) -> Summary | None:
    """The box of a comparison; None where it would be empty.

    Args:
        rows: those of ``write_report``, the baseline first.
        facts: what else the box names.
    """
    lines = [
        Line(str(row.get("plan", "")), minus(str(row["verdict_text"])), kind_of(row.get("sign")))
        for row in rows
        if row.get("verdict_text")
    ]
    if not lines and not facts:
        return None
    return Summary(tuple(facts), lines, _cheapest(rows))


def _cheapest(rows: Sequence[Row]) -> str:
    """Of the plans that are better, or not worse by more than the margin, the one with the fewest multiply-adds."""
    tested = [row for row in rows[1:] if is_number(row.get("p_holm")) and is_number(row.get("macs"))]
    if not tested or not is_number(rows[0].get("macs")):
        return ""
    margin = next((row["margin"] for row in tested if is_number(row.get("margin"))), None)
    kept = [row for row in tested if row.get("sign") == 1 or row.get("margin_verdict") in _NOT_WORSE]
    if margin is None:
        claim = "better"
        none = "No plan is shown to be better. With a margin (margin=1), whether one is not worse is tested, too."
    else:
        claim = f"not worse by more than {points_text(margin)}"
        none = f"No plan is shown to be {claim}."
    if not kept:
        return none
    best = min(kept, key=lambda row: (row["macs"], row.get("params") or 0))
    changes = [
        f"{signed(100 * (best[key] / rows[0][key] - 1), 1)}% {name}"
        for key, name in (("macs", "MACs"), ("params", "parameters"))
        if is_number(best.get(key)) and is_number(rows[0].get(key)) and rows[0][key]
    ]
    cheaper = best["macs"] < rows[0]["macs"]
    ending = "" if cheaper else "; without attention the network is cheaper still"
    return f"The cheapest plan that is {claim}: {best.get('plan', '')} ({', '.join(changes)}{ending})."
