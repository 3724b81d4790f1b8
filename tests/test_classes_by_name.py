"""Classes are told apart by name, in every verb that takes a model and data."""

import copy
import inspect
import io
import json
import tempfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import foveate as fv
from foveate.data import ImageData, Split
from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.networks.class_names import class_positions
from foveate.training.teacher.distillation import Teacher

COLOURS = ("red", "green", "blue")


def picture(colour, seed):
    pixels = np.random.default_rng(seed).integers(0, 100, (16, 16, 3), dtype=np.uint8)
    pixels[..., COLOURS.index(colour)] += 100
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def colours(*classes, called=None):
    """Twelve pictures of each class in each part; the classes may be called something else."""
    parts = []
    for part in ("train", "val"):
        labels = tuple(k % len(classes) for k in range(12 * len(classes)))
        sources = tuple(picture(classes[label], k) for k, label in enumerate(labels))
        parts.append(Split(part, sources, labels, tuple(f"{part}/{k}.png" for k in range(len(labels)))))
    return ImageData("colours", called or classes, *parts)


def network(names=COLOURS):
    """Knows the brightest channel: right for every picture, by construction."""
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(3)[:, :, None, None])
        net[4].weight.copy_(20 * torch.eye(3))
        net[0].bias.zero_()
        net[4].bias.zero_()
    net.pretrained_cfg = {"input_size": (3, 16, 16), "mean": (0.0,) * 3, "std": (1.0,) * 3, "crop_pct": 1.0}
    if names:
        net.pretrained_cfg["label_names"] = names
    return net


def by_audit(model, data):
    model = fv.insert(copy.deepcopy(model), "se(reduction=1) after 0", start="identity")
    return fv.audit(model, data, batch_size=8).accuracy / 100


def by_compare(model, data):
    recipe = fv.Recipe(epochs=0, image_size=16)
    found = fv.compare(model, "se(reduction=1) after 0", data, recipe, seeds=1, start="identity", progress=False)
    return found.rows[0].top1[0] / 100 if hasattr(found.rows[0], "top1") else found.rows[0].mean / 100


def by_faithfulness(model, data):
    assert fv.faithfulness(model, data, ["gradcam"], limit=8).images == 8
    assert fv.faithfulness({"a": model, "b": model}, data, ["gradcam"], limit=8).images == 8
    return 1.0  # it measures the model's own prediction


def by_export(model, data):
    with tempfile.TemporaryDirectory() as folder:
        made = fv.export(model, "pt2", folder, data=data, images=12, time=False)
        assert made.top1 == made.network_top1
        return made.top1


def by_export_all(model, data):
    with tempfile.TemporaryDirectory() as folder:
        (row,) = fv.export_all(model, ["pt2"], folder, data=data, options={"images": 12, "time": False}).rows
        if row.exported is None:
            raise FoveateError(row.reason)  # a table of files says in a row why there is none
        return row.exported.top1


def by_search(model, data):
    recipe = fv.Recipe(epochs=1, learning_rate=0.0, image_size=16)
    family = "se(reduction=1) after 0"
    found = fv.search(model, family, data, recipe, seeds=1, start="identity", progress=False)
    return found.comparison.rows[0].top1[0] / 100


VERBS = {
    "evaluate": lambda model, data: fv.evaluate(model, data.val).top1,
    "audit": by_audit,
    "fit": lambda model, data: fv.fit(model, data, fv.Recipe(epochs=0, image_size=16), progress=False).evaluation.top1,
    "compare": by_compare,
    "export": by_export,
    "export_all": by_export_all,
    "faithfulness": by_faithfulness,
}


def _takes_both(verb):
    parameters = set(inspect.signature(verb).parameters)
    return "model" in parameters and bool(parameters & {"data", "split"})


def test_every_verb_of_model_and_data_is_here():
    found = set()
    for name in fv.__all__:
        verb = getattr(fv, name)
        if inspect.isfunction(verb) and _takes_both(verb):
            found.add(name)
    assert found == {*VERBS, "search"}


def test_a_search_knows_the_classes_by_name():
    """It trains, so it gives a network of other classes a new classifier where the other verbs refuse."""
    assert by_search(network(), colours("green", "blue")) == 1.0


@pytest.mark.parametrize("verb", VERBS)
def test_by_name_or_not_at_all(verb):
    for classes in (COLOURS, ("green", "blue"), ("blue", "red", "green"), ("blue",), ("blue", "red")):
        if len(classes) > 1:
            assert VERBS[verb](network(), colours(*classes)) == 1.0, classes
    lists = r"\(red, green, blue\).*\(x, y, z\)"
    with pytest.raises(FoveateError, match=lists):
        VERBS[verb](network(), colours(*COLOURS, called=("x", "y", "z")))
    with pytest.raises(FoveateError, match=r"\(red, green, blue\).*\(green, pink\)"):
        VERBS[verb](network(), colours("green", "blue", called=("green", "pink")))
    # Without names there is nothing to ask: the order is taken as it is.
    assert VERBS[verb](network(names=None), colours(*COLOURS, called=("x", "y", "z"))) == 1.0


def test_more_outputs_than_classes_and_no_names():
    data = colours("red", "green", called=("x", "y"))
    with pytest.raises(FoveateError, match=r"3 classes without names and the data has 2 \(x, y\)"):
        fv.evaluate(network(names=None), data.val)
    assert fv.evaluate(network(names=None), replace(data.val, classes=())).top1 == 1.0  # nothing is known: as given


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel])
def test_a_wrapper_has_the_names_and_the_preparation_of_the_network_inside(wrap):
    inner = network()
    inner.pretrained_cfg["mean"] = (0.1, 0.2, 0.3)
    model = wrap(inner)
    assert Preprocess.of(model) == Preprocess.of(inner)
    assert fv.evaluate(model, colours("blue", "red").val).top1 == fv.evaluate(inner, colours("blue", "red").val).top1
    with pytest.raises(FoveateError, match=r"\(red, green, blue\).*\(x, y, z\)"):
        fv.evaluate(model, colours(*COLOURS, called=("x", "y", "z")).val)


def test_the_scores_are_named(tmp_path):
    found = fv.evaluate(network(), colours("blue", "red").val)
    rows = {row["class"]: (row["images"], row["recall"]) for row in found.per_class()}
    assert rows == {"red": (12, 1.0), "green": (0, 0.0), "blue": (12, 1.0)}
    assert found.confusion.tolist() == [[12, 0, 0], [0, 0, 0], [0, 0, 12]]
    assert [row["class"] for row in found.to_dict()["classes"]] == list(COLOURS)


def test_a_teacher_is_read_by_name():
    data = colours("blue", "green")
    images = torch.stack([Preprocess.of(network())(data.train[k][0]) for k in range(8)])
    teacher = Teacher(network().eval(), fv.Recipe(), Preprocess.of(network()), data.classes)
    assert teacher.scores(images).argmax(dim=1).tolist() == list(data.train.labels[:8])
    with pytest.raises(FoveateError, match=r"teacher does not fit the data: .*\(red, green, blue\).*\(x, y\)"):
        Teacher(network().eval(), fv.Recipe(), Preprocess.of(network()), ("x", "y"))


def test_a_class_is_explained_by_name():
    image = Image.open(io.BytesIO(picture("green", 0)))
    assert fv.explain(network(), image, "gradcam", target="blue").maps[0].targets.tolist() == [2]
    assert fv.explain(network(), [image] * 2, "gradcam", target=["blue", 1]).maps[0].targets.tolist() == [2, 1]
    with pytest.raises(FoveateError, match="no class 'bleu'; did you mean 'blue'"):
        fv.explain(network(), image, "gradcam", target="bleu")
    with pytest.raises(FoveateError, match="carries no class names"):
        fv.explain(network(names=None), image, "gradcam", target="blue")
    with pytest.raises(FoveateError, match="another number of class names"):
        fv.explain(network(names=("red", "blue")), image, "gradcam", target="blue")


# ---- training


def fitted(data, names=COLOURS, **fields):
    model = network(names)
    fv.fit(model, data, fv.Recipe(**{"epochs": 1, "learning_rate": 0.0, "image_size": 16, **fields}), progress=False)
    return model[4].weight.detach()


def test_fine_tuning_keeps_what_is_known_and_replaces_the_rest(capsys):
    known = 20 * torch.eye(3)
    assert fitted(colours(*COLOURS)).equal(known)
    assert fitted(colours("blue", "red", "green")).equal(known[[2, 0, 1]])
    assert fitted(colours("blue", "red")).equal(known[[2, 0]])
    others = colours(*COLOURS, called=("x", "y", "z"))
    assert not fitted(others).equal(known)  # a new one
    assert fitted(others, names=None).equal(known)
    assert fitted(others, classifier="keep").equal(known)
    assert not fitted(colours(*COLOURS), classifier="new").equal(known)
    with pytest.raises(FoveateError, match="classifier='keep': the model has 3 classes and the data has 2"):
        fitted(colours("blue", "red"), classifier="keep")
    with pytest.raises(FoveateError, match="classifier='kep'"):
        fv.Recipe(classifier="kep")
    fv.fit(network(), others, fv.Recipe(epochs=1, image_size=16))
    assert "a new classifier for 3 classes, untrained (the model's 3 are others)" in capsys.readouterr().err


def test_a_refused_fit_changes_nothing():
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(FoveateError):
        fv.fit(model, colours(*COLOURS, called=("x", "y", "z")), fv.Recipe(epochs=0, image_size=16), progress=False)
    assert all(before[key].equal(value) for key, value in model.state_dict().items())
    assert model.pretrained_cfg["label_names"] == COLOURS


def test_a_head_of_its_classes_is_not_cut():
    model = fv.insert(fv.create_model("resnet10t", num_classes=3), "saol as head on layer3, layer4")
    model.pretrained_cfg["label_names"] = COLOURS
    with pytest.raises(FoveateError, match="built for 3 classes and the data has 3 others, or in another order"):
        fv.fit(model, colours("blue", "red", "green"), fv.Recipe(image_size=64), progress=False)


# ---- the names themselves


def test_names_are_compared_as_text():
    model = network(names=("caf\u00e9", "th\u00e9", "eau"))
    assert class_positions(model, ("the\u0301", "cafe\u0301"), 3) == (1, 0)
    assert class_positions(model, ("caf\u00e9", "th\u00e9", "eau"), 3) is None
    with pytest.raises(FoveateError):
        class_positions(model, ("cafe", "eau"), 3)
    twice = network(names=("a", "a", "b"))
    with pytest.raises(FoveateError):
        class_positions(twice, ("a", "b"), 3)
    assert class_positions(network(names=("a", "b")), ("x", "y", "z"), 3) is None  # of another classifier


def test_weights_of_imagenet_know_its_words():
    model = network(names=None)
    model.pretrained_cfg["tag"] = "ra_in1k"
    assert class_positions(model, ("n02111889", "tench", "great_white_shark"), 1000) == (258, 0, 2)
    with pytest.raises(FoveateError, match=r"\(tench, goldfish, .* and 988 more\).*\(left, right\)"):
        class_positions(model, ("left", "right"), 1000)
    with pytest.raises(FoveateError):  # two kinds of crane
        class_positions(model, ("crane", "tench"), 1000)
    with pytest.raises(FoveateError):  # numbers of other data are not ImageNet's
        class_positions(model, tuple(map(str, range(10))), 1000)
    assert class_positions(model, tuple(map(str, range(1000))), 1000) is None


def test_the_command_line(tmp_path, capsys):
    from foveate.cli import main

    model = fv.create_model("mobilenetv2_035", num_classes=3)
    model.pretrained_cfg["label_names"] = COLOURS
    fv.save(model, tmp_path / "model")
    for part in ("train", "val"):
        for name in ("x", "y", "z"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for k in range(2):
                (tmp_path / "data" / part / name / f"{k}.png").write_bytes(picture("red", hash((part, name, k)) % 1000))
    command = ["train", str(tmp_path / "data"), "--model", str(tmp_path / "model"), "--image-size", "32"]
    command += ["--output", str(tmp_path / "run"), "--json"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--epochs", "0"])
    assert ended.value.code == 2
    assert "(red, green, blue)" in (err := capsys.readouterr().err)
    assert "(x, y, z)" in err
    with pytest.raises(SystemExit) as ended:
        main([*command, "--epochs", "0", "--classifier", "keep"])
    assert not ended.value.code
    assert [row["class"] for row in json.loads(capsys.readouterr().out)["classes"]] == ["x", "y", "z"]
