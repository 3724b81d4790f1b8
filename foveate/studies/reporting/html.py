"""One HTML file that shows a comparison: nothing in it is fetched, and nothing in it runs.

The page has no script, its pictures are inside it, and its Content-Security-Policy allows no request at all. Its
template is ``templates/report.html.jinja``, which escapes all text; the style sheet and the plots, which escape their
own texts, are inserted as they are.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image, UnidentifiedImageError

from foveate.errors import FoveateError
from foveate.io import Row, write_atomically
from foveate.studies.comparison.measure import TOP1, Measure
from foveate.studies.evaluation.audit_result import Audit
from foveate.studies.reporting.audit_table import audit_part
from foveate.studies.reporting.charts.curves import MOST_CURVES, curves
from foveate.studies.reporting.charts.differences import changes_of, differences
from foveate.studies.reporting.charts.factor_effects import effect_plot, factor_lines, factor_table
from foveate.studies.reporting.charts.scatter import kind_of, points_of, scatter
from foveate.studies.reporting.export_table import export_table
from foveate.studies.reporting.style import STYLE
from foveate.studies.reporting.summary import summary
from foveate.studies.reporting.tables import (
    PlanTable,
    comparison,
    has_verdicts,
    margins,
    power_lines,
    runs,
    statistics,
)

__all__ = ["saved_picture", "write_report"]

Picture = Image.Image | bytes
_WIDTHS = 760, 350  # pixels of a plot on a broad and on a narrow page
_LEGEND = {"better": "better", "worse": "worse", "same": "no evidence of a difference"}
LARGE = 600_000  # bytes of PNG above which a photograph becomes a JPEG
WIDE = 900  # pixels above which a picture gets a row of its own


@dataclass(frozen=True)
class _Figure:
    """A picture for the template."""

    caption: str
    source: str
    width: int
    height: int

    @property
    def wide(self) -> bool:
        """Whether it gets a row of its own."""
        return self.width > WIDE


def write_report(
    folder: str | os.PathLike[str],
    *,
    title: str,
    measure: Measure = TOP1,
    rows: Sequence[Row] = (),
    seeds: Sequence[int] = (),
    facts: Sequence[tuple[str, str]] = (),
    histories: Mapping[str, Sequence[Sequence[Row]]] | None = None,
    classes: Sequence[tuple[PlanTable, str]] = (),
    factors: Sequence[Row] = (),
    figures: Iterable[tuple[str, Picture]] = (),
    galleries: Iterable[tuple[str, Iterable[tuple[str, Picture]]]] = (),
    audits: Mapping[str, Audit] | None = None,
    exports: Sequence[Row] = (),
    notes: Iterable[str] = (),
    commands: Iterable[str] = (),
) -> Path:
    """Write ``report.html`` into a folder, as one file that needs no other.

    Args:
        folder: made if it is missing. A report.html in it is replaced as a whole, or not at all.
        title: the heading of the page.
        measure: what the plans were compared by; its key takes the place of "top1", and that of its second score the
            place of "macro_f1".
        rows: one mapping for each plan, the baseline first. Known keys: "plan", "params", "macs" (whole numbers),
            "top1" and "macro_f1" (mean over seeds, percent), "top1_per_seed" and "macro_f1_per_seed" (percent),
            "difference", "difference_low", "difference_high" (top-1 against the baseline in points, and its 95%
            interval), "verdict", "images_per_second" (training), and the others of ``Row.as_dict``. Any other key
            becomes a column. Rows with "macs" and "top1" are drawn as cost against accuracy, those with
            "difference_per_seed" seed by seed.
        seeds: which they were, for the headings; without it they are counted from 0.
        facts: names and values for the box at the top: the network, the data, the date.
        histories: for each plan the epochs of each seed, as ``curves`` takes them.
        classes: tables of the classes, each with a hint.
        factors: rows of ``FactorAnalysis.as_dicts``.
        figures: captions and pictures.
        galleries: headings, each with captions and pictures. A picture is a PIL image, or a PNG's or JPEG's bytes.
        audits: by plan.
        exports: rows of ``PlanExports``.
        notes: paragraphs.
        commands: the shell lines that made it.

    Returns:
        The file written.

    Raises:
        FoveateError: the folder cannot be written, or a picture is neither a PIL image nor a PNG or JPEG.
    """
    path = Path(folder) / "report.html"
    longest = max((len(row.get(f"{measure.key}_per_seed") or ()) for row in rows), default=0)
    points, changes = points_of(rows, measure), changes_of(rows)
    shown = {kind_of(row.get("sign")) for row in rows}
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    page = _template().render(
        title=title,
        policy=f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        style=Markup(STYLE),
        measure=measure,
        summary=summary(rows, facts),
        comparison=comparison(rows, measure),
        power_lines=power_lines(rows),
        verdicts=has_verdicts(rows),
        legend_texts={kind: text for kind, text in _LEGEND.items() if kind in shown},
        curve_plots=[Markup(drawn) for width in _WIDTHS if (drawn := curves(histories or {}, width, measure))],
        curves_left_out=max(0, len(histories or {}) - MOST_CURVES),
        classes=list(classes),
        cost_plots=[Markup(scatter(points, width, measure)) for width in _WIDTHS] if points else [],
        seed_plots=[Markup(differences(changes, width, measure=measure)) for width in _WIDTHS] if changes else [],
        factors=factor_table(factors, measure),
        factor_lines=factor_lines(factors),
        effect_plots=[Markup(plot) for width in _WIDTHS if (plot := effect_plot(factors, width, measure))],
        runs=runs(rows, seeds or range(longest), measure),
        statistics=statistics(rows),
        margins=margins(rows),
        audit=audit_part(audits or {}),
        exports=export_table(exports),
        notes=list(notes),
        galleries=[
            (heading, [_figure(caption, picture) for caption, picture in pictures])
            for heading, pictures in (("Figures", figures), *galleries)
        ],
        commands=list(commands),
    )
    # A file name that is not valid text reaches us as surrogates, which have no UTF-8.
    write_atomically(path, page.encode("utf-8", "replace"))
    return path


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("foveate.studies.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["zip"] = zip
    return environment.get_template("report.html.jinja")


def _figure(caption: str, picture: Picture) -> _Figure:
    data = picture if isinstance(picture, bytes) else _encoded(picture, caption)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as opened:
            (width, height), kind = opened.size, f"image/{str(opened.format).lower()}"
    except UnidentifiedImageError as error:
        raise FoveateError(f"the picture {caption!r} is neither PNG nor JPEG: give a PIL image or such") from error
    return _Figure(caption, f"data:{kind};base64,{base64.b64encode(data).decode()}", width, height)


def saved_picture(picture: Image.Image, file: Path) -> bytes:
    """Write a picture into a file as PNG, and give the bytes of what the page shows of it: it is encoded once for both.

    Args:
        picture: of mode RGB or such.
        file: where to.
    """
    png = _png(picture)
    file.write_bytes(png)
    return _shown(picture, png)


def _encoded(picture: Picture, caption: str) -> bytes:
    if not isinstance(picture, Image.Image):
        raise FoveateError(f"the picture {caption!r} is a {type(picture).__name__}: give a PIL image or PNG bytes")
    return _shown(picture, _png(picture))


def _png(picture: Image.Image) -> bytes:
    png = io.BytesIO()
    # A quarter of the usual settings' time; of photographs with maps the bytes are as many, of noise 6% more.
    picture.save(png, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return png.getvalue()


def _shown(picture: Image.Image, png: bytes) -> bytes:
    if len(png) <= LARGE or picture.mode not in ("RGB", "L"):
        return png
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=90)
    return jpeg.getvalue()
