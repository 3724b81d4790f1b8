"""Detection after SIGKILL ends with the same bits; two processes keep one detector and measure all images together."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from foveate.data.detection import open_detection
from foveate.prediction.evaluate import evaluate
from foveate.training.fit import fit

pytestmark = pytest.mark.slow(
    reason="it starts and kills processes; of classification tests/training has that in every run",
    guards=(
        "foveate/training/",
        "foveate/dense/detection/",
        "foveate/data/detection/",
    ),
)

pytest.importorskip("faster_coco_eval")
SCRIPT = Path(__file__).parent / "detection_processes.py"


@pytest.fixture(scope="module")
def processes():
    """The script as a module: its recipes and networks."""
    spec = importlib.util.spec_from_file_location("detection_processes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """Nine images, two of them for validation, with none to three objects."""
    folder = tmp_path_factory.mktemp("boxes")
    annotations, images = [], []
    (folder / "images").mkdir()
    for n in range(9):
        pixels = np.random.default_rng(n).integers(0, 80, (64, 64, 3)).astype(np.uint8)
        images.append({"id": n, "file_name": f"{n}.png", "width": 64, "height": 64})
        for k in range(n % 4):
            x, y = 4 + 20 * k, 6 + 9 * k
            pixels[y : y + 16, x : x + 16, k % 2] = 240
            box = {"id": len(annotations), "image_id": n, "category_id": 1 + k % 2, "bbox": [x, y, 16, 16]}
            box["segmentation"] = [[x, y, x + 16, y, x + 16, y + 16, x, y + 16]]
            annotations.append(box)
        Image.fromarray(pixels).save(folder / f"images/{n}.png")
    names = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
    content = {"images": images, "annotations": annotations, "categories": names}
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def ended(boxes, tmp_path_factory):
    """The folder of what the processes wrote, and how they ended."""
    place = tmp_path_factory.mktemp("processes")
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(SCRIPT), str(boxes), str(place)]
    done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return place, json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_killed_in_the_middle_it_ends_with_the_same_bits(ended, boxes, processes):
    place, codes, said = ended
    assert codes[0] == -signal.SIGKILL, said
    data, recipe = open_detection(boxes), processes.RECIPE.with_(**processes.KILLED)
    resumed, whole = processes.new_detector(), processes.new_detector()
    found = fit(resumed, data, recipe, output=place / "killed", resume=True, progress=False)
    wanted = fit(whole, data, recipe, progress=False)
    assert [row["eval_map"] for row in found.history] == [row["eval_map"] for row in wanted.history]
    assert [row["train_loss"] for row in found.history] == [row["train_loss"] for row in wanted.history]
    other = whole.state_dict()
    assert all(torch.equal(value, other[key]) for key, value in resumed.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(found.evaluation.found, wanted.evaluation.found, strict=True))


def test_two_processes_keep_one_detector_with_masks_and_measure_all_images(ended, boxes, processes):
    place, codes, said = ended
    assert codes[1:] == [0, 0], said
    weights, found = ([load_file(place / f"{kind}{rank}") for rank in range(2)] for kind in ("weights", "found"))
    for one in (weights, found):
        assert one[0].keys() == one[1].keys()
        assert all(torch.equal(value, one[1][key]) for key, value in one[0].items())
    model, data = processes.new_masked(), open_detection(boxes)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.load_state_dict(weights[0])
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    fit(model, data, processes.RECIPE.with_(epochs=0), progress=False)  # how images are prepared
    alone = evaluate(model, data, batch_size=1)
    assert len(alone.found) == len(alone.masks) == len(data.val) == 2
    assert len(found[0]) == 2 * len(data.val) + 1
    for n, (rows, masks) in enumerate(zip(alone.found, alone.masks, strict=True)):
        assert torch.allclose(found[0][str(n)], rows, atol=1e-3)
        assert (found[0][f"masks{n}"] != torch.from_numpy(masks.array())).float().mean() < 1e-3
    assert all(masks.array().any() for masks in alone.masks)
    assert found[0]["map"].tolist() == pytest.approx([alone.map, alone.mask_map], abs=1e-6)


def test_two_processes_train_as_one_that_adds_up_the_same_images(ended, boxes, processes):
    """A detector's loss is a mean over the boxes of a process's images: with one image each nothing else differs."""
    place, codes, said = ended
    assert codes[1:] == [0, 0], said
    alone, before = processes.new_frozen(), processes.new_frozen()
    recipe = processes.RECIPE.with_(**processes.ONE_EACH, accumulate=2)
    fit(alone, open_detection(boxes), recipe, progress=False)
    both, started = load_file(place / "one0"), dict(before.named_parameters())
    moved = 0.0
    for name, value in alone.named_parameters():
        torch.testing.assert_close(both[name], value.detach(), rtol=1e-3, atol=1e-5)
        moved = max(moved, float((value - started[name]).detach().abs().max()))
    assert moved > 1e-2, moved
