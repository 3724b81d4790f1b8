"""Maps of segmentation networks: Seg-Grad-CAM against its formula, regions, own maps, drawings."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.dense import create_segmenter
from foveate.errors import FoveateError
from foveate.explanations.dense.segmentation import predicted_pixels
from foveate.explanations.mask_overlay import draw_classes, legend, palette

NAMES = ("road", "car", "sky")
LAYER, FINER = "backbone.blocks.4.0", "backbone.blocks.2.0"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = create_segmenter("test_efficientnet", "lraspp(width=8)", classes=NAMES, taps=(1, 4))
    fv.insert(model, "ulsam(groups=4) after backbone.blocks.1.0; se after backbone.blocks.2.0", input_size=48)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # else a random network says the same everywhere
            module.running_var.fill_(0.5)
    model.decoder.head.low_classifier.bias.data[2] -= 100  # no pixel is sky
    return model.train()


@pytest.fixture(scope="module")
def x():
    return torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(1))


def by_hand(model, x, layer, inside, label):
    """relu(sum_k mean(dy/dA_k) A_k) of y = the sum of a class's scores over a region."""
    model, kept = model.eval(), []
    handle = model.get_submodule(layer).register_forward_hook(lambda *a: kept.append(a[2]))
    scores = model(x)["out"]
    handle.remove()
    (gradient,) = torch.autograd.grad((scores[:, label] * inside).sum(), kept)
    model.train()
    return torch.relu((gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1)).detach()


def test_the_map_is_that_of_the_formula(model, x):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    classes, shares = predicted_pixels(model, x)
    assert torch.allclose(shares.sum(1), torch.ones(2))
    label = int(shares[0].argmax())
    mask = torch.zeros(48, 64, dtype=torch.bool)
    mask[5:20, 30:50] = True
    for region, inside in ((None, classes == label), ("image", torch.ones(2, 48, 64)), (mask, mask)):
        found = fv.explain(model, x, "gradcam", target=NAMES[label], region=region, layer=LAYER)
        assert torch.allclose(found.maps[0].values, by_hand(model, x, LAYER, inside, label), atol=1e-6, rtol=1e-4)
        assert found.targets.tolist() == [label] * 2
    assert torch.equal(found.masks, classes.to(torch.uint8))
    assert torch.equal(found.scores, shares)
    assert found.maps[0].name == f"Grad-CAM {LAYER}, sum over the region"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert not model._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("size", [(192, 256), (100, 70), (48, 200), (24, 200), (12, 16)])
def test_no_marked_pixel_is_lost_between_sizes(model, x, size):
    """A mask of another size marks the pixels of the scores over which its own lie: those that touch it, shrunk."""
    mask, small = torch.zeros(size, dtype=torch.bool), torch.zeros(48, 64, dtype=torch.bool)
    mask[3, 5] = True
    rows, columns = (
        [j for j in range(want) if (j * have < (at + 1) * want and at * want < (j + 1) * have)]
        if have > want
        else [j for j in range(want) if (2 * j + 1) * have // (2 * want) == at]
        for at, have, want in zip((3, 5), size, (48, 64), strict=True)
    )
    small[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    found, expected = (
        fv.explain(model, x, "hirescam", target=1, region=region, layer=LAYER).maps[0].values
        for region in (mask, small)
    )
    assert expected.abs().max() > 0
    assert torch.equal(found, expected)


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "hirescam"])
def test_the_trunk_s_last_map_is_looked_at(method, model, x):
    model, x = copy.deepcopy(model).double(), x.double()  # Grad-CAM++ divides by sums that may be small
    found = fv.explain(model, x, method, region="image")
    assert found.maps[0].module.startswith("backbone.blocks.4")
    one = fv.explain(model, x[1:], method, region="image", target=int(found.targets[1]))
    near = {"atol": 1e-6, "rtol": 1e-3}
    assert torch.allclose(one.maps[0].values[0], found.maps[0].values[1], **near)
    in_parts = fv.explain(model, x, method, region=torch.ones(2, 12, 16), batch_size=1)
    assert torch.allclose(in_parts.maps[0].values, found.maps[0].values, **near)


def test_own_maps_and_the_drawing_with_its_legend(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (36, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = fv.explain(model, tmp_path / "a.png", image_size=48)
    assert found.pictures[0].size == (64, 48)  # whole, its shorter side 48
    assert [one.module for one in found.maps] == ["backbone.blocks.1.0"] * 4
    assert [len(weights[0]) for _, weights in found.channels] == [32]
    (file,) = found.save(tmp_path / "out.png")
    plain = fv.explain(model, tmp_path / "a.png", "gradcam", image_size=48)
    with Image.open(file) as drawn:
        assert drawn.height > 300
    assert "most pixels" not in plain.label(0)
    with np.load(plain.npz(tmp_path / "a.npz"), allow_pickle=False) as kept:
        assert kept["masks"].shape == (1, 48, 64)
        assert sorted(np.unique(kept["masks"])) == [n for n, share in enumerate(plain.scores[0].tolist()) if share]


def test_classes_in_colour_and_ignored_pixels_in_grey():
    picture = Image.fromarray(np.full((4, 6, 3), 100, np.uint8))
    classes = torch.tensor([[0, 1, 2], [255, 0, 1]], dtype=torch.uint8)
    drawn = np.asarray(draw_classes(picture, classes, opacity=0.5))
    colours = np.array(palette(3)).reshape(3, 3)
    assert np.array_equal(drawn[0, 0], (0.5 * colours[0] + 50).round())
    assert np.array_equal(drawn[1, 3], (0.5 * colours[1] + 50).round())
    assert drawn[3, 0].tolist() == [100, 100, 100]
    block = np.asarray(legend([1, 2], NAMES, 200))
    assert (block == colours[1]).all(-1).any()
    assert not (block == colours[0]).all(-1).any()
    assert len(legend([0, 1, 2], ["a long name of a class"] * 3, 60).tobytes()) > len(legend([0], NAMES, 60).tobytes())


def test_refused(model, x, tmp_path):
    with pytest.raises(FoveateError, match="image: no pixel is predicted as class 2.*region='image'"):
        fv.explain(model, x[:1], "gradcam", target="sky")
    assert not model._forward_hooks
    refused = [
        ({"region": "images"}, "region='images'.*'image'"),
        ({"region": object()}, "region=<object.*predicted, image; or give a mask"),
        ({"region": [["road"]]}, r"region=\[\['road'\]\].*predicted, image; or give a mask"),
        ({"window": "32"}, "window='32': give the side of a window in pixels"),
        ({"window": (32, 32)}, "window=.*: give the side of a window in pixels"),
        ({"region": torch.ones(3, 4, 4)}, r"region of the shape \(3, 4, 4\): give a mask"),
        ({"region": torch.zeros(4, 4)}, "has no pixel"),
        ({"method": "cam"}, "cam is for classifiers"),
        ({"method": "attention", "region": "image"}, "region= is for the gradients of a segmentation network"),
        ({"target": "cat"}, "cat"),
        ({"target": 7}, "target=7: the model has 3 classes"),
    ]
    for options, match in refused:
        with pytest.raises(FoveateError, match=match):
            fv.explain(model, x, **{"method": "gradcam", **options})
    for n, size in enumerate([(40, 30), (30, 40)]):
        Image.new("RGB", size).save(tmp_path / f"{n}.png")
    with pytest.raises(FoveateError, match=r"1\.png and .*0\.png have different proportions"):
        fv.explain(model, tmp_path, image_size=32)


def windows_by_hand(model, x, side, layer, inside, label):
    """Of one image: scores in windows, and the map of y, the sum over all windows of the class's scores in a region."""
    height, width = x.shape[-2:]
    tops, lefts = [0, height - side], [0, 21, width - side]  # for 48 x 64 pixels and windows of 32
    corners = [(top, left) for top in tops for left in lefts]
    total, times, maps, gradients = torch.zeros(1, 3, height, width), torch.zeros(height, width), [], []
    model.eval()
    for top, left in corners:
        kept = []
        handle = model.get_submodule(layer).register_forward_hook(lambda *a, kept=kept: kept.append(a[2]))
        scores = model(x[..., top : top + side, left : left + side])["out"]
        handle.remove()
        y = (scores[:, label] * inside[:, top : top + side, left : left + side]).sum()
        gradients.append(torch.autograd.grad(y, kept)[0])
        maps.append(kept[0].detach())
        total[..., top : top + side, left : left + side] += scores.detach()
        times[top : top + side, left : left + side] += 1
    model.train()
    alpha = torch.stack([one.mean((2, 3)) for one in gradients]).mean(0)[..., None, None]
    joined = torch.zeros(1, 1, height, width)
    for (top, left), one in zip(corners, maps, strict=True):
        values = torch.relu((alpha * one).sum(1, keepdim=True))
        large = torch.nn.functional.interpolate(values, (side, side), mode="bilinear", align_corners=False)
        joined[..., top : top + side, left : left + side] += large
    return (total / times).argmax(1), (joined / times)[:, 0]


def test_a_large_image_in_windows(model, x):
    inside = torch.ones(1, 48, 64)
    classes, expected = windows_by_hand(model, x[1:], 32, FINER, inside, 1)
    found = fv.explain(model, x[1:], "gradcam", target=1, region="image", layer=FINER, window=32)
    assert torch.equal(found.masks, classes.to(torch.uint8))
    assert found.maps[0].values.shape == (1, 48, 64)
    assert float(expected.max()) > 0
    torch.testing.assert_close(found.maps[0].values, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))
    assert found.maps[0].name == f"Grad-CAM {FINER}, sum over the image, in windows"
    mask = torch.zeros(48, 64, dtype=torch.bool)
    mask[:, 40:] = True
    _, expected = windows_by_hand(model, x[1:], 32, FINER, mask[None].float(), 1)
    found = fv.explain(model, x, "gradcam", target=1, region=mask, layer=FINER, window=32)
    assert found.maps[0].values.shape == (2, 48, 64)
    torch.testing.assert_close(found.maps[0].values[1:], expected, rtol=1e-4, atol=1e-5 * float(expected.max()))
    assert not model._forward_hooks


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "hirescam"])
def test_one_window_is_the_image(model, x, method):
    whole = fv.explain(model, x, method, target=1, region="image", layer=LAYER)
    one = fv.explain(model, x, method, target=1, region="image", layer=LAYER, window=64)
    large = torch.nn.functional.interpolate(whole.maps[0].values[:, None], (48, 64), mode="bilinear")[:, 0]
    torch.testing.assert_close(one.maps[0].values, large, rtol=1e-3, atol=1e-4 * float(large.abs().max()))
    assert torch.equal(one.masks, whole.masks)
    assert one.targets.tolist() == [1, 1]


def test_own_maps_in_windows(model, x, tmp_path):
    found = fv.explain(model, x, window=32)
    assert [one.name for one in found.maps] == [f"backbone.blocks.1.0 subspace {n}/4, in windows" for n in (1, 2, 3, 4)]
    first = fv.explain(model, x[:1, :, :32, :32], region=None).maps[0].values
    corner = torch.nn.functional.interpolate(first[:, None], (32, 32), mode="bilinear")[0, 0]
    assert torch.allclose(found.maps[0].values[0, :16, :21], corner[:16, :21], atol=1e-6)  # where no other window is
    assert found.channels[0][1].shape == (2, 32)
    assert found.draw(1).height > 300
    for options, match in (({"window": 0}, "window=0: give the side"), ({"window": 9.5}, "window=9.5: give the side")):
        with pytest.raises(FoveateError, match=match):
            fv.explain(model, x, **options)
    with pytest.raises(FoveateError, match="window= is for segmentation networks"):
        fv.explain(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten()), x, "gradcam", window=32)
    with pytest.raises(FoveateError, match="image: no pixel is predicted as class 2"):
        fv.explain(model, x[:1], "gradcam", target="sky", window=32)
