"""Every code block of README and docs/ runs: Python and ``foveate`` commands, page by page, in the order of the page.

A comment that a reader does not see steers a page: ``<!-- snippets: CODE -->`` runs before the next block, and
``<!-- not run: REASON -->`` leaves the next block out. The blocks run as they are, on a folder of a few tiny images,
with the changes in ``SMALLER``; weights that would have to be downloaded are left random.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm.models._builder as builder
from PIL import Image

from foveate import registry
from foveate.cli import main
from foveate.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
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
            *("imagewoof", "flowers_ablation", "flowers_search", "flowers_search_compared"),
            *(path.stem for path in (ROOT / "docs" / "reports").glob("evidence_*.md")),
        )
    ),
    "its data set is not in the repository",
)
BLOCK = re.compile(
    r"<!-- (?P<kind>snippets|not run):\s(?P<text>.*?)\s-->|^```(?P<language>\w*)\n(?P<code>.*?)^```",
    re.MULTILINE | re.DOTALL,
)


@dataclass
class Step:
    language: str
    code: str
    line: int


def steps(text):
    """What a page runs, in order, and how many blocks it leaves out with a reason."""
    found, left_out, skip = [], [], None
    for match in BLOCK.finditer(text):
        line = text[: match.start()].count("\n") + 1
        if match["kind"] == "snippets":
            found.append(Step("python", match["text"], line))
        elif match["kind"] == "not run":
            skip = match["text"]
        else:
            code, language = match["code"], match["language"]
            if not language and code.startswith("foveate "):
                language = "sh"
            if skip:
                left_out.append(skip)
            elif language in ("python", "sh"):
                found.append(Step(language, code, line))
            skip = None
    return found, left_out


def smaller(code):
    for pattern, replacement in SMALLER:
        code = re.sub(pattern, replacement, code)
    return code


def run_python(step, page, namespace):
    code = "\n" * step.line + smaller(step.code)
    exec(compile(code, str(page), "exec"), namespace)  # noqa: S102 - the project's own documentation


def run_shell(step, page):
    """Each ``foveate`` command in this process; ``make`` and ``pip`` are what sets up and runs these tests."""
    for command in smaller(step.code).replace("\\\n", " ").splitlines():
        words = shlex.split(command, comments=True)
        if not words or words[0] in ("make", "pip", "python", "torchrun"):
            continue
        assert words[0] == "foveate", f"{page}: {command}"
        if words[1] == "serve":  # it would serve until it is stopped
            app.parse_args(words[1:], exit_on_error=False)
            continue
        try:
            main(words[1:])
        except SystemExit as ended:
            assert not ended.code, f"{page}: {command}"


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
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    load = builder.load_pretrained

    def offline(model, pretrained_cfg=None, *args, **kwargs):
        kind, _ = builder._resolve_pretrained_source(pretrained_cfg or model.pretrained_cfg)
        if kind not in ("hf-hub", "url"):
            load(model, pretrained_cfg, *args, **kwargs)

    monkeypatch.setattr(builder, "load_pretrained", offline)
    return tmp_path


def marks(page):
    """Of a page that takes too long for every change: it runs when it, or what it is about, has changed."""
    if page.name != "export.md":
        return ()
    guards = ("foveate/exporters/", "foveate/studies/deployment/", "foveate/cli/export.py")
    return pytest.mark.slow(
        reason="ten files of a real network; the same calls are tested on small ones in tests/exporters",
        guards=(page.relative_to(ROOT).as_posix(), *guards),
    )


WITH_CODE = [
    pytest.param(page, id=page.relative_to(ROOT).as_posix(), marks=marks(page))
    for page in PAGES
    if page.relative_to(ROOT).as_posix() not in GENERATED and steps(page.read_text("utf-8"))[0]
]


@pytest.mark.parametrize("page", WITH_CODE)
def test_the_blocks_of_a_page_run(page, workplace):
    namespace = {"__name__": "snippets"}
    for step in steps(page.read_text("utf-8"))[0]:
        try:
            if step.language == "python":
                run_python(step, page, namespace)
            else:
                run_shell(step, page)
        except BaseException as error:
            error.add_note(f"in the block at {page.relative_to(ROOT)}:{step.line}")
            raise


def test_what_is_left_out_has_a_reason():
    for page in PAGES:
        assert all(len(reason) > 15 for reason in steps(page.read_text("utf-8"))[1]), page


def test_a_block_that_fails_is_noticed(workplace):
    (step,), _ = steps("text\n\n```python\nimport foveate as fv\nfv.no_such_verb()\n```\n")
    with pytest.raises(AttributeError, match="no_such_verb"):
        run_python(step, Path("page.md"), {})
    (step,), _ = steps("```sh\nfoveate train nowhere --model resnet18\n```\n")
    with pytest.raises(AssertionError, match="nowhere"):
        run_shell(step, Path("page.md"))


def test_steering_comments():
    page = (
        "<!-- snippets: x = 1 -->\n```python\nassert x\n```\n<!-- not run: needs the network -->\n```python\n1/0\n```\n"
    )
    found, left_out = steps(page)
    assert [step.code for step in found] == ["x = 1", "assert x\n"]
    assert left_out == ["needs the network"]
