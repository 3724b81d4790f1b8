"""The audit in the report: of each plan's modules whether they do anything."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from foveate.studies.evaluation.audit_result import Audit, ModuleAudit
from foveate.studies.evaluation.low_precision import Survival
from foveate.studies.evaluation.verdict import Effect
from foveate.studies.reporting.html_tables import plan_table, signed

__all__ = ["audit_section"]

_KINDS = {"works": "better", "harmful": "worse"}  # others are neither
_HEADINGS = (
    *("Module", "Verdict", "Without it, points", "Another image's map", "Size", "Entropy", "Varies"),
    *("Lost by bf16, fp16, int8", "Time"),
)
_HINT = (
    "Without it: top-1 with the module switched off, minus top-1, in points with a 95% interval over the images. Size: "
    "‖output − input‖ / ‖input‖. Entropy of its maps: 1 is uniform, 0 is one place alone. Varies: how much a map "
    "differs between images, against its mean. Lost: relative error of its contribution in low precision, against "
    "float32's: 0 nothing is lost, 1 as bad as without it. "
    "Time: its share of a forward pass."
)


def audit_section(audits: Mapping[str, Audit]) -> str:
    """A table of all modules and a line in words for each, as HTML; nothing where none was audited.

    Args:
        audits: by plan.
    """
    rows = [(plan, row) for plan, found in audits.items() for row in found.rows]
    if not rows:
        return ""
    table = plan_table([plan for plan, _ in rows], _HEADINGS, [_cells(row) for _, row in rows])
    several = {plan for plan, found in audits.items() if len(found.rows) > 1}
    lines = [
        f'<li><span class="dot {_KINDS.get(row.verdict, "same")}"></span><strong>{escape(plan)}'
        f"{f' ({escape(row.site)})' if plan in several else ''}</strong>: {row.verdict}: {_minus(row.reason)}</li>"
        for plan, row in rows
    ]
    counts = sorted({found.images for found in audits.values()})
    images = f"{' or '.join(f'{count:,}' for count in counts)} validation images, the first seed's network. "
    return (
        f"<h2>Does the attention do anything?</h2>\n{table}\n"
        f'<p class="hint">{images}{_HINT}</p>\n<ul class="verdicts">{"".join(lines)}</ul>'
    )


def _cells(row: ModuleAudit) -> list[tuple[str, str]]:
    lost = " ".join(_lost(survival) for survival in (row.bf16, row.fp16, row.int8))
    return [
        ("", escape(row.site)),
        ("whole", f'<span class="dot {_KINDS.get(row.verdict, "same")}"></span>{row.verdict}'),
        ("number", _effect(row.off)),
        ("number", _effect(row.shuffled)),
        ("number", _number(row.contribution, ".3f")),
        ("number", _number(row.entropy, ".3f")),
        ("number", _number(row.varies, ".2f")),
        ("number", lost),
        ("number", f"{100 * row.time:.1f} %"),
    ]


def _effect(effect: Effect | None) -> str:
    if effect is None:
        return "–"
    of = effect.difference
    return f'{signed(of.mean, 1)}<small class="whole">[{signed(of.low, 1)}, {signed(of.high, 1)}]</small>'


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _lost(survival: Survival | None) -> str:
    return "–" if survival is None else _number(survival.relative_error, ".2f")


def _minus(text: str) -> str:
    return escape(text).replace(" -", " −").replace("[-", "[−")
