"""The page in the browser: what is written, and, where a browser and the runtime are there, what it shows."""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import timm
import torch

import foveate as fv
from foveate.errors import FoveateError
from foveate.exporters.browser_page import RUNTIME_FILES

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
RUNTIME = os.environ.get("FOVEATE_ONNXRUNTIME_WEB", "node_modules/onnxruntime-web/dist")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": ["one", "</script><b>two", "three"]}
    fv.insert(model, "ulsam after layer3", input_size=64)
    made = fv.export(
        *(model, "onnx", tmp_path_factory.mktemp("page") / "net.onnx"),
        size=64,
        input="uint8",
        maps=("cam", "attention"),
        images=2,
        time=False,
    )
    return made.open()


def test_what_is_written(exported, tmp_path):
    """All that the page needs is beside it, names of classes cannot end the script, and nothing else is fetched."""
    (tmp_path / "dist").mkdir()
    for name in RUNTIME_FILES:
        (tmp_path / "dist" / name).write_text("runtime")
    page = fv.write_browser_page(exported, tmp_path / "web", tmp_path / "dist")
    text = page.read_text()
    assert "</script><b>" not in text
    described = json.loads(re.search(r'<script type="application/json" id="metadata">(.*?)</script>', text)[1])
    assert described == dict(exported.metadata)
    assert "//" not in re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE).replace("</", "")
    assert (tmp_path / "web" / "net.onnx").read_bytes() == exported.path.read_bytes()
    assert {path.name for path in (tmp_path / "web" / "onnxruntime-web").iterdir()} == set(RUNTIME_FILES)


def test_a_runtime_that_is_not_there(exported, tmp_path):
    with pytest.raises(FoveateError, match="npm install onnxruntime-web"):
        fv.write_browser_page(exported, tmp_path / "web", tmp_path)
    assert not (tmp_path / "web").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"task": "segmentation"}, "shows classes of images, and .*net.onnx is for segmentation"),
        ({"task": "detection"}, "shows classes of images, and .*net.onnx is for detection"),
        ({"batch": 4}, "one image at a time, and .*net.onnx takes 4: export it with batch=1"),
    ],
)
def test_a_file_that_the_page_cannot_use(exported, tmp_path, monkeypatch, changed, said):
    metadata = dict(exported.metadata) | {key: value for key, value in changed.items() if key != "batch"}
    if "batch" in changed:
        shape = [changed["batch"], *metadata["input"]["shape"][1:]]
        metadata["input"] = {**metadata["input"], "shape": shape}
    monkeypatch.setattr(exported, "metadata", metadata)
    with pytest.raises(FoveateError, match=said):
        fv.write_browser_page(exported, tmp_path / "web", tmp_path)
    assert not (tmp_path / "web").exists()


def test_the_page_fetches_pictures_of_its_own_server_and_names_what_it_shows(exported, tmp_path):
    (tmp_path / "dist").mkdir()
    for name in RUNTIME_FILES:
        (tmp_path / "dist" / name).write_text("runtime")
    text = fv.write_browser_page(exported, tmp_path / "web", tmp_path / "dist").read_text()
    assert re.findall(r"\bfetch\(.*?\)", text) == ["fetch(from)"]
    assert "if (from.origin !== location.origin) fail(" in text
    assert '<canvas id="picture" role="img" aria-label=' in text
    assert 'setAttribute("aria-label", `the picture, predicted as ${name}' in text


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.mark.skipif(not BROWSER, reason="no Chromium")
@pytest.mark.skipif(not Path(RUNTIME).is_dir(), reason="no onnxruntime-web: FOVEATE_ONNXRUNTIME_WEB names its dist")
def test_in_a_browser(exported, folder, tmp_path):
    """The page finds the class that the file gives in Python."""
    fv.write_browser_page(exported, tmp_path / "web", RUNTIME)
    picture = folder / "val" / "left" / "0.png"
    shutil.copy(picture, tmp_path / "web" / "picture.png")
    handler = functools.partial(_Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/index.html?picture=picture.png"
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
        shown = subprocess.run([*command, address], capture_output=True, text=True, timeout=120, check=True).stdout
        server.shutdown()
    assert 'data-ready="true"' in shown, shown
    rows = re.findall(r"<td>([^<]*?)<div.*?</td><td>([\d.]+) %", shown)
    logits = exported.logits(exported.preprocess(fv.open_image(picture)).unsqueeze(0))
    expected = logits.softmax(1)[0]
    assert rows[0][0] == exported.classes[int(expected.argmax())].replace("<", "&lt;").replace(">", "&gt;")
    assert float(rows[0][1]) == pytest.approx(100 * float(expected.max()), abs=5)  # browsers resize differently
    assert len(re.findall("<option", shown)) == 1 + 4 + 1  # CAM, four subspaces, none
