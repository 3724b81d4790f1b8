"""What the page does, without a browser."""

import io
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
    assert "no attention" in explorer.look(png(), "resnet10t").note
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
