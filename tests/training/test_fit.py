from __future__ import annotations

import copy
import itertools
import sys

import pytest
import timm
import torch
from torch import nn

from foveate.data import ImageData, Split
from foveate.errors import FoveateError
from foveate.kernels import waiting
from foveate.kernels.waiting import SharedCores
from foveate.prediction.evaluate import evaluate
from foveate.surgery.insert import insert, plan_of
from foveate.surgery.saving.checkpoint import load
from foveate.training.fit import Fit, fit
from foveate.training.metrics import Diverged, measure
from foveate.training.recipes.recipe import Recipe
from foveate.training.restore import own_batchnorms
from foveate.training.tasks.classification import Classification


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_learns(data, new_net, recipe):
    model = new_net()
    result = fit(model, data, recipe.with_(epochs=12, learning_rate=0.02, augmentation="none"), progress=False)
    assert result.evaluation.top1 == 1.0
    assert result.history[-1]["train_loss"] < 0.3 < result.history[0]["train_loss"]
    assert result.seconds > 0
    assert result.images_per_second > 0
    assert evaluate(model, data.val).probabilities.allclose(result.evaluation.probabilities, atol=1e-5)


@pytest.mark.parametrize("augmentation", ["none", "flip", "standard", "randaugment"])
@pytest.mark.parametrize("extra", [{}, {"ema_decay": 0.9, "gradient_clip": 0.5, "label_smoothing": 0.1}])
def test_same_seed_same_bits_for_any_number_of_workers_and_any_global_state(data, new_net, recipe, augmentation, extra):
    found = []
    recipe = recipe.with_(augmentation=augmentation, epochs=2, **extra)
    for workers in (0, 2):
        torch.manual_seed(workers)
        model = new_net(classes=7)  # gets a new classifier
        fit(model, data, recipe.with_(workers=workers), progress=False)
        found.append(weights(model))
    assert same(*found)
    other = new_net(classes=7)
    fit(other, data, recipe.with_(seed=2), progress=False)
    assert not same(weights(other), found[0])


def test_no_bit_depends_on_how_threads_wait(data, new_net, recipe, monkeypatch):
    found, decided = [], []
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    seconds = itertools.count(step=100.0)
    monkeypatch.setattr(waiting.time, "perf_counter", lambda: next(seconds))
    look = SharedCores.look
    monkeypatch.setattr(SharedCores, "look", lambda cores, kind: (look(cores, kind), decided.append(cores.sleeping)))
    for busy in (0, 1):  # the second time every look finds that the other way is to be tried, or was no better
        monkeypatch.setattr(waiting, "_share", lambda before, after, busy=busy: busy)
        model = new_net()
        fit(model, data, recipe.with_(epochs=2), progress=False)
        found.append(weights(model))
        assert set(decided) == ({False, True} if busy else {False})
        decided.clear()
    torch.set_num_threads(threads)
    assert same(*found)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone counts a thread's wait for a core")
@pytest.mark.parametrize("compiled", [False, True])
def test_threads_are_fewer_beside_another_program_where_the_recipe_says_so(
    data, new_net, recipe, monkeypatch, compiled
):
    threads, used = torch.get_num_threads(), set()
    torch.set_num_threads(2)
    seconds = itertools.count(step=100.0)
    monkeypatch.setattr(waiting.time, "perf_counter", lambda: next(seconds))
    monkeypatch.setattr(waiting, "_share", lambda before, after: 0.4)
    look = SharedCores.look
    monkeypatch.setattr(SharedCores, "look", lambda cores, kind: (look(cores, kind), used.add(torch.get_num_threads())))
    try:
        for kind in ("all", "auto"):
            fit(
                new_net(),
                data,
                recipe.with_(epochs=2, threads=kind, compile="eager" if compiled else ""),
                progress=False,
            )
            assert used == ({1, 2} if kind == "auto" and not compiled else {2})
            assert torch.get_num_threads() == 2
            used.clear()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("amp", ["no", "bf16"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_everything_but_the_weights_is_left_as_found(data, new_net, recipe, channels_last, amp):
    model = new_net()
    model[1].eval()
    model[0].requires_grad_(False)
    for parameter in model[2].parameters():
        parameter.grad = torch.ones_like(parameter)
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    modes = [module.training for module in model.modules()]
    parameters = list(model.parameters())
    required = [parameter.requires_grad for parameter in parameters]
    gradients = [parameter.grad for parameter in parameters]
    momenta = [norm.momentum for norm in own_batchnorms(model)]
    first = weights(model[0])
    state = torch.get_rng_state()
    fit(model, data, recipe.with_(channels_last=channels_last, bn_momentum=0.5, amp=amp), progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert [parameter.requires_grad for parameter in parameters] == required
    assert all(p.grad is g for p, g in zip(parameters, gradients, strict=True))
    assert all((p.grad == 1).all() for p in model[2].parameters())
    assert [norm.momentum for norm in own_batchnorms(model)] == momenta
    assert all(parameter.is_contiguous() for parameter in parameters)
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert torch.equal(model[0][0].weight, first["0.weight"])  # it required no gradient
    assert calls
    handle.remove()


class Fails(nn.Module):
    """Fails in a training step."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.steps = at, 0

    def forward(self, x):
        self.steps += self.training
        if self.steps == self.at:
            raise ArithmeticError("as planned")
        return x


def test_after_an_error_the_model_is_as_before(data, new_net, recipe):
    model = new_net(classes=5)
    model[5] = Fails(at=6)
    model.num_classes = 5
    model.pretrained_cfg = {"mean": (0.1, 0.2, 0.3)}
    model.train()
    before, head, config = weights(model), model[6], model.pretrained_cfg
    gradients = [parameter.grad for parameter in model.parameters()]
    state = torch.get_rng_state()
    with pytest.raises(ArithmeticError, match="as planned"):
        fit(model, data, recipe.with_(ema_decay=0.5, bn_momentum=0.3, freeze="0"), progress=False)
    assert model[5].steps == 0
    assert same(weights(model), before)
    assert model[6] is head
    assert model.num_classes == 5
    assert model.pretrained_cfg is config
    assert [parameter.grad for parameter in model.parameters()] == gradients
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert {norm.momentum for norm in own_batchnorms(model)} == {0.1}
    assert torch.equal(torch.get_rng_state(), state)


def test_an_interruption_keeps_what_was_learned(data, new_net, recipe):
    class Stops(Fails):
        def forward(self, x):
            self.steps += self.training
            if self.steps == self.at:
                raise KeyboardInterrupt
            return x

    model = new_net()
    model[5] = Stops(at=6)
    model.eval()
    before = weights(model)
    with pytest.raises(KeyboardInterrupt):
        fit(model, data, recipe, progress=False)
    assert not same(weights(model), before)
    assert not model.training


def test_a_new_classifier_depends_on_the_seed_alone(data, new_net, recipe):
    recipe = recipe.with_(epochs=0)
    heads = []
    for seed, global_seed in ((1, 1), (1, 2), (2, 1)):
        torch.manual_seed(global_seed)
        model = new_net(classes=10)
        fit(model, data, recipe.with_(seed=seed), progress=False)
        assert model[-1].out_features == 3
        heads.append(model[-1].weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_no_epochs_only_evaluates(data, new_net, recipe):
    model = new_net()
    before = weights(model)
    result = fit(model, data, recipe.with_(epochs=0), progress=False)
    assert same(weights(model), before)
    assert result.history == ()
    assert result.images_per_second == 0
    assert len(result.evaluation.predictions) == 9


def test_it_says_when_guessing_is_as_good(data, new_net, recipe, caplog):
    net = new_net()
    nn.init.zeros_(net[-1].weight)
    nn.init.zeros_(net[-1].bias)  # all scores are equal: the first class is always the answer, which a third are
    with caplog.at_level("WARNING", "foveate"):
        (note,) = fit(net, data, recipe.with_(epochs=0, classifier="keep"), progress=False).notes
    assert [record.getMessage() for record in caplog.records] == [note]
    assert note.startswith("top-1 is 33.3%; answering 'red' for every image gives 33.3%:")
    caplog.clear()
    labels, rights = torch.tensor([0, 0, 1]), torch.tensor([[0.0, 1], [1, 0], [0, 1]])
    assert Classification().notes(measure(rights, labels)) != ()  # two of three, as many as the larger class has
    assert Classification().notes(measure(torch.eye(2)[labels], labels)) == ()
    assert caplog.records == []


def test_timm_model_with_attention(tmp_path, data, recipe):
    model = timm.create_model("resnet10t", num_classes=3)
    insert(model, "ulsam(groups=4) after layer3.0", input_size=32)
    norms = {id(norm) for norm in own_batchnorms(model)}
    inserted = [m for n, m in model.named_modules() if "foveate" in n and isinstance(m, nn.BatchNorm2d)]
    assert inserted
    assert not any(id(norm) in norms for norm in inserted)
    before = weights(model)
    recipe = recipe.with_(image_size=32, freeze="layer2", ema_decay=0.5, bn_momentum=0.2)
    result = fit(model, data, recipe, output=tmp_path / "run", progress=False)
    after = weights(model)
    for key, value in after.items():
        # A bias in front of a BatchNorm has a gradient of 0, exactly or up to rounding.
        if "num_batches" not in key and not key.endswith(("conv_dws.bias", "conv_point.bias")):
            frozen = key.startswith(("conv1", "bn1", "layer1", "layer2"))
            assert torch.equal(value, before[key]) == frozen, key
    assert model.pretrained_cfg["label_names"] == data.classes
    assert model.pretrained_cfg["input_size"] == (3, 32, 32)
    loaded = load(tmp_path / "run" / "last")
    assert plan_of(loaded) == plan_of(model)
    assert evaluate(loaded, data.val).probabilities.allclose(result.evaluation.probabilities, atol=1e-5)


def test_grey_network(data, recipe):
    model = timm.create_model("resnet10t", num_classes=3, in_chans=1)
    result = fit(model, data, recipe.with_(epochs=1, image_size=32), progress=False)
    assert len(model.pretrained_cfg["mean"]) == 1
    assert evaluate(model, data.val).probabilities.allclose(result.evaluation.probabilities, atol=1e-5)


def test_moving_average_is_what_is_kept(data, new_net, recipe):
    plain, averaged, slow = new_net(), new_net(), new_net()
    start = weights(slow)
    fit(plain, data, recipe, progress=False)
    fit(averaged, data, recipe.with_(ema_decay=0.0), progress=False)
    assert same(weights(plain), weights(averaged))
    fit(slow, data, recipe.with_(ema_decay=1.0), progress=False)
    assert all(torch.equal(v, start[k]) for k, v in weights(slow).items() if "num_batches" not in k)


def test_head_learning_rate_and_small_start(data, new_net, recipe):
    model = new_net()
    recipe = recipe.with_(epochs=1, head_init_scale=0.0, head_learning_rate_scale=2.0, learning_rate=0.0)
    fit(model, data, recipe, progress=False)
    assert not model[-1].weight.any()


def test_one_image_over_is_left_out_and_a_batch_of_one_is_named(new_data, recipe):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
    result = fit(model, new_data(17), recipe.with_(epochs=1), progress=False)
    assert len(result.history) == 1
    with pytest.raises(FoveateError, match="batch_size=2 or more"):
        fit(model, new_data(17), recipe.with_(batch_size=1), progress=False)


def test_speed_is_counted_and_progress_is_shown(data, new_net, recipe, capfd):
    fit(new_net(), data, recipe.with_(freeze="1"), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 3
    assert "epoch 3/3" in lines[2]
    assert "images/s" in lines[2]
    fit(new_net(), data, recipe, progress=False)
    assert capfd.readouterr() == ("", "")


def broken(data: ImageData) -> ImageData:
    train = data.train
    sources = (*train.sources[:20], train.sources[20][:70], *train.sources[21:])
    return ImageData(data.name, data.classes, Split("train", sources, train.labels, train.names), data.val)


@pytest.mark.parametrize("recipe_change", [{}, {"augmentation": "standard", "workers": 1}, {"freeze": "1"}])
def test_a_bad_image_is_named(data, new_net, recipe, recipe_change):
    model = new_net(classes=5)
    before = weights(model)
    with pytest.raises(FoveateError) as error:
        fit(model, broken(data), recipe.with_(**recipe_change), progress=False)
    assert "train/20.png" in str(error.value)
    assert "\n" not in str(error.value)
    assert same(weights(model), before)


@pytest.mark.parametrize("at", [0, 6])
def test_divergence_keeps_the_last_good_checkpoint(tmp_path, data, new_net, recipe, at):
    class Breaks(Fails):
        def forward(self, x):
            self.steps += self.training
            return x * float("nan") if self.steps > at and self.training else x

    model = new_net()
    model[5] = Breaks(at)
    before = weights(model)
    with pytest.raises(Diverged) as error:
        fit(model, data, recipe, output=tmp_path, progress=False)
    assert error.value.exit_code == 3
    assert f"the loss is nan in epoch {1 + at // 4}, step {1 + at % 4}" in str(error.value)
    assert same(weights(model), before)
    assert (tmp_path / "training.safetensors").exists() == (at > 4)
    if at > 4:
        state = load(tmp_path / "last", new_net()).state_dict()
        assert all(value.isfinite().all() for value in state.values())


def test_a_huge_learning_rate_diverges(tmp_path, data, new_net, recipe):
    with pytest.raises(Diverged):
        fit(new_net(), data, recipe.with_(learning_rate=1e30, optimiser="sgd"), output=tmp_path, progress=False)
    assert not (tmp_path / "training.safetensors").exists()


@pytest.mark.parametrize(
    ("make", "change", "words"),
    [
        (lambda net: net(), {"optimiser": "adamv"}, "no optimiser is called 'adamv'"),
        (lambda net: net(), {"freeze": "7"}, "no such module"),
        (lambda net: net().bfloat16(), {}, "the model is in bfloat16, and fit trains weights in float32"),
        (lambda net: net(), {"amp": "fp16"}, "amp='fp16' is not possible here"),
        (lambda net: nn.Sequential(nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(2, 3)), {}, "takes 4 channels"),
        (lambda net: nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(9, 3)), {}, "cannot run on an image"),
        (lambda net: nn.Sequential(nn.Conv2d(3, 2, 1)), {}, "not one score per class"),
        (lambda net: nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), {}, "no classifier"),
        (lambda net: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), {}, "nothing to train"),
    ],
)
def test_errors_come_before_anything_is_changed(tmp_path, data, new_net, recipe, make, change, words):
    model = make(new_net)
    before, attributes = weights(model), set(vars(model))
    with pytest.raises(FoveateError) as error:
        fit(model, data, recipe.with_(**change), output=tmp_path / "run", progress=False)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert same(weights(model), before)
    assert set(vars(model)) == attributes
    assert not list((tmp_path / "run").glob("*")) if (tmp_path / "run").exists() else True


@pytest.mark.parametrize(("train", "val", "words"), [(1, 3, "1 train images"), (3, 0, "0 val images")])
def test_too_few_images(new_data, new_net, recipe, train, val, words):
    with pytest.raises(FoveateError, match=words):
        fit(new_net(), new_data(train, val), recipe, progress=False)


def test_a_folder_of_images_is_opened(tmp_path, data, new_net, recipe):
    for split in (data.train, data.val):
        for source, label, name in zip(split.sources, split.labels, split.names, strict=True):
            path = tmp_path / split.name / data.classes[label] / name.replace("/", "_")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source)
    result = fit(new_net(), tmp_path, recipe, progress=False)
    assert isinstance(result, Fit)
    assert result.evaluation.probabilities.shape == (9, 3)
    assert result.recipe is recipe


def test_accelerate_is_left_as_found(data, new_net, recipe):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState, is_initialized

    fit(new_net(), data, recipe.with_(epochs=0, amp="bf16"), progress=False)
    assert not is_initialized()
    assert not PartialState._shared_state
    try:
        mine = Accelerator(mixed_precision="no")
        with pytest.raises(FoveateError, match="amp='bf16' is not possible here"):
            fit(new_net(), data, recipe.with_(epochs=0, amp="bf16"), progress=False)
        fit(new_net(), data, recipe.with_(epochs=0), progress=False)
        assert is_initialized()
        assert mine.mixed_precision == "no"
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_several_processes_without_an_address_are_refused(monkeypatch, data, new_net, recipe):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(FoveateError, match="2 processes need RANK to find each other: start them with torchrun"):
        fit(new_net(), data, recipe, progress=False)


def test_defaults_work(data):
    model = timm.create_model("resnet10t", num_classes=10)
    before = copy.deepcopy(model)
    fit(model, data, Recipe(epochs=1, image_size=32), progress=False)
    assert not same(weights(model), weights(before))
