"""The audit in the report: of each plan's modules whether they do anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foveate.studies.evaluation.audit_result import Audit, ModuleAudit
from foveate.studies.evaluation.low_precision import Survival
from foveate.studies.evaluation.verdict import Effect
from foveate.studies.reporting.tables import Cell, Line, PlanTable, minus, signed

__all__ = ["AuditPart", "audit_part"]

_KINDS = {"works": "better", "harmful": "worse"}  # others are neither
_HEADINGS = (
    *("Module", "Verdict", "Without it, points", "Another image's map", "Size", "Entropy", "Varies"),
    *("Lost by bf16, fp16, int8", "Time"),
)
_HINT = (
    "Without it: {name} with the module switched off, minus {name}, in points with a 95% interval over the images. "
    "Size: "
    "‖output − input‖ / ‖input‖. Entropy of its maps: 1 is uniform, 0 is one place alone. Varies: how much a map "
    "differs between images, against its mean. Lost: relative error of its contribution in low precision, against "
    "float32's: 0 nothing is lost, 1 as bad as without it. "
    "Time: its share of a forward pass."
)


@dataclass(frozen=True)
class AuditPart:
    """What the template shows of audits: a table of all modules, how to read it, and a line in words for each."""

    table: PlanTable
    hint: str
    lines: Sequence[Line]


def audit_part(audits: Mapping[str, Audit]) -> AuditPart | None:
    """A row and a line for each module; None where none was audited.

    Args:
        audits: by plan.
    """
    rows = [(plan, row) for plan, found in audits.items() for row in found.rows]
    if not rows:
        return None
    several = {plan for plan, found in audits.items() if len(found.rows) > 1}
    lines = [
        Line(
            f"{plan} ({row.site})" if plan in several else plan,
            f"{row.verdict}: {minus(row.reason)}",
            _dot(row.verdict),
        )
        for plan, row in rows
    ]
    counts = sorted({found.images for found in audits.values()})
    images = f"{' or '.join(f'{count:,}' for count in counts)} validation images, the first seed's network. "
    table = PlanTable(_HEADINGS, [plan for plan, _ in rows], [_cells(row) for _, row in rows])
    name = next(iter(audits.values())).measure.name
    return AuditPart(table, images + _HINT.format(name=name), lines)


def _dot(verdict: str) -> str:
    return _KINDS.get(verdict, "same")


def _cells(row: ModuleAudit) -> list[Cell]:
    lost = " ".join(_lost(survival) for survival in (row.bf16, row.fp16, row.int8))
    return [
        Cell(row.site),
        Cell(row.verdict, kind="whole", dot=_dot(row.verdict)),
        _effect(row.off),
        _effect(row.shuffled),
        _number(row.contribution, ".3f"),
        _number(row.entropy, ".3f"),
        _number(row.varies, ".2f"),
        Cell(lost, kind="number"),
        Cell(f"{100 * row.time:.1f} %", kind="number"),
    ]


def _effect(effect: Effect | None) -> Cell:
    if effect is None:
        return Cell("–", kind="number")
    of = effect.difference
    return Cell(signed(of.mean, 1), f"[{signed(of.low, 1)}, {signed(of.high, 1)}]", whole=True, kind="number")


def _number(value: float | None, form: str) -> Cell:
    return Cell("–" if value is None else format(value, form), kind="number")


def _lost(survival: Survival | None) -> str:
    return "–" if survival is None or survival.relative_error is None else f"{survival.relative_error:.2f}"
