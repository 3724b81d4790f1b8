"""On a network whose evidence is known to be in one square: the methods find it, the baselines do not."""

import copy

import pytest
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.explanations.attention import attention_maps
from foveate.explanations.measures import drop, enlarged, iou, perturbation, pixels_in_order, pointing
from foveate.studies.evaluation.faithfulness import BASELINES, MEASURES, _own_map, faithfulness
from foveate.studies.evaluation.faithfulness_result import bootstrapped
from foveate.surgery import create_model
from foveate.surgery.insert import insert

SIDE = 32


class Colours(nn.Module):
    """The class is the colour that there is more of: means over 4 x 4 pixels, ReLU, pooling, one linear layer."""

    def __init__(self, strength=40.0):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 3, 4, 4, bias=False), nn.ReLU())
        self.head = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.body[0].weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4) / 16)
            self.head.weight.copy_(strength * torch.eye(3))

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


@pytest.fixture(scope="module")
def data():
    """A coloured square somewhere, in noise; where it is."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 3
    images = 0.05 * torch.randn(40, 3, SIDE, SIDE, generator=generator)
    boxes = torch.zeros(40, 4)
    for index, (label, place) in enumerate(zip(labels, torch.randint(0, 6, (40, 2), generator=generator), strict=True)):
        row, column = (4 * place).tolist()
        images[index, label, row : row + 8, column : column + 8] += 1
        boxes[index] = torch.tensor([column, row, column + 8, row + 8])
    return [(images[:25], labels[:25]), (images[25:], labels[25:])], boxes


def test_methods_are_better_than_chance(data):
    batches, boxes = data
    found = faithfulness(Colours(), batches, ["cam", "gradcam", "gradcam++", "hirescam"], boxes=boxes)
    assert found.measures == MEASURES
    assert found.methods == ("cam", "gradcam", "gradcam++", "hirescam", *BASELINES)
    assert found.images == 40
    for method in found.methods[:4]:
        for baseline in BASELINES:
            assert found.difference(method, baseline, "insertion")[1] > 0
            assert found.difference(method, baseline, "deletion")[2] < 0
            assert found.difference(method, baseline, "drop")[2] < 0
            assert found.difference(method, baseline, "pointing")[1] > 0
            assert found.difference(method, baseline, "iou")[1] > 0
        assert found.interval(method, "pointing") == (1, 1, 1)
        assert found.interval(method, "iou")[0] > 0.6
    # One network, one linear layer behind the pooling: these are the same map.
    for measure in MEASURES[:4]:
        assert torch.allclose(found.values["", "gradcam", measure], found.values["", "hirescam", measure], atol=0.02)


def test_masks_and_boxes_are_the_same(data):
    batches, boxes = data
    masks = torch.zeros(40, SIDE, SIDE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    by = [
        faithfulness(Colours(), batches, ["cam"], ["pointing", "iou"], **kind)
        for kind in ({"boxes": boxes}, {"masks": masks})
    ]
    for key, values in by[0].values.items():
        assert torch.equal(values, by[1].values[key])
    wrong = faithfulness(Colours(), batches, ["cam"], ["pointing"], masks=masks.flip(2))
    assert wrong.interval("cam", "pointing")[0] < 0.5


def test_models_side_by_side_and_own_maps(data):
    batches, _ = data
    torch.manual_seed(0)
    models = {"ulsam": insert(Colours(), "ulsam(groups=1) after body"), "cbam": insert(Colours(), "cbam after body")}
    found = faithfulness(models, batches, ["attention", "gradcam"], ["deletion"], limit=20)
    assert found.models == ("ulsam", "cbam")
    assert found.images == 20
    assert {key[0] for key in found.values} == {"ulsam", "cbam"}
    assert found.difference("gradcam", "gradcam", "deletion", "ulsam", "ulsam") == (0, 0, 0)
    assert found.difference("gradcam", "gradcam", "deletion", "ulsam", "cbam")[0] != 0
    # The baselines see the same images and draw the same maps.
    assert "ulsam gradcam" in str(found)
    assert len(found.as_dicts()) == 2 * 4


def test_the_model_is_left_as_found(data):
    batches, boxes = data
    model = Colours().train()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first = faithfulness(model, batches, ["gradcam"], boxes=boxes, steps=3, limit=10)
    assert model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(random, torch.get_rng_state())
    again = faithfulness(model, batches, ["gradcam"], boxes=boxes, steps=3, limit=10)
    assert all(torch.equal(values, again.values[key]) for key, values in first.values.items())
    split = faithfulness(model, batches, ["gradcam"], boxes=boxes, steps=3, limit=10, batch_size=4)
    for key, values in first.values.items():
        if key[1] == "gradcam":
            torch.testing.assert_close(split.values[key], values)


def test_the_table(data):
    batches, boxes = data
    lines = str(faithfulness(Colours(), batches, ["gradcam"], boxes=boxes, steps=2, limit=6)).splitlines()
    assert lines[0].startswith("images: 6 images")
    assert lines[1].split() == ["method", *(word for m, s in zip(MEASURES, "+--+++", strict=True) for word in (m, s))]
    assert [line.split()[0] for line in lines[2:]] == ["gradcam", "random", "centre"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"methods": ["grad-cam"]}, "no method is called 'grad-cam'; did you mean 'gradcam'"),
        ({"measures": ["deletions"]}, "no measure is called 'deletions'; did you mean 'deletion'"),
        ({"measures": ["iou"]}, "give masks= or boxes="),
        ({"masks": torch.ones(4, 8, 8)}, "masks of shape"),
        ({"boxes": torch.ones(40, 3)}, "boxes of shape"),
        ({"methods": ["attention"]}, "no inserted attention"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_what_does_not_fit(data, arguments, words):
    with pytest.raises(FoveateError, match=words):
        faithfulness(Colours(), data[0], **arguments)


def test_what_was_not_measured(data):
    found = faithfulness(Colours(), data[0], ["cam"], ["drop"], limit=4)
    with pytest.raises(FoveateError, match="'gradcam' was not measured"):
        found.interval("gradcam", "drop")


def test_the_order_of_places():
    maps = torch.tensor([[[0.1, 0.9], [0.5, 0.2]]])
    assert pixels_in_order(maps).tolist() == [[3, 0, 1, 2]]
    flat = pixels_in_order(torch.ones(2, 8, 8))
    assert torch.equal(flat[0], flat[1])
    assert flat[0].tolist() != list(range(64))  # no preference for the upper left
    assert sorted(flat[0].tolist()) == list(range(64))


def test_perturbation_by_hand():
    # The "probability" of class 0 is the mean of the picture.
    def model(images):
        mean = images.mean((1, 2, 3))
        return torch.stack([mean, 1 - mean], 1)

    images, empty = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    images[0, 0, 0, 0] = 1
    ends = (torch.tensor([0.25]), torch.tensor([0.0]))
    good, bad = (torch.tensor([[[best, 0.5], [0.4, 0.3]]]) for best in (1.0, 0.0))
    first = perturbation(model, images, empty, good, torch.tensor([0]), 4, ends)
    last = perturbation(model, images, empty, bad, torch.tensor([0]), 4, ends)
    assert first.item() == pytest.approx(0.25 / 8)
    assert last.item() == pytest.approx(0.25 * 7 / 8)
    lost, more = drop(model, images, empty, good, torch.tensor([0]))
    assert (lost.item(), more.item()) == (0, 0)
    lost, more = drop(model, images, empty, bad, torch.tensor([0]))
    assert (lost.item(), more.item()) == (1, 0)
    assert drop(model, images, empty, torch.full((1, 2, 2), 0.7), torch.tensor([0]))[0].item() == 0


def test_pointing_and_iou_by_hand():
    maps = torch.tensor([[[0.9, 0.8], [0.1, 0.0]]]).repeat(3, 1, 1)
    masks = torch.tensor([[[1, 1], [0, 0]], [[1, 0], [1, 0]], [[0, 0], [0, 1]]]).bool()
    assert pointing(maps, masks).tolist() == [1, 1, 0]
    assert iou(maps, masks).tolist() == pytest.approx([1, 1 / 3, 0])
    assert enlarged(maps, 4, 6).shape == (3, 4, 6)


def test_the_interval_holds_the_mean():
    mean, low, high = bootstrapped(torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    assert low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * (1 / 12 / 200) ** 0.5, rel=0.15)
    assert bootstrapped(torch.full((5,), 0.3)) == pytest.approx((0.3, 0.3, 0.3))


def own_map(plan, images, **options):
    torch.manual_seed(0)
    model = insert(Colours(), plan, **options).eval()
    return model, _own_map(model, images, model(images).argmax(dim=1))


def test_maps_of_classes_behind_a_gate_are_the_class_s_own(data):
    images = data[0][0][0][:3]
    model, found = own_map("attention_pool(classes=3) as pool", images, start="identity")
    _, maps, _ = attention_maps(model, images, model(images).argmax(dim=1).tolist())
    assert maps[0].name.endswith("class map, gate 0, changes nothing")
    assert len(maps) == 4
    values = maps[0].values / maps[0].values.sum(dim=(1, 2), keepdim=True) * maps[0].values[0].numel()
    torch.testing.assert_close(found, enlarged(values, SIDE, SIDE))


def test_a_map_of_both_signs_has_finite_shares():
    images = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = insert(Colours(), "se after body").eval()

    class Signed(nn.Module):
        map_axes = "b h w"

        def attend(self, x):
            values = torch.linspace(-1, 1, x[0, 0].numel()).view(1, *x.shape[2:]).expand(len(x), -1, -1).clone()
            values[-1] = 0
            return values

        def forward(self, x):
            return x

    model.body.foveate = Signed()
    found = _own_map(model, images, torch.zeros(3, dtype=torch.int64))
    assert found.amin() >= 0
    torch.testing.assert_close(found.mean(dim=(1, 2)), torch.ones(3), atol=0.05, rtol=0)
    assert (found[-1] == 1).all()
    assert (found[0, 0, 0], found[0, -1, -1]) == (found[0].min(), found[0].max())


def test_scores_that_are_not_finite(data):
    images = torch.full((4, 3, SIDE, SIDE), torch.nan)
    with pytest.raises(FoveateError, match="scores are NaN or infinite"):
        faithfulness(Colours(), [(images, torch.zeros(4, dtype=torch.int64))], ["cam"])


def test_each_network_sees_images_as_it_is_used_to_them(folder):
    """Whatever other networks are measured beside it, with another mean and another size."""
    torch.manual_seed(0)
    first, second = (create_model("test_resnet", num_classes=2).eval() for _ in range(2))
    second.load_state_dict(first.state_dict())
    second.pretrained_cfg = {**second.pretrained_cfg, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    options = {"methods": ["gradcam"], "limit": 6, "steps": 4, "image_size": 32}
    alone = faithfulness(second, folder, **options)
    beside = faithfulness({"first": first, "second": second}, folder, **options)
    for measure in alone.measures:
        own = alone.values["", "gradcam", measure]
        assert torch.equal(beside.values["second", "gradcam", measure], own)
    first, own = beside.values["first", "gradcam", "insertion"], alone.values["", "gradcam", "insertion"]
    assert not torch.equal(first, own)
