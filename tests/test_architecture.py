"""The arrows of ARCHITECTURE.md, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import foveate

PACKAGE = Path(foveate.__file__).parent
LEVELS = [
    {"errors"},
    {"model_info"},
    {"spec", "images", "preserve", "scores"},
    {"registry", "kernels"},
    {"attention", "pooling", "heads"},
    {"networks"},
    {"surgery"},
    {"accounting", "data", "training", "explanations", "dense"},
    {"studies"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
ALLOWED_SIDEWAYS = {("training", "data")}
# The registry reaches the mechanisms by their folder; timm's layers have no file there and are named.
ALLOWED_UP = {("registry", "attention")}
OUTSIDE = ("cli", "web")  # they use the library as anyone does
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = {path.name for path in PACKAGE.iterdir() if path.is_dir()} | {path.stem for path in PACKAGE.glob("*.py")}


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return {"__init__": "facade", "__main__": "cli"}.get(parts[0], parts[0])


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "foveate":
                public = [a.name for a in node.names if a.name != "__version__"]
                names = [f"foveate.{name}" if name in ROOMS else "foveate" for name in public]
        else:
            continue
        for name in names:
            if name == "foveate":
                found.add("facade")
            elif name.startswith("foveate."):
                found.add(name.split(".")[1])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows(path):
    here = room(path)
    for there in imported_rooms(path) - {here}:
        if here == "facade":
            pytest.fail("the facade is lazy: it imports nothing")
        if there == "facade":
            assert here in OUTSIDE, f"{here} imports the facade"
            continue
        if here in OUTSIDE:
            assert there == "errors", f"{here} imports {there}: it may use the facade and errors only"
            continue
        assert here != "kernels", f"kernels imports {there}"
        sideways = LEVEL[there] == LEVEL[here]
        allowed = (here, there) in ALLOWED_UP or (sideways and (here, there) in ALLOWED_SIDEWAYS)
        assert LEVEL[there] < LEVEL[here] or allowed, f"{here} imports {there}"


def test_every_room_is_on_the_plan():
    rooms = {room(path) for path in FILES} - {"facade", *OUTSIDE}
    assert rooms <= set(LEVEL), rooms - set(LEVEL)


def test_no_room_bears_the_name_of_a_public_verb():
    rooms = {room(path) for path in FILES}
    assert not rooms & set(foveate.__all__)


def fresh(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_import_costs_no_torch():
    code = "import sys, foveate; foveate.Plan, foveate.Recipe, foveate.names(); print('torch' in sys.modules)"
    assert fresh(code) == "False"


def test_every_public_name_exists():
    for name in foveate.__all__:
        assert getattr(foveate, name) is not None


def test_recipe_needs_no_torch():
    assert fresh("import sys, foveate.training.recipe; print('torch' in sys.modules)") == "False"
