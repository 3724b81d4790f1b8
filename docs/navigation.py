"""The site's navigation, made from the files: a page that is added to a folder appears by itself (an mkdocs hook)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FIRST = {"Home": "index.md"}
# Sections in the order of the tabs; in each the pages in the order of reading, then the folder's others by name.
SECTIONS = {
    "tutorials": ("Tutorials", ("first_comparison", "which_attention", "ship_to_a_phone")),
    "guides": (
        "Guides",
        (
            "terminal", "surgery", "cost", "latency", "kernels", "data", "training", "segmentation", "detection",
            "compare", "families", "search", "executors", "saving", "predict", "explain", "audit", "serve", "export",
            "export_formats", "export_int8", "doctor",
        ),
    ),
    "gallery": ("Gallery", ("index",)),
    "reference": ("Reference", ("index",)),
    "explanation": ("Explanation", ("attention_in_a_network", "counting", "statistics", "repeatability", "faults")),
    "reports": ("Reports", ("evidence",)),
}  # fmt: skip
CATALOGUE = "catalogue.md"  # with a folder of pages for each kind of thing in it; they stand in the reference
FOLDERS = {
    "attention": "Attention modules",
    "pooling": "Pools",
    "heads": "Heads",
    "networks": "Networks",
    "dense": "Dense prediction",
}
LONGEST = 60  # characters of a title in a list
TOP = "guides"  # where a page of no folder stands, unless a section names it


def on_config(config: Any) -> Any:
    """Put the navigation into mkdocs' configuration."""
    config.nav = navigation(Path(config.docs_dir))
    return config


def _title(page: Path) -> str:
    """The first heading; "" where there is none yet."""
    lines = page.read_text("utf-8").splitlines() if page.is_file() else []
    return next((line[2:].replace("\\_", "_") for line in lines if line.startswith("# ")), "")


def navigation(docs: Path) -> list[dict[str, Any]]:
    """Home, then a section for each kind of page; the catalogue and its folders are part of the reference.

    Args:
        docs: the folder of the pages.

    Returns:
        The ``nav`` that mkdocs takes. A page takes its title from its first heading, or from its file's name where
        several pages of a section have that heading, as reports on one data set have, or it is too long for a list.
    """
    pages: dict[str, dict[str, str]] = {}  # folder -> stem -> page
    for path in sorted([*docs.rglob("*.md"), *docs.glob("gallery/*.py")]):
        folder = path.parent.relative_to(docs).as_posix()
        if path.name in (*FIRST.values(), CATALOGUE) and folder == ".":
            continue
        if folder == ".":
            found = [name for name, (_, order) in SECTIONS.items() if path.stem in order]
            folder = found[0] if found else TOP
            pages.setdefault(folder, {})[path.stem] = path.name
        else:
            pages.setdefault(folder, {})[path.stem] = f"{folder}/{path.stem}.md"  # a script of the gallery has a page
    catalogue: list[Any] = [CATALOGUE] if (docs / CATALOGUE).is_file() else []
    others = [folder for folder in pages if folder not in SECTIONS and folder not in FOLDERS]
    catalogue += [
        {FOLDERS.get(folder, folder.capitalize()): list(pages[folder].values())}
        for folder in (*FOLDERS, *others)
        if pages.get(folder)
    ]
    nav: list[dict[str, Any]] = [FIRST]
    for folder, (title, order) in SECTIONS.items():
        here = pages.get(folder, {})
        shown = {name: here[name] for name in dict.fromkeys((*order, *here)) if name in here}
        titles = {name: _title(docs / page) for name, page in shown.items()}
        section: list[Any] = [
            {name.replace("_", " ").capitalize(): page}
            if len(titles[name]) > LONGEST or sum(titles[name] == title != "" for title in titles.values()) > 1
            else page
            for name, page in shown.items()
        ]
        if folder == "reference" and catalogue:
            section.append({"Catalogue": catalogue})
        if section:
            nav.append({title: section})
    return nav
