"""The generated program: it runs without foveate, prepares as foveate does, and executes nothing of a file's name."""

import ast
import importlib.util
import os
import re
import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image

import foveate as fv
from foveate.errors import FoveateError
from foveate.exporters.examples import example_text
from foveate.exporters.format import find_format, format_names
from foveate.images import Preprocess

pytestmark = pytest.mark.slow(reason="it starts the program that each export brings", guards=("foveate/exporters/",))

SIZE = 64
CLASSES = ["left", "right", "up", "down", "none"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5).eval()
    with torch.no_grad():
        model.fc.weight *= 30  # so that no two classes are as probable
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": CLASSES, "crop_pct": 0.9}
    return fv.insert(model, "ulsam after layer3", input_size=SIZE)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """It is wider than high, and lies on its side."""
    place = tmp_path_factory.mktemp("picture") / "picture.jpg"
    image = Image.radial_gradient("L").resize((90, 130)).convert("RGB")
    image.paste((200, 30, 60), (10, 20, 50, 60))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(place, exif=exif)
    return place


def run(program, picture, tmp_path):
    """In a process that cannot import foveate."""
    block = "import sys; sys.modules['foveate'] = None; sys.argv = sys.argv[1:]; import runpy; "
    command = [sys.executable, "-c", block + "runpy.run_path(sys.argv[0])", str(program), str(picture)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, env={**os.environ})
    assert ended.returncode == 0, ended.stderr
    return [line.split(" ", 1) for line in ended.stdout.splitlines()]


def expected(model, picture):
    with torch.no_grad():
        probabilities = model(Preprocess.of(model, SIZE)(Image.open(picture))[None]).softmax(1)[0]
    top = probabilities.topk(5)
    return [[f"{value:.4f}", CLASSES[index]] for value, index in zip(top.values, top.indices, strict=True)]


def close(found, wanted):
    assert [name for _, name in found] == [name for _, name in wanted]
    for (one, _), (other, _) in zip(found, wanted, strict=True):
        assert abs(float(one) - float(other)) <= 2e-4


# The first needs nothing that torch does not bring; the others run where their runtime is.
@pytest.mark.parametrize(
    "name, options",
    [
        ("pt2", {}),
        ("onnx", {}),
        ("onnx", {"input": "uint8", "batch": 3}),
        *((n, {}) for n in ("openvino", "ncnn", "executorch")),
    ],
)
def test_it_says_what_the_network_says(name, options, model, picture, tmp_path):
    missing = [module for module in find_format(name).requires if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    made = fv.export(model, name, tmp_path, size=SIZE, images=2, time=False, **options)
    program = made.write_example()
    assert program.name == "test_resnet_fp32_example.py"
    close(run(program, picture, tmp_path), expected(model, picture))
    with pytest.raises(FoveateError, match="is there already"):
        made.write_example()
    assert made.write_example(overwrite=True) == program
    with pytest.raises(FoveateError, match="in the folder of"):
        made.write_example(tmp_path / "elsewhere" / "a.py")


def test_what_is_transparent_is_white(model, tmp_path):
    picture = tmp_path / "picture.png"
    image = Image.radial_gradient("L").resize((90, 70)).convert("RGB")
    image.putalpha(Image.linear_gradient("L").resize((90, 70)))
    image.save(picture)
    program = fv.export(model, "pt2", tmp_path, size=SIZE, images=2, time=False).write_example()
    (wanted,) = fv.predict(model, picture, image_size=SIZE)
    close(run(program, picture, tmp_path), [[f"{share:.4f}", name] for name, share in wanted.top])


@pytest.fixture(scope="module")
def metadata(model):
    from foveate.exporters.options import ExportOptions
    from foveate.exporters.program import prepare

    return prepare(model, ExportOptions(size=SIZE), format_name="onnx").metadata


@pytest.mark.parametrize("name", format_names())
def test_every_format_has_one(name, metadata, tmp_path):
    """It is a program, short, and imports what it says and nothing else."""
    form = find_format(name)
    text = example_text(tmp_path / f"net{form.suffix}", {**metadata, "format": name}, "net_example.py")
    tree = ast.parse(text)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {module.split(".")[0].replace("_", "-") for module in imported}
    assert roots - sys.stdlib_module_names - {"numpy", "PIL"} == set(form.example_requires)
    assert len([line for line in text.splitlines() if line.strip()]) < 45
    assert not re.search("_VALUES|FILE_NAME|OF_THIS|REQUIREMENTS|PREPARATION|RESAMPLING|NORMALISE|CALL", text)


def test_names_stay_text(metadata, tmp_path):
    odd = 'MODE"""; raise SystemExit("executed") #.onnx'
    tree = ast.parse(example_text(tmp_path / odd, metadata, odd + "_example.py"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    assert odd in [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
