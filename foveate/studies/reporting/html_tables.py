"""The tables of the report, as HTML: the comparison, each run, and the statistics behind the verdicts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from foveate.studies.comparison.statistics import p_text
from foveate.studies.reporting.charts import is_number, kind_of

__all__ = ["comparison_table", "legend", "plan_table", "runs_table", "signed", "statistics_table"]

Row = Mapping[str, Any]
# Keys that belong into another table, or into a cell of another key.
_ELSEWHERE = {
    *("plan", "top1_per_seed", "macro_f1_per_seed", "difference_low", "difference_high", "difference_per_seed"),
    *("bootstrap_low", "bootstrap_high", "p", "p_holm", "only_plan_right", "only_baseline_right", "p_mcnemar"),
    *("seed_sd", "seeds_needed", "smallest_difference", "sign", "verdict_text", "power_text"),
}
_LEGEND = {"better": "better", "worse": "worse", "same": "no evidence of a difference"}
_STEPS = 3  # shades of a colour


def comparison_table(rows: Sequence[Row]) -> str:
    """Cost, accuracy and verdict of each plan, then a line in words for each."""
    if not rows:
        return ""
    columns: dict[str, tuple[str, Callable[[Row], str]]] = {
        "params": ("Parameters", lambda row: _cost(row, rows[0], "params", "{:,}".format)),
        "macs": ("MACs", lambda row: _cost(row, rows[0], "macs", _macs)),
        "top1": ("Top-1 %", lambda row: _percent(row, "top1")),
        "macro_f1": ("Macro-F1 %", lambda row: _percent(row, "macro_f1")),
        "difference": ("Difference, points", _difference),
        "verdict": ("Verdict", lambda row: escape(str(row.get("verdict") or ""))),
        "ece": ("ECE %", lambda row: f"{row['ece']:.1f}" if is_number(row.get("ece")) else ""),
        "learning_rate": ("Learning rate", lambda row: _plain(row.get("learning_rate"))),
        "seconds": ("Training", lambda row: f"{row['seconds']:,.0f} s" if is_number(row.get("seconds")) else ""),
    }
    for key in (key for row in rows for key in row if key not in _ELSEWHERE):
        columns.setdefault(key, (key.replace("_", " "), lambda row, key=key: escape(_plain(row.get(key)))))  # type: ignore[misc]
    told = any(row.get("verdict_text") for row in rows)  # then the verdicts have lines of their own below
    shown = {key: column for key, column in columns.items() if any(row.get(key) is not None for row in rows)}
    shown = {key: column for key, column in shown.items() if not (told and key == "verdict")}
    kinds = {key: "" if key == "verdict" or not _numeric(rows, key) else "number" for key in shown}
    cells = [[(kinds[key], words(row)) for key, (_, words) in shown.items()] for row in rows]
    hint = (
        "Difference: top-1 against the first row, in points, with its 95% interval. In grey below a mean: each seed. "
        "1 MAC = one multiply-add."
    )
    table = plan_table([str(row.get("plan", "")) for row in rows], [name for name, _ in shown.values()], cells)
    return f'<h2>Comparison</h2>\n{table}\n<p class="hint">{hint}</p>{_verdicts(rows)}'


def plan_table(plans: Sequence[str], headings: Sequence[str], cells: Sequence[Sequence[tuple[str, str]]]) -> str:
    """A table with a row for each plan; a cell is its class and its HTML. On a phone each row becomes a card."""
    kinds = [{kind.split()[0] if kind else "" for kind, _ in column} for column in zip(*cells, strict=True)]
    head = "".join(
        f'<th scope="col"{_class("number" if "number" in kind else "")}>{escape(name)}</th>'
        for name, kind in zip(headings, kinds, strict=True)
    )
    lines = []
    for plan, row in zip(plans, cells, strict=True):
        inside = "".join(
            f'<td{_class(kind)} data-label="{escape(name)}">{cell and f"<span>{cell}</span>"}</td>'
            for name, (kind, cell) in zip(headings, row, strict=True)
        )
        lines.append(f'<tr><th scope="row">{escape(plan)}</th>{inside}</tr>')
    top = f'<thead><tr><th scope="col">Plan</th>{head}</tr></thead>'
    return f"<table>{top}<tbody>{''.join(lines)}</tbody></table>"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _verdicts(rows: Sequence[Row]) -> str:
    """A line in words for each plan."""
    lines = []
    for row in rows:
        if row.get("verdict_text"):
            power_text = f"<small>{escape(str(row['power_text']))}</small>" if row.get("power_text") else ""
            dot = f'<span class="dot {kind_of(row.get("sign"))}"></span>'
            plan, words = escape(str(row.get("plan", ""))), escape(re.sub(r"-(?=\d)", "−", str(row["verdict_text"])))
            lines.append(f"<li>{dot}<strong>{plan}</strong>: {words}{power_text}</li>")
    return f'\n<ul class="verdicts">{"".join(lines)}</ul>' if lines else ""


def legend(rows: Sequence[Row]) -> str:
    """What the colours of points and whiskers mean; nothing where no verdict is known."""
    if not any(row.get("sign") is not None for row in rows):
        return ""
    keys = [f'<span><span class="dot {kind}"></span>{words}</span>' for kind, words in _LEGEND.items()]
    return f'<p class="legend"><span><span class="dot first"></span>the first plan</span>{"".join(keys)}</p>'


def runs_table(rows: Sequence[Row], seeds: Sequence[int]) -> str:
    """The accuracy of every run, shaded by its difference to the first plan's run with the same seed."""
    base = rows[0].get("top1_per_seed") if rows else None
    if not base or len(base) < 2 or any(len(row.get("top1_per_seed") or ()) != len(base) for row in rows):
        return ""
    gaps = [[own - other for own, other in zip(row["top1_per_seed"], base, strict=True)] for row in rows]
    most = max(abs(gap) for row in gaps for gap in row)
    cells = [
        [
            (f"number {_shade(gap, most)}".strip(), f"{value:.1f}<small>{signed(gap, 1) if k else ''}</small>")
            for gap, value in zip(gaps[k], row["top1_per_seed"], strict=True)
        ]
        for k, row in enumerate(rows)
    ]
    table = plan_table([str(row.get("plan", "")) for row in rows], [f"Seed {seed}" for seed in seeds], cells)
    scale = [most * (step - 0.5) / _STEPS for step in range(1, _STEPS + 1)]
    swatches = [(f"down{k + 1}", f"−{scale[k]:.1f} or less") for k in reversed(range(_STEPS))]
    swatches += [("", f"less than {scale[0]:.1f} apart")]
    swatches += [(f"up{k + 1}", f"+{scale[k]:.1f} or more") for k in range(_STEPS)]
    keys = "".join(f'<span><span class="swatch {name}"></span>{words}</span>' for name, words in swatches)
    hint = "Top-1 % of every run. Shaded by the difference to the first plan with the same seed, in points:"
    return f'<h2>Every run</h2>\n{table}\n<p class="hint">{hint}</p><p class="legend">{keys}</p>'


def _shade(gap: float, most: float) -> str:
    step = round(_STEPS * abs(gap) / most) if most else 0
    return f"{'up' if gap > 0 else 'down'}{step}" if step else ""


def statistics_table(rows: Sequence[Row]) -> str:
    """What the verdicts rest on; nothing where no p value is known."""
    found = [row for row in rows if is_number(row.get("p_holm"))]
    columns: dict[str, Callable[[Row], str]] = {
        "Difference [95%]": _difference,
        "p": lambda row: _p(row, "p"),
        "p, Holm": lambda row: _p(row, "p_holm"),
        "Bootstrap [95%]": lambda row: f"[{signed(row['bootstrap_low'], 1)}, {signed(row['bootstrap_high'], 1)}]",
        "Right alone: plan / first": lambda row: f"{row['only_plan_right']:,} / {row['only_baseline_right']:,}",
        "p, McNemar": lambda row: _p(row, "p_mcnemar"),
        "Spread of seeds": lambda row: _points(row, "seed_sd"),
        "Smallest seen": lambda row: _points(row, "smallest_difference"),
        "Seeds needed": _seeds_needed,
    }
    if not found:
        return ""
    cells = [
        [
            ("number", escape(words(row)) if name != "Difference [95%]" else words(row))
            for name, words in columns.items()
        ]
        for row in found
    ]
    table = plan_table([str(row["plan"]) for row in found], list(columns), cells)
    hint = (
        "In points of top-1. p: paired over seeds and images. Holm: corrected for the number of plans; verdicts follow "
        "it. Bootstrap: seeds and images drawn again; too narrow with few seeds. Right alone: predictions that only "
        "the plan, or only the first, has right. McNemar: predictions of all seeds pooled, as if each were "
        "independent; it says nothing of other seeds. Spread: standard deviation of the differences of single seeds. "
        "Smallest seen: with these seeds and 80% power in a paired t test on these images, at 5% divided by the number "
        "of plans. Seeds needed: to see a difference as large as the one found; it is for planning and is no evidence."
    )
    return f'<h2>Statistics</h2>\n{table}\n<p class="hint">{hint}</p>'


def _p(row: Row, key: str) -> str:
    return p_text("", row[key]).removeprefix(" = ").strip()


def _points(row: Row, key: str) -> str:
    return f"{row[key]:.1f}" if is_number(row.get(key)) else "unknown"


def _seeds_needed(row: Row) -> str:
    if is_number(row.get("seeds_needed")):
        return f"{row['seeds_needed']:,}"
    return "unknown" if row.get("seed_sd") is None else "–"


def _numeric(rows: Sequence[Row], key: str) -> bool:
    return all(row.get(key) is None or is_number(row[key]) for row in rows)


def _plain(value: object) -> str:
    return "" if value is None else f"{value:,.4g}" if isinstance(value, float) else str(value)


def _macs(value: float) -> str:
    return f"{value / 1e6:,.1f} M"


def _cost(row: Row, first: Row, key: str, words: Callable[[Any], str]) -> str:
    value, before = row.get(key), first.get(key)
    if not is_number(value):
        return ""
    if row is first or not is_number(before) or not before:
        return words(value)
    return f'{words(value)}<small class="whole">{signed(100 * (value / before - 1), 2)} %</small>'


def _percent(row: Row, key: str) -> str:
    if not is_number(row.get(key)):
        return ""
    seeds = [value for value in row.get(f"{key}_per_seed") or () if is_number(value)]
    each = f"<small>{', '.join(f'{value:.1f}' for value in seeds)}</small>" if len(seeds) > 1 else ""
    return f"{row[key]:.1f}{each}"


def _difference(row: Row) -> str:
    if not is_number(row.get("difference")):
        return ""
    ends = [row.get(f"difference_{end}") for end in ("low", "high")]
    words = f"[{', '.join(signed(end, 1) for end in ends)}]" if all(map(is_number, ends)) else ""
    interval = f'<small class="whole">{words}</small>' if words else ""
    return signed(row["difference"], 1) + interval


def signed(value: Any, digits: int) -> str:
    """With its sign, and a true minus."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")  # + 0.0: no negative zero
