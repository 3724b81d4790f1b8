"""The narrower MobileNets: their numbers, and that in all but width they are timm's mobilenetv1_100."""

import pytest
import timm
import torch

import foveate as fv

torch.set_num_threads(1)

WIDTHS = {"mobilenetv1_075": 0.75, "mobilenetv1_050": 0.5}
NUMBERS = {"mobilenetv1_075": (2_585_560, 325_400_448), "mobilenetv1_050": (1_331_592, 149_497_088)}
pytestmark = pytest.mark.parametrize("name", WIDTHS)


def skeleton(name):
    with torch.device("meta"):
        return timm.create_model(name).eval()


def test_numbers(name):
    cost = fv.cost(skeleton(name))
    assert (cost.params, cost.macs) == NUMBERS[name]


def test_same_keys_and_scaled_widths(name):
    ours, theirs = skeleton(name).state_dict(), skeleton("mobilenetv1_100").state_dict()
    assert list(ours) == list(theirs)
    for key, tensor in theirs.items():
        # Channels are scaled; images, classes, kernels and the input of a depthwise convolution are not.
        fixed = {0: ("classifier",), 1: ("conv_stem", "conv_dw")}
        expected = [
            side if axis > 1 or any(part in key for part in fixed[axis]) else int(side * WIDTHS[name])
            for axis, side in enumerate(tensor.shape)
        ]
        assert list(ours[key].shape) == expected, key


def test_same_modules(name):
    # What keys and shapes do not show.
    def said(model):
        keys = ("kernel_size", "stride", "padding", "dilation", "bias", "eps", "momentum", "inplace", "drop_path_rate")
        return [
            (path, type(module), [value for key in keys if not torch.is_tensor(value := getattr(module, key, None))])
            for path, module in model.named_modules()
        ]

    assert said(skeleton(name)) == said(skeleton("mobilenetv1_100"))
    for model in (skeleton(name), skeleton("mobilenetv1_100")):
        assert all(m.groups == m.in_channels for path, m in model.named_modules() if path.endswith("conv_dw"))


def test_cost_with_a_layer_replaced(name):
    model = skeleton(name)
    channels = int(512 * WIDTHS[name])
    layers = [site for site in fv.sites(model) if site.replaceable and site.height == 14 and site.kind == "block"]
    assert [layer.channels for layer in layers] == [channels] * 5
    params, macs = NUMBERS[name]
    fv.insert(model, f"ulsam(groups=4) replacing {layers[0].name}")
    cost = fv.cost(model)
    assert cost.params == params - channels * (9 + channels) - 4 * channels + 5 * channels + 3 * 4
    assert cost.macs == macs - channels * (9 + channels) * 196 + 2 * channels * 196
