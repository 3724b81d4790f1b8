"""The reference of the command line, made from the program itself when the site is built (an mkdocs hook)."""

from __future__ import annotations

import re
from typing import Any

PAGE, MARK = "reference/command_line.md", "<!-- the commands -->"


def commands() -> str:
    """Every command with its arguments and options, as Markdown; the headings begin at level 2."""
    from foveate.cli import app

    text = app.generate_docs(output_format="markdown")
    # The page has its own title and its own list of contents.
    text = text[text.index("**Commands**:") + len("**Commands**:") :]
    text = re.sub(r" \*\[default: False\]\*", "", text)  # what a switch is when it is not given
    text = re.sub(r"^```console$", "```sh", text, flags=re.MULTILINE)
    text = re.sub(r"^(\* `[^`]*`(?:, `[^`]*`)*): ", r"\1: ", text, flags=re.MULTILINE)
    return text.strip() + "\n"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put the commands in the place of the mark."""
    return markdown.replace(MARK, commands()) if page.file.src_uri == PAGE else markdown
