"""The gallery: a page for each script of docs/gallery, with its picture, which is made when the site is built.

An mkdocs hook. A picture is made by running the script, and kept in ``.cache/gallery`` under a hash of the script and
of the package's code, so that it is made again only when one of them has changed.
"""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

CACHE = Path(".cache") / "gallery"


def title_and_text(script: Path) -> tuple[str, str]:
    """The first line of a script's docstring without its full stop, and the rest."""
    title, _, text = (ast.get_docstring(ast.parse(script.read_text("utf-8"))) or script.stem).partition("\n")
    return title.removesuffix("."), text.strip()


def picture(script: Path) -> bytes:
    """What the script draws, as PNG.

    Raises:
        RuntimeError: the script fails; the text has what it printed.
    """
    root = Path(__file__).parents[1]
    package = sorted((root / "foveate").rglob("*.py"))
    key = hashlib.sha256(b"\0".join([script.read_bytes(), *(file.read_bytes() for file in package)])).hexdigest()[:16]
    kept = root / CACHE / f"{script.stem}-{key}.png"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        for old in kept.parent.glob(f"{script.stem}-*.png"):
            old.unlink()
        part = kept.with_suffix(".part.png")
        path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
        done = subprocess.run(
            [sys.executable, str(script), str(part)],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{script.name} of the gallery failed:\n{done.stdout}{done.stderr}")
        part.replace(kept)
    return kept.read_bytes()


def page(script: Path) -> str:
    """The page of one example."""
    title, text = title_and_text(script)
    code = script.read_text("utf-8").split('"""', 2)[2].strip()
    return (
        f"# {title}\n\n{text}\n\n![{title}]({script.stem}.png)\n\n```python\n{code}\n```\n\n"
        f"The script is `docs/gallery/{script.name}`; a file that is named on its command line gets the picture.\n"
    )


def on_files(files: Any, config: Any) -> Any:
    """Add a page and a picture for each script, and an overview."""
    scripts = sorted((Path(config.docs_dir) / "gallery").glob("*.py"))
    for script in scripts:
        files.append(File.generated(config, f"gallery/{script.stem}.md", content=page(script)))
        files.append(File.generated(config, f"gallery/{script.stem}.png", content=picture(script)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """The overview: each example's title and picture."""
    if page.file.src_uri != "gallery/index.md":
        return markdown
    cards = []
    for script in sorted((Path(config.docs_dir) / "gallery").glob("*.py")):
        title, _text = title_and_text(script)
        cards.append(f"## [{title}]({script.stem}.md)\n\n[![{title}]({script.stem}.png)]({script.stem}.md)\n")
    return markdown + "\n" + "\n".join(cards)
