"""The pages of docs/: the catalogue is what the code gives, every name has a page, nothing links to nowhere."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from foveate import networks, registry
from foveate.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
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
    public = re.findall(r" as (\w+)$", (ROOT / "foveate" / "__init__.pyi").read_text("utf-8"), re.MULTILINE)
    pages = {page.name: page.read_text("utf-8") for page in (DOCS / "reference").glob("*.md")}
    shown = [
        (name, page) for page, text in pages.items() for name in re.findall(r"^::: foveate\.(\w+)$", text, re.MULTILINE)
    ]
    assert sorted(name for name, _ in shown) == sorted(public)
    assert [name for name, page in shown if f"[`{name}`]({page}#foveate.{name})" not in pages["index.md"]] == []


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
