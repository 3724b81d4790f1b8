"""Faults of docs/faults.md by number, injected into runs of segmentation and of detection."""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.dense import create_detector, create_segmenter
from foveate.errors import FoveateError
from foveate.training.input import loaders
from foveate.training.loop import Run
from foveate.training.metrics import Diverged
from foveate.training.restore import OutOfMemory

pytest.importorskip("faster_coco_eval")
SIDE, NAMES = 32, ("red", "green", "blue")
RECIPE = fv.Recipe(epochs=2, batch_size=2, image_size=SIDE, learning_rate=1e-3, optimiser="adamw", seed=1)


class Task:
    """One of the two tasks: a folder of six images, the network, the functions that open and check."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.segments = name == "segmentation"
        self.open = fv.open_segmentation if self.segments else fv.open_detection

    def network(self, channels: int = 3):
        """A small network, always with the same weights."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            options = {"classes": NAMES, "in_chans": channels}
            if self.segments:
                return create_segmenter("test_efficientnet", "lraspp(width=8)", taps=(1, 4), **options)
            return create_detector("test_efficientnet", "ssdlite(width=0.1)", **options)

    def write(self, folder, labels=(0, 1), size=(SIDE, SIDE)):
        """A bright square of one of the first two classes in each image; the third is nowhere."""
        for part, count in (("train", 4), ("val", 2)):
            content = {"images": [], "annotations": [], "categories": []}
            content["categories"] = [{"id": n + 1, "name": name} for n, name in enumerate(NAMES)]
            (folder / "images" / part).mkdir(parents=True)
            for n in range(count):
                label = labels[n % len(labels)] if part == "train" else labels[0]
                pixels = np.random.default_rng(n).integers(0, 60, (*size, 3)).astype(np.uint8)
                pixels[4 : 18 + n, 6:20, label] = 250
                Image.fromarray(pixels).save(folder / "images" / part / f"{n}.jpg", quality=95)
                target = np.full(size, 2, np.uint8)
                target[4 : 18 + n, 6:20] = label
                content["images"].append({"id": n, "file_name": f"{n}.jpg", "width": size[1], "height": size[0]})
                box = {"id": n, "image_id": n, "category_id": label + 1, "bbox": [6, 4, 14, 14 + n]}
                content["annotations"].append(box)
                if self.segments:
                    (folder / "annotations" / part).mkdir(parents=True, exist_ok=True)
                    Image.fromarray(target).save(folder / "annotations" / part / f"{n}.png")
            if not self.segments:
                (folder / "images" / part / "_annotations.coco.json").write_text(json.dumps(content))
        if self.segments:
            (folder / "classes.txt").write_text("\n".join(NAMES) + "\n")
            return folder
        return folder / "images"


@pytest.fixture(scope="module", params=["segmentation", "detection"])
def task(request):
    return Task(request.param)


@pytest.fixture(scope="module")
def data(task, tmp_path_factory):
    return task.open(task.write(tmp_path_factory.mktemp("whole")))


@pytest.fixture
def source(task, tmp_path):
    """A folder of its own, to be damaged."""
    return task.write(tmp_path / "source")


def image(source, n=1):
    return next(source.rglob(f"train/{n}.jpg"))


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(model, before):
    return all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_1_a_truncated_image_is_named(task, source, workers):
    path = image(source)
    path.write_bytes(path.read_bytes()[:-300])  # its header says the right size
    model = task.network()
    before = weights(model)
    with pytest.raises(FoveateError) as error:
        fv.fit(model, task.open(source), RECIPE.with_(workers=workers), progress=False)
    assert str(path) in one_line(error)
    assert same(model, before)


def huge(side):
    """A PNG of some bytes whose header says that it is large."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    body = b"IDAT" + zlib.compress(b"\0")
    return start + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize(
    "content", [b"", b"no picture", huge(12_000), huge(30_000)], ids=["empty", "text", "12000", "30000"]
)
def test_2_3_4_what_is_no_image_or_too_large_a_one_is_found_when_the_data_are_opened(task, source, content):
    damaged = [image(source)]
    if task.segments:
        damaged += source.glob("annotations/train/1.png")
    for path in damaged:
        whole = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(FoveateError) as error:
            task.open(source)
        assert str(path) in one_line(error)
        path.write_bytes(whole)


def test_5_6_7_one_rule_of_decoding(task, tmp_path):
    source = task.write(tmp_path / "source", size=(24, 40))
    turned = Image.open(image(source, 0)).transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees, which makes it 40 x 24 again
    turned.save(image(source, 0), exif=exif, quality=95)
    Image.open(image(source, 1)).convert("CMYK").save(image(source, 1))
    deep = np.linspace(0, 65_535, 24 * 40).reshape(24, 40).astype(np.uint16)
    Image.fromarray(deep).save(image(source, 2), format="PNG")
    split = task.open(source).train
    for n in range(3):
        assert np.array_equal(np.array(split.load(n)), np.array(fv.open_image(image(source, n))))
    assert split.load(0).size == (40, 24)
    grey = np.array(split.load(2))[..., 0]
    assert (grey.min(), grey.max()) == (0, 255)
    assert len(np.unique(grey)) > 200  # rescaled, not clipped


def test_8_9_classes_that_a_part_lacks_keep_their_numbers(task, data):
    evaluation = fv.fit(task.network(), data, RECIPE.with_(epochs=0), progress=False).evaluation
    assert data.classes == NAMES
    rows = {row["class"]: row for row in evaluation.per_class()}
    assert list(rows) == list(NAMES)
    if task.segments:
        assert int(evaluation.counts[:, 1, 2].sum()) == 0
    else:
        assert rows["green"]["objects"] == 0
        assert rows["green"]["ap"] is None


def test_10_a_loop_of_links_counts_no_image_twice(task, source):
    for folder in {path.parent for path in source.rglob("train/*")}:
        (folder / "again").symlink_to(folder, target_is_directory=True)
    assert len(task.open(source).train) == 4


def test_11_channels_that_do_not_fit_are_a_hint(task, data, tmp_path):
    model = task.network(channels=4)
    before = weights(model)
    with pytest.raises(FoveateError, match="4 channels") as error:
        fv.fit(model, data, RECIPE, output=tmp_path / "run", progress=False)
    one_line(error)
    assert same(model, before)
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_12_a_pixel_that_is_nan_is_named(task, source):
    path = image(source)
    pixels = np.random.default_rng(0).random((SIDE, SIDE), dtype=np.float32)
    pixels[3, 3] = np.nan
    Image.fromarray(pixels).save(path, format="TIFF")
    with pytest.raises(FoveateError) as error:
        fv.fit(task.network(), task.open(source), RECIPE, progress=False)
    assert str(path) in one_line(error)
    assert "finite" in str(error.value) or "NaN" in str(error.value)


def test_13_a_loss_that_is_nan_keeps_the_last_good_checkpoint(task, data, tmp_path):
    model, steps = task.network(), 0

    def breaks(module, _, output):
        nonlocal steps
        steps += module.training
        return output * float("nan") if steps > 3 and module.training else output

    model.backbone.conv_stem.register_forward_hook(breaks)
    before = weights(model)
    with pytest.raises(Diverged) as error:
        fv.fit(model, data, RECIPE, output=tmp_path, progress=False)
    assert error.value.exit_code == 3
    assert "the loss is nan in epoch 2, step 2" in one_line(error)
    assert same(model, before)
    assert all(value.isfinite().all() for value in fv.load(tmp_path / "last").state_dict().values())


def test_17_20_a_flipped_bit_of_a_checkpoint_is_refused_and_16_a_full_disk_keeps_the_old_one(
    task, data, tmp_path, monkeypatch
):
    recipe = RECIPE.with_(epochs=1)
    fv.fit(task.network(), data, recipe, output=tmp_path, progress=False)
    path = tmp_path / "training.safetensors"
    whole = path.read_bytes()
    for at in (9, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(FoveateError, match="is damaged and cannot be resumed from|cannot resume") as error:
            fv.fit(task.network(), data, recipe, output=tmp_path, resume=True, progress=False)
        one_line(error)
    path.write_bytes(whole)

    model, later = task.network(), tmp_path / "later"

    def fill(module, _):
        if module.training and (later / "training.safetensors").exists():
            monkeypatch.setattr(os, "fsync", full)

    def full(*_):
        raise OSError(28, "No space left on device")

    model.register_forward_pre_hook(fill)
    with pytest.raises(FoveateError, match="No space left") as error:
        fv.fit(model, data, RECIPE, output=later, progress=False)
    one_line(error)
    monkeypatch.undo()
    resumed, unbroken = task.network(), task.network()
    fv.fit(resumed, data, RECIPE, output=later, resume=True, progress=False)
    fv.fit(unbroken, data, RECIPE, progress=False)
    assert same(resumed, weights(unbroken))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", ["dies", "hangs"])
def test_22_a_process_that_loads_images_and_is_lost_is_a_clear_error(task, data, fault, monkeypatch):
    monkeypatch.setattr(loaders, "_HUNG_SECONDS", 1)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)

    class Lost(type(data.train)):
        def load(self, index):
            import time

            return os._exit(1) if fault == "dies" else time.sleep(3600)

    lost = Lost(**{name: getattr(data.train, name) for name in data.train.__dataclass_fields__})
    with pytest.raises(FoveateError, match="a process that loads images failed.*: try workers=0") as error:
        fv.fit(task.network(), replace(data, train=lost), RECIPE.with_(workers=1), progress=False)
    one_line(error)


def test_23_out_of_memory_is_advice_and_code_5(task, data, monkeypatch):
    model = task.network()
    before = weights(model)

    def fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Run, "step", fails)
    with pytest.raises(OutOfMemory, match="batch_size=2: take a smaller batch_size") as error:
        fv.fit(model, data, RECIPE, progress=False)
    assert error.value.exit_code == 5
    one_line(error)
    assert same(model, before)
