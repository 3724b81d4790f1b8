"""Pools and heads: ``as pool`` in networks of several kinds, ``as head`` with the maps that it reads."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock

import foveate as fv
from foveate.errors import FoveateError
from foveate.registry import _REGISTERED
from foveate.surgery.wrappers import HeadWrapper, PerClass, PoolGate


class MaxPool(nn.Module):
    """The largest value of each channel, plus what is learned."""

    map_axes = "b h w"

    def __init__(self, channels, *, classes=None):
        super().__init__()
        self.classes = classes
        self.bias = nn.Parameter(torch.randn(*([classes] if classes else []), channels))

    def forward(self, x):
        pooled = x.amax((2, 3))
        return (pooled[:, None] if self.classes else pooled) + self.bias


class MeansHead(nn.Module):
    """A linear layer of the means of all maps and of the pooled features."""

    levels = 2
    map_axes = "b h w"

    def __init__(self, channels, features, classes, *, scale=1.0):
        super().__init__()
        self.scale = scale
        self.linear = nn.Linear(sum(channels) + features, classes)

    def forward(self, maps, pooled):
        return self.linear(torch.cat([*(x.mean((2, 3)) for x in maps), pooled], 1)) * self.scale


@pytest.fixture(autouse=True)
def registered():
    fv.register("largest", MaxPool, kind="pooling")
    fv.register("means", MeansHead, kind="heads")
    yield
    del _REGISTERED["pooling", "largest"], _REGISTERED["heads", "means"]


NETWORKS = {
    "timm resnet": lambda: timm.create_model("resnet10t", num_classes=7),
    "timm mobilenetv2": lambda: timm.create_model("mobilenetv2_035", num_classes=7),
    "timm mobilenetv3": lambda: timm.create_model("mobilenetv3_small_050", num_classes=7),  # a layer after the pool
    "timm regnet": lambda: timm.create_model("regnetx_002", num_classes=7),
    "timm convnext": lambda: timm.create_model("convnext_atto", num_classes=7),  # a norm after the pool
    # Pools by a function; torchvision's are thinner than those that it has by name.
    "torchvision mobilenet": lambda: torchvision.models.mobilenet_v2(num_classes=7, width_mult=0.25),
    "torchvision resnet": lambda: torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=7),
    "torchvision shufflenet": lambda: torchvision.models.ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 128], num_classes=7),
}
SIZE = 64


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    return NETWORKS[request.param]().eval()


@pytest.fixture
def image():
    return torch.rand(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def state_of(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def same(state, other):
    return list(state) == list(other) and all(torch.equal(state[key], other[key]) for key in state)


def test_gap_changes_nothing(network, image):
    before = network(image)
    fv.insert(network, "gap as pool", input_size=SIZE)
    torch.testing.assert_close(network(image), before, rtol=1e-4, atol=1e-5)
    assert str(fv.plan_of(network)) == "gap as pool"
    assert list(fv.attentions(network)) == ["pool"]


def test_a_pool_is_used_and_comes_out(network, image):
    before, state = network(image), state_of(network)
    fv.insert(network, "largest as pool", input_size=SIZE)
    after = network(image)
    assert after.shape == before.shape
    assert not torch.allclose(after, before)
    fv.remove(network)
    assert torch.equal(network(image), before)
    assert same(network.state_dict(), state)


def test_identity_start_of_a_pool(network, image):
    before = network(image)
    fv.insert(network, "largest as pool", start="identity", input_size=SIZE)
    torch.testing.assert_close(network(image), before, rtol=1e-4, atol=1e-5)
    gate = next(module for module in network.modules() if isinstance(module, PoolGate))
    network(image).sum().backward()
    assert gate.gate.grad.abs() > 0


def test_features_for_each_class(network, image):
    before, state = network(image), state_of(network)
    fv.insert(network, "largest(classes=7) as pool", input_size=SIZE)
    (bias,) = (p for name, p in network.named_parameters() if name.endswith("foveate_pool.bias"))
    together = network(image)
    assert together.shape == (3, 7)
    (classifier,) = (module for module in network.modules() if isinstance(module, PerClass))
    # Class k sees the token k alone.
    with torch.no_grad():
        bias[2] += torch.randn(bias.shape[1])
    moved = (network(image) - together).abs() > 1e-7
    assert moved[:, 2].all()
    assert not moved[:, [0, 1, 3, 4, 5, 6]].any()
    assert classifier.weight.shape[0] == 7
    fv.remove(network)
    assert torch.equal(network(image), before)
    assert same(network.state_dict(), state)


def test_a_pool_survives_reset_classifier(image):
    network = timm.create_model("resnet10t", num_classes=7).eval()
    fv.insert(network, "largest as pool", input_size=SIZE)
    network.reset_classifier(4)
    given = network(image)
    assert given.shape == (3, 4)
    fv.attentions(network)["pool"].bias.data += 1
    assert not torch.allclose(network(image), given)
    assert str(fv.plan_of(network)) == "largest as pool"


def test_a_head_reads_its_maps(network, image):
    before, state = network(image), state_of(network)
    fv.insert(network, "means(scale=2.0) as head", input_size=SIZE)
    plan = fv.plan_of(network)
    (placement,) = plan.placements
    assert len(placement.sites) == 2
    assert fv.Plan.parse(str(plan)) == plan
    given = network(image)
    assert given.shape == before.shape
    assert sum(isinstance(module, HeadWrapper) for module in network.modules()) == 1
    # Every image is seen for itself, and the maps are those of this pass.
    torch.testing.assert_close(network(image[1:2]), given[1:2], rtol=1e-4, atol=1e-5)
    other = copy.deepcopy(network)
    assert torch.equal(other(image), given)
    fv.remove(network)
    assert torch.equal(network(image), before)
    assert same(network.state_dict(), state)


def test_a_head_goes_with_its_classifier(image):
    network = timm.create_model("resnet10t", num_classes=7).eval()
    fv.insert(network, "means as head; se after layer3", input_size=SIZE)
    network.reset_classifier(4)
    assert network(image).shape == (3, 4)
    assert str(fv.plan_of(network)) == "se after layer3"


def test_a_head_on_named_sites_reads_what_attention_gives(image):
    network = timm.create_model("resnet10t", num_classes=7).eval()
    fv.insert(network, "se after layer3; means as head on layer3, layer4; largest as pool", input_size=SIZE)
    assert str(fv.plan_of(network)) == "se after layer3; means as head on layer3, layer4; largest as pool"
    kept, seen = [], []
    fv.attentions(network)["layer3"].register_forward_hook(lambda _m, _a, out: kept.append(out))
    fv.attentions(network)["head"].register_forward_pre_hook(lambda _m, args: seen.append(args))
    network(image)
    assert seen[0][0][0] is kept[0]
    assert seen[0][0][1].shape == (3, 512, 2, 2)
    fv.remove(network)
    assert fv.plan_of(network) is None


@pytest.mark.parametrize(
    "plan", ["largest as pool", "largest(classes=7) as pool", "means as head", "largest as pool; means as head"]
)
def test_saved_and_loaded(plan, image, tmp_path):
    torch.manual_seed(0)
    network = fv.create_model("resnet10t", num_classes=7).eval()
    fv.insert(network, plan, input_size=SIZE)
    fv.save(network, tmp_path / "model")
    loaded = fv.load(tmp_path / "model")
    assert torch.equal(loaded(image), network(image))
    assert fv.plan_of(loaded) == fv.plan_of(network)


def test_torchvision_is_saved_and_loaded_with_a_head(image, tmp_path):
    network = fv.create_model("torchvision:shufflenet_v2_x0_5", num_classes=7).eval()
    fv.insert(network, "means as head", input_size=SIZE)
    fv.save(network, tmp_path / "model")
    assert torch.equal(fv.load(tmp_path / "model")(image), network(image))


@pytest.mark.slow(
    reason="it compiles and exports",
    guards=(
        "foveate/surgery/",
        "foveate/heads/",
        "foveate/pooling/",
    ),
)
@pytest.mark.parametrize("plan", ["largest(classes=7) as pool", "means as head; se after layer2"])
def test_compile_and_export(plan, image):
    network = timm.create_model("resnet10t", num_classes=7).eval()
    fv.insert(network, plan, input_size=SIZE)
    with torch.no_grad():
        expected = network(image)
        torch._dynamo.reset()
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(image), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(compiled(image), expected, rtol=1e-4, atol=1e-5)
        program = torch.export.export(network, (image,))
        torch.testing.assert_close(program.module()(image), expected, rtol=1e-4, atol=1e-5)


def test_weights_of_the_plain_network_load(image):
    plain = timm.create_model("resnet10t", num_classes=7).eval()
    network = timm.create_model("resnet10t", num_classes=7).eval()
    fv.insert(network, "means as head; largest as pool", input_size=SIZE)
    network.load_state_dict(plain.state_dict())
    fv.remove(network)
    assert torch.equal(network(image), plain(image))


def test_cost_of_a_head_is_its_own():
    network = timm.create_model("resnet10t", num_classes=7)
    fv.insert(network, "means as head", input_size=SIZE)
    added = fv.cost(network, SIZE) - fv.cost(network, SIZE).baseline
    assert added.params == (512 + 256) * 7
    assert added.macs == (512 + 256) * 7


CASES = {
    "largest(classes=5) as pool": "gives features for each of 5 classes, and 'fc' is not a Linear with as many outputs",
    "means as head on layer9": "the network has no site 'layer9'",
    "means as head; means as head": "a network has one head, and the plan names two",
    "means as head on": "a site is expected",
}


@pytest.mark.parametrize("plan", CASES)
def test_refused(plan):
    network = timm.create_model("resnet10t", num_classes=7)
    state = state_of(network)
    with pytest.raises(FoveateError, match=CASES[plan]) as caught:
        fv.insert(network, plan, input_size=SIZE)
    assert "\n" not in str(caught.value)
    assert same(network.state_dict(), state)
    assert fv.plan_of(network) is None


def test_other_pooling_is_refused(image):
    network = torchvision.models.densenet121(num_classes=7).eval()  # a ReLU after the last module
    before = network(image)
    with pytest.raises(FoveateError, match="something else than global average pooling with its last feature map"):
        fv.insert(network, "gap as pool", input_size=SIZE)
    assert torch.equal(network(image), before)
    with pytest.raises(FoveateError, match="gives no class scores"):
        fv.insert(timm.create_model("resnet10t", features_only=True), "gap as pool", input_size=SIZE)


def test_a_head_alone_says_what_it_needs(image):
    network = timm.create_model("resnet10t", num_classes=7).eval()
    fv.insert(network, "means as head", input_size=SIZE)
    with pytest.raises(FoveateError, match="reads feature maps of the same forward pass, and finds none: run the"):
        network.fc(torch.zeros(1, 512))
