"""No word needs a glossary of a reader who knows PyTorch and timm: the project's former private ones stay away."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The former word, and what the field says.
WORDS = {
    r"twins?": "copy",
    r"bones": "meta copy",
    r"borrow(ed)?|lent": "preserve_state",
    r"graft(ed)?|take_out": "apply, undo",
    r"keeper|HeadPlace": "wrapper, host",
    r"slopes": "gradients",
    r"tall(y|ies)": "count",
    r"taught": "teacher",
    r"outlook": "power",
    r"in_passes|unwatched|are_as_built": "use_fused_path, no_active_modes, is_unmodified",
    r"cannot be had": "could not be downloaded, built, ...",
    r"under way": "running",
    r"is no (error|chain|number|folder|file|image|result|module|mechanism|plan|name|class)": "is not a",
}
FILES = [
    ROOT / "README.md",
    ROOT / "ARCHITECTURE.md",
    *(ROOT / "docs").rglob("*.md"),
    *(path for room in ("foveate", "docs", "benchmarks") for path in (ROOT / room).rglob("*.py")),
]


@pytest.mark.parametrize("word", WORDS)
def test_a_former_word_does_not_come_back(word):
    wanted = re.compile(rf"(?<!here )\b({word})\b", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if wanted.search(line)
    ]
    assert found == [], f"say: {WORDS[word]}"
