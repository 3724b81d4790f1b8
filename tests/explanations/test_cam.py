import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.explanations.explain import explain
from foveate.networks import create_model


@pytest.mark.parametrize("target", [None, 3, [4, 0, 2]])
def test_its_mean_plus_the_bias_is_the_logit(model, images, target):
    found = explain(model, images, "cam", target=target)
    with torch.no_grad():
        logits = model.eval()(images)
    chosen = found.targets
    expected = logits.gather(1, chosen[:, None])[:, 0]
    torch.testing.assert_close(found.maps[0].values.mean((1, 2)) + model.head.bias[chosen].detach(), expected)
    if target is not None:
        assert chosen.tolist() == ([target] * 3 if isinstance(target, int) else target)


def test_grad_cam_before_its_relu_times_the_places_is_cam(model, images):
    cam = explain(model, images, "cam", target=1).maps[0].values
    grad = explain(model, images, "gradcam", target=1).maps[0].values
    high = explain(model, images, "hirescam", target=1).maps[0].values
    places = cam.shape[1] * cam.shape[2]
    assert cam.min() < 0 < cam.max()
    torch.testing.assert_close(places * high, cam)  # Grad-CAM before its ReLU, on such a network
    torch.testing.assert_close(places * grad, F.relu(cam))


@pytest.mark.parametrize(
    "name", ["resnet10t", "mobilenetv2_035", "tf_efficientnet_lite0", "regnetx_002", "shufflenet_v2_x0_5"]
)
def test_networks_with_pooling_and_one_linear_layer(name):
    torch.manual_seed(0)
    if name.startswith("shuffle"):
        model = torchvision.models.get_model(name, num_classes=6)
        head = model.fc
    else:
        model = timm.create_model(name, num_classes=6)
        head = model.get_classifier()
    nn.init.normal_(head.weight)
    images = torch.randn(2, 3, 64, 96)
    found = explain(model, images, "cam", target=[5, 0])
    with torch.no_grad():
        logits = model.eval()(images)
    expected = logits[[0, 1], [5, 0]] - head.bias[[5, 0]].detach()
    torch.testing.assert_close(found.maps[0].values.mean((1, 2)), expected, rtol=1e-3, atol=1e-4)
    assert found.maps[0].values.std() > 0
    grad = explain(model, images, "gradcam", target=[5, 0]).maps[0].values
    places = grad.shape[1] * grad.shape[2]
    torch.testing.assert_close(places * grad, F.relu(found.maps[0].values), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["nin_cifar", "torchvision:squeezenet1_1"])
def test_networks_that_average_the_maps_of_the_classes(name):
    torch.manual_seed(0)
    model = create_model(name)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = model.eval()(images)
    found = explain(model, images, "cam", target=4)
    torch.testing.assert_close(found.maps[0].values.mean((1, 2)), logits[:, 4], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto", "test_vit"])
def test_other_networks_are_refused_with_what_to_use(name):
    model = timm.create_model(name, num_classes=4)
    size = model.pretrained_cfg["input_size"][-1] if "vit" in name else 64
    with pytest.raises(FoveateError, match=r"use method='gradcam'|no layer of this model"):
        explain(model, torch.randn(1, 3, size, size), "cam")


def test_max_pooling_is_refused(model, images):
    model.pool = nn.AdaptiveMaxPool2d(1)
    with pytest.raises(FoveateError, match="cam needs global average pooling.*Small has something else"):
        explain(model, images, "cam")


def test_a_layer_cannot_be_chosen(model, images):
    with pytest.raises(FoveateError, match="layer= does not change CAM"):
        explain(model, images, "cam", layer="body")


def test_the_numbers_in_half_precision(model, images):
    found = explain(model.to(torch.bfloat16), images, "cam", target=0)
    exact = explain(model.float(), images, "cam", target=0)
    assert found.maps[0].values.dtype == torch.float32
    assert (found.maps[0].values - exact.maps[0].values).abs().max() < 0.1 * exact.maps[0].values.abs().max()


@pytest.mark.parametrize("end", ["linear", "maps of the classes"])
def test_a_channel_of_large_values_excuses_no_other(model, images, end):
    # The largest is pooled, not the mean; in channel 0, where all values are alike, both are the same.
    model.pool = nn.AdaptiveMaxPool2d(1)
    with torch.no_grad():
        model.body[1].weight[0] = 0
        model.body[1].bias[0] = 1e6
    if end != "linear":
        model.head = nn.Identity()
    with pytest.raises(FoveateError, match="cam needs global average pooling"):
        explain(model, images, "cam")
    model.pool = nn.AdaptiveAvgPool2d(1)
    assert explain(model, images, "cam", target=1).maps[0].values.isfinite().all()


class Hidden(nn.Module):
    """A hidden layer with a classifier's name between the pooled features and the layer of the class scores."""

    def __init__(self, end):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(12, 5)
        self.end = end

    def forward(self, x):
        return self.end(self.fc(self.body(x).mean((2, 3))))


@pytest.mark.parametrize("end", ["linear", "softmax", "scale"])
def test_a_hidden_layer_is_not_taken_for_the_classifier(images, end):
    torch.manual_seed(0)
    ends = {"linear": nn.Sequential(nn.ReLU(), nn.Linear(5, 9)), "softmax": nn.Softmax(1), "scale": nn.BatchNorm1d(5)}
    model = Hidden(ends[end]).eval()
    if end == "scale":
        nn.init.constant_(ends[end].weight, 2.0)
    with pytest.raises(FoveateError, match="cam needs global average pooling and one linear layer.*Hidden has"):
        explain(model, images, "cam", target=3)
