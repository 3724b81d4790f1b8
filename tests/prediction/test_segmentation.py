"""Masks of images, and a segmentation network measured on label maps."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from foveate.cli import main
from foveate.data.segmentation import open_segmentation
from foveate.dense import create_segmenter
from foveate.errors import FoveateError
from foveate.explanations.explain import explain
from foveate.images import Preprocess
from foveate.prediction.evaluate import evaluate
from foveate.prediction.predict import predict
from foveate.prediction.segmentation import palette
from foveate.surgery import create_model
from foveate.surgery.saving.checkpoint import save

CLASSES = ("sky", "road", "tree")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for part in ("train", "val"):
        for n, size in enumerate([(40, 30), (40, 30), (64, 33)]):
            for kind in ("images", "annotations"):
                (folder / kind / part).mkdir(parents=True, exist_ok=True)
            random = np.random.default_rng(n)
            Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"images/{part}/{n}.png")
            target = random.integers(0, 4, size, dtype=np.uint8)
            Image.fromarray(target).save(folder / f"annotations/{part}/{n}.png")
    (folder / "classes.txt").write_text("sky\nroad\ntree\nvoid\n")
    return folder


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = create_segmenter("test_efficientnet", "lraspp(width=8)", classes=CLASSES)
    model.pretrained_cfg["input_size"] = (3, 48, 48)
    return model.train()


def by_hand(model, path, side=48):
    image, own = Image.open(path).convert("RGB"), Preprocess.of(model)
    width, height = image.size
    scale = side / min(image.size)
    image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    x = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
    x = (x - torch.tensor(own.mean).view(1, 3, 1, 1)) / torch.tensor(own.std).view(1, 3, 1, 1)
    model.eval()
    with torch.no_grad():
        scores = F.interpolate(model(x)["out"], (height, width), mode="bilinear", align_corners=False)
    model.train()
    return scores[0].argmax(0)


def test_masks_by_hand_and_as_files(folder, model, tmp_path):
    masks = predict(model, folder / "images/val")
    paths = masks.write(tmp_path / "masks")
    assert model.training
    assert [path.name for path in paths] == ["0.png", "1.png", "2.png"]
    for n, path in enumerate(paths):
        picture = Image.open(path)
        assert picture.mode == "P"
        assert picture.getpalette()[:9] == palette(3)
        assert np.array_equal(np.asarray(picture), by_hand(model, folder / f"images/val/{n}.png").numpy())
    save(model, tmp_path / "model")
    (mask,) = predict(tmp_path / "model", folder / "images/val/2.png")
    assert np.array_equal(mask.classes.numpy(), np.asarray(Image.open(paths[2])))
    assert sum(mask.shares.values()) == pytest.approx(1)
    assert set(mask.shares) <= set(CLASSES)
    assert str(mask).startswith(str(folder / "images/val/2.png"))
    with pytest.raises(FoveateError, match=r"\.jpg: a mask is written as \.png"):
        mask.save(tmp_path / "a.jpg")


def test_bad_images_are_listed_and_names_are_kept_apart(folder, model, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    images = [folder / "images/train/0.png", tmp_path / "bad.png", folder / "images/val/0.png"]
    masks = predict(model, images)
    assert [path.name for path in masks.write(tmp_path / "out")] == ["0.png", "0_2.png"]
    ((name, reason),) = masks.bad
    assert name.endswith("bad.png")
    assert "not an image" in reason
    with pytest.raises(FoveateError, match="not an image"):
        list(predict(model, images, strict=True))


def test_evaluated_at_the_size_of_the_label_maps(folder, model):
    data = open_segmentation(folder)
    found = evaluate(model, data, batch_size=2)
    assert model.training
    right = total = 0
    for n in range(3):
        target = torch.from_numpy(np.array(data.val.target(n)))
        predicted = by_hand(model, folder / f"images/val/{n}.png")
        right += int((predicted == target).sum())
        total += int((target != 255).sum())
        assert int(found.counts[n, :, 2].sum()) == int((target != 255).sum())
    assert found.pixel_accuracy == right / total
    assert evaluate(model, folder).miou == found.miou
    assert evaluate(model, data.val, image_size=32).counts.shape == found.counts.shape
    with pytest.raises(FoveateError, match=r"model's classes \(sky, road, tree\) are not the data's \(a, b, c\)"):
        evaluate(model, open_segmentation(folder, classes=["a", "b", "c", "void"]))
    with pytest.raises(FoveateError, match="gives scores"):
        evaluate(torch.nn.Sequential(torch.nn.Flatten(1), torch.nn.LazyLinear(3)), data)


def test_what_needs_a_classifier_says_so(folder, model):
    from foveate.prediction.opening import open_classifier

    with pytest.raises(FoveateError, match="segmentation network"):
        open_classifier(model)
    with pytest.raises(FoveateError, match="preprocess= is for classifiers"):
        evaluate(model, folder, preprocess=Preprocess.of(model))


def test_colours_are_apart():
    rows = np.array(palette(60)).reshape(-1, 3)
    assert len(np.unique(rows, axis=0)) == 60
    assert all(np.abs(rows[n + 1] - rows[n]).sum() > 100 for n in range(59))


def test_more_classes_than_a_label_map_holds(folder):
    model = create_segmenter("test_efficientnet", "lraspp(width=8)", classes=300)
    masks = predict(model, folder / "images/val/0.png", image_size=48)
    assert list(masks) == []
    ((_, reason),) = masks.bad
    assert reason.startswith("the segmentation network has 300 classes, and a label map tells 255 apart")
    with pytest.raises(FoveateError, match="300 classes"):
        explain(model, folder / "images/val/0.png", "gradcam", image_size=48)


def test_no_image_is_replaced_by_its_mask(folder, model, tmp_path):
    """Masks are called as their images: in the images' own folder they would be the images."""
    place = tmp_path / "photos"
    shutil.copytree(folder / "images/val", place)
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    for images, into, words in (
        (place, place, "would be read as images of"),
        (place, place / "masks", "would be read as images of"),
        ([place / "0.png"], place, "would replace the image"),
        ([place / "0.png"], place / ".." / "photos", "would replace the image"),
    ):
        with pytest.raises(FoveateError, match=words):
            predict(model, images).write(into)
        assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    found = explain(model, place / "0.png", "gradcam", target="road")
    for name in (place / "0.png", place / ".." / "photos" / "0.png"):
        with pytest.raises(FoveateError, match="would replace the image"):
            found.save(name)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


def test_the_command_writes_masks_into_a_folder_that_is_there(folder, model, tmp_path, capsys):
    save(model, tmp_path / "model")
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main(["predict", str(tmp_path / "model"), str(folder / "images/val"), "--output", str(tmp_path / "masks")])
        assert not ended.value.code, capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["0.png", "1.png", "2.png"]
    save(create_model("test_resnet", num_classes=2), tmp_path / "classifier")
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(tmp_path / "classifier"), str(folder / "images/val"), "--output", str(tmp_path / "masks")])
    assert ended.value.code == 2
    assert "is a folder: name a file in it" in capsys.readouterr().err
