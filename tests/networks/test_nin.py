"""Network in Network: its numbers, its equations, and what dropout, pools and class maps do."""

import pytest
import timm
import torch
from torch.nn import functional as F

import foveate as fv
from foveate.errors import FoveateError
from foveate.networks.nin import MLPConv

torch.set_num_threads(1)


def nin(**options):
    torch.manual_seed(0)
    return timm.create_model("nin_cifar", **options).eval()


def test_numbers():
    cost = fv.cost(nin())
    assert cost.params == 966_986
    sizes = {32 * 32: (5 * 5 * 3 * 192, 192 * 160, 160 * 96), 16 * 16: (5 * 5 * 96 * 192, 192 * 192, 192 * 192)}
    sizes[8 * 8] = (3 * 3 * 192 * 192, 192 * 192, 192 * 10)
    assert cost.macs == sum(places * sum(weights) for places, weights in sizes.items()) == 222_486_528


def test_a_class_costs_one_row_of_the_last_convolution():
    assert fv.cost(nin(num_classes=100)).params == 966_986 + 90 * (192 + 1)


@pytest.mark.parametrize("second_pool", ["max", "avg"])
def test_equations(second_pool):
    model = nin(second_pool=second_pool).double()
    torch.nn.init.normal_(model.get_classifier().weight, std=0.1)  # as after training: some places are closed
    state = model.state_dict(keep_vars=True)

    def conv(name, x):
        weight = state[f"{name}.weight"]
        return F.relu(F.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2))

    def equations(x):
        x = conv("block1.mlp.3", conv("block1.mlp.1", conv("block1.conv", x)))
        x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=0), 3, 2)  # behind ReLU, 0 never exceeds the maximum
        x = conv("block2.mlp.3", conv("block2.mlp.1", conv("block2.conv", x)))
        if second_pool == "max":
            x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=0), 3, 2)
        else:  # a window at the border has fewer places: 3 x 3, 3 x 2, 2 x 3 or 2 x 2
            windows = F.pad(x, (0, 1, 0, 1)).unfold(2, 3, 2).unfold(3, 3, 2).sum((-2, -1))
            sides = torch.tensor([3.0] * 7 + [2.0], dtype=x.dtype)
            x = windows / (sides[:, None] * sides)
        x = conv("classifier", conv("block3.mlp.1", conv("block3.conv", x)))
        return x.mean((2, 3))

    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    out, expected = model(x), equations(x)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(out)
    wanted = [x, *model.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad((out * weights).sum(), wanted),
        torch.autograd.grad((expected * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_scores_are_the_means_of_the_class_maps():
    model, x = nin(), torch.randn(2, 3, 32, 48)
    torch.nn.init.normal_(model.get_classifier().weight)
    scores, features = model(x), model.forward_features(x)
    state = model.state_dict()
    model.reset_classifier(10, "")
    model.load_state_dict(state)
    maps = model(x)
    assert maps.shape == (2, 10, 8, 12)
    torch.testing.assert_close(maps, model.get_classifier()(features).clamp_min(0))
    assert maps.min() == 0
    torch.testing.assert_close(maps.mean((2, 3)), scores)


@pytest.mark.parametrize("kind", ["max", "avgmax"])
def test_other_global_pools(kind):
    model, x = nin(global_pool=kind), torch.randn(2, 3, 32, 32)
    maps = nin(global_pool="")(x)
    mean, peak = maps.mean((2, 3)), maps.amax((2, 3))
    torch.testing.assert_close(model(x), peak if kind == "max" else (mean + peak) / 2)


def test_dropout_stands_between_the_blocks():
    model = nin()
    assert [block.drop.p for block in (model.block1, model.block2, model.block3)] == [0, 0.5, 0.5]
    seen = []
    model.block3.conv.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    x = torch.randn(4, 3, 32, 32)
    model(x)
    model.train()(x)
    plain, dropped = ((each == 0).float().mean() for each in seen)
    assert dropped > plain + 0.2


@pytest.mark.parametrize("side,halves", [(32, (16, 8)), (33, (16, 8)), (31, (15, 7)), (8, (4, 2)), (5, (2, 1))])
def test_sizes(side, halves):
    widths = [each.shape[-1] for each in nin(features_only=True)(torch.randn(1, 3, side, side))]
    assert widths == [side, *halves]


def test_block():
    block = MLPConv(6, (8, 4), 3, "max", 0.1)
    assert block(torch.randn(2, 6, 16, 12)).shape == (2, 4, 8, 6)
    assert [type(layer).__name__ for layer in block.mlp] == ["ReLU", "Conv2d", "ReLU"]


@pytest.mark.parametrize(
    "options,message",
    [
        ({"second_pool": "average"}, "second_pool='average' does not exist; did you mean|there are: max, avg"),
        ({"global_pool": "catavgmax"}, "no pool is called 'catavgmax'; did you mean 'avgmax'"),
        ({"depth": 3}, "timm cannot build 'nin_cifar': .*unexpected keyword argument 'depth'"),
    ],
)
def test_options_that_do_not_exist(options, message):
    with pytest.raises(FoveateError, match=message) as caught:
        fv.create_model("nin_cifar", **options)
    assert "\n" not in str(caught.value)


def test_reset_classifier_gives_a_convolution():
    model = nin()
    model.reset_classifier(3)
    assert isinstance(model.get_classifier(), torch.nn.Conv2d)
    assert model.get_classifier().weight.shape == (3, 192, 1, 1)
    with pytest.raises(FoveateError, match="no pool is called 'token'; there are: avg"):
        model.reset_classifier(3, "token")
    assert model.num_classes == 3
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)


def test_sites():
    sites = [(site.name, site.channels, site.height, site.kind) for site in fv.sites(nin())]
    assert sites == [("block1", 96, 32, "block"), ("block2", 192, 16, "block"), ("block3", 192, 8, "block")]


def test_plan_saved_and_loaded(tmp_path):
    model, x = nin(num_classes=4, in_chans=1), torch.randn(2, 1, 32, 32)
    fv.insert(model, "ulsam(groups=4) after block1; cbam after block2; attention_pool as pool")
    model.eval()
    cost = fv.cost(model)
    again = fv.load(fv.save(model, tmp_path))
    assert str(fv.plan_of(again)) == str(fv.plan_of(model))
    assert torch.equal(again(x), model(x))
    assert fv.cost(again) == cost
    fv.remove(again)
    assert fv.cost(again) == cost.baseline


def test_no_class_map_is_closed_at_the_start():
    for seed in range(5):
        torch.manual_seed(seed)
        model = timm.create_model("nin_cifar", num_classes=50, global_pool="").eval()
        for _ in range(2):
            open_places = (model(torch.randn(4, 3, 16, 16)) > 0).float().mean((0, 2, 3))
            assert open_places.min() > 0.5
            model.reset_classifier(20)


@pytest.mark.parametrize("seed", range(3))
def test_learns(seed):
    torch.manual_seed(seed)
    model = timm.create_model("nin_cifar", num_classes=2, drop_rate=0.0)
    x = 0.3 * torch.randn(16, 3, 16, 16)
    labels = torch.arange(16) % 2
    x[labels == 1, 0, 4:12, 4:12] += 2  # a red square
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-4)
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(0.693, abs=0.1)
    assert losses[-1] < 0.5 * losses[0]
