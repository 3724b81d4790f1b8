"""Maps of a detector's objects: the gradient of a box's score by hand, the choice of boxes, drawings."""

import numpy as np
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.dense import create_detector
from foveate.errors import FoveateError
from foveate.explanations.dense.detection import find_objects
from foveate.explanations.dense.objects import ImageObjects
from foveate.explanations.mask_overlay import objects_in, palette

NAMES = ("cat", "dog", "bird")
HEADS = {
    "faster_rcnn": "faster_rcnn(width=8, hidden=16, anchor=8, proposals=50, detections=7)",
    "ssdlite": "ssdlite(width=0.1, detections=9, threshold=0.1)",
}


@pytest.fixture(scope="module")
def detectors():
    made = {}
    for name, head in HEADS.items():
        torch.manual_seed(0)
        model = create_detector("test_efficientnet", head, classes=NAMES)
        fv.insert(model, "ulsam(groups=4) after backbone.blocks.2.0", input_size=64)
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point():  # a new network says nearly the same everywhere
                tensor.copy_(torch.rand_like(tensor) + 0.5 if "var" in key else 0.25 * torch.randn_like(tensor))
        made[name] = model.train()
    return made


@pytest.fixture(scope="module")
def x():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))


def by_hand(model, x, layer, boxes, *, hires=False):
    """relu(sum_k mean(dy/dA_k) A_k), or sum_k dy/dA_k A_k; y is the sum of some boxes' scores of each image."""
    modes, kept = [module.training for module in model.modules()], []
    model.eval()
    handle = model.get_submodule(layer).register_forward_hook(lambda *a: kept.append(a[2]))
    found = model(x)
    handle.remove()
    score = sum(one["scores"][list(of)].sum() for one, of in zip(found, boxes, strict=True))
    (gradient,) = torch.autograd.grad(score, kept)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    if hires:
        return (gradient * kept[0]).sum(1).detach()
    return torch.relu((gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1)).detach()


@pytest.mark.parametrize(("head", "layer"), [
    ("faster_rcnn", "backbone.blocks.4"), ("faster_rcnn", "backbone.blocks.1"), ("ssdlite", "backbone.blocks.3"),
])  # fmt: skip
def test_the_map_is_that_of_the_gradient_of_the_boxs_score(detectors, x, head, layer):
    model = detectors[head]
    own = {"faster_rcnn": "backbone.blocks.4", "ssdlite": "backbone.blocks.3"}[head]
    for box, boxes in ((None, ((0,), (0,))), (2, ((1,), (1,))), ([1, 3], ((0,), (2,)))):
        options = {} if layer == own else {"layer": layer}
        found = fv.explain(model, x, "gradcam", box=box, **options)
        expected = by_hand(model, x, layer, boxes)
        places = by_hand(model, x, layer, boxes, hires=True)
        assert float(places.abs().amax((1, 2)).min()) > 0
        torch.testing.assert_close(
            fv.explain(model, x, "hirescam", box=box, **options).maps[0].values, places, rtol=1e-4,
            atol=1e-6 * float(places.abs().max()),
        )  # fmt: skip
        torch.testing.assert_close(found.maps[0].values, expected, rtol=1e-4, atol=1e-7 * float(expected.max()))
        assert [one.explained for one in found.objects] == list(boxes)
        labels = [int(one.classes[index]) for one, (index,) in zip(found.objects, boxes, strict=True)]
        assert found.targets.tolist() == labels == found.maps[0].targets.tolist()
        text = {None: "the best box", 2: "box 2"}.get(box if not isinstance(box, list) else 0, "the chosen box")
        assert found.maps[0].name == f"Grad-CAM {layer}, score of {text}"


@pytest.mark.parametrize("head", HEADS)
def test_what_was_found_is_what_the_detector_gives(detectors, x, head):
    model = detectors[head]
    found = fv.explain(model, x, "gradcam")
    with torch.no_grad():
        expected = model.eval()(x)
    model.train()
    for index, (one, other) in enumerate(zip(expected, found.objects, strict=True)):
        assert torch.equal(one["boxes"], other.boxes)
        assert torch.equal(one["scores"], other.scores)
        assert torch.equal(one["labels"], other.classes)
        assert found.label(int(found.predictions[index])) == NAMES[int(one["labels"][0])]
        assert found.probabilities[index] == one["scores"][0]
        best = {NAMES[k]: float(one["scores"][one["labels"] == k].max()) for k in set(one["labels"].tolist())}
        assert found.top(index) == pytest.approx(best)
        assert list(found.top(index).values()) == sorted(best.values(), reverse=True)


def test_the_boxes_of_a_class(detectors, x):
    model = detectors["ssdlite"]
    objects = find_objects(model, x)
    label = next(k for k in range(3) if all(k in one.classes and one.classes[0] != k for one in objects))
    first = [one.classes.tolist().index(label) for one in objects]
    found = fv.explain(model, x, "gradcam", target=NAMES[label])
    assert [one.explained for one in found.objects] == [(n,) for n in first]
    assert found.maps[0].name.endswith(", score of the best box of the class")
    torch.testing.assert_close(found.maps[0].values, by_hand(model, x, "backbone.blocks.3", [[n] for n in first]))


def test_all_boxes_are_summed(detectors, x):
    model = detectors["ssdlite"]
    for module in model.modules():
        if module.__class__.__name__ == "SSDLiteClassificationHead":
            head = module
    before = {key: value.clone() for key, value in head.state_dict().items()}
    with torch.no_grad():  # sure of the first class
        for part in head.module_list:
            part[1].bias.view(-1, 4)[:, 1] += 6
    found = fv.explain(model, x, "gradcam", box="all")
    of_class = fv.explain(model, x, "gradcam", box="all", target="cat")
    sure = [[n for n, score in enumerate(one.scores.tolist()) if score >= 0.5] for one in found.objects]
    expected = by_hand(model, x, "backbone.blocks.3", sure)
    head.load_state_dict(before)
    assert all(len(one) > 1 for one in sure)
    assert [list(one.explained) for one in found.objects] == sure
    torch.testing.assert_close(found.maps[0].values, expected, rtol=1e-4, atol=1e-6 * float(expected.max()))
    assert all(set(one.classes[list(one.explained)].tolist()) == {0} for one in of_class.objects)
    assert of_class.maps[0].name.endswith("score of all boxes of the class")
    assert found.maps[0].name.endswith("score of all boxes")


def test_the_layer_is_one_that_each_box_depends_on(detectors, x):
    """Each of SSDLite's boxes is of one of its maps; the trunk's last one has no part in those of the finer map."""
    model = detectors["ssdlite"]
    count = min(len(one.scores) for one in find_objects(model, x))
    maps = [fv.explain(model, x, "hirescam", box=n).maps[0].values for n in range(1, count + 1)]
    assert all(float(one.abs().amax((1, 2)).min()) > 0 for one in maps)


def test_own_maps_of_the_body_and_the_drawing(detectors, tmp_path, untouched):
    model = detectors["faster_rcnn"]
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    check = untouched(model)
    own = fv.explain(model, tmp_path / "a.png", image_size=60)
    found = fv.explain(model, tmp_path / "a.png", "gradcam++", image_size=60)
    check()
    assert [one.module for one in own.maps] == ["backbone.blocks.2.0"] * 4
    assert own.targets is None
    assert own.objects[0].explained == ()
    # The network fills 60 x 90 pixels up to 64 x 96, and its maps are of all of it.
    assert found.pictures[0].size == (96, 64)
    assert np.asarray(found.pictures[0])[62, 95].tolist() == [round(255 * value) for value in (0.485, 0.456, 0.406)]
    assert found.maps[0].values.shape == (1, 2, 3)
    for one in (own, found):
        (file,) = one.save(tmp_path / "out.png")
        with Image.open(file) as drawn:
            assert drawn.height > 500
    with np.load(found.npz(tmp_path / "a.npz"), allow_pickle=False) as kept:
        assert kept["boxes"].shape == (7, 4)
        assert kept["box images"].tolist() == [0] * 7
        assert kept["explained"].tolist() == [True] + [False] * 6
        assert "masks" not in kept
    assert "best object" not in found.label(0)
    assert found._repr_html_().startswith("<")


def test_the_explained_box_stands_on_the_map_and_all_have_numbers_and_a_legend(detectors, x):
    found = fv.explain(detectors["faster_rcnn"], x, "gradcam", box=2)
    (index,) = found.objects[1].explained
    left, top, _, _ = (round(side) for side in found.objects[1].boxes[index].tolist())
    label = int(found.objects[1].classes[index])
    colour = palette(3)[3 * label : 3 * label + 3]
    assert np.asarray(found.overlay(0, 1))[top, left].tolist() == colour
    picture = Image.new("RGB", (300, 200))
    boxes = torch.tensor([[10.0, 20, 200, 150], [100, 100, 290, 190], [5, 5, 20, 20]])
    objects = ImageObjects(boxes, torch.tensor([0.9, 0.6, 0.2]), torch.tensor([1, 1, 0]))
    drawn = np.asarray(objects_in(picture, objects, NAMES))
    one, other = (palette(3)[3 * k : 3 * k + 3] for k in (1, 0))
    assert (drawn[:200] == one).all(-1).any()
    assert (drawn[200:] == one).all(-1).any()  # in the legend
    assert not (drawn == other).all(-1).any()  # a score of 0.2
    explained = ImageObjects(boxes, objects.scores, objects.classes, (2,))
    assert (np.asarray(objects_in(picture, explained, NAMES)) == other).all(-1).any()
    none = ImageObjects(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert objects_in(picture, none, NAMES).size > (300, 200)


def test_an_image_without_an_object(x):
    torch.manual_seed(0)
    model = create_detector("test_efficientnet", "faster_rcnn(width=8, hidden=16, threshold=0.99)", classes=1)
    fv.insert(model, "ulsam after backbone.blocks.2.0", input_size=64)
    found = fv.explain(model, x)
    assert found.predictions.tolist() == [-1, -1]
    assert found.label(-1) == "nothing"
    assert found.top() == {}
    assert found.probabilities.tolist() == [0, 0]
    assert found.draw(1).width > 100
    with pytest.raises(FoveateError, match=r"^image: no object was found, so there is none to explain"):
        fv.explain(model, x, "gradcam")
    assert not model._forward_hooks


@pytest.mark.parametrize(("options", "message"), [
    ({"box": 99}, r"image: box=99: 7 objects were found, counted from 1 by their score"),
    ({"box": 0}, r"box=0: give the number of a box, counted from 1"),
    ({"box": [1]}, r"one for each of the 2 images"),
    ({"box": 1.5}, r"box=1.5: give the number of a box"),
    ({"box": object()}, r"box=<object.*: give the number of a box"),
    ({"box": "some"}, r"box='some': give the number of a box"),
    ({"box": True}, r"box=True: give the number of a box"),
    ({"box": "all"}, r"image: no object has a score of 0.5 or more; without box= the best one is explained"),
    ({"box": 1, "target": "cat"}, r"box= is a box already: leave target= out, or say box='all'"),
    ({"target": "horse"}, "horse"),
    ({"target": 3}, "target=3: the model has 3 classes"),
    ({"method": "cam"}, "cam is for classifiers: of a detector use method='gradcam'"),
    ({"method": "attention", "box": 1}, r"box= is for the gradients of a detector"),
    ({"region": "image"}, r"region= is for the gradients of a segmentation network"),
    ({"layer": "backbone.blok"}, "no layer is called 'backbone.blok'"),
    ({"layer": "decoder.roi_heads"}, "'decoder.roi_heads'"),
])  # fmt: skip
def test_what_cannot_be_explained_is_one_line(detectors, x, options, message):
    model = detectors["faster_rcnn"]
    with pytest.raises(FoveateError, match=message) as caught:
        fv.explain(model, x, **{"method": "gradcam", **options})
    assert "\n" not in str(caught.value)
    assert not model._forward_hooks


def test_box_is_refused_of_other_networks(model):
    with pytest.raises(FoveateError, match="box= is for the gradients of a detector"):
        fv.explain(model, torch.zeros(1, 3, 32, 32), "gradcam", box=1)


@pytest.mark.parametrize("box", [np.int64(2), np.array([2, 2]), torch.tensor(2), [np.int8(2), 2]], ids=repr)
def test_a_boxs_number_is_any_whole_number(detectors, x, box):
    found = fv.explain(detectors["faster_rcnn"], x, "gradcam", box=box)
    assert torch.equal(found.maps[0].values, fv.explain(detectors["faster_rcnn"], x, "gradcam", box=2).maps[0].values)
