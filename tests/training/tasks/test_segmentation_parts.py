"""The parts: loss, counts and batches against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from foveate.data.segmentation import IGNORE
from foveate.dense import create_segmenter
from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.training.input.segmentation import MapLoader
from foveate.training.metrics import Diverged
from foveate.training.recipes.recipe import Recipe
from foveate.training.tasks.segmentation_loss import SegmentationObjective, cross_entropy, dice_loss
from foveate.training.tasks.segmentation_metrics import collect_counts, measure_counts
from foveate.whole_images import scaled_size

PREPROCESS = Preprocess((24, 24), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")


@pytest.fixture(scope="module")
def scores():
    torch.manual_seed(0)
    target = torch.randint(0, 4, (3, 6, 5))
    target[0, :2], target[2] = IGNORE, IGNORE
    return torch.randn(3, 4, 6, 5, dtype=torch.float64), target


def test_losses_by_loops(scores):
    x, target = scores
    p = x.float().double().softmax(1)
    entropies, dices = [], []
    for b in range(3):
        lost, shares = 0.0, []
        for i in range(6):
            for j in range(5):
                if target[b, i, j] != IGNORE:
                    lost -= float(p[b, target[b, i, j], i, j].log())
        for c in range(4):
            g = (target[b] == c).double()
            valid = (target[b] != IGNORE).double()
            if g.sum():
                common = 2 * (p[b, c] * g).sum()
                shares.append(float(common / ((p[b, c] * valid).square().sum() + g.sum())))
        entropies.append(lost / 30)
        dices.append(1 - sum(shares) / len(shares) if shares else 0.0)
    assert float(cross_entropy(x, target)) == pytest.approx(sum(entropies) / 3, rel=1e-6)
    assert float(dice_loss(x, target)) == pytest.approx(sum(dices) / 3, rel=1e-6)
    assert dices[2] == entropies[2] == 0  # all of it is ignored


def test_each_output_counts_with_its_weight(scores):
    x, target = scores
    for head, weights in {"upernet": (1, 0.4), "danet": (1, 1, 1), "lraspp": (1,)}.items():
        options = {"upernet": "(width=8, aux_width=8)", "lraspp": "(width=8)"}.get(head, "")
        model = create_segmenter("test_efficientnet", head + options, classes=4)
        objective = SegmentationObjective(model, Recipe(loss="cross_entropy+dice"))
        outputs = {name: x * (n + 1) for n, name in enumerate(objective.weights)}
        wanted = sum(
            w * (cross_entropy(x * (n + 1), target) + dice_loss(x * (n + 1), target)) for n, w in enumerate(weights)
        )
        assert torch.allclose(objective.loss(outputs, target.to(torch.uint8)), wanted)
        assert set(model.train()(torch.randn(2, 3, 64, 64))) == set(objective.weights)
    with pytest.raises(FoveateError, match="'position'"):
        SegmentationObjective(create_segmenter("test_efficientnet", "danet", classes=4), Recipe()).loss(
            {"out": x}, target
        )


def test_counts_against_torchmetrics():
    torch.manual_seed(0)
    targets = [torch.randint(0, 4, (2, 9, 7)), torch.randint(0, 3, (1, 5, 8))]
    targets[0][:, 0] = IGNORE
    logits = [torch.randn(2, 5, 9, 7), torch.randn(1, 5, 5, 8)]
    found = measure_counts(collect_counts(lambda n: {"out": logits[n]}, enumerate(targets), 5), tuple("abcde"))
    predicted = torch.cat([x.argmax(1).flatten() for x in logits])
    actual = torch.cat([t.flatten() for t in targets])
    given = (predicted, actual, 5)
    wanted = multiclass_jaccard_index(*given, average=None, ignore_index=IGNORE)
    assert torch.allclose(found.iou.float(), wanted)
    assert found.miou == pytest.approx(float(found.iou.nanmean()))
    micro = multiclass_accuracy(*given, average="micro", ignore_index=IGNORE)
    assert found.pixel_accuracy == pytest.approx(float(micro))
    recall = multiclass_accuracy(*given, average=None, ignore_index=IGNORE)
    rows = found.per_class()
    assert [row["recall"] or 0.0 for row in rows] == pytest.approx(recall.tolist())
    assert rows[4]["recall"] is None  # no pixel is of it
    assert rows[4]["iou"] == 0  # and some are predicted as it
    flat = torch.cat([x.movedim(1, -1).flatten(0, -2) for x in logits])
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(flat, actual, ignore_index=IGNORE)), rel=1e-5)


def test_a_class_that_is_nowhere_is_left_out_of_the_mean():
    target = torch.zeros(1, 4, 4, dtype=torch.int64)
    target[:, :2] = 1
    perfect = nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    found = measure_counts(collect_counts(lambda _: perfect, [(0, target)], 3), ("a", "b", "c"))
    assert found.miou == found.pixel_accuracy == 1
    assert found.per_class()[2]["iou"] is None
    with pytest.raises(FoveateError, match="every pixel"):
        measure_counts(collect_counts(lambda _: perfect, [(0, torch.full_like(target, IGNORE))], 3), ())
    with pytest.raises(Diverged):
        collect_counts(lambda _: perfect * float("nan"), [(0, target)], 3)


def colours_of(pixels):
    """The class that the colour shows, for pixels that are no mixture of two."""
    return pixels.argmax(0), pixels.amax(0).int() - pixels.median(0).values.int() > 90


@pytest.mark.parametrize("kind", [None, "none", "flip", "standard"])
def test_label_maps_move_with_their_images(kind, data):
    loader = MapLoader(data.train, PREPROCESS, kind, seed=3)
    state = torch.get_rng_state()
    order = [[(epoch, n) for n in range(4)] for epoch in range(3)]
    batches = list(loader.batches(order))
    assert torch.equal(torch.get_rng_state(), state)
    agreed, counted = 0, 0
    for pixels, targets in batches:
        assert pixels.shape[-2:] == targets.shape[-2:] == ((24, 24) if kind == "standard" else (24, 32))
        for image, target in zip(pixels, targets, strict=True):
            shown, sure = colours_of(image)
            sure &= target != IGNORE
            agreed += int((shown == target)[sure].sum())
            counted += int(sure.sum())
    assert counted > 1000
    assert agreed / counted > (0.97 if kind == "standard" else 0.999)  # at borders a resized image is a mixture
    # A draw depends on seed, epoch and image alone: neither on what was drawn before nor on who draws it.
    (alone,) = MapLoader(data.train, PREPROCESS, kind, seed=3, workers=1).batches([[(2, 1)]])
    assert torch.equal(alone[0][0], batches[2][0][1])
    assert torch.equal(alone[1][0], batches[2][1][1])
    varies = not torch.equal(batches[0][0], batches[1][0])
    assert varies == (kind in ("flip", "standard"))


@pytest.mark.parametrize("kind", ["none", "standard"])
def test_a_label_map_is_not_moved_against_its_image(kind, tmp_path, monkeypatch):
    """The corners of squares: on average they lie in both at the same place, to a tenth of a pixel."""
    from PIL import Image

    from foveate.data.segmentation import open_segmentation

    for part in ("train", "val"):
        for n in range(4):
            target = np.zeros((50, 62), np.uint8)
            top, left = np.random.default_rng(n).integers(8, 20, 2)
            target[top : top + 23, left : left + 27] = 1
            for folder, picture in (("images", 255 * target[..., None].repeat(3, 2)), ("annotations", target)):
                (tmp_path / folder / part).mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(tmp_path / folder / part / f"{n}.png")
    monkeypatch.setattr("foveate.training.input.segmentation._SCALES", (1.5, 1.9))  # squares and more of each image
    loader = MapLoader(open_segmentation(tmp_path).train, PREPROCESS, kind, seed=3)
    apart = []
    for pixels, targets in loader.batches([[(epoch, n) for n in range(4)] for epoch in range(30)]):
        bright = pixels[:, 0].double() / 255
        for image, target in zip(bright, targets, strict=True):
            known = target != IGNORE
            if not ((target == 1) & known).sum() > 20:
                continue  # cut off
            for axis in (0, 1):
                where = torch.arange(target.shape[axis], dtype=torch.float64)
                where = where.view((-1, 1) if axis == 0 else (1, -1)).expand_as(image)
                weights = image * known, ((target == 1) & known).double()
                centres = [float((weight * where).sum() / weight.sum()) for weight in weights]
                apart.append(centres[1] - centres[0])
    assert abs(np.mean(apart)) < 0.1


def test_images_of_several_sizes(folder, tmp_path):
    import shutil

    from PIL import Image

    from foveate.data.segmentation import open_segmentation

    copy = shutil.copytree(folder, tmp_path / "copy")
    for name, size in (("1", (20, 50)), ("2", (30, 30))):
        Image.fromarray(np.full((*size, 3), 200, np.uint8)).save(copy / f"images/train/{name}.png")
        Image.fromarray(np.full(size, 1, np.uint8)).save(copy / f"annotations/train/{name}.png")
    split = open_segmentation(copy).train
    shapes = [(tuple(pixels.shape[-2:]), tuple(t.shape)) for pixels, t in MapLoader(split, PREPROCESS).whole(4)]
    assert shapes == [
        *(((24, 32), (1, 24, 32)), ((24, 60), (1, 20, 50)), ((24, 24), (1, 30, 30))),
        *(((24, 32), (4, 24, 32)), ((24, 32), (1, 24, 32))),
    ]
    shared = [int(t.shape[0]) for rank in range(2) for _, t in MapLoader(split, PREPROCESS).whole(4, rank, 2)]
    assert sum(shared) == 8
    ((pixels, targets),) = MapLoader(split, PREPROCESS, "none").batches([[(0, 0), (0, 1)]])
    assert pixels.shape == (2, 3, 24, 60)  # filled up to the widest
    assert (targets[0, :, 32:] == IGNORE).all()
    assert (pixels[0, :, :, 32:] == 128).all()
    assert (targets[1] == 1).all()


def test_scaled_size():
    assert scaled_size((180, 240), 96) == (96, 128)
    assert scaled_size((1000, 3), 6) == (2000, 6)
