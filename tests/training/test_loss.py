from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.heads.ltpa import LearnToPayAttention
from foveate.heads.saol import SpatiallyAttentiveOutput
from foveate.prediction.evaluate import evaluate
from foveate.training.fit import fit
from foveate.training.loop import Run
from foveate.training.loss import Objective
from foveate.training.recipes.recipe import Recipe


class Net(nn.Module):
    """A stem and two stages, whose feature maps a head reads."""

    def __init__(self, head: type[nn.Module] = SpatiallyAttentiveOutput, **options) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
            self.one = nn.Sequential(nn.Conv2d(8, 12, 3, 1, 1), nn.BatchNorm2d(12), nn.ReLU())
            self.two = nn.Sequential(nn.Conv2d(12, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.2))
            self.head = head((12, 16), 16, 3, **options)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(self.stem(x))
        two = self.two(one)
        return self.head([one, two], two.mean((2, 3)))


BOTH = {"width": 8, "distillation": 1.0, "self_supervision": 1.0}


@pytest.fixture
def short(recipe):
    """One epoch of two steps."""
    return recipe.with_(epochs=1, batch_size=13, learning_rate=0.01, momentum=0.0, optimiser="sgd", weight_decay=0.0)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_without_a_loss_of_its_own_it_is_the_cross_entropy(new_net):
    objective = Objective(new_net(), Recipe(label_smoothing=0.1), cached=True)
    scores, labels = torch.randn(4, 3).bfloat16(), torch.tensor([0, 2, 1, 1])
    expected = F.cross_entropy(scores.float(), labels, label_smoothing=0.1)
    assert torch.equal(objective.loss(scores, labels), expected)
    with objective.images():
        assert not objective.model._forward_pre_hooks


@pytest.mark.parametrize("smoothing", [0.1, 0.7, 0.9, 1.0])
def test_binary_cross_entropy_looks_for_the_class_however_smooth(new_net, smoothing):
    objective = Objective(new_net(), Recipe(loss="bce", label_smoothing=smoothing))
    scores, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    expected = F.binary_cross_entropy_with_logits(scores, F.one_hot(labels, 3).float())
    torch.testing.assert_close(objective.loss(scores, labels), expected)


@pytest.mark.parametrize("options", [{"distillation": 1.0}, {"self_supervision": 1.0}, BOTH])
def test_fit_trains_by_the_losses_of_the_head(data, short, options):
    model, plain = Net(**options), Net()
    before = state(model)
    seen: list[Tensor] = []
    model.stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]) if module.training else None)
    result, without = fit(model, data, short, progress=False), fit(plain, data, short, progress=False)
    assert result.history[0]["train_loss"] > without.history[0]["train_loss"]
    layers = {"distillation": "head.gap.weight", "self_supervision": "head.box.weight"}
    trained = [layers[option] for option in options if option in layers]
    assert all(not torch.equal(model.state_dict()[key], before[key]) for key in trained)
    times = 2 if "self_supervision" in options else 1
    assert [len(x) for x in seen] == [13 * times] * 2
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)
    assert abs(seen[0].mean()) < 1.5  # normalised
    assert seen[0].min() < 0
    # Nothing of it is left, and evaluation knows nothing of it.
    assert model.head.kept is model.head.pasted is None
    assert not model._forward_pre_hooks
    again = evaluate(model, data.val)
    torch.testing.assert_close(again.probabilities, result.evaluation.probabilities)
    assert again.probabilities.shape == (9, 3)


def test_two_runs_end_with_the_same_bits(data, short):
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)  # of the caller: without a say
        model = Net(**BOTH)
        fit(model, data, short.with_(optimiser="adamw", epochs=2), progress=False)
        ends.append(state(model))
    assert same(*ends)
    other = Net(**BOTH)
    fit(other, data, short.with_(optimiser="adamw", epochs=2, seed=5), progress=False)
    assert not same(state(other), ends[0])


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("at", [2, 4])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, monkeypatch, data, short, at):
    recipe = short.with_(optimiser="adamw", epochs=3, ema_decay=0.5, checkpoint_every=1)
    whole, model, resumed = Net(**BOTH), Net(**BOTH), Net(**BOTH)
    fit(whole, data, recipe, progress=False)
    true_step, steps = Run.step, []

    def step(self, *args):
        steps.append(1)
        if len(steps) == at:
            raise Interrupted
        return true_step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", step)
        with pytest.raises(Interrupted):
            fit(model, data, recipe, output=tmp_path, progress=False)
    fit(resumed, data, recipe, output=tmp_path, resume=True, progress=False)
    assert same(state(resumed), state(whole))


def test_mixed_precision(data, short):
    result = fit(Net(**BOTH), data, short.with_(amp="bf16"), progress=False)
    assert result.history[0]["train_loss"] > 0


def test_learns(data, short):
    recipe = short.with_(optimiser="adamw", epochs=12, learning_rate=0.02, augmentation="none")
    assert fit(Net(**BOTH), data, recipe, progress=False).evaluation.top1 == 1.0


def test_a_head_without_a_loss_of_its_own_is_trained_as_before(data, short):
    assert fit(Net(LearnToPayAttention), data, short, progress=False).history[0]["train_loss"] > 0


def test_cached_features_are_no_images(data, short):
    recipe, model = short.with_(freeze="stem"), Net(**BOTH)
    before = state(model)
    with pytest.raises(FoveateError, match="'head' changes the images .* leave freeze out, take cache=False, or set"):
        fit(model, data, recipe, progress=False)
    assert same(state(model), before)
    fit(model, data, recipe.with_(cache=False), progress=False)
    fit(Net(distillation=1.0), data, recipe, progress=False)
    frozen = [key for key in before if key.startswith("stem") and "num_batches" not in key]
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in frozen)


def test_after_an_error_in_a_step_nothing_is_left(data, short):
    model = Net(**BOTH)

    def fails(module, inputs, output):
        if module.training:
            raise ArithmeticError("as planned")

    handle = model.head.register_forward_hook(fails)
    with pytest.raises(ArithmeticError, match="as planned"):
        fit(model, data, short, progress=False)
    handle.remove()
    assert model.head.kept is model.head.pasted is None
    assert not model._forward_pre_hooks


def test_two_losses_are_one_too_many():
    model = nn.ModuleDict({"a": Net(**BOTH), "b": Net(**BOTH)})
    with pytest.raises(FoveateError, match=r"'a.head' and 'b.head' each have a training loss of their own"):
        Objective(model)


class Doubles(nn.Module):
    """A model that says itself what it minimises."""

    changes_images = True

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 3), []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(("forward", len(x)))
        return self.layer(x)

    def training_images(self, images: Tensor) -> Tensor:
        self.calls.append(("images", len(images)))
        return torch.cat([images, -images])

    def training_loss(self, scores: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        self.calls.append(("loss", len(scores), labels.tolist(), label_smoothing))
        return scores.square().mean()


def test_the_protocol():
    model = Doubles()
    objective = Objective(model, Recipe(label_smoothing=0.2))
    images, labels = torch.randn(2, 4), torch.tensor([1, 0])
    with objective.images():
        scores = model(images)
    assert torch.equal(scores, model.layer(torch.cat([images, -images])))
    assert torch.equal(objective.loss(scores, labels), scores.square().mean())
    assert model.calls == [("images", 2), ("forward", 4), ("loss", 4, [1, 0], 0.2)]
    assert len(model(images)) == 2
    with pytest.raises(RuntimeError), objective.images():
        model(torch.randn(2, 5))
    assert not model._forward_pre_hooks
    with pytest.raises(FoveateError, match="'the model' changes the images"):
        Objective(model, cached=True)
