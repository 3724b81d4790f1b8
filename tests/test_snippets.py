"""Every code block of README, CONTRIBUTING and docs/ runs: Python and ``foveate`` commands, in the order of the page.

A block without a language is what the block before it printed, and is compared with that: ``...`` stands for anything.
``text`` marks what is neither: formulas, grammar. A comment that a reader does not see steers a page:

* ``<!-- snippets: CODE -->`` runs before the next block;
* ``<!-- output -->``: the next block, after a paragraph, is also what the last command printed;
* ``<!-- file: NAME -->``: the next block is written to this file;
* ``<!-- not run: REASON -->`` and ``<!-- not compared: REASON -->`` leave the next block out.

The blocks run as they are, on a folder of a few tiny images, with the changes in ``SMALLER`` where no output is
compared; weights that would have to be downloaded are left random. ``python tests/test_snippets.py`` counts the blocks.
"""

import re
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import timm.models._builder as builder
from PIL import Image

import foveate as fv
from foveate import registry
from foveate.cli import main
from foveate.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = ("path/to/images", "path/to/image/folder", "photos", "dogs-to-test")
PICTURES = ("dog.jpg", "cat.jpg", "a.jpg", "b.jpg", "picture.jpg", "more/a.jpg")
# A day of training is made a second of it; nothing else in a block is changed.
SMALLER = [
    (r"epochs=\d+", "epochs=1"),
    (r"--epochs \d+", "--epochs 1"),
    (r"seeds=\d+", "seeds=2"),
    (r"--seeds \d+", "--seeds 2"),
    (r"image_size=\d+", "image_size=32"),
    (r"--image-size \d+", "--image-size 32"),
    (r"Recipe\((?!.*image_size)(?=.)", "Recipe(image_size=32, "),
    (r'fit\(model, "path/to/image/folder"\)', 'fit(model, "path/to/image/folder", fv.Recipe(epochs=1, image_size=32))'),
    (r"--model mobilenetv2_\d+", "--model mobilenetv2_035"),
    (r'compare\(\n    "mobilenetv2_\d+"', 'compare(\n    "mobilenetv2_035"'),
    (r"rounds=\d+", "rounds=2"),
    (r"\btrials=\d+", "trials=2, finalists=1"),
    (r"--trials \d+", "--trials 2 --finalists 1"),
    # A graph for any number of images takes twice the time; docs/export.md begins with one.
    (r'"out/pixels.onnx",', '"out/pixels.onnx", batch=1, time=False,'),
    (r'"out/small.onnx",', '"out/small.onnx", batch=1, time=False,'),
    (r'precision="int8", data', 'precision="int8", batch=1, data'),
    (r"foveate export (.*)--output", r"foveate export \1--batch 1 --output"),
    # A file for each plan of a comparison in one form; test_plan_exports.py has two.
    (r"--export onnx onnx:fp16", "--export onnx:fp16"),
    # Peak memory takes a new process for each network and batch size; test_latency.py has one.
    (r"foveate latency mobilenetv2_100", "foveate latency mobilenetv2_035 --rounds 2 --no-memory"),
    (r"foveate cost mobilenetv2_100(.*) --time", r"foveate cost mobilenetv2_035\1 --time"),
]
# Pages that a command writes, with the command's own call at the top.
GENERATED = dict.fromkeys(
    (
        f"docs/reports/{name}.md"
        for name in (
            *("imagewoof", "camvid", "camvid_upernet", "bccd"),
            *("flowers_ablation", "flowers_search", "flowers_search_compared"),
            *(path.stem for path in (ROOT / "docs" / "reports").glob("evidence_*.md")),
        )
    ),
    "its data set is not in the repository",
)
BLOCK = re.compile(
    r"<!-- (?P<kind>snippets|not run|not compared|output|file)(?::\s(?P<text>.*?))?\s-->"
    r"|^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```",
    re.MULTILINE | re.DOTALL,
)


@dataclass
class Step:
    kind: str  # python, sh, output, file, text, left out; unknown: neither a language nor a reason
    code: str
    line: int
    about: str = ""  # the name of a file, or the reason why the block is left out
    exactly: bool = False  # its output is compared, so nothing in it is changed


def steps(text):
    """The blocks of a page, in order."""
    found, before, end = [], None, 0
    for match in BLOCK.finditer(text):
        line = text[: match.start()].count("\n") + 1
        if match["kind"] == "snippets":
            found.append(Step("python", match["text"], line, "hidden"))
        elif match["kind"]:
            before = match
        else:
            step = Step(match["language"] or "unknown", match["code"], line)
            follows = bool(found) and not re.sub(r"<!--.*?-->", "", text[end : match.start()], flags=re.DOTALL).strip()
            printed = step.kind == "unknown" and (follows or (before is not None and before["kind"] == "output"))
            if before is not None and before["kind"].startswith("not "):
                step.kind, step.about = "left out", before["text"]
            elif before is not None and before["kind"] == "file":
                step.kind, step.about = "file", before["text"]
            elif printed:
                step.kind = "output"
                next(step for step in reversed(found) if step.kind in ("python", "sh")).exactly = True
            found.append(step)
            before, end = None, match.end()
    return found


def smaller(code):
    for pattern, replacement in SMALLER:
        code = re.sub(pattern, replacement, code)
    return code


def run_python(step, page, namespace):
    code = "\n" * step.line + (step.code if step.exactly else smaller(step.code))
    exec(compile(code, str(page), "exec"), namespace)  # noqa: S102 - the project's own documentation


def run_shell(step, page):
    """Each ``foveate`` command in this process."""
    for command in (step.code if step.exactly else smaller(step.code)).replace("\\\n", " ").splitlines():
        words = shlex.split(command, comments=True)
        if not words:
            continue
        assert words[0] == "foveate", f"{page}: {command}"
        if words[1] == "serve":  # it would serve until it is stopped
            app.parse_args(words[1:], exit_on_error=False)
            continue
        try:
            main(words[1:])
        except SystemExit as ended:
            assert not ended.code, f"{page}: {command}"


def compare_output(step, printed):
    """Whether what the page shows is a part of what was printed, line by line; ``...`` is anything, also many lines."""
    lines = "\n".join(line.rstrip() for line in printed.splitlines()) + "\n"
    wanted = "\n".join(line.rstrip() for line in step.code.splitlines()) + "\n"
    pattern = re.escape(wanted).replace(r"\.\.\.", ".*?")
    assert re.search(rf"(?ms)^{pattern}", lines), f"the page shows\n{wanted}\nand printed was\n{lines}"


def run(page, text, capsys, namespace):
    """The blocks of a page. An error says in which block it was."""
    printed = ""
    for step in steps(text):
        try:
            if step.kind in ("python", "sh"):
                capsys.readouterr()
                run_python(step, page, namespace) if step.kind == "python" else run_shell(step, page)
                printed = capsys.readouterr().out
            elif step.kind == "file":
                Path(step.about).write_text(step.code, "utf-8")
            elif step.kind == "output":
                compare_output(step, printed)
        except BaseException as error:
            error.add_note(f"in the block at {page}:{step.line}")
            raise


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("snippets")
    rng = np.random.default_rng(0)

    def draw(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(path)

    for folder in FOLDERS:
        for part in ("train", "val"):
            for label in ("cat", "dog"):
                for k in range(4):
                    draw(root / folder / part / label / f"{k}.jpg")
    for picture in PICTURES:
        draw(root / picture)
    return root


@pytest.fixture
def workplace(pictures, tmp_path, monkeypatch):
    """A folder of links to the pictures; no network is asked for weights; what a page registers is forgotten."""
    for entry in pictures.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    load = builder.load_pretrained

    def offline(model, pretrained_cfg=None, *args, **kwargs):
        kind, _ = builder._resolve_pretrained_source(pretrained_cfg or model.pretrained_cfg)
        if kind not in ("hf-hub", "url"):
            load(model, pretrained_cfg, *args, **kwargs)

    monkeypatch.setattr(builder, "load_pretrained", offline)
    return tmp_path


FILES = ("foveate/exporters/", "foveate/studies/deployment/", "foveate/cli/export.py")
STUDIES = ("foveate/studies/", "foveate/training/", "foveate/families/", "foveate/cli/compare.py")
LONG = {
    "docs/export.md": ("ten files of a real network; the same calls are tested in tests/exporters", FILES),
    "docs/export_int8.md": ("it quantizes real networks; the same calls are tested in tests/exporters", FILES),
    "docs/export_formats.md": ("it exports real networks; the same calls are tested in tests/exporters", FILES),
    "docs/guides/compare.md": ("it trains for each block; the same calls are tested in tests/studies", STUDIES),
    "docs/guides/executors.md": ("it starts processes; the same calls are tested in tests/studies", STUDIES),
    "docs/guides/terminal.md": (
        "it trains, compares, searches and exports; the same commands are tested in tests/cli",
        FILES + STUDIES + ("foveate/cli/",),
    ),
    "docs/guides/search.md": ("it trains for each block; the same calls are tested in tests/studies", STUDIES),
    "docs/tutorials/first_comparison.md": (
        "it trains and compares; the same calls are tested in tests/studies",
        STUDIES,
    ),
    "docs/tutorials/ship_to_a_phone.md": (
        "it trains and exports real networks, as the tests of both do",
        FILES + STUDIES,
    ),
    "docs/tutorials/which_attention.md": ("it trains six plans; the same calls are tested in tests/studies", STUDIES),
}


def marks(page):
    """Of a page that takes too long for every change: it runs when it, or what it is about, has changed."""
    name = page.relative_to(ROOT).as_posix()
    if name not in LONG:
        return ()
    reason, guards = LONG[name]
    return pytest.mark.slow(reason=reason, guards=(name, *guards))


def blocks(page):
    return steps(page.read_text("utf-8"))


WITH_CODE = [
    pytest.param(page, id=page.relative_to(ROOT).as_posix(), marks=marks(page))
    for page in PAGES
    if page.relative_to(ROOT).as_posix() not in GENERATED
    and any(step.kind in ("python", "sh") for step in blocks(page))
]


@pytest.mark.parametrize("page", WITH_CODE)
def test_the_blocks_of_a_page_run(page, workplace, capsys):
    run(page.relative_to(ROOT), page.read_text("utf-8"), capsys, {"__name__": "snippets"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_runs_or_says_why_not(page):
    if page.relative_to(ROOT).as_posix() in GENERATED:
        pytest.skip(GENERATED[page.relative_to(ROOT).as_posix()])
    kinds = ("python", "sh", "output", "file", "text", "left out")
    assert [f"line {step.line}: {step.kind}" for step in blocks(page) if step.kind not in kinds] == []
    assert [step.line for step in blocks(page) if step.kind == "left out" and len(step.about) < 16] == []
    indented = re.compile(r"\n\n(?: {4}|\t)(?:foveate|python|torchrun|pip|import|from|fv\.|model) ?[^\n]*")
    assert indented.findall(BLOCK.sub("", page.read_text("utf-8"))) == []  # a block that no one would run


def test_a_block_that_fails_is_noticed(workplace, capsys):
    with pytest.raises(AttributeError, match="no_such_verb"):
        run("page", "text\n\n```python\nimport foveate as fv\nfv.no_such_verb()\n```\n", capsys, {})
    with pytest.raises(AssertionError, match="nowhere"):
        run("page", "```sh\nfoveate train nowhere --model resnet18\n```\n", capsys, {})
    with pytest.raises(AssertionError, match="pip install"):
        run("page", "```sh\npip install foveate\n```\n", capsys, {})


def test_an_output_that_is_not_what_was_printed_is_noticed(workplace, capsys):
    page = "```python\nprint('one')\nprint('two  ')\nprint('three')\n```\n\n```\n{}```\n"
    for right in ("one\ntwo\nthree\n", "two\nthree\n", "one\n...\nthree\n", "tw...\n"):
        run("page", page.format(right), capsys, {})
    for wrong in ("one\nthree\n", "wo\n", "one\ntwo\nthree\nfour\n", "tw\n"):
        with pytest.raises(AssertionError, match="the page shows"):
            run("page", page.format(wrong), capsys, {})


def test_steering_comments(workplace, capsys):
    page = (
        "<!-- snippets: x = 1 -->\n```python\nassert x\nprint(1)\nprint(2)\n```\n```\n1\n```\nThen:\n\n"
        "<!-- output -->\n```\n2\n```\nBut\n<!-- not run: needs the network -->\n```python\n1/0\n```\n"
        "<!-- not compared: a time -->\n```\n3 s\n```\n<!-- file: a.yaml -->\n```yaml\nx: 1\n```\n"
        "```text\na = b\n```\nA block\n```\nthat is nothing\n```\n"
    )
    kinds = ["python", "python", "output", "output", "left out", "left out", "file", "text", "unknown"]
    assert [step.kind for step in steps(page)] == kinds
    assert [step.about for step in steps(page)[4:7]] == ["needs the network", "a time", "a.yaml"]
    run("page", page, capsys, {})
    assert Path("a.yaml").read_text() == "x: 1\n"


def test_the_table_of_errors_is_what_is_said():
    rows = re.findall(
        r"^\| `([^`]+)` \| (.+) \|$",
        (ROOT / "docs/guides/surgery.md").read_text("utf-8").partition("## Errors")[2],
        re.MULTILINE,
    )
    assert len(rows) > 5
    model = timm.create_model("mobilenetv2_100")
    for plan, said in rows:
        with pytest.raises(fv.FoveateError) as error:
            fv.insert(model, plan)
        assert re.fullmatch(re.escape(said).replace(r"\.\.\.", ".*"), str(error.value)), error.value


if __name__ == "__main__":
    count = Counter(
        step.kind if relative not in GENERATED else "left out"
        for page in PAGES
        for relative in [page.relative_to(ROOT).as_posix()]
        for step in blocks(page)
        if step.about != "hidden" and step.kind != "text"
    )
    print(f"{count.total() - count['left out']} of {count.total()} blocks run or are compared: {dict(count)}")
