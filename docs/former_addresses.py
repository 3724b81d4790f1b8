"""Pages that moved still answer at their former address, with a link that is followed at once (an mkdocs hook)."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

MOVED = ("guides", "explanation", "reports")  # their pages once stood at the top
PAGE = """<!doctype html>
<html lang="en">
<title>Moved</title>
<link rel="icon" href="data:,">
<meta http-equiv="refresh" content="0; url={0}">
<link rel="canonical" href="{0}">
<p>This page is now <a href="{0}">here</a>.</p>
</html>
"""


def on_post_build(config: Any) -> None:
    """Write a page at each former address where there is no page now."""
    site = Path(config.site_dir)
    for page in sorted(path for folder in MOVED for path in Path(config.docs_dir, folder).glob("*.md")):
        former = site / page.stem / "index.html"
        if not former.exists():
            former.parent.mkdir(exist_ok=True)
            former.write_text(PAGE.format(escape(f"../{page.parent.name}/{page.stem}/")), "utf-8")
