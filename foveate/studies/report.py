"""One HTML file that shows a comparison: nothing in it is fetched, and nothing in it runs.

The page has no script, its pictures are inside it, and its Content-Security-Policy allows no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from foveate.errors import FoveateError
from foveate.explanations.files import write_whole
from foveate.studies.scatter import is_number, points_of, scatter

__all__ = ["write_report"]

Picture = Image.Image | bytes
LARGE = 600_000  # bytes of PNG above which a photograph becomes a JPEG
WIDE = 900  # pixels above which a picture gets a row of its own

STYLE = """
:root{color-scheme:light dark;--page:#fff;--text:#1c1e21;--soft:#5d636b;--line:#d9dde2;--card:#f6f7f9;--accent:#8a2be2}
@media (prefers-color-scheme:dark){:root{--page:#15171a;--text:#e8eaed;--soft:#a0a7b0;--line:#363b42;--card:#1f2226;
--accent:#c79bff}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 8px;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:40px 0 12px;overflow-wrap:anywhere}
p{max-width:75ch;overflow-wrap:anywhere}
.hint,small,figcaption{color:var(--soft);font-size:.85rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:8px 9px;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th:first-child{padding-left:0}
thead th{color:var(--soft);font-size:.85rem;font-weight:600}
tbody th{font-weight:600;overflow-wrap:anywhere;min-width:9rem}
td small{display:block}
.number{text-align:right;white-space:nowrap}
svg{max-width:100%;height:auto;display:block}
svg text{font:12px system-ui,-apple-system,"Segoe UI",sans-serif;fill:var(--text)}
svg .axis{fill:var(--soft)}
svg .grid{stroke:var(--line);stroke-width:1}
svg .base{stroke:var(--soft);stroke-dasharray:5 4}
svg .whisker{stroke:var(--accent);stroke-width:1.6;fill:none}
svg .point{fill:var(--accent)}
svg .first{fill:var(--text)}
svg .seed{fill:none;stroke:var(--soft)}
svg .lead{stroke:var(--soft);stroke-width:.8}
.narrow{display:none}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:20px}
figure{margin:0;padding:12px;background:var(--card);border:1px solid var(--line);border-radius:8px;overflow-x:auto}
figure.wide{grid-column:1/-1}
figure img{display:block;max-width:100%;height:auto;border-radius:4px;background:#fff}
figcaption{margin-top:8px;overflow-wrap:anywhere}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px;font-size:.85rem;
white-space:pre-wrap;overflow-wrap:anywhere}
@media (max-width:700px){
main{padding:20px 14px 48px}
thead{display:none}
table,tbody,tr,th,td{display:block}
tr{border:1px solid var(--line);border-radius:8px;padding:8px 12px;margin-bottom:12px;background:var(--card)}
th,td{border:0;padding:3px 0}
td,.number{display:flex;justify-content:space-between;gap:16px;text-align:right;white-space:normal}
td::before{content:attr(data-label);color:var(--soft);text-align:left}
td:empty{display:none}
.broad{display:none}
.narrow{display:block}
figure.wide img{max-width:none;width:820px}
}
@media print{
:root{color-scheme:light;--page:#fff;--text:#000;--soft:#444;--line:#bbb;--card:#fff;--accent:#6a1fb0}
main{max-width:none;padding:0}
figure,tr,svg,pre{break-inside:avoid}
h2{break-after:avoid}
}
"""


def write_report(
    folder: str | os.PathLike[str],
    *,
    title: str,
    rows: Sequence[Mapping[str, Any]] = (),
    figures: Iterable[tuple[str, Picture]] = (),
    galleries: Iterable[tuple[str, Iterable[tuple[str, Picture]]]] = (),
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
            interval), "verdict", "seconds" (training). Any other key becomes a column. Rows with "macs" and "top1"
            are drawn as cost against accuracy.
        figures: captions and pictures.
        galleries: headings, each with captions and pictures. A picture is a PIL image, or a PNG's or JPEG's bytes.
        notes: paragraphs.
        commands: the shell lines that made it.

    Returns:
        The file written.

    Raises:
        FoveateError: the folder cannot be written, or a picture is neither a PIL image nor a PNG or JPEG.
    """
    path = Path(folder) / "report.html"
    body = [f"<h1>{escape(title)}</h1>", _table(rows), _plot(rows)]
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
    write_whole(path, page.encode("utf-8", "replace"))
    return path


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    columns: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
        "params": ("Parameters", lambda row: _cost(row, rows[0], "params", "{:,}".format)),
        "macs": ("MACs", lambda row: _cost(row, rows[0], "macs", _macs)),
        "top1": ("Top-1 %", lambda row: _percent(row, "top1")),
        "macro_f1": ("Macro-F1 %", lambda row: _percent(row, "macro_f1")),
        "difference": ("Difference, points", _difference),
        "verdict": ("Verdict", lambda row: escape(str(row.get("verdict") or ""))),
        "seconds": ("Training", lambda row: f"{row['seconds']:,.0f} s" if is_number(row.get("seconds")) else ""),
    }
    inside = {"plan", "top1_per_seed", "macro_f1_per_seed", "difference_low", "difference_high"}
    for key in (key for row in rows for key in row if key not in inside):
        columns.setdefault(key, (key.replace("_", " "), lambda row, key=key: escape(_plain(row.get(key)))))  # type: ignore[misc]
    shown = {key: column for key, column in columns.items() if any(row.get(key) is not None for row in rows)}
    kinds = {key: "" if key == "verdict" or not _numeric(rows, key) else ' class="number"' for key in shown}
    head = "".join(f'<th scope="col"{kinds[key]}>{escape(name)}</th>' for key, (name, _) in shown.items())
    lines = []
    top = f'<thead><tr><th scope="col">Plan</th>{head}</tr></thead>'
    for row in rows:
        cells = "".join(
            f'<td{kinds[key]} data-label="{escape(name)}">{cell and f"<span>{cell}</span>"}</td>'
            for key, (name, words) in shown.items()
            for cell in [words(row)]
        )
        lines.append(f'<tr><th scope="row">{escape(str(row.get("plan", "")))}</th>{cells}</tr>')
    hint = (
        "Difference: top-1 against the first row, in points, with its 95% interval. In grey below a mean: each seed. "
        "1 MAC = one multiply-add."
    )
    return f'<h2>Comparison</h2>\n<table>{top}<tbody>{"".join(lines)}</tbody></table>\n<p class="hint">{hint}</p>'


def _numeric(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    return all(row.get(key) is None or is_number(row[key]) for row in rows)


def _plain(value: object) -> str:
    return "" if value is None else f"{value:,.4g}" if isinstance(value, float) else str(value)


def _macs(value: float) -> str:
    return f"{value / 1e6:,.1f} M"


def _cost(row: Mapping[str, Any], first: Mapping[str, Any], key: str, words: Callable[[Any], str]) -> str:
    value, before = row.get(key), first.get(key)
    if not is_number(value):
        return ""
    change = f"<small>{_signed(100 * (value / before - 1), 2)} %</small>" if is_number(before) and before else ""
    return words(value) + (change if row is not first else "")


def _percent(row: Mapping[str, Any], key: str) -> str:
    if not is_number(row.get(key)):
        return ""
    seeds = [value for value in row.get(f"{key}_per_seed") or () if is_number(value)]
    each = f"<small>{', '.join(f'{value:.1f}' for value in seeds)}</small>" if len(seeds) > 1 else ""
    return f"{row[key]:.1f}{each}"


def _difference(row: Mapping[str, Any]) -> str:
    if not is_number(row.get("difference")):
        return ""
    ends = [row.get(f"difference_{end}") for end in ("low", "high")]
    interval = f"<small>[{', '.join(_signed(end, 1) for end in ends)}]</small>" if all(map(is_number, ends)) else ""
    return _signed(row["difference"], 1) + interval


def _signed(value: Any, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")  # + 0.0: no negative zero


def _plot(rows: Sequence[Mapping[str, Any]]) -> str:
    points = points_of(rows)
    if not points:
        return ""
    hint = (
        "Whiskers: the 95% interval of the difference to the first plan, around each plan's accuracy. Where they cross "
        "the dashed line, there is no evidence of a difference. Small circles: single seeds. "
        "Plans of nearly the same cost stand side by side."
    )
    plots = f'<div class="broad">{scatter(points, 760)}</div><div class="narrow">{scatter(points, 350)}</div>'
    return f'<h2>Accuracy against cost</h2>\n{plots}\n<p class="hint">{hint}</p>'


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
