"""Plans compared on images with boxes: by mAP, in every table, and with the verdicts of resampled images."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.data.detection.split import Objects
from foveate.errors import FoveateError
from foveate.studies.comparison import scheduler as grid
from foveate.studies.comparison.differences.mean_average_precision import packed, unpacked
from foveate.studies.comparison.measure import MAP, measure_of
from foveate.studies.comparison.reading import read_comparison
from foveate.studies.comparison.statistics import difference_of
from foveate.training.tasks.average_precision import average_precision

pytest.importorskip("faster_coco_eval")
RECIPE = fv.Recipe(epochs=2, batch_size=4, image_size=64, learning_rate=1e-2, optimiser="adamw")
PLANS = ["se after backbone.blocks.1.0", "ulsam(groups=4) after backbone.blocks.1.0"]
COLOURS = (230, 60, 60), (60, 230, 60)


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """Bright squares of two classes, in two files of COCO's form."""
    folder = tmp_path_factory.mktemp("boxes")
    for part, count in (("train", 12), ("val", 11)):
        (folder / part).mkdir()
        images, annotations = [], []
        for n in range(count):
            random = np.random.default_rng([count, n])
            pixels = random.integers(0, 60, (64, 72, 3)).astype(np.uint8)
            images.append({"id": n, "file_name": f"{n}.png", "width": 72, "height": 64})
            for half in range(1 + n % 2):
                size, label = int(random.integers(14, 24)), int(random.integers(0, 2))
                x, y = int(random.integers(0, 72 - size)), half * 32 + int(random.integers(0, 32 - size))
                pixels[y : y + size, x : x + size] = COLOURS[label]
                row = {"id": len(annotations), "image_id": n, "category_id": label + 1, "bbox": [x, y, size, size]}
                annotations.append({**row, "iscrowd": 0})
            Image.fromarray(pixels).save(folder / part / f"{n}.png")
        names = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
        content = {"images": images, "annotations": annotations, "categories": names}
        (folder / part / "_annotations.coco.json").write_text(json.dumps(content))
    return folder


def network(seed):
    torch.manual_seed(seed)
    return fv.create_detector("test_efficientnet", "ssdlite(width=0.1)", classes=("red", "green"))


@pytest.fixture(scope="module")
def found(boxes, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "grid"
    return fv.compare(network, PLANS, str(boxes), RECIPE, seeds=2, margin=5, output=output, progress=False)


def test_rows_are_those_of_the_runs(found, boxes):
    assert found.measure is MAP is measure_of("detection")
    assert [row.label for row in found.rows] == ["none", *PLANS]
    data = fv.open_detection(boxes)
    evaluations = {label: fv.evaluate(model, data, image_size=64) for label, model in found.models.items()}
    for row in found.rows:
        one = evaluations[row.label]
        assert row.score[0] == pytest.approx(100 * one.map)
        assert row.second[0] == pytest.approx(100 * one.map50)
        kept = found.boxes[row.label][0]
        assert [int((of[:, 5] >= 0).sum()) for of in kept] == [len(of) for of in one.found]
        ap = average_precision(unpacked(kept, found.objects), torch.ones(1, 11))[0]
        torch.testing.assert_close(ap, one.ap[:, 0], rtol=0, atol=1e-9, equal_nan=True)
    assert any(row.score[0] > 0 for row in found.rows)  # there is something to compare
    with_one_seed = fv.map_differences({label: [of] for label, of in evaluations.items()})
    for row in found.rows[1:]:
        first = 100 * evaluations[row.label].map - 100 * evaluations["none"].map
        assert with_one_seed[row.label].mean == pytest.approx(first)
        assert row.difference.mean == pytest.approx(sum(row.score) / 2 - sum(found.rows[0].score) / 2)
        assert row.difference.low <= row.difference.mean <= row.difference.high
        assert row.analysis.mcnemar is None
        assert "more than 5 points" in row.verdict or "within 5 points" in row.verdict
    assert found.correct == found.predictions == found.counts == {}
    assert found.objects.sum(0).tolist() == data.val.counts()
    with pytest.raises(FoveateError, match=r"top1 is of classification, and here is mAP: take row\.score"):
        _ = found.rows[0].top1


def test_it_goes_on_and_is_read_again(found, boxes, monkeypatch):
    monkeypatch.setattr(grid, "fit", lambda *_, **__: pytest.fail("trained"))
    again = fv.compare(network, PLANS, str(boxes), RECIPE, seeds=2, margin=5, output=found.folder, progress=False)
    read = read_comparison(found.folder)
    for other in (again, read):
        assert other.as_dicts() == found.as_dicts()
        assert all(torch.equal(other.boxes[label], found.boxes[label]) for label in found.boxes)
    weights = again.models[PLANS[0]].state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in found.models[PLANS[0]].state_dict().items())


def test_tables_say_map(found, tmp_path, capsys):
    with (found.folder / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["map"]) == pytest.approx(sum(found.rows[1].score) / 2, abs=1e-3)
    assert rows[1]["margin"] == "5"
    json.dumps(found.as_dicts())
    found.print()
    printed = capsys.readouterr().out
    *_, page = fv.write_page(found, tmp_path / "page.md")
    texts = [
        printed,
        page.read_text(),
        *(file.read_text() for file in tmp_path.glob("images/*.svg")),
        found._repr_html_(),
    ]
    for text in texts:
        assert "mAP" in text
        assert "top-1" not in text.lower()
        assert "accuracy" not in text.lower()
    assert "jackknife" in page.read_text()
    (red,) = [line for line in page.read_text().splitlines() if line.startswith("| red |")]
    (scores, images) = found.class_scores(["none"])["none"]
    assert red.split("|")[2].strip() == f"{100 * float(scores[:, 0].mean()):.1f}"
    assert images.tolist() == (found.objects > 0).sum(0).tolist()


@pytest.mark.slow(
    reason="three comparisons of detectors; classification has them in every run",
    guards=(
        "foveate/studies/comparison/",
        "foveate/dense/detection/",
        "foveate/training/tasks/",
    ),
)
def test_a_trunk_by_name_and_a_family_with_learning_rates(boxes, capsys):
    small = RECIPE.with_(epochs=0, image_size=32)
    family = "se(reduction=2|4) after backbone.blocks.1.0"
    named = fv.compare("test_efficientnet", PLANS[0], boxes, small, 1, progress=False)
    assert named.setup.network == "test_efficientnet, random weights"
    assert named.rows[0].cost.params > 10_000_000  # of Faster R-CNN
    done = fv.compare(network, family, boxes, small, 2, progress=False)
    assert [factor.name for factor in done.factors] == ["reduction"]
    assert done.factors[0].levels[0].score == pytest.approx(np.mean([*done.rows[1].score]))
    done.print()
    assert "top-1" not in capsys.readouterr().out
    rates = fv.compare(network, PLANS[0], boxes, small, 1, learning_rates=(1e-3, 1e-2), progress=False)
    assert rates.setup.tuning.held_out == 2
    assert all(0 <= score <= 100 for scores in rates.setup.tuning.scores.values() for score in scores)


def test_what_is_of_classification_is_refused(found, boxes, tmp_path):
    with pytest.raises(FoveateError, match="a table of runs is for images with one class each"):
        fv.compare(network, PLANS, boxes, RECIPE, runs=tmp_path / "runs.csv", output=tmp_path, progress=False)
    with pytest.raises(FoveateError, match="search judges plans by the class of each image.*compare takes them"):
        fv.search("test_efficientnet", "se(reduction=2|4) after blocks.1.0", boxes, progress=False)
    with pytest.raises(FoveateError, match="export_plans is for classification: of a detection network"):
        fv.export_plans(found, fv.open_detection(boxes), ["onnx"])


def boxes_of(random, objects, noise, most=4):
    """Each object of each image moved by noise, and boxes where nothing is; the highest score first."""
    found = []
    for of in objects:
        corner = random.uniform(0, 80, (most, 2))
        wrong = np.concatenate([corner, corner + random.uniform(8, 30, (most, 2))], 1)
        places = np.concatenate([of.boxes + random.normal(0, noise, of.boxes.shape), wrong])
        labels = np.concatenate([of.labels, random.integers(0, 3, most)])
        rows = torch.tensor(np.column_stack([places, random.random(len(places)), labels])).float()
        found.append(rows[rows[:, 4].argsort(descending=True, stable=True)])
    return found


def test_the_interval_is_like_the_bootstrap():
    random = np.random.default_rng(0)
    objects = []
    for _ in range(60):
        corner = random.uniform(0, 80, (3, 2))
        places = np.concatenate([corner, corner + random.uniform(8, 30, (3, 2))], 1).astype(np.float32)
        objects.append(Objects(places, random.integers(0, 3, 3), np.zeros(3, bool)))
    runs = {label: packed(boxes_of(random, objects, noise), objects, 3) for label, noise in (("a", 1.0), ("none", 4.0))}
    present = runs["a"][1]
    kept = {label: rows[None] for label, (rows, _) in runs.items()}
    (low, high) = MAP.bootstrap(kept, "none", present)["a"]
    found = MAP.paired(torch.stack([MAP.values(kept[label], present) for label in ("none", "a")]))
    linear = difference_of(found, 0)
    assert low < linear.mean < high
    assert high - low == pytest.approx(linear.high - linear.low, rel=0.15)
    assert MAP.bootstrap({"none": kept["a"], "a": kept["a"]}, "none", present) == {"a": (0, 0)}


def test_the_report_has_a_table_of_classes_and_the_worst_images(found, boxes, tmp_path):
    data = fv.open_detection(boxes)
    page = fv.report(found, data, folder=tmp_path, images=2).read_text("utf-8")
    assert "accuracy" not in page.lower()
    assert "top-1" not in page.lower()
    assert "McNemar" not in page
    assert "mAP against cost" in page
    aps = 100 * found.class_scores(["none"])["none"][0][:, 0]
    assert f"<span>{float(aps.mean()):.1f}</span>" in page.split('<th scope="row">red</th>')[1]
    assert "The worst images: those with the lowest mAP of their own" in page
    with Image.open(tmp_path / "overlays/worst_1.png") as picture:
        assert picture.width == 5 * (72 + 4)  # the image, its objects, and what each plan finds
        sheet = np.asarray(picture)
    image, objects = sheet[:64, :72].astype(int), sheet[:64, 76 : 76 + 72].astype(int)
    assert (image != objects).any()  # boxes are drawn
