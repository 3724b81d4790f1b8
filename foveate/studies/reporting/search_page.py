"""A search as a page of Markdown, with the page of its comparison beside it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from foveate.io import markdown_table, markdown_text, write_atomically, write_csv
from foveate.studies.reporting import markdown as comparisons
from foveate.studies.search.results import Search, Trial

__all__ = ["write_page"]

_HOW_TO_READ = (
    "The best first: trained longest, then most accurate on the images held out of the training images. Front: no "
    "other of the longest trained is as accurate and as cheap. A search reports the best of many: what the finalists "
    "are worth, only the comparison says."
)


def write_page(found: Search, page: Path, command: str | None = None) -> tuple[Path, ...]:
    """Write ``NAME.md`` and ``NAME.csv``, and the page of the comparison, ``NAME_compared.md``, with its files.

    Args:
        found: from ``search``.
        page: the Markdown file.
        command: the line that made the search.

    Returns:
        The files written; the page is the last.

    Raises:
        FoveateError: a file cannot be written.
    """
    written: list[Path] = []
    parts = [f"# A search in `{found.family}`", "\n".join(f"* {markdown_text(line)}" for line in found.lines())]
    if found.finalists:
        parts += [
            "The best plan, to be inserted or trained with `foveate train --plan`:",
            f"```\n{found.best.plan}\n```",
        ]
    if found.comparison is not None:
        beside = page.with_name(f"{page.stem}_compared.md")
        written += comparisons.write_page(found.comparison, beside, command)
        parts += [
            "## The finalists compared",
            f"![Accuracy against multiply-adds](images/{quote(beside.stem)}_cost.svg)",
            f"With all training images and other seeds than the search's: [{beside.name}]({quote(beside.name)}).",
        ]
    headings = ["plan", "parameters", "MACs", "epochs", "held-out top-1 %", "front", "finalist"]
    table = "\n".join(markdown_table(headings, (_cells(found, trial) for trial in found.trials), right=range(1, 5)))
    parts += [
        "## Every trial",
        table,
        _HOW_TO_READ,
        f"Table: [{page.stem}.csv]({quote(page.stem)}.csv).",
    ]
    if command:
        parts += ["## How this was made", f"```sh\n{command}\n```"]
    written.append(write_csv(page.with_suffix(".csv"), found.as_dicts(), digits=6))
    write_atomically(page, "\n\n".join(parts) + "\n")
    return (*written, page)


def _cells(found: Search, trial: Trial) -> list[str]:
    return [
        markdown_text(str(trial.plan)),
        f"{trial.cost.params:,}",
        f"{trial.cost.macs / 1e6:.2f} M",
        str(trial.epochs),
        "diverged" if trial.score is None else f"{trial.score:.1f}",
        "yes" if any(trial is other for other in found.front) else "",
        "yes" if trial.plan in found.finalists else "",
    ]
