"""An audit of a detector: what is lost in mAP, with the interval of resampled images."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.data.detection import DetectionData
from foveate.data.detection.split import Objects
from foveate.errors import FoveateError
from foveate.studies.comparison.statistics import holm
from foveate.studies.evaluation.judges import ObjectJudge
from foveate.studies.evaluation.whole_in_memory import KnownObjects
from foveate.training.metrics import Diverged

pytest.importorskip("faster_coco_eval")
NAMES, COLOURS = ("red", "green"), ((230, 60, 60), (60, 230, 60))
PLAN = "; ".join(f"{spec} after backbone.blocks.{n}.0" for n, spec in ((1, "se"), (2, "se"), (3, "ulsam(groups=4)")))
SIZES = [(64, 64)] * 7 + [(64, 96)] * 3 + [(64, 80)]  # height and width


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A bright square in each image, the same images to learn from and to be measured on."""
    folder, random = tmp_path_factory.mktemp("audited"), np.random.default_rng(0)
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]}
    for n, (height, width) in enumerate(SIZES):
        pixels = random.integers(0, 60, (height, width, 3)).astype(np.uint8)
        side, label = int(random.integers(16, 32)), n % 2
        x, y = int(random.integers(0, width - side)), int(random.integers(0, height - side))
        pixels[y : y + side, x : x + side] = COLOURS[label]
        Image.fromarray(pixels).save(folder / f"{n}.png")
        content["images"].append({"id": n, "file_name": f"{n}.png", "width": width, "height": height})
        content["annotations"].append({"id": n, "image_id": n, "category_id": label + 1, "bbox": [x, y, side, side]})
    for part in ("train", "val"):
        (folder / part).mkdir()
        for n in range(len(SIZES)):
            (folder / part / f"{n}.png").write_bytes((folder / f"{n}.png").read_bytes())
        (folder / part / "_annotations.coco.json").write_text(json.dumps(content))
    for n in range(len(SIZES)):
        (folder / f"{n}.png").unlink()
    return fv.open_detection(folder)


def network(plan=PLAN, head="faster_rcnn(width=16, hidden=32, anchor=16, regions=32)"):
    torch.manual_seed(0)
    model = fv.create_detector("test_efficientnet", head, classes=NAMES)
    return fv.insert(model, plan, start="identity", input_size=64)


def gates(model):
    return [value for name, value in model.named_parameters() if name.endswith("gate") and not value.ndim]


@pytest.fixture(scope="module")
def trained(data):
    """A detector that learned with its first attention multiplied and the others off."""
    model = network()
    for gate, value in zip(gates(model), (8.0, 0.0, 0.0), strict=True):
        gate.requires_grad_(False).fill_(value)
    recipe = fv.Recipe(
        epochs=20, batch_size=4, image_size=64, learning_rate=5e-3, optimiser="adamw", evaluate_every=20, seed=1
    )
    fv.fit(model, data, recipe.with_(augmentation="none"), progress=False)
    return model.eval()


@pytest.fixture(scope="module")
def found(trained, data):
    return fv.audit(trained, data.val, image_size=64, batch_size=4)


def test_what_is_lost_is_the_difference_in_map(found, trained, data):
    kept = data.val.subset(range(10))
    assert found.images == len(kept)
    assert found.data.endswith("without 1 images alone with their size")
    before = fv.evaluate(trained, kept, image_size=64)
    without = copy.deepcopy(trained)
    with torch.no_grad():
        gates(without)[0].fill_(0)
    after = fv.evaluate(without, kept, image_size=64)
    assert found.accuracy == pytest.approx(100 * before.map)
    off = found.rows[0].off
    assert off.difference.mean == pytest.approx(100 * (after.map - before.map))
    wanted = fv.map_differences({"none": [before], "off": [after]})["off"]
    # found in the audit's order: the best 100 boxes of an image may be summed in another one
    assert (off.difference.low, off.difference.high) == pytest.approx((wanted.low, wanted.high), abs=1e-6)
    assert {row.site: row.off.p for row in found.rows} == holm({row.site: row.off.difference.p for row in found.rows})
    assert all(row.off.images == row.shuffled.images == 10 for row in found.rows)


def test_verdicts_follow_the_map_that_is_printed(found, trained, data):
    first, second, third = found.rows
    assert found.accuracy > 20
    assert (first.verdict, first.shuffles, first.gate) == ("works", "map", 8)
    assert first.off.difference.high < 0
    for one in (second, third):
        assert (one.verdict, one.off.changed, one.off.difference.mean) == ("inert", 0, 0)
    other = copy.deepcopy(trained)
    with torch.no_grad():
        gates(other)[1].fill_(-12)
    state = {key: value.clone() for key, value in other.state_dict().items()}
    harmed = fv.audit(other, data, image_size=64, batch_size=3)
    assert harmed.rows[1].verdict == "harmful"
    assert harmed.accuracy < found.accuracy
    assert harmed.accuracy + harmed.rows[1].off.difference.mean == pytest.approx(found.accuracy, abs=0.1)
    assert not other.training
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


def test_contributions_and_maps_are_measured_and_tables_say_map(found):
    first, second, third = found.rows
    assert first.contribution > 0.1 > second.contribution == 0
    assert [row.maps for row in found.rows] == [1, 1, 4]  # of all channels, of each group
    assert all(0 < row.entropy < 1 < 100 * row.varies for row in (first, third))
    assert 0.5 < first.bf16.correlation <= 1
    assert 0 < first.time < 1
    for text in (str(found), found._repr_html_()):
        assert f"mAP {found.accuracy:.1f}%" in text
        assert "accuracy" not in text


def test_what_map_counts_of_an_image_is_its_prediction():
    there = KnownObjects(Objects(np.array([[0, 0, 20, 20]], np.float32), np.array([0]), np.array([False])), (32, 32))
    judge = ObjectJudge([there] * 2, 2)

    def read(*boxes):
        columns = torch.tensor(boxes, dtype=torch.float32).view(-1, 6)
        one = {"boxes": columns[:, :4], "scores": columns[:, 4], "labels": columns[:, 5].long()}
        return judge.read([one, one], [there] * 2, (64, 64))

    right, wrong = (0, 0, 40, 38, 0.9, 0), (50, 50, 60, 60, 0.5, 0)  # in pixels of the input, twice the file's
    before = read(right, wrong)
    assert torch.equal(before[0, 0], torch.tensor([0, 0, 20, 19, 0.9, 0]))
    assert judge.score(before) == pytest.approx(100)
    assert judge.score(read()) == 0
    other = before.clone()
    for changed, boxes in (
        (0, (right, wrong)),
        (0, ((0, 0, 40, 38.1, 0.8, 0), wrong)),  # hardly moved
        (1, ((0, 0, 40, 30, 0.9, 0), wrong)),  # overlaps less
        (1, (right, (50, 50, 60, 60, 0.95, 0))),  # another order
        (1, (right, (50, 50, 60, 60, 0.5, 1))),  # another class
        (1, (right,)),
        (1, ()),
    ):
        assert judge.changed(read(*boxes), before) == changed
        other[0] = read(*boxes)[0]
        assert judge.changed(other, before) == changed / 2
    assert (read((0, 0, float("nan"), 38, 0.9, 0)) < 0).all()


def test_refused_before_anything_is_shown(trained, data):
    calls = [
        ("audit it on images with boxes", lambda: fv.audit(trained, "elpv")),
        ("no two of these have one", lambda: fv.audit(trained, data.val.subset([6, 10]), image_size=64)),
        (
            "the model's classes are not the data's",
            lambda: fv.audit(trained, DetectionData("other", ("green", "red"), data.train, data.val), image_size=64),
        ),
        ("no image to audit on has an object", lambda: fv.audit(trained, nothing, image_size=64)),
        ("one for each region", lambda: fv.audit(on_regions, data.val, image_size=64)),
    ]
    empty = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))
    nothing = replace(data.val, objects=(empty,) * len(data.val))
    on_regions = network("se after decoder.roi_heads.mask_head.0", "mask_rcnn(width=16, hidden=32, anchor=16)").eval()
    for words, call in calls:
        with pytest.raises(FoveateError, match=words) as raised:
            call()
        assert "\n" not in str(raised.value)
    broken = copy.deepcopy(trained)
    with torch.no_grad():
        broken.backbone.conv_stem.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(Diverged, match=r"backbone.conv_stem.weight"):
        fv.audit(broken, data, image_size=64)
