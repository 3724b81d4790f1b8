"""A comparison as a page of Markdown with CSV files and pictures beside it, to be committed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from foveate.io import Row, markdown_table, markdown_text, write_atomically, write_csv
from foveate.studies.comparison.factors.analysis import effects_text
from foveate.studies.comparison.measure import Measure
from foveate.studies.comparison.results import Comparison
from foveate.studies.comparison.statistics import p_text
from foveate.studies.reporting.charts.differences import changes_of, differences
from foveate.studies.reporting.charts.factor_effects import effect_plot
from foveate.studies.reporting.charts.scatter import points_of, scatter
from foveate.studies.reporting.notes import notes
from foveate.studies.reporting.style import SVG_STYLE

__all__ = ["write_page"]

_WIDTH = 760


def write_page(comparison: Comparison, page: Path, command: str | None = None) -> tuple[Path, ...]:
    """Write ``NAME.md``, ``NAME.csv``, ``NAME_runs.csv`` and ``images/NAME_cost.svg``, ``images/NAME_seeds.svg``.

    Of families also ``NAME_factors.csv`` and ``images/NAME_factors.svg``.

    Args:
        comparison: from ``compare`` or ``read_comparison``.
        page: the Markdown file.
        command: the line that made the comparison.

    Returns:
        The files written; the page is the last.

    Raises:
        FoveateError: a file cannot be written.
    """
    rows, name, measure = comparison.as_dicts(), page.stem, comparison.measure
    tables = {f"{name}.csv": comparison.plan_rows(), f"{name}_runs.csv": comparison.run_rows()}
    pictures = {f"{name}_cost.svg": scatter(points_of(rows, measure), _WIDTH, measure)}
    if len(comparison.seeds) > 1:
        pictures[f"{name}_seeds.svg"] = differences(changes_of(rows), _WIDTH, measure=measure)
    if comparison.factors:
        tables[f"{name}_factors.csv"] = comparison.factor_rows()
        if effects := effect_plot(comparison.factor_rows(), _WIDTH, measure):
            pictures[f"{name}_factors.svg"] = effects
    written = []
    for file, svg in pictures.items():
        written.append(page.parent / "images" / file)
        write_atomically(written[-1], _alone(svg))
    written += [write_csv(page.parent / file, table, digits=6) for file, table in tables.items()]
    write_atomically(page, _text(comparison, rows, list(pictures), list(tables), command))
    return (*written, page)


def _alone(svg: str) -> str:
    """A picture with its own name space and style."""
    head, rest = svg.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{SVG_STYLE}</style>{rest}\n'


def _text(
    comparison: Comparison,
    rows: Sequence[Row],
    pictures: Sequence[str],
    tables: Sequence[str],
    command: str | None,
) -> str:
    setup, measure = comparison.setup, comparison.measure
    several = len(setup.seeds) > 1
    network = markdown_text(setup.network)
    has_counts = any(row["p_mcnemar"] is not None for row in rows)  # else images are neither right nor wrong
    counted = ["only plan / only baseline right", "p, McNemar"] if has_counts else []
    alt = {
        "cost": f"{measure.short_title} against multiply-adds",
        "seeds": "Differences to the network without attention, seed by seed",
    }
    parts = [
        f"# {markdown_text(setup.data)}: attention against none",
        f"{network}, epochs: {setup.recipe.epochs}, {len(setup.seeds)} {'seeds' if several else 'seed'}.",
        _table(
            ["plan", "parameters", "MACs", measure.column, "each seed", "difference [95%]", "p, Holm"],
            (_cells(row, measure) for row in rows),
        ),
        "\n".join(f"* {_code(row['plan'])}: {row['verdict_text']}." for row in rows if row["verdict_text"]),
        "\n\n".join(f"![{alt[kind]}](images/{quote(file)})" for file in pictures if (kind := _kind(file)) in alt),
        "Colours: blue is better, orange is worse, grey is no evidence of a difference.",
        *_factors(comparison, [file for file in pictures if file.endswith("_factors.svg")]),
        *_classes(comparison),
        "## What the verdicts rest on",
        _table(
            ["plan", "p", "bootstrap [95%]", *counted, "what would be seen"],
            (_statistics(row, bool(counted)) for row in rows if row["verdict_text"]),
        ),
        "## Notes",
        *map(markdown_text, notes(comparison)),
        "Tables: " + ", ".join(f"[{file}]({quote(file)})" for file in tables) + ".",
    ]
    if command:
        parts += ["## How this was made", f"```sh\n{command}\n```"]
    return "\n\n".join(parts) + "\n"


def _kind(file: str) -> str:
    return Path(file).stem.rpartition("_")[2]


def _factors(comparison: Comparison, pictures: Sequence[str]) -> list[str]:
    """What varies in the families: the tests, the effects, the picture."""
    if not comparison.factors:
        return []
    measure = comparison.measure
    rows = [
        [
            _code(f"{row['factor']}: {row['level']}"),
            str(row["plans"]),
            f"{row[measure.key]:.1f}",
            ""
            if row["effect"] is None
            else f"{row['effect']:+.1f} [{row['effect_low']:+.1f}, {row['effect_high']:+.1f}]",
        ]
        for row in comparison.factor_rows()
    ]
    return [
        "## What varies",
        "\n".join(f"* {markdown_text(factor.text)}." for factor in comparison.factors),
        *(f"![Effects of what varies](images/{quote(file)})" for file in pictures),
        _table(["level", "plans", measure.column, "effect [95%]"], rows),
        effects_text(measure),
    ]


def _classes(comparison: Comparison) -> list[str]:
    """Of segmentation and detection what each class has of the score, as the mean of the seeds."""
    names, plans = comparison.setup.classes, list(comparison.counts or comparison.boxes)
    if not names or not plans:
        return []
    found = [100 * of.nanmean(0) for of, _ in comparison.class_scores(plans).values()]
    rows = [
        [markdown_text(name), *("" if of[k].isnan() else f"{of[k]:.1f}" for of in found)]
        for k, name in enumerate(names)
    ]
    what = comparison.measure.of_class
    hint = f"{what[0].upper()}{what[1:]} over all validation images, in percent, as the mean of the seeds."
    return ["## Classes", _table(["class", *map(_code, plans)], rows), hint]


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(markdown_table(headings, rows, right=range(1, len(headings))))


def _code(label: str) -> str:
    """A plan's label as code, or as plain text where it holds what code cannot."""
    return markdown_text(label) if "`" in label or "|" in label else f"`{label}`"


def _cells(row: Row, measure: Measure) -> list[str]:
    compared = row["verdict_text"] is not None
    interval = (
        f"{row['difference']:+.1f} [{row['difference_low']:+.1f}, {row['difference_high']:+.1f}]" if compared else ""
    )
    return [
        _code(row["plan"]),
        f"{row['params']:,}",
        f"{row['macs'] / 1e6:.2f} M",
        f"{row[measure.key]:.1f}",
        ", ".join(f"{value:.1f}" for value in row[f"{measure.key}_per_seed"]),
        interval,
        _p(row["p_holm"]),
    ]


def _statistics(row: Row, counted: bool) -> list[str]:
    mcnemar = [f"{row['only_plan_right']:,} / {row['only_baseline_right']:,}", _p(row["p_mcnemar"])] if counted else []
    return [
        _code(row["plan"]),
        _p(row["p"]),
        f"[{row['bootstrap_low']:+.1f}, {row['bootstrap_high']:+.1f}]",
        *mcnemar,
        row["power_text"],
    ]


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return p_text("", value).removeprefix(" = ").strip().replace("<", "&lt;")
