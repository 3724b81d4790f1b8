"""The arrows of ARCHITECTURE.md, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import foveate

PACKAGE = Path(foveate.__file__).parent
LEVELS = [
    {"errors"},
    {"model_info", "image_formats", "arguments", "html"},
    {"spec", "images", "image_files", "preserve", "scores", "io", "progress"},
    {"classifier_protocol", "families", "registry", "kernels", "whole_images"},
    {"attention", "pooling", "heads"},
    {"networks"},
    {"dense"},
    {"surgery"},
    {"accounting", "data", "training", "explanations"},
    {"exporters"},
    {"prediction"},
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


def arrow_faults(path: Path) -> list[str]:
    """What a file imports that its room must not."""
    here, found = room(path), []
    for there in sorted(imported_rooms(path) - {here}):
        sideways = LEVEL.get(there) == LEVEL.get(here) and (here, there) in ALLOWED_SIDEWAYS
        if here == "facade":
            found.append("the facade is lazy: it imports nothing")
        elif there == "facade":
            if here not in OUTSIDE:
                found.append(f"{here} imports the facade")
        elif here in OUTSIDE:
            if there not in ("errors", "io"):
                found.append(f"{here} imports {there}: it may use the facade, errors and io only")
        elif here == "kernels":
            found.append(f"kernels imports {there}")
        elif not (LEVEL[there] < LEVEL[here] or sideways or (here, there) in ALLOWED_UP):
            found.append(f"{here} imports {there}")
    return [f"{path.relative_to(PACKAGE)}: {fault}" for fault in found]


def imported_files(path: Path, files: dict[str, Path]) -> set[str]:
    """The files that a file imports, anywhere in it: in a function or for the type checker, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= parts & set(files) or {node.module}
    return found & set(files)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def file_graph() -> dict[str, set[str]]:
    files = {".".join(("foveate", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in FILES}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    return {name: imported_files(path, files) - {name} for name, path in files.items()}


def test_arrows():
    assert [fault for path in FILES for fault in arrow_faults(path)] == []


def test_no_circle_of_files():
    assert circles(file_graph()) == []


def test_a_circle_and_an_upward_arrow_are_noticed(tmp_path):
    graph = file_graph()
    graph["foveate.errors"] = {"foveate.studies.comparison.compare"}
    (circle,) = circles(graph)
    assert {"foveate.errors", "foveate.studies.comparison.compare"} <= set(circle)
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    imported = imported_rooms(PACKAGE / "studies" / "comparison" / "compare.py")
    assert imported > {"errors", "training"}  # the names that an arrow is judged by are found


def test_rooms_and_files_stay_small():
    folders = {path.parent for path in FILES}
    many = {
        str(folder.relative_to(PACKAGE)): count
        for folder in folders
        if (count := sum(f.suffix in (".py", ".c", ".h") and f.name != "__init__.py" for f in folder.iterdir())) > 16
    }
    assert many == {}
    long = {str(f.relative_to(PACKAGE)): n for f in FILES if (n := len(f.read_text("utf-8").splitlines())) > 300}
    assert long == {}


def test_every_room_is_on_the_plan():
    rooms = {room(path) for path in FILES} - {"facade", *OUTSIDE}
    assert rooms <= set(LEVEL), rooms - set(LEVEL)


def test_no_room_bears_the_name_of_a_public_verb():
    rooms = {room(path) for path in FILES}
    assert not rooms & set(foveate.__all__)


def fresh(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_import_costs_no_torch():
    used = "foveate.Plan, foveate.Family, foveate.Recipe, foveate.names()"
    code = f"import sys, foveate; {used}; print('torch' in sys.modules)"
    assert fresh(code) == "False"


def test_every_public_name_exists():
    for name in foveate.__all__:
        assert getattr(foveate, name) is not None


def test_recipe_needs_no_torch():
    assert fresh("import sys, foveate.training.recipes.recipe; print('torch' in sys.modules)") == "False"
