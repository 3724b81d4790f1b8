"""The site's navigation, made from the files: a page that is added to a folder appears by itself (an mkdocs hook)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FIRST = {"Home": "index.md"}
GUIDES = (
    "surgery.md",
    "cost.md",
    "latency.md",
    "kernels.md",
    "data.md",
    "training.md",
    "compare.md",
    "saving.md",
    "predict.md",
    "export.md",
    "export_formats.md",
    "explain.md",
    "audit.md",
    "serve.md",
)  # in the order of reading; others follow
CATALOGUE = "catalogue.md"
FOLDERS = {
    "attention": "Mechanisms",
    "pooling": "Pools",
    "heads": "Heads",
    "networks": "Networks",
    "dense": "Dense prediction",
}


def on_config(config: Any) -> Any:
    """Put the navigation into mkdocs' configuration."""
    config.nav = navigation(Path(config.docs_dir))
    return config


def navigation(docs: Path) -> list[dict[str, Any]]:
    """Home, guides, catalogue, then a section for each folder that has pages.

    Args:
        docs: the folder of the pages.

    Returns:
        The ``nav`` that mkdocs takes; a page whose title is not said takes it from its first heading.
    """
    top = sorted(path.name for path in docs.glob("*.md"))
    guides = [page for page in (*GUIDES, *top) if page in top and page not in (*FIRST.values(), CATALOGUE)]
    nav: list[dict[str, Any]] = [FIRST, {"Guides": list(dict.fromkeys(guides))}, {"Catalogue": CATALOGUE}]
    folders = sorted({path.parent.relative_to(docs).as_posix() for path in docs.glob("*/**/*.md")})
    for folder in (*FOLDERS, *(folder for folder in folders if folder not in FOLDERS)):
        pages = sorted(f"{folder}/{path.name}" for path in (docs / folder).glob("*.md"))
        if pages:
            nav.append({FOLDERS.get(folder, folder.capitalize()): pages})
    return nav
