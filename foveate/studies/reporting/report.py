"""A comparison as one page: the table, cost against accuracy, the audit, and what each network looks at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foveate.data import ImageData
from foveate.errors import FoveateError
from foveate.explanations.explain import explain
from foveate.studies.comparison.config import BASELINE
from foveate.studies.comparison.results import Comparison
from foveate.studies.deployment.plan_exports import read_plan_exports
from foveate.studies.evaluation.audit import audit
from foveate.studies.reporting.html import write_report
from foveate.studies.reporting.notes import notes
from foveate.surgery.insert import attentions, plan_of

__all__ = ["report"]


def report(
    comparison: Comparison,
    data: ImageData,
    *,
    folder: str | Path | None = None,
    images: int = 4,
    audited: int = 500,
    commands: Sequence[str] = (),
) -> Path:
    """Write ``report.html``, one self-contained page, and ``overlays/`` with its pictures.

    What ``export_plans`` wrote into the folder is shown, too.

    Args:
        comparison: from ``compare``.
        data: what it was made on; pictures are taken from its validation part.
        folder: where to write; without it the comparison's own.
        images: how many images are looked at, spread over the classes.
        audited: at most so many validation images for the audit of each plan's network; 0: no audit.
        commands: the lines that made the comparison, to be shown.

    Raises:
        FoveateError: neither ``folder`` nor the comparison has a folder.
    """
    place = Path(folder) if folder is not None else comparison.folder
    if place is None:
        raise FoveateError("report: the comparison has no folder; give report(..., folder=...)")
    overlays = place / "overlays"
    overlays.mkdir(parents=True, exist_ok=True)
    chosen = _spread_over_classes(data, images)
    pictures = [data.val.load(index) for index in chosen]
    captions = [f"{data.classes[data.val.label(index)]}: {data.val.names[index]}" for index in chosen]
    galleries = []
    for number, (label, model) in enumerate(comparison.models.items()):
        for method in ("attention", "gradcam"):
            if method == "attention" and not any(hasattr(m, "attend") for m in attentions(model).values()):
                continue
            found = explain(model, pictures, method, image_size=comparison.recipe.image_size)
            drawn = [found.draw(k) for k in range(len(pictures))]
            for k, picture in enumerate(drawn):
                picture.save(overlays / f"{number}_{method}_{k}.png")
            galleries.append((_heading(label, method), list(zip(captions, drawn, strict=True))))
    audits = {
        label: audit(model, data, limit=audited, image_size=comparison.recipe.image_size)
        for label, model in comparison.models.items()
        if audited and plan_of(model)
    }
    exported = read_plan_exports(place)
    return write_report(
        place,
        title=f"{data.name}: attention against none",
        rows=_rows(comparison),
        seeds=comparison.seeds,
        factors=comparison.factor_rows(),
        galleries=galleries,
        audits=audits,
        exports=exported.rows if exported else (),
        notes=notes(comparison),
        commands=list(commands),
    )


def _rows(comparison: Comparison) -> list[dict[str, object]]:
    """What the page shows of each plan."""
    left_out = {"loss", "top5"} | (set() if comparison.setup.tuning else {"learning_rate"})
    return [{key: value for key, value in row.items() if key not in left_out} for row in comparison.as_dicts()]


def _heading(label: str, method: str) -> str:
    what = "where its attention lies" if method == "attention" else "what speaks for the predicted class (Grad-CAM)"
    return f"{'Without attention' if label == BASELINE else label}: {what}"


def _spread_over_classes(data: ImageData, count: int) -> list[int]:
    """Indices of validation images, class by class in turn, from the middle of each class."""
    of_class = [[i for i, label in enumerate(data.val.labels) if label == c] for c in range(len(data.classes))]
    queues = [members[len(members) // 2 :] for members in of_class]
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return chosen
