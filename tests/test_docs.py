"""The pages of docs/: the catalogue is what the code gives, every name has a page, nothing links to nowhere."""

import ast
import importlib.util
import inspect
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import docstring_parser
import pytest
import yaml
from PIL import Image

import foveate as fv
from foveate import networks, registry
from foveate.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PUBLIC = re.findall(r" as (\w+)$", (ROOT / "foveate" / "__init__.pyi").read_text("utf-8"), re.MULTILINE)
NAMES = [(kind, name) for kind in ("attention", "pooling", "heads") for name in registry.names(kind)]
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def script(name):
    """A program of docs/ as a module; it is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def links(page):
    found = re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text("utf-8")))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def files(nav):
    for entry in nav:
        inside = entry.values() if isinstance(entry, dict) else [entry]
        for value in inside:
            yield from files(value) if isinstance(value, list) else [value]


@pytest.mark.slow(
    reason="it counts every mechanism and network in a process of its own; that each name is there is tested below",
    guards=(
        "foveate/attention/", "foveate/pooling/", "foveate/heads/", "foveate/networks/", "foveate/surgery/",
        "foveate/accounting/", "foveate/registry.py", "docs/make_catalogue.py", "docs/catalogue.md", "constraints.txt",
    ),
)  # fmt: skip
def test_catalogue_is_what_the_code_gives():
    # A process of its own: other tests register mechanisms.
    command = [sys.executable, str(DOCS / "make_catalogue.py"), "--check"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert found.returncode == 0, found.stderr


def test_check_tells_an_old_catalogue(tmp_path, monkeypatch):
    catalogue = script("make_catalogue")
    monkeypatch.setattr(catalogue, "PAGE", tmp_path / "catalogue.md")
    monkeypatch.setattr(catalogue, "text", lambda: "| `se` | 33,312 |\n")
    with pytest.raises(SystemExit, match=r"\+\| `se` \| 33,312 \|[\s\S]*out of date"):
        catalogue.main(["--check"])
    assert not catalogue.PAGE.exists()
    catalogue.main([])
    catalogue.main(["--check"])


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_every_name_has_a_page_that_the_catalogue_links(kind, name):
    assert (DOCS / kind / f"{name}.md").is_file()
    assert f"({kind}/{name}.md)" in (DOCS / "catalogue.md").read_text("utf-8")


def test_every_network_is_in_the_catalogue():
    page = (DOCS / "catalogue.md").read_text("utf-8")
    assert [name for name in networks.names() if f"`{name}`" not in page] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page):
    assert [link for link in links(page) if not (page.parent / link.partition("#")[0]).exists()] == []


def test_links_in_code_are_no_links(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("[a](a.md) `[b](b.md)` ![c](../c.png) [d](https://example.org)\n```\n[e](e.md)\n```\n")
    assert links(page) == ["a.md", "../c.png"]


def test_navigation_holds_every_page_once():
    nav = script("navigation").navigation(DOCS)
    examples = [f"gallery/{path.stem}.md" for path in (DOCS / "gallery").glob("*.py")]
    assert sorted(files(nav)) == sorted([*(page.relative_to(DOCS).as_posix() for page in PAGES), *examples])
    assert next(iter(nav[0])) == "Home"


def test_pages_of_one_heading_are_told_apart_in_the_navigation(tmp_path):
    (tmp_path / "reports").mkdir()
    for name, heading in (("one_way", r"dogs\_2"), ("two", "dogs_2"), ("three", "cats"), ("four", "x" * 80)):
        (tmp_path / "reports" / f"{name}.md").write_text(f"# {heading}\n")
    (_, section) = script("navigation").navigation(tmp_path)
    assert section["Reports"] == [
        {"Four": "reports/four.md"},
        {"One way": "reports/one_way.md"},
        "reports/three.md",
        {"Two": "reports/two.md"},
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_can_be_heard(page):
    """One title, no level of headings left out, a text for every picture."""
    text = re.sub(r"^ *(```|~~~).*?^ *\1", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    levels = [len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert not re.search(r"!\[\s*\]\(", text)


def test_navigation_takes_in_what_is_added(tmp_path):
    names = ("index.md", "catalogue.md", "new.md", "heads/saol.md", "more/a.md", "guides/z.md", "guides/cost.md")
    for page in (*names, "guides/a.md", "evidence.md", "gallery/plot.py"):
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).touch()
    assert script("navigation").navigation(tmp_path) == [
        {"Home": "index.md"},
        {"Guides": ["guides/cost.md", "guides/a.md", "guides/z.md", "new.md"]},
        {"Gallery": ["gallery/plot.md"]},
        {"Reference": [{"Catalogue": ["catalogue.md", {"Heads": ["heads/saol.md"]}, {"More": ["more/a.md"]}]}]},
        {"Reports": ["evidence.md"]},
    ]


def test_every_public_name_is_in_the_reference_once():
    pages = {page.name: page.read_text("utf-8") for page in (DOCS / "reference").glob("*.md")}
    shown = [
        (name, page) for page, text in pages.items() for name in re.findall(r"^::: foveate\.(\w+)$", text, re.MULTILINE)
    ]
    assert sorted(name for name, _ in shown) == sorted(PUBLIC)
    assert [name for name, page in shown if f"[`{name}`]({page}#foveate.{name})" not in pages["index.md"]] == []


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in ("FoveateError", "Sites")])  # plain subclasses
def test_the_docstring_of_a_public_name_is_whole(name):
    """Every argument, and what comes back: the reference is made from it."""
    thing = getattr(fv, name)
    text = inspect.getdoc(thing)
    said = docstring_parser.parse(text, style=docstring_parser.DocstringStyle.GOOGLE)
    signature = inspect.signature(thing)
    arguments = {argument.arg_name.lstrip("*") for argument in said.params}
    fields = set(signature.parameters) - {"self"}
    assert said.short_description
    assert {field for field in fields - arguments if not field.startswith("_") and f"``{field}``" not in text} == set()
    if not inspect.isclass(thing):
        assert arguments <= fields
        assert signature.return_annotation in (None, "None") or said.returns or said.many_returns, "no Returns"


def test_the_command_line_reference_has_every_command_and_option():
    text = script("command_line").commands()
    commands = {name: app[name] for name in app if not name.startswith("-")}
    commands |= {f"data {name}": app["data"][name] for name in app["data"] if not name.startswith("-")}
    assert len(commands) > 17
    assert [name for name in commands if f"## foveate {name}\n" not in text] == []
    for name, command in commands.items():
        if command.default_command is None:
            continue
        section = re.split(r"^##", text.partition(f"## foveate {name}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
        arguments = command.assemble_argument_collection()
        options = {name for argument in arguments for name in argument.names if name not in argument.negatives}
        assert options
        assert [option for option in options if option.startswith("--") and option not in section] == [], name


def test_mkdocs_configuration_names_files_that_exist():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    assert "nav" not in config
    assert config["theme"]["font"] is False  # else the pages ask another server
    assert all((ROOT / hook).is_file() for hook in config["hooks"])
    assert (ROOT / config["docs_dir"]).is_dir()


def test_the_tests_that_a_page_names_exist():
    known = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in (ROOT / "tests").rglob("test_*.py")}
    for page in PAGES:
        for file, name in re.findall(r"`([\w/]*test_\w+)(?:\.py)?(?:::(test_\w+))?`", page.read_text("utf-8")):
            files = [path for where, path in known.items() if f"/{where}".endswith(f"/{file}")]
            assert files, f"{page.name}: {file}"
            assert not name or any(f"def {name}(" in path.read_text("utf-8") for path in files), f"{page.name}: {name}"


@pytest.mark.parametrize("name", [name for name in registry.names() if hasattr(registry.find(name), "attend")])
def test_every_mechanism_with_a_map_has_a_small_picture_on_its_page(name):
    assert name in script("make_pictures").PLANS
    assert f"](../images/{name}.png)" in (DOCS / "attention" / f"{name}.md").read_text("utf-8")


@pytest.mark.parametrize(
    "image", sorted(path for folder in DOCS.rglob("images") for path in folder.iterdir()), ids=lambda image: image.name
)
def test_images_are_small_and_shown(image):
    assert image.stat().st_size < 100_000
    assert any(image.name in page.read_text("utf-8") for page in [*PAGES, ROOT / "README.md"])


EXAMPLES = sorted((DOCS / "gallery").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_says_what_it_shows(example):
    tree = ast.parse(example.read_text("utf-8"))
    title, _, text = ast.get_docstring(tree).partition("\n")
    assert title.endswith(".")
    assert len(text.strip()) > 80


@pytest.mark.slow(
    reason="it draws the gallery's pictures, with short trainings",
    guards=("docs/gallery/", "docs/examples.py", "foveate/training/", "foveate/explanations/", "foveate/data/"),
)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_draws_its_picture(example, tmp_path):
    command = [sys.executable, "-W", "error", str(example), str(tmp_path / "picture.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 400
        assert len(set(picture.convert("L").tobytes())) > 20  # it is not empty


@pytest.mark.slow(
    reason="it builds the whole site; make docs does the same, and needs the extra docs",
    guards=("docs/", "mkdocs.yml", "foveate/__init__.pyi", "foveate/cli/"),
)
def test_the_site_is_built_and_asks_no_other_server(tmp_path):
    for package in ("material", "mkdocstrings"):
        pytest.importorskip(package, reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 60
    loads = re.compile(
        r"<(?:script|img|iframe|source|video)\b[^>]*\bsrc=\"?https?:|<link\b[^>]*\bhref=\"?https?:[^>]*stylesheet"
    )
    assert [page for page in pages if loads.search(page.read_text("utf-8"))] == []
    index = json.loads((tmp_path / "site" / "search" / "search_index.json").read_text("utf-8"))
    for word, page in (("install", ""), ("quantization", "export_int8/"), ("export", "export/")):
        hits = {entry["location"].partition("#")[0] for entry in index["docs"] if word in str(entry).lower()}
        assert any(hit.endswith(page) if page else hit == "" for hit in hits), word
