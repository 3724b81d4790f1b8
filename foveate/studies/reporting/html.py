"""One HTML file that shows a comparison: nothing in it is fetched, and nothing in it runs.

The page has no script, its pictures are inside it, and its Content-Security-Policy allows no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from foveate.errors import FoveateError
from foveate.io import write_atomically
from foveate.studies.evaluation.audit_result import Audit
from foveate.studies.reporting.charts import points_of, scatter
from foveate.studies.reporting.differences import changes_of, differences
from foveate.studies.reporting.html_tables import comparison_table, legend, runs_table, statistics_table
from foveate.studies.reporting.report_audit import audit_section
from foveate.studies.reporting.style import STYLE

__all__ = ["write_report"]

Picture = Image.Image | bytes
_COLOURS = " Colours follow the verdicts, which are corrected for the number of plans."
LARGE = 600_000  # bytes of PNG above which a photograph becomes a JPEG
WIDE = 900  # pixels above which a picture gets a row of its own


def write_report(
    folder: str | os.PathLike[str],
    *,
    title: str,
    rows: Sequence[Mapping[str, Any]] = (),
    seeds: Sequence[int] = (),
    figures: Iterable[tuple[str, Picture]] = (),
    galleries: Iterable[tuple[str, Iterable[tuple[str, Picture]]]] = (),
    audits: Mapping[str, Audit] | None = None,
    notes: Iterable[str] = (),
    commands: Iterable[str] = (),
) -> Path:
    """Write ``report.html`` into a folder, as one file that needs no other.

    Args:
        folder: made if it is missing. A report.html in it is replaced as a whole, or not at all.
        title: the heading of the page.
        rows: one mapping for each plan, the baseline first. Known keys: "plan", "params", "macs" (whole numbers),
            "top1" and "macro_f1" (mean over seeds, percent), "top1_per_seed" and "macro_f1_per_seed" (percent),
            "difference", "difference_low", "difference_high" (top-1 against the baseline in points, and its 95%
            interval), "verdict", "seconds" (training), and the others of ``Row.as_dict``. Any other key becomes a
            column. Rows with "macs" and "top1" are drawn as cost against accuracy, those with "difference_per_seed"
            seed by seed.
        seeds: which they were, for the headings; without it they are counted from 0.
        figures: captions and pictures.
        galleries: headings, each with captions and pictures. A picture is a PIL image, or a PNG's or JPEG's bytes.
        audits: by plan.
        notes: paragraphs.
        commands: the shell lines that made it.

    Returns:
        The file written.

    Raises:
        FoveateError: the folder cannot be written, or a picture is neither a PIL image nor a PNG or JPEG.
    """
    path = Path(folder) / "report.html"
    body = [f"<h1>{escape(title)}</h1>", comparison_table(rows), _cost_plot(rows), _seeds_plot(rows)]
    longest = max((len(row.get("top1_per_seed") or ()) for row in rows), default=0)
    body += [runs_table(rows, seeds or range(longest)), statistics_table(rows)]
    body.append(audit_section(audits or {}))
    paragraphs = "\n".join(f"<p>{escape(note)}</p>" for note in notes)
    body.append(f"<h2>Notes</h2>\n{paragraphs}" if paragraphs else "")
    body += [_gallery("Figures", figures), *(_gallery(heading, pictures) for heading, pictures in galleries)]
    lines = "\n".join(escape(line) for line in commands)
    body.append(f"<h2>How this was made</h2>\n<pre><code>{lines}</code></pre>" if lines else "")
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body><main>
{chr(10).join(part for part in body if part)}
</main></body>
</html>
"""
    # A file name that is not valid text reaches us as surrogates, which have no UTF-8.
    write_atomically(path, page.encode("utf-8", "replace"))
    return path


def _cost_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    points = points_of(rows)
    if not points:
        return ""
    hint = (
        "Whiskers: the 95% interval of the difference to the first plan, around each plan's accuracy. One that crosses "
        "the dashed line is no evidence of a difference. Small circles: single seeds. Plans of nearly the same cost "
        "stand side by side."
    )
    plots = f'<div class="broad">{scatter(points, 760)}</div><div class="narrow">{scatter(points, 350)}</div>'
    colours = legend(rows)
    return f'<h2>Accuracy against cost</h2>\n{plots}\n{colours}<p class="hint">{hint}{colours and _COLOURS}</p>'


def _seeds_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    changes = changes_of(rows)
    if not changes:
        return ""
    hint = (
        "Top-1 against the first plan, in points: the mean with its 95% interval, and each seed as a small circle. To "
        "the right of the dashed line the plan is better."
    )
    plots = f'<div class="broad">{differences(changes, 760)}</div>'
    plots += f'<div class="narrow">{differences(changes, 350)}</div>'
    return f'<h2>Differences, seed by seed</h2>\n{plots}\n{legend(rows)}<p class="hint">{hint}</p>'


def _gallery(heading: str, pictures: Iterable[tuple[str, Picture]]) -> str:
    figures = [_figure(caption, picture) for caption, picture in pictures]
    return f'<h2>{escape(heading)}</h2>\n<div class="grid">{"".join(figures)}</div>' if figures else ""


def _figure(caption: str, picture: Picture) -> str:
    data = picture if isinstance(picture, bytes) else _encoded(picture, caption)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as opened:
            (width, height), kind = opened.size, f"image/{str(opened.format).lower()}"
    except UnidentifiedImageError as error:
        raise FoveateError(f"the picture {caption!r} is neither PNG nor JPEG: give a PIL image or such") from error
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    wide = ' class="wide"' if width > WIDE else ""
    image = f'<img src="{source}" width="{width}" height="{height}" alt="{escape(caption)}">'
    return f"<figure{wide}>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _encoded(picture: Picture, caption: str) -> bytes:
    if not isinstance(picture, Image.Image):
        raise FoveateError(f"the picture {caption!r} is a {type(picture).__name__}: give a PIL image or PNG bytes")
    png = io.BytesIO()
    picture.save(png, "PNG", optimize=True)
    if png.tell() <= LARGE or picture.mode not in ("RGB", "L"):
        return png.getvalue()
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=90)
    return jpeg.getvalue()
