"""A cost in a notebook: the totals, and the tree of modules with what the plan adds and removes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from foveate.accounting.module_cost import ModuleCost
from foveate.html import html_lines, html_table

__all__ = ["LABELS", "cost_html"]

_DEPTH = 2  # of the tree; what the plan did is shown wherever it is
LABELS = {
    "params": "parameters",
    "macs": "MACs",
    "macs_inference": "MACs of inference",
    "activations": "activations",
    "element_ops": "element operations",
    "bytes_moved": "bytes moved",
    "activation_bytes_inference": "activation bytes, inference",
    "activation_bytes_training": "activation bytes, training",
}
_MARKS = {"added": "+ ", "removed": "\N{MINUS SIGN} ", "": ""}


def cost_html(
    counting: str, columns: Mapping[str, object], rows: Sequence[ModuleCost], unsupported: Sequence[str] = ()
) -> str:
    """The tables of a cost.

    Args:
        counting: "exact" or "paper".
        columns: costs by their heading; one that is called "difference" is shown with signs.
        rows: the modules, what contains them first; a row marked ``removed`` is of the network without the plan.
        unsupported: operations without a formula.
    """
    names = list(LABELS) if counting == "exact" else ["params", "macs"]
    if all(getattr(cost, "macs_inference", 0) == getattr(cost, "macs", 0) for cost in columns.values()):
        names = [name for name in names if name != "macs_inference"]
    totals = [
        [
            LABELS[name],
            *(format(getattr(cost, name), "+," if head == "difference" else ",") for head, cost in columns.items()),
        ]
        for name in names
    ]
    found = html_table([f"{counting} counting", *columns], totals, right=range(1, 1 + len(columns)))
    found += html_lines("", [f"unsupported operations: {', '.join(unsupported)}"] * bool(unsupported))
    shown = [row for row in rows if _is_shown(row, rows)]
    if not shown:
        return found
    cells = [
        (
            f"{_MARKS[row.change]}{_label(row.name)} {row.kind}",
            *(f"{number:,}" for number in (row.params, row.macs)),
            f"{row.share:.1%}",
            *([] if rows[0].time_share is None else [f"{row.time_share:.1%}"]),
        )
        for row in shown
    ]
    headings = ["module", "parameters", "MACs", "share", *([] if rows[0].time_share is None else ["time"])]
    depths = [min(row.name.count("."), _DEPTH) + bool(row.name) for row in shown]
    marked = [n for n, row in enumerate(shown) if row.change]
    tree = html_table(headings, cells, right=range(1, len(headings)), indent=depths, bold=marked)
    return f"{found}<details open><summary>module by module</summary>{tree}</details>"


def _is_shown(row: ModuleCost, rows: Sequence[ModuleCost]) -> bool:
    """Whether it costs something and is near the root, or is what the plan put in or took out, as a whole."""
    if not (row.params or row.macs or row.element_ops):
        return False
    if row.change:
        return not any(row.change == other.change and row.name.startswith(f"{other.name}.") for other in rows)
    return row.name.count(".") < _DEPTH


def _label(name: str) -> str:
    """The last part of a name; the whole one where what is above is not shown."""
    return name if name.count(".") >= _DEPTH else name.rpartition(".")[2]
