"""A network with attention goes through the tools that people use: copies, compilers, exporters, timm's helpers."""

import copy
import io
import pickle
import warnings

import pytest
import timm
import torch
from timm.utils import ModelEmaV3, freeze, unfreeze
from torch import nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

import foveate as fv
from foveate.surgery.wrappers import Gate

PLAN = "ulsam(groups=2) after stage1.0; se(reduction=4) replacing stage2.1; cbam(start='identity') after stage2"


@pytest.fixture
def planned(blocks):
    return fv.insert(blocks, PLAN)


def densenet():
    torch.manual_seed(0)
    return timm.models.densenet.DenseNet(growth_rate=8, block_config=(2, 1), num_classes=7).eval()


# Hosts of every sort: a block's own child, and (in DenseNet) children of the network itself for a ModuleDict's output.
NETWORKS = {
    "blocks": (None, PLAN),
    "densenet": (
        densenet,
        "se after features.denseblock1; ulsam after features.transition1; cbam(start='identity') after features.norm5",
    ),
}


@pytest.fixture(params=NETWORKS)
def network(request, make_blocks):
    build, plan = NETWORKS[request.param]
    model = (build or make_blocks)()
    return fv.insert(model, plan)


@pytest.fixture
def mixed():
    """The network with both sorts, for the slow tools."""
    build, plan = NETWORKS["densenet"]
    return fv.insert(build(), plan)


def randomise(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)


def test_a_deep_copy_stands_alone(network, images):
    other = copy.deepcopy(network)
    with torch.no_grad():
        expected = network(images)
        assert torch.equal(other(images), expected)
        assert not {id(p) for p in other.parameters()} & {id(p) for p in network.parameters()}
        for mechanism in fv.attentions(other).values():
            randomise(mechanism)
        for module in other.modules():
            if isinstance(module, Gate):
                module.gate.fill_(1)
        assert not torch.equal(other(images), expected)
        assert torch.equal(network(images), expected)
        randomise(network)
        assert not torch.equal(other(images), network(images))
        fv.remove(other)
        assert fv.plan_of(other) is None
        assert fv.plan_of(network) is not None
        assert network(images).shape == expected.shape


def test_a_copy_of_a_copy_is_called_through_its_own_mechanism(network, images):
    other = copy.deepcopy(copy.deepcopy(network))
    called = []
    for mechanism in fv.attentions(other).values():
        mechanism.register_forward_hook(lambda *args: called.append(1))
    other(images)
    assert len(called) == 3


def test_pickle(network, images):
    other = pickle.loads(pickle.dumps(network))  # noqa: S301 - a model that was just made here
    assert torch.equal(other(images), network(images))
    assert fv.plan_of(other) == fv.plan_of(network)
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(images), network(images))
    loaded.load_state_dict(network.state_dict())
    assert list(fv.remove(loaded).state_dict()) == list(fv.remove(network).state_dict())


def test_compile_in_one_graph(mixed, images):
    torch._dynamo.reset()
    compiled = torch.compile(mixed, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), mixed(images), rtol=1e-5, atol=1e-5)


def test_torch_export(mixed, images):
    batch = torch.export.Dim("batch", min=2, max=16)
    program = torch.export.export(mixed, (images,), dynamic_shapes=({0: batch},))
    more = torch.cat([images, images])
    torch.testing.assert_close(program.module()(more), mixed(more), rtol=1e-5, atol=1e-5)


def test_onnx(mixed, images):
    onnxruntime = pytest.importorskip("onnxruntime")
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own making
        torch.onnx.export(mixed, (images,), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(given), mixed(images).detach(), rtol=1e-4, atol=1e-4)


def test_exponential_moving_average(network, images):
    average = ModelEmaV3(network, decay=0.5)
    assert torch.equal(average.module(images), network(images))
    before = [p.clone() for m in fv.attentions(network).values() for p in m.parameters()]
    randomise(network)
    average.update(network)
    after = [p for m in fv.attentions(network).values() for p in m.parameters()]
    kept = [p for m in fv.attentions(average.module).values() for p in m.parameters()]
    for was, now, mean in zip(before, after, kept, strict=True):
        torch.testing.assert_close(mean, (was + now) / 2)


def test_freeze_reaches_attention_with_its_host(planned, images):
    freeze(planned, ["stage1", "stem"], include_bn_running_stats=False)
    frozen = {name for name, p in planned.named_parameters() if not p.requires_grad}
    assert any(name.startswith("stage1.0.foveate.") for name in frozen)
    assert not any(name.startswith("stage2") for name in frozen)
    planned.train()(images).sum().backward()
    assert all((p.grad is None) == (name in frozen) for name, p in planned.named_parameters())
    unfreeze(planned, ["stage1", "stem"], include_bn_running_stats=False)
    assert all(p.requires_grad for p in planned.parameters())


def test_freeze_of_batch_norms_keeps_the_attention(planned, images):
    expected = planned(images)
    freeze(planned, ["stage1", "stem"])
    assert "Frozen" in type(planned.stage1[0].bn1).__name__
    torch.testing.assert_close(planned(images), expected)
    torch.testing.assert_close(fv.remove(planned)(images).shape, expected.shape)


@pytest.mark.parametrize("name", ["mobilenetv2_035", "resnet18", "convnext_atto"])
def test_features_only(name, images):
    model = timm.create_model(name, features_only=True).eval()
    with torch.no_grad():
        expected = model(images)
        site = next(site.name for site in fv.sites(model, 64) if site.kind == "block")
        fv.insert(model, f"ulsam(groups=2) after {site}", start="identity", input_size=64)
        assert all(torch.equal(a, b) for a, b in zip(model(images), expected, strict=True))
        fv.attentions(model)
        for module in model.modules():
            if isinstance(module, Gate):
                module.gate.fill_(5)
        assert not torch.equal(model(images)[-1], expected[-1])


def test_features_by_hooks(images):
    model = timm.create_model("mobilenetv3_small_050", features_only=True, feature_cfg={"feature_cls": "hook"}).eval()
    with torch.no_grad():
        expected = model(images)
        assert fv.sites(model, 64)
        fv.insert(model, "se after body.blocks.2.1", start="identity", input_size=64)
        assert all(torch.equal(a, b) for a, b in zip(model(images), expected, strict=True))


def test_reset_classifier(mobilenet, images):
    fv.insert(mobilenet, "se after blocks.4.1; ulsam replacing blocks.5.1")
    mobilenet.reset_classifier(3)
    assert mobilenet(images).shape == (3, 3)
    mobilenet.reset_classifier(0)
    assert mobilenet(images).shape == (3, 1280)
    assert len(fv.attentions(mobilenet)) == 2
    fv.remove(mobilenet)
    assert mobilenet(images).shape == (3, 1280)


def test_timm_forward_features_and_intermediates(mobilenet, images):
    fv.insert(mobilenet, "se after blocks.4.1; ulsam replacing blocks.5.1")
    with torch.no_grad():
        features = mobilenet.forward_features(images)
        assert torch.equal(mobilenet.forward_head(features), mobilenet(images))
        assert torch.equal(mobilenet.forward_intermediates(images)[0], features)


def test_torchvision_and_its_feature_extractor(images):
    torch.manual_seed(0)
    model = models.shufflenet_v2_x0_5(num_classes=4).eval()
    with torch.no_grad():
        expected = model(images)
        fv.insert(model, "ulsam after stage3; se after stage2.1", start="identity")
        assert torch.equal(model(images), expected)
        for module in model.modules():
            if isinstance(module, Gate):
                module.gate.fill_(2)
        changed = model(images)
        assert not torch.equal(changed, expected)
        extractor = create_feature_extractor(model, ["stage3", "fc"])
        torch.testing.assert_close(extractor(images)["fc"], changed)


def test_gradient_checkpointing(images):
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=4).train()
    fv.insert(model, "se after layer2.0; ulsam(groups=2) after layer3")

    def gradients():
        model.zero_grad()
        model(images).square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    model.set_grad_checkpointing(True)
    for one, other in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, other)


def test_channels_last_and_autocast(network, images):
    expected = network(images)
    last = network.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(images).isfinite().all()


def test_densenet_sites_are_kept_outside_the_containers(images):
    model = densenet()
    expected = model(images)
    fv.insert(model, "se after features.denseblock1; ulsam after features.denseblock2.denselayer1", start="identity")
    assert torch.equal(model(images), expected)
    assert "features_denseblock1_foveate" in dict(model.named_children())
    assert torch.equal(fv.remove(model)(images), expected)


def test_torchvision_sequences_that_are_subclasses(images):
    torch.manual_seed(0)
    model = models.mobilenet_v2(num_classes=4).eval()
    expected = model(images)
    plan = "se after features.0, features.3; ulsam replacing features.5; cbam after features"
    assert fv.remove(fv.insert(model, plan))(images).equal(expected)
    fv.insert(model, "se after features.0, features.3; cbam after features", start="identity")
    assert torch.equal(model(images), expected)
    assert isinstance(model.features, nn.Sequential)
    assert len(model.features) == 19
