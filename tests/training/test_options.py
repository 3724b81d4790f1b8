"""What a recipe can ask for beyond the plain loop: mixing, accumulation, compilation, a teacher, trackers, caches."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.tracking import GeneralTracker
from torch import nn

from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.io import state_digest
from foveate.prediction.evaluate import evaluate
from foveate.progress import ProgressBar
from foveate.training.fit import fit
from foveate.training.input.feature_cache import FeatureCache
from foveate.training.input.image_cache import decode
from foveate.training.input.mixup import Mixing
from foveate.training.loss import Objective
from foveate.training.recipes.named import open_recipe
from foveate.training.recipes.recipe import Recipe
from foveate.training.restore import OutOfMemory, memory_advice
from foveate.training.teacher.distillation import Teacher

PLAIN = Preprocess((16, 16), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ---- mixing and losses


@pytest.mark.parametrize("fields", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_mixed_images_and_shares_belong_together(fields):
    """With images that show their class, the share of a class is what one sees of it."""
    mixing = Mixing(Recipe(**fields), 3)
    labels = torch.tensor([0, 1, 2, 1])
    images = F.one_hot(labels, 3).float()[:, :, None, None].expand(4, 3, 8, 8)
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        mixed, shares = mixing(images, labels)
        torch.testing.assert_close(shares.sum(1), torch.ones(4))
        torch.testing.assert_close(mixed.mean((2, 3)), shares, rtol=1e-5, atol=1e-5)
        torch.manual_seed(seed)
        again = mixing(images, labels)
        assert torch.equal(again[0], mixed)
        assert torch.equal(again[1], shares)
        seen.add(tuple(shares.flatten().tolist()))
    assert len(seen) > 3


def test_binary_cross_entropy_looks_for_every_class_of_a_mixed_image():
    objective = Objective(nn.Linear(1, 1), Recipe(loss="bce"))
    scores = torch.randn(2, 3)
    shares = torch.tensor([[0.7, 0.3, 0.0], [0.9, 0.0, 0.1]])
    present = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    expected = F.binary_cross_entropy_with_logits(scores, present)
    torch.testing.assert_close(objective.loss(scores, shares), expected)
    hard = F.binary_cross_entropy_with_logits(scores, F.one_hot(torch.tensor([2, 0]), 3).float())
    torch.testing.assert_close(objective.loss(scores, torch.tensor([2, 0])), hard)


@pytest.mark.parametrize("fields", [{"mixup": 0.2}, {"cutmix": 1.0}, {"loss": "bce"}, {"mixup": 0.2, "loss": "bce"}])
def test_learns_with_mixing(data, new_net, recipe, fields):
    recipe = recipe.with_(epochs=15, learning_rate=0.02, augmentation="none", **fields)
    assert fit(new_net(), data, recipe, progress=False).evaluation.top1 > 0.7


@pytest.mark.parametrize("fields", [{"mixup": 0.2}, {"cutmix": 1.0}, {"temperature": 2.0}])
def test_cached_features_cannot_be_mixed_or_taught(data, new_net, recipe, fields):
    teacher = new_net() if "temperature" in fields else None
    with pytest.raises(FoveateError, match="needs images, and a frozen trunk's cached features are none"):
        fit(new_net(), data, recipe.with_(freeze="0", **fields), progress=False, teacher=teacher)
    fit(new_net(), data, recipe.with_(epochs=1, freeze="0", cache=False, **fields), progress=False, teacher=teacher)


# ---- accumulation and compilation


@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 2), (2, 4), (3, 3)])
def test_accumulated_batches_are_one_large_batch(data, new_plain_net, recipe, batch_size, accumulate):
    one, many = new_plain_net(), new_plain_net()
    whole = recipe.with_(batch_size=batch_size * accumulate, optimiser="sgd", momentum=0.9)
    first = fit(one, data, whole, progress=False)
    second = fit(many, data, whole.with_(batch_size=batch_size, accumulate=accumulate), progress=False)
    for key, value in one.state_dict().items():
        torch.testing.assert_close(many.state_dict()[key], value, rtol=1e-4, atol=1e-6)
    assert [r["train_loss"] for r in second.history] == pytest.approx([r["train_loss"] for r in first.history], 1e-5)


def test_compiled_training_is_the_same_training(data, new_net, recipe):
    plain, other = new_net(), new_net()
    fit(plain, data, recipe.with_(epochs=1), progress=False)
    fit(other, data, recipe.with_(epochs=1, compile="eager"), progress=False)
    assert same(weights(plain), weights(other))
    assert other._compiled_call_impl is None
    with pytest.raises(FoveateError, match="torch.compile has no backend 'inductr': did you mean 'inductor'"):
        fit(plain, data, recipe.with_(compile="inductr"), progress=False)
    for model, backend in ((plain, ""), (other, "eager")):  # the part behind a frozen trunk
        fit(model, data, recipe.with_(epochs=1, compile=backend, freeze="0"), progress=False)
    assert same(weights(plain), weights(other))


# ---- a teacher


def test_distillation_is_hintons_loss(new_net):
    net = new_net().eval()
    teacher = Teacher(net, Recipe(distillation=0.3, temperature=2.0), PLAIN, ("a", "b", "c"))
    images, scores, other = torch.randn(4, 3, 16, 16), torch.randn(4, 3), torch.tensor(0.7)
    p, q = (net(images) / 2).softmax(1), (scores / 2).softmax(1)
    expected = 0.7 * 0.7 + 0.3 * 4 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(teacher.loss(scores, images, other), expected.detach())


def test_a_teacher_sees_images_as_it_is_used_to(new_net):
    net = new_net().eval()
    net.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    teacher = Teacher(net, Recipe(), PLAIN, ("a", "b", "c"))
    pixels = torch.rand(2, 3, 16, 16)
    shape = (1, 3, 1, 1)
    here = (pixels - torch.tensor(PLAIN.mean).view(shape)) / torch.tensor(PLAIN.std).view(shape)
    there = (pixels - torch.tensor([0.5, 0.4, 0.3]).view(shape)) / torch.tensor([0.2, 0.3, 0.4]).view(shape)
    torch.testing.assert_close(teacher.scores(here), net(there), rtol=1e-4, atol=1e-5)


def test_a_teacher_in_bfloat16(new_net):
    net = new_net().eval()
    images = torch.randn(2, 3, 16, 16)
    expected = net(images)
    teacher = Teacher(net.bfloat16(), Recipe(), PLAIN, ("a", "b", "c"))
    torch.testing.assert_close(teacher.scores(images), expected.detach(), rtol=0.05, atol=0.05)


def test_a_student_comes_near_to_its_teacher_which_is_left_as_found(tmp_path, data, new_net, recipe):
    teacher = new_net(seed=5)
    fit(teacher, data, recipe.with_(epochs=8, learning_rate=0.02), progress=False)
    teacher.train()
    before, expected = weights(teacher), evaluate(teacher, data.val).probabilities
    asked = recipe.with_(epochs=8, learning_rate=0.02, distillation=1.0, augmentation="none")
    student = new_net()
    result = fit(student, data, asked, progress=False, teacher=teacher, output=tmp_path)
    assert teacher.training
    assert same(weights(teacher), before)
    far = evaluate(new_net(), data.val).probabilities
    assert (result.evaluation.probabilities - expected).abs().mean() < (far - expected).abs().mean() / 2
    digest = state_digest(teacher.state_dict().items())
    with pytest.raises(FoveateError, match=f"teacher is '{digest}' there and '' now"):
        fit(new_net(), data, asked, progress=False, output=tmp_path, resume=True)


def test_a_teacher_by_folder(tmp_path, data, recipe):
    import timm

    from foveate.surgery import create_model

    teacher = create_model("resnet10t", num_classes=3)
    short = recipe.with_(epochs=1, image_size=32)
    fit(teacher, data, short, progress=False, output=tmp_path / "teacher")
    student = timm.create_model("resnet10t", num_classes=3)
    fit(student, data, short.with_(teacher=str(tmp_path / "teacher" / "last")), progress=False)
    with pytest.raises(FoveateError, match="no model 'resnet11t'"):
        fit(student, data, short.with_(teacher="resnet11t"), progress=False)


def test_teachers_that_do_not_fit(data, new_net, recipe):
    with pytest.raises(
        FoveateError,
        match="the teacher does not fit the data: the model has 5 classes without names",
    ):
        fit(new_net(), data, recipe, progress=False, teacher=new_net(classes=5))
    other = new_net()
    other.pretrained_cfg = {"label_names": ("green", "pink", "blue")}
    with pytest.raises(FoveateError, match=r"\(green, pink, blue\) do not hold all of the data's \(red, green, b"):
        fit(new_net(), data, recipe, progress=False, teacher=other)
    with pytest.raises(FoveateError, match="the teacher cannot run"):
        fit(new_net(), data, recipe, progress=False, teacher=nn.Sequential(nn.Flatten(), nn.Linear(7, 3)))


# ---- decoded images


@pytest.mark.parametrize("augmentation", ["standard", "randaugment"])
@pytest.mark.parametrize("workers", [0, 2])
def test_decoded_images_change_nothing_but_the_time(
    tmp_path, data, new_net, recipe, augmentation, workers, monkeypatch
):
    from foveate.data import Split

    recipe, calls, load = recipe.with_(augmentation=augmentation, workers=workers), [], Split.load
    expected = new_net()
    fit(expected, data, recipe.with_(cache=False), progress=False)
    monkeypatch.setattr(Split, "load", lambda self, i, a=None: (calls.append(self.name), load(self, i, a))[1])
    memory, disk = FeatureCache(), FeatureCache(folder=tmp_path)
    again = FeatureCache(folder=tmp_path)
    # Four images are the sample on which the network is tried; the others are decoded once for each cache.
    for cache, decoded in ((memory, 26), (disk, 26), (memory, 0), (disk, 0), (again, 0)):
        model = new_net()
        calls.clear()
        fit(model, data, recipe, progress=False, cache=cache)
        assert same(weights(model), weights(expected))
        assert calls.count("train") == 4 + decoded
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".pixels"]


def test_a_torn_cache_file_is_made_anew(tmp_path, data, new_net, recipe):
    recipe = recipe.with_(augmentation="standard", epochs=1)
    one, other = new_net(), new_net()
    fit(one, data, recipe, progress=False, cache=FeatureCache(folder=tmp_path))
    pixels = next(tmp_path.glob("*.pixels"))
    whole = pixels.read_bytes()
    pixels.write_bytes(whole[:-7])
    (tmp_path / f".{pixels.name}.1.tmp").write_bytes(b"of a process that was killed")
    fit(other, data, recipe, progress=False, cache=FeatureCache(folder=tmp_path))
    assert same(weights(one), weights(other))
    assert pixels.read_bytes() == whole


def test_too_many_images_are_not_held(data, new_net, recipe, caplog):
    with ProgressBar(False) as report:
        assert decode(data.train, None, 26 * 20 * 20 * 3 - 1, report) is None
        held = decode(data.train, None, 26 * 20 * 20 * 3, report)
    assert held is not None
    assert all(np.array_equal(held.image(k), data.train.load(k)) for k in range(26))
    model, expected = new_net(), new_net()
    recipe = recipe.with_(augmentation="standard", epochs=1)
    with caplog.at_level("INFO", "foveate"):
        fit(model, data, recipe, progress=False, cache=FeatureCache(image_limit_bytes=1000))
    assert "the train images are too large for the cache: they are decoded in each epoch" in caplog.text
    fit(expected, data, recipe, progress=False)
    assert same(weights(model), weights(expected))


# ---- what is kept and told


class Notes(GeneralTracker):
    name, requires_logging_directory = "notes", False

    def __init__(self) -> None:
        super().__init__()
        self.config, self.rows, self.finished = None, [], False

    @property
    def tracker(self):
        return self.rows

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **kwargs):
        self.rows.append((step, values))

    def finish(self):
        self.finished = True


def test_trackers(data, new_net, recipe):
    notes = Notes()
    result = fit(new_net(), data, recipe, progress=False, tracker=notes)
    assert notes.config["learning_rate"] == recipe.learning_rate
    assert [step for step, _ in notes.rows] == [0, 1, 2]
    assert notes.rows[2][1]["eval_top1"] == result.history[2]["eval_top1"]
    assert notes.finished
    with pytest.raises(FoveateError, match="no tracker is called 'tensorbord': did you mean 'tensorboard'"):
        fit(new_net(), data, recipe, progress=False, tracker="tensorbord")
    from accelerate.tracking import get_available_trackers

    missing = {"wandb", "clearml"} - {str(getattr(kind, "value", kind)) for kind in get_available_trackers()}
    for name in missing:
        with pytest.raises(FoveateError, match=f"the tracker '{name}' is not installed: pip install {name}"):
            fit(new_net(), data, recipe, progress=False, tracker=name)


def test_the_recipe_is_printed_and_kept(tmp_path, data, new_net, recipe, capfd):
    fit(new_net(), data, recipe, output=tmp_path)
    assert "recipe: epochs=3 learning_rate=0.005 image_size=16 batch_size=8 seed=1" in capfd.readouterr().err
    assert open_recipe(tmp_path / "recipe.yaml") == recipe


def test_evaluation_by_class(tmp_path, data, new_net, recipe):
    result = fit(new_net(), data, recipe, output=tmp_path, progress=False)
    kept, found = json.loads((tmp_path / "evaluation.json").read_text()), result.evaluation
    assert kept == found.to_dict(data.classes)
    confusion = torch.tensor(kept["confusion"])
    assert confusion.sum() == 9
    assert all(
        confusion[i, j] == ((found.labels == i) & (found.predictions == j)).sum() for i in range(3) for j in range(3)
    )
    for at, row in enumerate(kept["classes"]):
        assert row["class"] == data.classes[at]
        assert row["images"] == 3
        assert row["recall"] == pytest.approx(float(confusion[at, at]) / 3)
        predicted = float(confusion[:, at].sum())
        assert row["precision"] == pytest.approx(float(confusion[at, at]) / predicted if predicted else 0)
        both = row["precision"] + row["recall"]
        assert row["f1"] == pytest.approx(2 * row["precision"] * row["recall"] / both if both else 0)
    assert math.isclose(kept["top1"], float(confusion.trace()) / 9)
    assert found.per_class()[1]["class"] == "green"
    assert dataclasses.replace(found, classes=()).per_class()[1]["class"] == "1"


# ---- memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        torch.OutOfMemoryError("CUDA out of memory."),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_out_of_memory_is_advice_and_code_5(data, new_net, recipe, error):
    model = new_net()

    def fails(module, inputs):
        if module.training:
            raise error

    model.register_forward_pre_hook(fails)
    before = copy.deepcopy(weights(model))
    with pytest.raises(OutOfMemory, match="batch_size=8: take a smaller batch_size") as found:
        fit(model, data, recipe, progress=False)
    assert found.value.exit_code == 5
    assert "\n" not in str(found.value)
    assert same(weights(model), before)
    with pytest.raises(RuntimeError, match="^other$"), memory_advice(8):
        raise RuntimeError("other")


def test_evaluation_where_it_is_needed(data, new_net, recipe, tmp_path):
    """Every second epoch and the last; the weights do not depend on it, and a run goes on with another value."""
    recipe = recipe.with_(epochs=3)
    models = [new_net() for _ in range(2)]
    each = fit(models[0], data, recipe, progress=False)
    some = fit(models[1], data, recipe.with_(evaluate_every=2), output=tmp_path, progress=False)
    assert ["eval_top1" in row for row in each.history] == [True, True, True]
    assert ["eval_top1" in row for row in some.history] == [False, True, True]
    assert same(weights(models[0]), weights(models[1]))
    assert some.evaluation.loss == each.evaluation.loss
    lines = (tmp_path / "summary.csv").read_text().splitlines()
    assert [bool(line.split(",")[lines[0].split(",").index("eval_top1")]) for line in lines[1:]] == [False, True, True]
    again = fit(models[1], data, recipe, output=tmp_path, resume=True, progress=False)
    assert again.evaluation.top1 == some.evaluation.top1
