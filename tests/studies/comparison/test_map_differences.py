"""Average precision with weights: as torchmetrics counts it, as images drawn several times; differences of plans."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import foveate as fv
from foveate.data.detection.split import Objects
from foveate.errors import FoveateError
from foveate.studies.comparison.differences.mean_average_precision import image_parts, map_differences
from foveate.training.tasks.average_precision import average_precision, match_objects
from foveate.training.tasks.detection_metrics import DetectionEvaluation, measure_objects

CLASSES = ("a", "b", "c")


def objects_of(random, images=12):
    """Up to four objects of three classes in each image, a tenth of them ignored."""
    found = []
    for _ in range(images):
        n = random.integers(0, 5)
        corner = random.uniform(0, 80, (n, 2))
        boxes = np.concatenate([corner, corner + random.uniform(8, 30, (n, 2))], 1).astype(np.float32)
        found.append(Objects(boxes, random.integers(0, 3, n), random.random(n) < 0.1))
    return found


def boxes_for(random, objects, noise):
    """Most of the objects, moved by noise, some of them twice, and boxes where nothing is."""
    found = []
    for of in objects:
        keep = random.random(len(of)) < 0.8
        moved = of.boxes[keep] + random.normal(0, noise, (keep.sum(), 4))
        corner = random.uniform(0, 80, (2, 2))
        wrong = np.concatenate([corner, corner + random.uniform(8, 30, (2, 2))], 1)
        places = np.concatenate([moved, wrong, of.boxes[keep][:1]])
        places[:, 2:] = np.maximum(places[:, 2:], places[:, :2] + 1)
        labels = np.concatenate([of.labels[keep], random.integers(0, 3, 2), of.labels[keep][:1]])
        scores = random.random(len(places)).round(2)  # some are equal
        rows = torch.tensor(np.concatenate([places, scores[:, None], labels[:, None]], 1)).float()
        found.append(rows[rows[:, 4].argsort(descending=True, stable=True)])
    return found


def unmeasured(found, objects):
    """An evaluation whose numbers are not needed."""
    return DetectionEvaluation(0.0, 0.0, 0.0, torch.zeros(3, 2), tuple(found), tuple(objects), CLASSES)


@pytest.mark.parametrize("seed", range(6))
def test_with_equal_weights_it_is_torchmetrics(seed):
    pytest.importorskip("faster_coco_eval")
    random = np.random.default_rng(seed)
    objects = objects_of(random)
    found = boxes_for(random, objects, 3.0)
    wanted = measure_objects(found, objects, CLASSES)
    matches = match_objects(found, objects, 3)
    ap = average_precision(matches, torch.ones(1, 12))
    torch.testing.assert_close(ap[0], wanted.ap[:, 0], rtol=0, atol=1e-9, equal_nan=True)
    assert float(image_parts(matches).mean()) == pytest.approx(wanted.map, abs=1e-9)


def test_a_weight_is_an_image_that_is_drawn_so_often():
    random = np.random.default_rng(0)
    objects = objects_of(random)
    found = boxes_for(random, objects, 3.0)
    found = [torch.cat([of[:, :4], torch.rand(len(of), 1), of[:, 5:]], 1) for of in found]  # no two scores are equal
    times = torch.tensor([0, 1, 2, 3, 1, 0, 1, 1, 4, 1, 0, 2])
    drawn = [n for n, count in enumerate(times.tolist()) for _ in range(count)]
    several = match_objects([found[n] for n in drawn], [objects[n] for n in drawn], 3)
    matches = match_objects(found, objects, 3)
    weighted = average_precision(matches, torch.stack([times, torch.ones(12), torch.zeros(12)]))
    # Between equal scores of copies precision is read once for each; COCO's monotone precision may see the first.
    expected = average_precision(several, torch.ones(1, len(drawn)))
    torch.testing.assert_close(weighted[0], expected[0], rtol=0, atol=0.02)
    assert weighted[2].isnan().all()
    nothing = match_objects([torch.zeros(0, 6)] * 12, objects, 3)
    assert average_precision(nothing, torch.ones(1, 12)).tolist() == [[0.0, 0.0, 0.0]]


def test_the_better_plan_is_found_and_equal_ones_are_not():
    random = np.random.default_rng(1)
    objects = objects_of(random, 30)
    runs = {
        label: [
            unmeasured(boxes_for(np.random.default_rng([seed, int(noise)]), objects, noise), objects)
            for seed in range(3)
        ]
        for label, noise in {"none": 6.0, "better": 1.0, "same": 6.0}.items()
    }
    runs["same"] = [runs["none"][n] for n in (1, 2, 0)]
    found = fv.map_differences(runs)
    assert set(found) == {"better", "same"}
    assert found["better"].low > 0
    assert found["same"].low <= 0 <= found["same"].high
    assert found["same"].mean == pytest.approx(0, abs=1e-9)


def test_what_cannot_be_compared_is_refused():
    random = np.random.default_rng(2)
    objects, others = objects_of(random, 4), objects_of(random, 4)
    one, other = (
        unmeasured(boxes_for(random, objects, 1.0), objects),
        unmeasured(boxes_for(random, others, 1.0), others),
    )
    for evaluations, words in (
        ({"a": [one]}, "baseline='none'"),
        ({"none": [one]}, "two names or more"),
        ({"none": [one], "a": [one, one]}, "the same number of seeds"),
        ({"none": [], "a": []}, "at least 1"),
        ({"none": [one], "a": [other]}, "different images or objects"),
    ):
        with pytest.raises(FoveateError, match=words):
            map_differences(evaluations)
