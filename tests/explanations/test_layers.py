"""What all methods with a layer share: any layer, any layout, and captum's answer."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from foveate.explanations.explain import explain
from foveate.explanations.layers import find_layer

GRADIENT_METHODS = ["gradcam", "gradcam++", "hirescam"]


class ChannelsLast(nn.Module):
    """The network of ``conftest`` with feature maps (B, H, W, C)."""

    def __init__(self, model):
        super().__init__()
        self.body = _Last(model.stem, model.body)
        self.head = model.head

    def forward(self, x):
        return self.head(self.body(x).mean((1, 2)))


class _Last(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, x):
        return self.parts(x).permute(0, 2, 3, 1)


@pytest.mark.parametrize("method", ["cam", *GRADIENT_METHODS])
def test_channels_last_gives_the_same_maps(model, method):
    images = torch.randn(3, 3, 32, 56)
    expected = explain(model, images, method, target=[0, 1, 2]).maps[0].values
    last = ChannelsLast(model)
    assert find_layer(last, images).nhwc
    found = explain(last, images, method, target=[0, 1, 2]).maps[0]
    assert found.module == "body"
    torch.testing.assert_close(found.values, expected)


@pytest.mark.parametrize("method", GRADIENT_METHODS)
@pytest.mark.parametrize("name", ["test_convnext", "swin_tiny_patch4_window7_224"])
def test_networks_of_timm_that_keep_channels_last(name, method):
    torch.manual_seed(0)
    options = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)} if "swin" in name else {}
    model = timm.create_model(name, num_classes=5, **options)
    size = 224 if "swin" in name else 96
    found = explain(model, torch.randn(1, 3, size, size), method, target=2)
    height, width = found.maps[0].values.shape[1:]
    assert height == width
    assert 1 < height <= 14
    layer = find_layer(model, torch.zeros(1, 3, size, size))
    assert layer.name == found.maps[0].module
    assert layer.nhwc == ("swin" in name)
    # Any layer of such a network: with Swin's stages the places come before the channels.
    stage = "layers.1" if "swin" in name else "stages.1"
    inner = explain(model, torch.randn(1, 3, size, size), method, layer=stage, target=2).maps[0].values
    assert inner.shape[1] == inner.shape[2] == size // 8


def test_hirescam_adds_up_to_the_logit_where_one_linear_layer_follows(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 10, 5))
    with torch.no_grad():
        logits = model(images)
    found = explain(model, images, "hirescam", layer="1", target=3).maps[0].values
    torch.testing.assert_close(found.sum((1, 2)) + model[3].bias[3].detach(), logits[:, 3])
    assert found.min() < 0
    averaged = explain(model, images, "gradcam", layer="1", target=3).maps[0].values
    assert not torch.allclose(F.relu(found) / found.max(), averaged / averaged.max(), atol=0.05)


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv2_035"])
@pytest.mark.parametrize("inner", [False, True])
def test_captum_gives_the_same_grad_cam(name, inner):
    captum = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=6).eval()
    nn.init.normal_(model.get_classifier().weight)
    images, target = torch.randn(2, 3, 96, 64), [4, 1]
    layer = {"resnet10t": "layer2", "mobilenetv2_035": "blocks.3"}[name] if inner else find_layer(model, images).name
    theirs = captum.LayerGradCam(model, model.get_submodule(layer)).attribute(
        images, torch.tensor(target), relu_attributions=True
    )
    ours = explain(model, images, "gradcam", target=target, layer=layer).maps[0].values
    assert ours.max() > 0
    torch.testing.assert_close(ours, theirs[:, 0].detach(), rtol=1e-4, atol=1e-6 * float(ours.max()))


def test_where_the_shape_does_not_tell_the_network_does(images):
    """8 channels on 8 x 8 places: either pair of sides could be the places."""
    images = images[:, :, :, :32]
    for model in (nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU()), _Last(nn.Conv2d(3, 8, 4, 4), nn.ReLU())):
        network = nn.Sequential(model, nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(6 * 64, 4))
        torch.manual_seed(0)
        with torch.no_grad():
            first = network[0](images)
        found = explain(network, images, "hirescam", layer="0", target=1).maps[0].values
        leaf = first.requires_grad_()
        (slope,) = torch.autograd.grad(network[1:](leaf)[:, 1].sum(), leaf)
        # Most of the network's maps are channels first.
        torch.testing.assert_close(found, (slope * leaf).sum(1).detach())


def test_only_what_follows_the_layer_is_recorded(model, images):
    recorded = {}
    for name in ("stem", "pool"):
        model.get_submodule(name).register_forward_hook(
            lambda _, args, out, name=name: recorded.update({name: out.requires_grad})
        )
    explain(model, images, "gradcam", layer="body")
    assert recorded == {"stem": False, "pool": True}
    assert torch.is_grad_enabled()
