"""Training for segmentation: what is fitted, resumed, refused and left as found."""

from __future__ import annotations

import os

import pytest
import torch
from PIL import Image

from foveate.dense import create_segmenter
from foveate.errors import FoveateError
from foveate.preserve import preserve_state
from foveate.surgery.insert import insert, plan_of
from foveate.surgery.saving.checkpoint import load
from foveate.training.fit import fit
from foveate.training.loop import Run
from foveate.training.recipes.recipe import Recipe

RECIPE = Recipe(epochs=2, batch_size=3, image_size=24, learning_rate=1e-2, seed=1)


def same(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def history(result):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in result.history]


def test_a_segmenter_with_attention_learns_eight_images_and_is_loaded_without_its_module(data, folder, tmp_path):
    torch.manual_seed(0)
    model = create_segmenter("test_efficientnet", "lraspp(width=16)", classes=data.classes, taps=(1, 4))
    insert(model, "se after backbone.blocks.2.0", input_size=24)
    recipe = RECIPE.with_(epochs=30, batch_size=4, learning_rate=2e-2, augmentation="none", evaluate_every=30)
    eight = data.__class__("eight", data.classes, data.train, data.train)
    before = torch.get_rng_state()
    result = fit(model, eight, recipe, output=tmp_path / "run", progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert result.evaluation.miou > 0.95
    assert result.evaluation.headline.startswith("mIoU 9")
    assert [row["class"] for row in result.evaluation.per_class()] == ["red", "green", "blue"]
    loaded = load(tmp_path / "run")
    assert str(plan_of(loaded)) == "se after backbone.blocks.2.0"
    x = torch.randn(1, 3, 24, 40)
    assert torch.equal(loaded(x)["out"], model.eval()(x)["out"])
    rows = (tmp_path / "run/summary.csv").read_text().splitlines()
    assert rows[0].startswith("epoch,train_loss,eval_loss,eval_miou,eval_pixel_accuracy,lr")
    again = fit(loaded, folder, recipe.with_(epochs=0), progress=False)  # a folder of label maps, recognised as such
    assert again.evaluation.counts.shape == (3, 3, 3)


@pytest.mark.parametrize("changes", [{"augmentation": "standard", "workers": 2}, {"loss": "cross_entropy+dice"}])
def test_resumed_bit_for_bit(changes, data, new_net, tmp_path, monkeypatch):
    recipe = RECIPE.with_(**changes, checkpoint_every=1, ema_decay=0.5)
    whole = new_net()
    wanted = fit(whole, data, recipe, progress=False)

    class Stopped(BaseException):
        pass

    true_step, steps = Run.step, 0

    def step(self, *args):
        nonlocal steps
        steps += 1
        if steps == 5:  # in the second epoch of three steps
            raise Stopped
        return true_step(self, *args)

    monkeypatch.setattr(Run, "step", step)
    with pytest.raises(Stopped):
        fit(new_net(), data, recipe, output=tmp_path, progress=False)
    monkeypatch.setattr(Run, "step", true_step)
    model = new_net()
    found = fit(model, data, recipe.with_(workers=0), output=tmp_path, resume=True, progress=False)
    assert same(model, whole)
    assert history(found) == history(wanted)
    assert torch.equal(found.evaluation.counts, wanted.evaluation.counts)


def test_a_network_in_another_dtype_is_not_trained(data, new_net):
    with pytest.raises(FoveateError, match="the model is in float64, and fit trains weights in float32"):
        fit(new_net().double(), data, RECIPE, progress=False)


def test_accumulated_batches_are_one_batch(data, new_net):
    """Without BatchNorm and dropout, so are processes: the loss is a mean over images."""
    results = []
    for sizes in ({"batch_size": 8}, {"batch_size": 2, "accumulate": 4}):
        model = new_net().double()
        model.body[1], model.decoder[0] = torch.nn.Identity(), torch.nn.Identity()
        fit(model.float(), data, RECIPE.with_(epochs=1, optimiser="sgd", **sizes), progress=False)
        results.append(model.state_dict())
    for key, tensor in results[0].items():
        assert torch.allclose(tensor, results[1][key], atol=1e-6), key


def test_what_is_for_classification_is_refused(data, new_net):
    refused = [
        ({"mixup": 0.1}, "mixup"),
        ({"augmentation": "randaugment"}, "randaugment"),
        ({"loss": "bce"}, "bce"),
        ({"head_init_scale": 0.1}, "head_init_scale"),
    ]
    for changes, word in refused:
        with pytest.raises(FoveateError, match=f"{word}.* is for classification"):
            fit(new_net(), data, RECIPE.with_(**changes), progress=False)
    with pytest.raises(FoveateError, match="a teacher is for classification"):
        fit(new_net(), data, RECIPE, teacher=new_net(), progress=False)
    two = data.__class__("two", data.classes[:2], data.train, data.val)
    with pytest.raises(FoveateError, match=r"3 classes and the data has 2: build it with create_segmenter"):
        fit(new_net(), two, RECIPE, progress=False)
    classifier = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3))
    with pytest.raises(FoveateError, match="gives scores .* not the shape"):
        fit(classifier, data, RECIPE, progress=False)
    named = new_net()
    named.pretrained_cfg = {"label_names": ("green", "red", "blue")}
    with preserve_state(named), pytest.raises(FoveateError, match="class 0 of the model is called 'green'"):
        fit(named, data, RECIPE, progress=False)
    fit(named, data, RECIPE.with_(epochs=0, classifier="keep"), progress=False)
    assert named.pretrained_cfg["label_names"] == data.classes


def test_the_trunk_can_be_frozen(data, new_net):
    model = new_net()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    fit(model, data, RECIPE.with_(epochs=1, freeze="trunk", head_learning_rate_scale=2.0), progress=False)
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == {"decoder.1.weight", "decoder.1.bias"}
    model.decoder_ = model._modules.pop("decoder")
    model.forward = lambda x: {"out": model.decoder_(model.body(x))}
    with pytest.raises(FoveateError, match="no part called decoder"):
        fit(model, data, RECIPE.with_(freeze="trunk"), progress=False)


def test_a_bad_label_map_stops_the_run_with_its_name(tmp_path, folder, new_net, data):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "annotations/train/3.png").write_bytes(b"\x89PNG damaged")
    os.utime(copy)
    with pytest.raises(FoveateError, match=r"train/3\.png"):
        fit(new_net(), copy, RECIPE, progress=False)
    Image.new("L", (32, 24), 9).save(copy / "annotations/train/3.png")
    for workers in (0, 1):
        with pytest.raises(FoveateError, match=r"3\.png holds the number 9 in 768 pixels"):
            fit(new_net(), copy, RECIPE.with_(workers=workers), progress=False)
