"""What results show in a notebook: tables, lines, pictures and curves as HTML.

Every text is escaped. Nothing is fetched and nothing runs. No colour is set, so that it is readable on light and dark
pages: what is drawn takes the colour of the text around it.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from foveate.errors import printable

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["html_curves", "html_lines", "html_picture", "html_table", "html_text"]

_MOST_ROWS = 200  # a notebook keeps what it shows
_WIDTH, _HEIGHT, _MARGIN = 260, 150, 22  # pixels of a curve's picture


def _escaped(value: object) -> str:
    return html.escape(printable(str(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")))


def html_text(value: object) -> str:
    """The text of an object, line by line as it stands; a class takes it as its ``_repr_html_``."""
    lines = "\n".join(map(_escaped, str(value).split("\n")))
    return f'<pre style="white-space: pre-wrap">{lines}</pre>'


def html_lines(heading: str, lines: Iterable[str] = ()) -> str:
    """A line in bold, and lines below it; empty ones are left out."""
    shown = [f"<b>{_escaped(heading)}</b>"] * bool(heading) + [_escaped(line) for line in lines if line]
    return f"<p>{'<br>'.join(shown)}</p>" if shown else ""


def html_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Collection[int] | None = None,
    indent: Sequence[int] = (),
    bold: Collection[int] = (),
) -> str:
    """A table.

    Args:
        headings: one for each column.
        rows: the cells; None is an empty one. Of more than 200 rows the first are shown, and how many there are.
        right: which columns are flush right; without it those that hold numbers only, but never the first.
        indent: of each row, how far its first cell is moved in, such as the depth in a tree.
        bold: numbers of rows that are shown in bold.
    """
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    columns = range(len(headings))
    if right is None:
        right = [n for n in columns[1:] if all(not row[n] or row[n].lstrip("+-−<[")[:1].isdigit() for row in cells)]
    sides = [f' style="text-align: {"right" if n in right else "left"}"' for n in columns]
    head = "".join(f"<th{sides[n]}>{_escaped(headings[n])}</th>" for n in columns)
    body = []
    for number, row in enumerate(cells[:_MOST_ROWS]):
        texts = [_escaped(cell) for cell in row]
        if number in bold:
            texts = [f"<b>{text}</b>" for text in texts]
        if number < len(indent) and indent[number]:
            texts[0] = f'<span style="padding-left: {1.2 * indent[number]:.1f}em">{texts[0]}</span>'
        body.append("<tr>" + "".join(f"<td{sides[n]}>{texts[n]}</td>" for n in columns) + "</tr>")
    more = f"<p>and {len(cells) - _MOST_ROWS} more rows</p>" if len(cells) > _MOST_ROWS else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>{more}"


def html_picture(picture: Image.Image, text: str) -> str:
    """A picture as PNG inside the page, with the text that stands for it where it is not seen."""
    png = io.BytesIO()
    picture.save(png, "PNG")
    data = base64.b64encode(png.getvalue()).decode()
    return f'<img style="max-width: 100%" alt="{_escaped(text)}" src="data:image/png;base64,{data}">'


def html_curves(curves: Mapping[str, Sequence[float]], first: int = 1) -> str:
    """Curves over whole numbers, such as epochs, each in a picture of its own.

    Args:
        curves: by name; what is not finite is a gap, and a curve without a finite number is left out.
        first: the number of the first value.
    """
    return "".join(_curve(name, values, first) for name, values in curves.items() if any(map(math.isfinite, values)))


def _curve(name: str, values: Sequence[float], first: int) -> str:
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    wide, tall = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN
    places = [
        (
            _MARGIN + (wide * k / (len(values) - 1) if len(values) > 1 else wide / 2),
            _MARGIN + tall * (1 - (value - low) / (high - low) if high > low else 0.5),
        )
        for k, value in enumerate(values)
        if math.isfinite(value)
    ]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" />' for x, y in places)
    last = first + len(values) - 1
    label = f"{name}: {low:.4g} to {high:.4g}, the last {finite[-1]:.4g}"
    return (
        f'<svg role="img" aria-label="{_escaped(label)}" width="{_WIDTH}" height="{_HEIGHT}" fill="currentColor" '
        f'font-size="11" font-family="sans-serif"><title>{_escaped(label)}</title>'
        f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="1.5" />{dots}'
        f'<text x="{_MARGIN}" y="13">{_escaped(label)}</text>'
        f'<text x="{_MARGIN}" y="{_HEIGHT - 5}">{first}</text>'
        f'<text x="{_WIDTH - _MARGIN}" y="{_HEIGHT - 5}" text-anchor="end">{last}</text></svg>'
    )
