"""A segmentation network that is shown an image in several views: against loops."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import foveate as fv
from foveate.dense import create_segmenter
from foveate.errors import FoveateError
from foveate.prediction.pixels import NetworkPixels, TestTime, image_scores


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = create_segmenter("test_efficientnet", "lraspp(width=8)", classes=("a", "b", "c"), taps=(1, 4)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # else a random network says the same everywhere
            module.running_var.fill_(0.5)
    return model


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8))


def at(scores):
    return F.interpolate(scores, (70, 90), mode="bilinear", align_corners=False)


def prepared(model, image, side):
    return NetworkPixels(model, side).preparation(image)[None]


def test_flips_and_scales_are_the_mean_of_probabilities(model, image):
    wanted = []
    with torch.no_grad():
        for side in (32, 48):
            x = prepared(model, image, side)
            wanted += [at(model(x)["out"]).softmax(1), at(model(x.flip(-1))["out"].flip(-1)).softmax(1)]
        found = image_scores(NetworkPixels(model, 32), image, TestTime(flip=True, scales=(1, 1.5)))
    assert torch.allclose(found.exp(), torch.stack(wanted).mean(0), atol=1e-6)


def test_windows_cover_the_image_and_overlap(model, image):
    x = prepared(model, image, 70)
    total, times = torch.zeros(1, 3, 70, 90), torch.zeros(70, 90)
    with torch.no_grad():
        for top in (0, 32, 22):  # of 48 pixels, a third of which overlaps; the last ends with the image
            for left in (0, 32, 42):
                if top == 32:  # 70 - 48 = 22 is reached before it
                    continue
                total[..., top : top + 48, left : left + 48] += model(x[..., top : top + 48, left : left + 48])["out"]
                times[top : top + 48, left : left + 48] += 1
        found = image_scores(NetworkPixels(model, 70), image, TestTime(window=48))
        whole = image_scores(NetworkPixels(model, 70), image, TestTime(window=90))
        alone = image_scores(NetworkPixels(model, 70), image, TestTime())
    assert times.min() >= 1
    assert torch.allclose(found.exp(), (total / times).softmax(1), atol=1e-5)
    assert torch.allclose(whole.exp(), alone.softmax(1), atol=1e-6)


def test_predict_and_evaluate_show_the_same_views(model, image, tmp_path):
    target = np.random.default_rng(1).integers(0, 3, (70, 90), dtype=np.uint8)
    for part in ("train", "val"):
        for kind, picture in (("images", image), ("annotations", Image.fromarray(target))):
            (tmp_path / kind / part).mkdir(parents=True)
            for n in range(2):
                picture.save(tmp_path / kind / part / f"{n}.png")
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    options = {"image_size": 40, "flip": True, "scales": (0.8, 1.2), "window": 32}
    mask, _ = fv.predict(model, tmp_path / "images/val", **options)
    found = fv.evaluate(model, tmp_path, **options)
    right = int((mask.classes == torch.from_numpy(target)).sum())
    assert found.counts[0, :, 0].sum() == right
    plain = fv.evaluate(model, tmp_path, image_size=40)
    assert not torch.equal(found.counts, plain.counts)
    assert found.loss > 0
    assert fv.evaluate(model, tmp_path, image_size=40, scales=(1,)).loss == plain.loss


def test_refused(model, tmp_path):
    for options, match in (
        ({"scales": (0,)}, "scales="),
        ({"window": 0}, "window=0"),
    ):
        with pytest.raises(FoveateError, match=match):
            fv.predict(model, tmp_path, **options)
    classifier = fv.create_model("test_efficientnet", num_classes=2)
    with pytest.raises(FoveateError, match="are for segmentation networks, and this is another one"):
        fv.predict(classifier, tmp_path, flip=True)
