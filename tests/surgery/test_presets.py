"""The networks of the ULSAM paper by name."""

import pytest
import timm
import torch

import foveate as fv
from foveate.surgery import PRESETS

# parameters and MACs on the real network, all parameters counted
EXACT = {
    "mobilenetv2_100_ulsam_13": (3_387_092, 278_119_808),
    "mobilenetv2_100_ulsam_17": (3_185_684, 285_313_792),
    "mobilenetv2_100_ulsam_9_13": (3_333_152, 267_833_728),
    "mobilenetv2_100_ulsam_16_17": (2_866_496, 269_853_312),
    "mobilenetv2_100_ulsam_14_17": (3_067_904, 262_659_328),
    "mobilenetv2_100_ulsam_13_14_16_17": (2_630_936, 224_544_384),
    "mobilenetv2_100_ulsam_after_16": (3_504_872 + 5 * 160 + 3 * 4, 300_774_272 + 15_680),
    "mobilenetv1_100_ulsam_after_11": (4_231_976 + 5 * 512 + 3 * 4, 568_740_352 + 200_704),
    "mobilenetv1_100_ulsam_after_14": (4_231_976 + 5 * 1024 + 3 * 4, 568_740_352 + 100_352),
    # A unit of ShuffleNetV2 has 2 pointwise convolutions of c x c and a depthwise one of 9c, c half of its channels,
    # each with a batch norm, without biases.
    "shufflenet_v2_x1_0_ulsam_13": (
        2_278_604 - (2 * 116**2 + 9 * 116 + 6 * 116) + 5 * 232 + 3 * 4,
        144_907_992 - (2 * 116**2 + 9 * 116) * 196 + 2 * 232 * 196,
    ),
    "shufflenet_v2_x1_0_ulsam_16_17": (
        2_278_604 - 2 * (2 * 232**2 + 9 * 232 + 6 * 232) + 2 * (5 * 464 + 3 * 4),
        144_907_992 - 2 * (2 * 232**2 + 9 * 232) * 49 + 2 * 2 * 464 * 49,
    ),
}
PAPER = {
    "mobilenetv1_100_ulsam_8": ("3.934", "516.92"),
    "mobilenetv1_075_ulsam_12": ("2.450", "295.57"),
    "mobilenetv1_050_ulsam_10": ("1.233", "135.80"),
}


@pytest.mark.slow(
    reason="54 networks; some of them are built and counted in every run",
    guards=(
        "foveate/surgery/",
        "foveate/networks/",
    ),
)
@pytest.mark.parametrize("name", PRESETS)
def test_timm_builds_it(name):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=5)
    network, plan = PRESETS[name]
    assert fv.plan_of(model) == plan
    classifier = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    assert classifier.out_features == 5
    if not network.startswith("torchvision:"):
        assert model.pretrained_cfg["architecture"] == network


@pytest.mark.slow(
    reason="11 real networks; tests/accounting has one of each kind in every run",
    guards=(
        "foveate/surgery/",
        "foveate/accounting/",
        "foveate/attention/",
    ),
)
@pytest.mark.parametrize("name", EXACT)
def test_exact_cost(name):
    with torch.device("meta"):
        cost = fv.cost(timm.create_model(name))
    assert (cost.params, cost.macs) == EXACT[name]


@pytest.mark.parametrize("name", PAPER)
def test_paper_cost(name):
    with torch.device("meta"):
        cost = fv.cost(timm.create_model(name), counting="paper")
    assert (f"{cost.params / 1e6:.3f}", f"{cost.macs / 1e6:.2f}") == PAPER[name]


def test_every_replaced_block_keeps_its_shape_and_size():
    sizes = {14: range(8, 15), 7: range(13, 18)}
    of = {}
    with torch.device("meta"):
        for network in {network for network, _ in PRESETS.values()}:
            of[network] = {site.name: site for site in fv.sites(fv.create_model(network))}
    for name, (network, plan) in PRESETS.items():
        for site in (of[network][site] for placement in plan.placements for site in placement.sites):
            assert site.height in sizes, name


@pytest.mark.parametrize("create", [fv.create_model, timm.create_model], ids=["foveate", "timm"])
@pytest.mark.parametrize("name", ["mobilenetv1_050_ulsam_9", "shufflenet_v2_x0_5_ulsam_12"])
def test_saved_and_loaded(tmp_path, name, create):
    model = create(name, num_classes=3).eval()
    fv.save(model, tmp_path / "m")
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(fv.load(tmp_path / "m")(x), model(x))


def test_importing_foveate_after_timm_is_enough(run_forked):
    code = "import timm, foveate; print(timm.is_model('mobilenetv2_100_ulsam_14_17'), timm.is_model('nin_cifar'))"
    (done,) = run_forked(code)
    assert done.stdout.split() == ["True", "True"], done.stderr
