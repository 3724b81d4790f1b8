"""Networks whose feature maps have the channels last, and sites by what they are."""

import pytest
import timm
import torch
from torch import nn

import foveate as fv
from foveate.errors import FoveateError
from foveate.surgery.trace import probe


class LastBlock(nn.Module):
    """A block of a network whose feature maps are (B, H, W, C)."""

    def __init__(self, channels, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1)

    def forward(self, x):
        return self.conv2(torch.relu(self.conv1(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)


class LastNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(
            nn.Sequential(LastBlock(3, 16, 2), LastBlock(16, 16, 1)),  # at 32 px a map of 16x16x16
            nn.Sequential(LastBlock(16, 32, 2), LastBlock(32, 32, 1)),
        )
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        return self.fc(self.stages(x.permute(0, 2, 3, 1)).mean((1, 2)))


@pytest.fixture
def last():
    torch.manual_seed(0)
    return LastNet().eval()


@pytest.fixture
def image():
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [32, (32, 48), (40, 24)])
def test_channels_are_found_when_they_come_last(last, size):
    found = {site.name: (site.channels, site.stride, site.replaceable) for site in fv.sites(last, size)}
    assert found["stages.0.1"] == (16, 2, True)
    assert found["stages.1.0"] == (32, 4, False)
    height, width = (size, size) if isinstance(size, int) else size
    assert all((s.height, s.width) == (height // s.stride, width // s.stride) for s in fv.sites(last, size))


class Block(nn.Module):
    """A residual block whose stride differs by axis."""

    def __init__(self, channels, out, stride):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, stride, 1)
        self.norm = nn.BatchNorm2d(out)
        self.beside = nn.Conv2d(channels, out, 1, stride)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.norm(self.conv(x)) + self.beside(x))


class Sound(nn.Module):
    """A network for spectrograms; of a square one it has as many channels as rows."""

    def __init__(self, *, last=False):
        super().__init__()
        self.a, self.b = Block(1, 32, (2, 1)), Block(32, 48, (2, 1))
        if last:
            self.a, self.b = Last(self.a), Last(self.b)
        self.last, self.fc = last, nn.Linear(48, 5)

    def forward(self, x):
        x = self.b(self.a(x.permute(0, 2, 3, 1) if self.last else x))
        return self.fc(x.mean((1, 2) if self.last else (2, 3)))


class Last(nn.Module):
    """A block that takes and gives (B, H, W, C)."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_strides_that_differ_by_axis(last):
    torch.manual_seed(0)
    model = Sound(last=last).eval()
    traces, _ = probe(model, 64)
    inner = ".block" if last else ""
    names = ("a", f"a{inner}.act", f"a{inner}.conv", f"a{inner}.norm")
    assert {traces[name].map_shape for name in names} == {(1, 32, 32, 64)}
    assert traces["b"].map_shape == (1, 48, 16, 64)
    images = torch.randn(2, 1, 64, 64)
    for name, shape in {"a": (32, 64), "b": (16, 64), f"a{inner}.act": (32, 64), f"a{inner}.norm": (32, 64)}.items():
        assert fv.explain(model, images, "gradcam", layer=name, target=1).maps[0].values.shape[1:] == shape
    fv.insert(model, "se after a", input_size=64)
    assert fv.attentions(model)["a"].fc1.in_features == 32
    assert model(torch.randn(2, 1, 64, 80)).shape == (2, 5)  # a width is no number of channels


@pytest.mark.parametrize(
    ("name", "size", "last"),
    [("swin_tiny_patch4_window7_224", 224, {"layers.0", "layers.1", "layers.3"}), ("test_convnext", 64, set())],
)
def test_timms_networks_keep_their_layouts(name, size, last):
    options = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)} if "swin" in name else {}
    traces = probe(timm.create_model(name, **options), size)[0]
    stages = {name for name, entry in traces.items() if entry.nhwc and name.count(".") == 1 and "layers" in name}
    assert last <= stages
    assert not any(entry.nhwc for name, entry in traces.items() if name.startswith("stages.") and name.count(".") == 1)
    assert not any(
        entry.nhwc for name, entry in traces.items() if name.endswith(("conv_dw", "proj")) and "attn" not in name
    )


@pytest.mark.parametrize("plan", ["se after stages.0.1", "se replacing stages.1.1", "se after stages.1"])
def test_attention_sees_channels_first(last, image, plan):
    before = last(image)
    fv.insert(last, plan, input_size=(32, 48))
    (attention,) = fv.attentions(last).values()
    shapes = []
    attention.register_forward_hook(lambda _m, args, out: shapes.append((args[0].shape[1:], out.shape[1:])))
    assert last(image).shape == before.shape
    assert shapes in ([((16, 16, 24),) * 2], [((32, 8, 12),) * 2])
    fv.remove(last)
    assert torch.equal(last(image), before)


def test_identity_start_and_pool(last, image):
    before = last(image)
    fv.insert(last, "ulsam(groups=4) after stages.1; gap as pool", start="identity", input_size=(32, 48))
    torch.testing.assert_close(last(image), before, rtol=1e-5, atol=1e-6)
    fv.attentions(last)["stages.1"].to(torch.float32)
    last(image).sum().backward()


def test_head_on_maps_with_channels_last(last, image):
    fv.insert(last, "ltpa as head on stages.0, stages.1", input_size=(32, 48))
    seen = []
    fv.attentions(last)["head"].register_forward_pre_hook(lambda _m, args: seen.extend(x.shape for x in args[0]))
    assert last(image).shape == (2, 5)
    assert seen == [(2, 16, 16, 24), (2, 32, 8, 12)]


KINDS = {
    "stage:all": ["layer1", "layer2", "layer3", "layer4"],
    "stages:all": ["layer1", "layer2", "layer3", "layer4"],
    "stage:last": ["layer4"],
    "stage:first": ["layer1"],
    "stage:1": ["layer2"],
    "block:last": ["layer4.0"],
    "block:replaceable": ["layer1.0"],
}


@pytest.mark.parametrize("pattern", KINDS)
def test_sites_by_what_they_are(pattern):
    model = timm.create_model("resnet10t", num_classes=3)
    fv.insert(model, f"se after {pattern}", input_size=64)
    assert list(fv.attentions(model)) == KINDS[pattern]
    assert fv.Plan.parse(str(fv.plan_of(model))) == fv.plan_of(model)


REFUSED = {
    "stage:9": "site 'stage:9' does not exist: the network has 4 stage sites; write stage:0 to stage:3 or stage:all",
    "stage:lst": "site 'stage:lst' does not exist",
    "stges:all": "the network lists no 'stges'; did you mean 'stage'",
    "branch:all": "the network lists no 'branch'",
}


@pytest.mark.parametrize("pattern", REFUSED)
def test_kinds_that_do_not_exist(pattern):
    with pytest.raises(FoveateError, match=REFUSED[pattern]):
        fv.insert(timm.create_model("resnet10t", num_classes=3), f"se after {pattern}", input_size=64)
