"""What the page does, without a browser."""

import io
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.web.explorer import METHODS, Explorer, Limits

PLAN = "ulsam(groups=2) after layer3; se after layer4"


def png(width=80, height=60, mode="RGB"):
    data = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert(mode).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def explorer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model = fv.insert(fv.create_model("resnet10t", num_classes=3), PLAN, input_size=64, seed=0)
    fv.save(model, folder)
    return Explorer({"tiny": str(folder)})


def test_a_saved_model_is_looked_at(explorer):
    seen = explorer.look(png(), "tiny")
    assert len(seen.maps) == 2
    assert len(seen.explanation.channels) == 1
    assert seen.note == ""
    top = seen.explanation.top()
    assert len(top) == 3
    assert sum(top.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method(explorer, method):
    seen = explorer.look(png(), "tiny", method=method)
    assert seen.maps
    assert seen.explanation.method == method


def test_opacity_goes_from_the_picture_to_the_map(explorer):
    seen = explorer.look(png(), "tiny")
    name = seen.maps[0]
    pictures = [torch.tensor(list(seen.overlay(name, opacity).tobytes())).float() for opacity in (0.0, 0.5, 1.0)]
    grey = seen.overlay("no such map", 0.5).convert("L").convert("RGB")
    assert (pictures[0] - torch.tensor(list(grey.tobytes())).float()).abs().max() <= 3  # enlarged before or after
    assert ((pictures[0] + pictures[2]) / 2 - pictures[1]).abs().max() <= 3
    assert not torch.equal(pictures[0], pictures[2])


def test_a_plan_on_a_network_by_name_says_that_it_is_untrained(explorer):
    seen = explorer.look(png(), "resnet10t", "se after layer4", "gradcam")
    assert "random" in seen.note
    assert "no attention to show" in explorer.look(png(), "resnet10t").note
    costs = explorer.costs("resnet10t", "se after layer4")
    assert costs[0][0] == "parameters"
    assert costs[0][3].startswith("+")
    assert [row[3] for row in explorer.costs("resnet10t")] == ["0"] * len(costs)


def test_networks_are_kept_and_old_ones_go(explorer):
    first = explorer.network("tiny")
    assert explorer.network(" tiny ") is first
    for plan in ("se after layer1", "se after layer2", "se after layer3", "se after layer4"):
        explorer.network("resnet10t", plan)
    assert explorer.network("tiny") is not first


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../tiny", "runs/demo", "C:\\models", "tiny/", "hf-hub:someone/model", "", "resnet10t\n/x"]
)
def test_a_visitor_names_no_path(explorer, name):
    with pytest.raises(fv.FoveateError, match="is not the name of a network"):
        explorer.network(name)


def test_limits_hold_before_anything_is_decoded(monkeypatch):
    explorer = Explorer(limits=Limits(file_bytes=5000, pixels=10_000))
    bomb = png(200, 200, "1")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(fv.FoveateError, match="pixels"):
        explorer.image(bomb)
    with pytest.raises(fv.FoveateError, match="MB"):
        explorer.image(b"x" * 6000)


@pytest.mark.parametrize("data", [None, b"", b"just text, no image", png()[:60]])
def test_what_is_no_image_is_refused(explorer, data):
    with pytest.raises(fv.FoveateError):
        explorer.look(data, "tiny")


def test_a_saved_models_plan_is_shown_exchanged_and_taken_off(explorer):
    assert explorer.own_plan("tiny") == PLAN
    assert explorer.own_plan("resnet10t") == ""
    assert explorer.network("tiny", PLAN) is not None
    assert len(explorer.look(png(), "tiny", f" {PLAN} ").maps) == 2
    assert explorer.look(png(), "tiny", PLAN).note == ""
    bare = explorer.look(png(), "tiny", "")
    assert "without its attention" in bare.note
    assert fv.plan_of(explorer.network("tiny", "")) is None
    other = explorer.look(png(), "tiny", "se after layer1")
    assert "untrained" in other.note
    assert str(fv.plan_of(explorer.network("tiny", "se after layer1"))) == "se after layer1"
    assert str(fv.plan_of(explorer.network("tiny"))) == PLAN


def test_a_replaced_block_that_was_not_saved_is_said(tmp_path):
    fv.save(fv.insert(fv.create_model("resnet10t"), "ulsam(groups=2) replacing layer3.0.act2", input_size=64), tmp_path)
    with pytest.raises(fv.FoveateError, match="does not hold the blocks"):
        Explorer({"mine": str(tmp_path)}).network("mine", "")


def test_what_is_accepted_is_said_in_the_error(explorer):
    assert "10 MB and 24 megapixels" in explorer.accepted
    with pytest.raises(fv.FoveateError, match="there is no image yet: choose an image .*10 MB"):
        explorer.look(None, "tiny")
    with pytest.raises(fv.FoveateError, match="the file is empty"):
        explorer.look(b"", "tiny")


@pytest.fixture(scope="module")
def with_data(explorer, tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for part in ("train", "val"):
        for name in ("bright", "dark", "grey"):
            (root / part / name).mkdir(parents=True)
            for k in range(3):
                (root / part / name / f"{k}.png").write_bytes(png(40 + k, 40))
    return Explorer(explorer.saved, data=str(root))


def test_examples_come_from_the_owners_data(explorer, with_data):
    assert explorer.examples() == []
    assert [name for _, name in with_data.examples(3)] == ["bright", "dark", "grey"]
    assert len(with_data.examples(50)) == 9


def test_an_audit_tells_how_far_it_is(with_data):
    seen = []
    with_data.audit("tiny", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert seen == sorted(seen)


@pytest.mark.slow(
    reason="it exports, as tests/exporters does",
    guards=(
        "foveate/web/",
        "foveate/exporters/",
    ),
)
def test_a_network_is_exported_and_checked(with_data):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path, text = with_data.export("tiny")
    assert Path(path).is_file()
    assert "ok logits" in text
    assert "/" not in text.splitlines()[0].partition(" (")[0]  # no folder of the server's
    with pytest.raises(fv.FoveateError, match="ulsam"):
        with_data.export("tiny", "ulsan after layer1")


def test_an_error_is_shown_once_and_the_result_stays():
    gradio = pytest.importorskip("gradio")
    from foveate.web.page import _shown

    def fails(name):
        raise fv.FoveateError(f"no <b>{name}")

    problem, *others = _shown(fails, 2)("x")
    assert "no &lt;b>x" in problem.value
    assert problem.visible
    assert others == [gradio.skip()] * 2
    problem, result = _shown(lambda name: (name,), 1)("x")
    assert not problem.visible
    assert result == "x"


def test_an_audit_needs_the_owners_data(explorer):
    with pytest.raises(fv.FoveateError, match="--data"):
        explorer.audit("tiny")


def test_the_random_state_stays(explorer):
    state = torch.get_rng_state()
    explorer.network("resnet10t", "se after layer1.0")
    assert torch.equal(torch.get_rng_state(), state)


def test_an_audit_takes_images_enough_for_every_verdict():
    from inspect import signature

    from foveate.studies.evaluation.verdict import LEAST

    assert signature(Explorer.audit).parameters["images"].default >= LEAST


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A saved segmenter and a saved detector, and a photograph of noise."""
    root = tmp_path_factory.mktemp("dense")
    torch.manual_seed(0)
    names = ["road", "car", "sky"]
    segmenter = fv.create_segmenter("test_efficientnet", "lraspp(width=8)", classes=names, taps=(1, 4))
    head = "faster_rcnn(width=8, hidden=16, anchor=8, proposals=50, detections=7)"
    detector = fv.create_detector("test_efficientnet", head, classes=names)
    for model, name in ((segmenter, "pixels"), (detector, "objects")):
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 64, 64)}
        fv.save(fv.insert(model, "ulsam(groups=2) after backbone.blocks.2.0", input_size=64), root / name)
    return Explorer({name: str(root / name) for name in ("pixels", "objects")})


@pytest.mark.parametrize(("name", "kind"), [("pixels", "Share of the pixels"), ("objects", "Best score of each class")])
def test_networks_of_pixels_and_of_objects(dense, name, kind):
    own = dense.look(png(), name)
    assert own.maps == tuple(f"backbone.blocks.2.0 subspace {n}/2" for n in (1, 2))
    assert own.note == ""
    what, scores = own.scores
    assert what == kind
    assert 0 < max(scores.values()) <= 1
    assert set(scores) <= {"road", "car", "sky"}
    assert own.found.width >= 280
    assert own.found.height > own.explanation.pictures[0].height
    assert dense.classes(name) == ("road", "car", "sky")
    assert "same for all classes" in dense.look(png(), name, what="car").note
    best = max(scores, key=scores.get)
    seen = dense.look(png(), name, method="hirescam", what=best)
    assert seen.explanation.label(int(seen.explanation.targets[0])) == best
    assert seen.overlay(seen.maps[0], 0.5).width >= 400
    with pytest.raises(fv.FoveateError, match="horse"):
        dense.look(png(), name, method="gradcam", what="horse")
    with pytest.raises(fv.FoveateError, match="cam is for classifiers"):
        dense.look(png(), name, method="cam")
    assert dense.costs(name)[0][0] == "parameters"


def test_a_box_is_chosen_by_its_number(dense):
    own = dense.look(png(), "objects")
    assert own.choices == ("all boxes", *(f"box {n}" for n in range(1, 8)))
    seen = dense.look(png(), "objects", method="gradcam", what="box 2")
    assert seen.explanation.objects[0].explained == (1,)
    for what, match in (("box 99", "box=99: 7 objects were found"), ("all boxes", "no object has a score of 0.5")):
        with pytest.raises(fv.FoveateError, match=match):
            dense.look(png(), "objects", method="gradcam", what=what)
    with pytest.raises(fv.FoveateError, match="box= is for the gradients of a detector"):
        dense.look(png(), "pixels", method="gradcam", what="box 1")
    assert dense.look(png(), "pixels").choices == ()


def test_a_class_by_number_of_a_network_without_names(explorer):
    seen = explorer.look(png(), "tiny", method="gradcam", what="2")
    assert seen.explanation.targets.tolist() == [2]
    assert explorer.classes("tiny") == explorer.classes("resnet10t") == ()


def test_examples_of_images_with_masks_and_with_boxes(tmp_path):
    import json

    for part in ("train", "val"):
        for kind, mode in (("images", "RGB"), ("annotations", "L")):
            (tmp_path / "masks" / kind / part).mkdir(parents=True)
            for k in range(2):
                (tmp_path / "masks" / kind / part / f"{k}.png").write_bytes(png(40, 40, mode))
    (tmp_path / "boxes" / "images").mkdir(parents=True)
    for k in range(4):
        (tmp_path / "boxes" / "images" / f"{k}.png").write_bytes(png(40, 40))
    entries = {
        "images": [{"id": k, "file_name": f"{k}.png", "width": 40, "height": 40} for k in range(4)],
        "annotations": [{"id": k, "image_id": k, "category_id": 1, "bbox": [4, 4, 20, 20]} for k in range(4)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    entries["annotations"].append({"id": 9, "image_id": 0, "category_id": 1, "bbox": [4, 4, 0, 20]})  # no area
    (tmp_path / "boxes" / "boxes.json").write_text(json.dumps(entries))
    assert [name for _, name in Explorer(data=str(tmp_path / "masks")).examples(2)] == ["0", "1"]
    boxes = Explorer(data=str(tmp_path / "boxes"))
    assert len(boxes.examples(9)) >= 1
    assert boxes.left_out == "damaged images or objects that are left out: 1; foveate data check lists them"


def test_a_damaged_image_of_the_owners_is_no_visitors_error(with_data, tmp_path):
    shutil.copytree(with_data.data, tmp_path / "data")
    (tmp_path / "data/val/bright/0.png").write_bytes(b"no image")
    damaged = Explorer(with_data.saved, data=str(tmp_path / "data"))
    assert damaged.left_out == "damaged images that are left out: 1; foveate data check lists them"
    assert damaged.audit(next(iter(damaged.saved))).rows


def test_a_vision_transformer_shows_its_class_token(explorer):
    seen = explorer.look(png(), "test_vit")
    assert seen.maps[0] == "blocks.5.attn class token head 1/2"
    assert "Grad-CAM" not in seen.note
