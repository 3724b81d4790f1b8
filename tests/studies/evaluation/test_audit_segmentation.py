"""An audit of a segmentation network: what is lost in mIoU, with the interval of resampled images."""

import numpy as np
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.dense import create_segmenter
from foveate.errors import FoveateError
from foveate.studies.comparison.statistics import holm
from foveate.studies.evaluation.whole_in_memory import load_maps

NAMES = ("a", "b", "c")
FIRST, SECOND = "backbone.blocks.1.0", "backbone.blocks.2.0"
PLAN = f"ulsam(groups=4) after {FIRST}; se after {SECOND}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audited")
    sizes = [(32, 40)] * 9 + [(32, 48)] * 3 + [(32, 56)]
    for part in ("train", "val"):
        for n, (height, width) in enumerate(sizes):
            random = np.random.default_rng(n)
            for kind in ("images", "annotations"):
                (folder / kind / part).mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
            classes = random.integers(0, 3, (height // 8, width // 8), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(pixels).save(folder / "images" / part / f"{n}.png")
            Image.fromarray(classes).save(folder / "annotations" / part / f"{n}.png")
    (folder / "classes.txt").write_text("a\nb\nc\n")
    return folder


def network(plan=PLAN, start=None):
    torch.manual_seed(0)
    model = create_segmenter("test_efficientnet", "lraspp(width=8)", classes=NAMES, taps=(1, 4))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # else a random network says the same everywhere
            module.running_var.fill_(0.5)
    return fv.insert(model, plan, start=start, input_size=32)


@pytest.fixture(scope="module")
def found(folder):
    return fv.audit(network(), folder, image_size=32, batch_size=4)


def test_what_is_lost_is_the_difference_in_miou(found, folder):
    data = fv.open_segmentation(folder)
    kept = data.val.subset([n for n, size in enumerate(data.val.sizes) if size != (32, 56)])
    assert found.images == len(kept) == 12
    assert found.data.endswith("without 1 images alone with their size")
    whole, without = network(), network(f"se after {SECOND}")
    attention = fv.attentions(without)[SECOND]
    attention.load_state_dict(fv.attentions(whole)[SECOND].state_dict())
    before, after = (fv.evaluate(model, kept, image_size=32) for model in (whole, without))
    assert found.accuracy == pytest.approx(100 * before.miou)
    off = found.rows[0].off
    assert off.difference.mean == pytest.approx(100 * (after.miou - before.miou))
    wanted = fv.miou_differences({"none": before.counts[None], "off": after.counts[None]})["off"]
    assert (off.difference.low, off.difference.high) == pytest.approx((wanted.low, wanted.high))
    masks = [list(fv.predict(model, list(kept.images), image_size=32)) for model in (whole, without)]
    changed = [not torch.equal(one.classes, other.classes) for one, other in zip(*masks, strict=True)]
    assert off.changed == pytest.approx(sum(changed) / 12)
    p_values = holm({row.site: row.off.difference.p for row in found.rows})
    assert {row.site: row.off.p for row in found.rows} == p_values
    assert found.rows[0].shuffles == "map"


def test_tables_say_miou(found):
    for text in (str(found), found._repr_html_()):
        assert f"mIoU {found.accuracy:.1f}%" in text
        assert "accuracy" not in text
    assert {row["verdict"] for row in found.as_dicts()} <= {"works", "static", "inert", "harmful", "unclear"}


def test_what_does_nothing_is_inert(folder):
    model = network(start="identity")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = fv.audit(model, fv.open_segmentation(folder), image_size=32, limit=8, batch_size=3)
    assert [row.verdict for row in found.rows] == ["inert", "inert"]
    assert found.rows[0].off.changed == 0
    assert found.rows[0].off.difference.mean == 0
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_batches_hold_one_size_and_never_one_image(folder):
    data = fv.open_segmentation(folder)
    loaded = load_maps(data, network(), limit=None, image_size=32, seed=0)
    for size in (2, 3, 4, 8):
        batches = list(loaded.batches(size, torch.device("cpu")))
        assert sum(len(images) for images, _ in batches) == len(loaded) == 12
        assert all(2 <= len(images) == len(labels) <= size + 1 for images, labels in batches)
    alone = fv.open_segmentation(folder).val.subset([11, 12])
    with pytest.raises(FoveateError, match="no two of these have one"):
        fv.audit(network(), alone, image_size=32)
    other = create_segmenter("test_efficientnet", "lraspp(width=8)", classes=("b", "a", "c"), taps=(1, 4))
    with pytest.raises(FoveateError, match="the model's classes are not the data's"):
        fv.audit(fv.insert(other, PLAN, input_size=32), data, image_size=32)
