"""Plans compared on images with label maps: by mIoU, in every table, and with the verdicts of resampled images."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.dense import create_segmenter
from foveate.errors import FoveateError
from foveate.studies.comparison import scheduler as grid
from foveate.studies.comparison.measure import MIOU, TOP1, measure_of
from foveate.studies.comparison.miou import image_values
from foveate.studies.comparison.reading import read_comparison
from foveate.training.tasks.segmentation_metrics import class_ious

RECIPE = fv.Recipe(epochs=1, batch_size=4, image_size=32, learning_rate=1e-2)
PLANS = ["se after backbone.blocks.1.0", "ulsam(groups=4) after backbone.blocks.1.0"]


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """Squares of two classes on a third one."""
    folder = tmp_path_factory.mktemp("maps")
    colours = np.array([(60, 60, 60), (200, 60, 60), (60, 60, 200)])
    for part, count in (("train", 8), ("val", 11)):
        for kind in ("images", "annotations"):
            (folder / kind / part).mkdir(parents=True)
        for n in range(count):
            random = np.random.default_rng([count, n])
            classes = np.zeros((32, 40), np.uint8)
            for label in (1, 2):
                y, x = random.integers(0, 16), random.integers(0, 24)
                classes[y : y + 14, x : x + 14] = label
            pixels = (colours[classes] + random.integers(-40, 40, (32, 40, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "images" / part / f"{n}.png")
            Image.fromarray(classes).save(folder / "annotations" / part / f"{n}.png")
    (folder / "classes.txt").write_text("ground\nred\nblue\n")
    return folder


def network(seed):
    torch.manual_seed(seed)
    return create_segmenter("test_efficientnet", "lraspp(width=8)", classes=("ground", "red", "blue"), taps=(1, 4))


@pytest.fixture(scope="module")
def found(maps, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "grid"
    return fv.compare(network, PLANS, str(maps), RECIPE, seeds=2, margin=5, output=output, progress=False)


def test_rows_are_those_of_the_runs(found, maps):
    assert found.measure is MIOU is measure_of("segmentation")
    assert [row.label for row in found.rows] == ["none", *PLANS]
    data = fv.open_segmentation(maps)
    evaluation = fv.evaluate(found.models["none"], data, image_size=32)
    assert torch.equal(evaluation.counts, found.counts["none"][0])
    assert found.rows[0].score[0] == pytest.approx(100 * evaluation.miou)
    assert found.rows[0].second[0] == pytest.approx(100 * evaluation.pixel_accuracy)
    differences = fv.miou_differences(found.counts, "none")
    for row in found.rows[1:]:
        assert row.difference == differences[row.label]
        assert row.difference.mean == pytest.approx(sum(row.score) / 2 - sum(found.rows[0].score) / 2)
        assert row.analysis.mcnemar is None
        assert "more than 5 points" in row.verdict or "within 5 points" in row.verdict
    assert found.correct == found.predictions == {}
    with pytest.raises(FoveateError, match=r"top1 is of classification, and here is mIoU: take row\.score"):
        _ = found.rows[0].top1


def test_it_goes_on_and_is_read_again(found, maps, monkeypatch):
    monkeypatch.setattr(grid, "fit", lambda *_, **__: pytest.fail("trained"))
    again = fv.compare(network, PLANS, str(maps), RECIPE, seeds=2, margin=5, output=found.folder, progress=False)
    read = read_comparison(found.folder)
    for other in (again, read):
        assert other.as_dicts() == found.as_dicts()
        assert all(torch.equal(other.counts[label], found.counts[label]) for label in found.counts)
    weights = again.models[PLANS[0]].state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in found.models[PLANS[0]].state_dict().items())


def test_tables_say_miou(found, tmp_path, capsys):
    with (found.folder / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["miou"]) == pytest.approx(sum(found.rows[1].score) / 2, abs=1e-3)
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
        assert "mIoU" in text
        assert "top-1" not in text.lower()
        assert "accuracy" not in text.replace("pixel accuracy", "").replace("pixel_accuracy", "").lower()
    assert "linearised" in page.read_text()
    (red,) = [line for line in page.read_text().splitlines() if line.startswith("| red |")]
    ious = class_ious(found.counts["none"].sum(1))[:, 1]
    assert red.split("|")[2].strip() == f"{100 * float(ious.mean()):.1f}"


@pytest.mark.slow(
    reason="three comparisons of segmentation networks; classification has them in every run",
    guards=(
        "foveate/studies/comparison/",
        "foveate/dense/",
        "foveate/training/tasks/",
    ),
)
def test_a_trunk_by_name_and_a_family_with_learning_rates(maps, capsys):
    family = "se(reduction=2|4) after backbone.blocks.1.0"
    done = fv.compare("test_efficientnet", family, maps, RECIPE.with_(epochs=0), 2, progress=False)
    assert done.setup.network == "test_efficientnet, random weights"
    assert [factor.name for factor in done.factors] == ["reduction"]
    levels = done.factors[0].levels
    assert levels[0].score == pytest.approx(np.mean([*done.rows[1].score]))
    done.print()
    assert "top-1" not in capsys.readouterr().out
    rates = fv.compare(network, PLANS[0], maps, RECIPE, 1, learning_rates=(1e-3, 1e-2), progress=False)
    assert rates.setup.tuning.held_out == 2
    assert all(0 <= score <= 100 for scores in rates.setup.tuning.scores.values() for score in scores)


def test_what_is_of_classification_is_refused(found, maps, tmp_path):
    with pytest.raises(FoveateError, match="a table of runs is for images with one class each"):
        fv.compare(network, PLANS, maps, RECIPE, runs=tmp_path / "runs.csv", output=tmp_path, progress=False)
    with pytest.raises(FoveateError, match="search judges plans by the class of each image.*compare takes them"):
        fv.search("test_efficientnet", "se(reduction=2|4) after blocks.1.0", maps, progress=False)
    with pytest.raises(FoveateError, match="export_plans is for classification"):
        fv.export_plans(found, fv.open_segmentation(maps), ["onnx"])
    with pytest.raises(FoveateError, match="plans cannot be compared in 'detect'"):
        measure_of("detect")


def test_the_interval_is_like_the_bootstrap_and_holds_for_equal_networks():
    random = np.random.default_rng(0)
    actual = np.broadcast_to(random.integers(0, 400, (1, 80, 4)), (2, 3, 80, 4))
    right = random.binomial(actual, 0.7)
    counts = torch.from_numpy(np.stack([right, right + random.integers(0, 90, right.shape), actual], -1))
    scores = MIOU.scores(counts[0], torch.empty(0))
    assert scores == pytest.approx([100 * float(class_ious(each.sum(0)).nanmean()) for each in counts[0]])
    low, high = MIOU.bootstrap({"none": counts[1], "plan": counts[0]}, "none", torch.empty(0))["plan"]
    mean = sum(scores) / 3 - sum(MIOU.scores(counts[1], torch.empty(0))) / 3
    assert low < mean < high
    alone = counts[:, :1]  # with one seed both speak of the images alone
    low, high = MIOU.bootstrap({"none": alone[1], "plan": alone[0]}, "none", torch.empty(0))["plan"]
    linear = fv.miou_differences({"none": alone[1], "plan": alone[0]})["plan"]
    assert high - low == pytest.approx(linear.high - linear.low, rel=0.1)
    assert MIOU.bootstrap({"none": counts[0], "plan": counts[0]}, "none", torch.empty(0)) == {"plan": (0, 0)}
    assert image_values(counts).shape == (2, 3, 80)
    assert (TOP1.short_title, MIOU.short_title, TOP1.heading, MIOU.heading) == ("Accuracy", "mIoU", "Top-1 %", "mIoU %")


def test_the_report_has_a_table_of_classes_and_the_worst_images(found, maps, tmp_path):
    data = fv.open_segmentation(maps)
    page = fv.report(found, data, folder=tmp_path, images=2).read_text("utf-8")
    text = page.replace("Pixel accuracy", "")
    assert "accuracy" not in text.lower()
    assert "top-1" not in text.lower()
    assert "McNemar" not in text
    assert "mIoU against cost" in text
    ious = [float(100 * class_ious(of.sum(0))[1]) for of in found.counts["none"]]
    assert f"<span>{sum(ious) / 2:.1f}</span>" in text.split('<th scope="row">red</th>')[1]
    per_image = torch.stack([class_ious(of).nanmean(-1) for of in found.counts.values()]).mean((0, 1))
    assert f"{data.val.names[int(per_image.argmin())]}, mIoU {100 * float(per_image.min()):.1f}%" in text
    with Image.open(tmp_path / "overlays/worst_1.png") as picture:
        assert picture.width == 5 * (40 + 4)  # the image, its label map, and a mask for each plan
