"""Tools that join a convolution with its norm, or exchange norms: with attention the result is right, or an error.

Each fuser is first tried on the network without attention, so that the test would notice one that does nothing.
"""

import copy
import pickle
import re

import pytest
import timm
import torch
from torch import nn
from torch.ao.quantization import QConfigMapping, fuse_modules, get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import fuse_fx, prepare_fx
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

import foveate as fv

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning:torch.ao"),
    pytest.mark.slow(
        reason="it runs torch's own fusers and quantizers", guards=("foveate/surgery/", "foveate/attention/")
    ),
]


class Net(nn.Module):
    """Convolution, norm and activation; grouped convolution with a bias and norm; a norm alone at the end."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.act1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8)
        self.act2, self.pool, self.flat, self.fc = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)

    def forward(self, x):
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        return self.fc(self.flat(self.pool(x)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    made = Net()
    for key, tensor in made.state_dict().items():
        if tensor.is_floating_point() and "bn" in key:
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    return made.eval()


IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
HALVES = (("conv1", "bn1"), ("conv2", "bn2"))


def by_a_loop(join):
    """As detectors do: a new convolution in place of the old one, nothing in place of the norm."""

    def fuser(model):
        model = copy.deepcopy(model)
        for conv, norm in HALVES:
            setattr(model, conv, join(getattr(model, conv), getattr(model, norm)))
            setattr(model, norm, nn.Identity())
        return model

    return fuser


def new_convolution(conv, norm):
    options = (
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
    )
    made = nn.Conv2d(*options, bias=True)
    given = (conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    made.weight, made.bias = fuse_conv_bn_weights(*given)
    return made


def by_torch_fx(model):
    from torch.fx.experimental import optimization  # in some versions of torch the import warns

    return optimization.fuse(model)


FUSERS = {
    "torch.fx optimization": by_torch_fx,
    "fuse_modules": lambda model: fuse_modules(model, [list(pair) for pair in HALVES]),
    "fuse_modules with ReLU": lambda model: fuse_modules(model, [["conv1", "bn1", "act1"], ["conv2", "bn2", "act2"]]),
    "fuse_fx": fuse_fx,
    "prepare_fx": lambda model: prepare_fx(model, QConfigMapping(), (IMAGES,)),
    "prepare_fx with observers": lambda model: prepare_fx(model, get_default_qconfig_mapping(), (IMAGES,)),
    "fuse_conv_bn_eval": by_a_loop(fuse_conv_bn_eval),
    "new convolutions": by_a_loop(new_convolution),
    "SyncBatchNorm": lambda model: nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)),
    "timm's frozen norms": lambda model: timm.layers.freeze_batch_norm_2d(copy.deepcopy(model)),
}
SITES = ("conv1", "bn1", "act1", "conv2", "bn2", "act2", "conv1, bn2", "bn1, conv2")
CLEAR = r"the attention (after|of a) .* is lost|(did not find fuser method for|Cannot fuse modules): .*WithAttention"


@pytest.mark.parametrize("fuser", FUSERS.values(), ids=FUSERS)
def test_right_or_an_error(net, fuser):
    with torch.no_grad():
        assert (fuser(copy.deepcopy(net))(IMAGES) - net(IMAGES)).abs().max() <= 1e-5
        for site in SITES:
            for spec in ("ulsam", "se"):
                model = copy.deepcopy(net)
                fv.insert(model, f"{spec} after {site}", input_size=12)
                for key, parameter in model.named_parameters():
                    if "foveate" in key:
                        parameter.mul_(3)  # an attention that is felt
                expected = model(IMAGES)
                assert (expected - net(IMAGES)).abs().max() > 1e-4
                try:
                    found = fuser(model)(IMAGES)
                except (fv.FoveateError, AssertionError, NotImplementedError) as error:
                    assert re.search(CLEAR, str(error)), (site, spec)
                else:
                    assert (found - expected).abs().max() <= 1e-5, (site, spec)


@pytest.mark.parametrize(
    "name,site",
    [("repvit_m0_9", "stages.0.blocks.0.channel_mixer.conv1.bn"), ("levit_conv_128s", "stages.0.blocks.0.attn.qkv.bn")],
)
def test_timms_own_fuse_is_an_error_and_not_silent(name, site):
    """Its blocks build a new convolution from the weights of both and leave out what follows the norm."""
    model = timm.create_model(name, num_classes=4).eval()
    size = model.pretrained_cfg["input_size"]
    fv.insert(model, f"se after {site}", input_size=size)
    images = torch.randn(1, *size)
    with torch.no_grad():
        model(images)
        fused = timm.utils.reparameterize_model(model)
        model.fuse() if hasattr(model, "fuse") else None
        with pytest.raises(fv.FoveateError, match="is lost"):
            fused(images)


def test_the_network_is_as_it_was_after_remove_and_travels(net):
    keys, classes = list(net.state_dict()), [type(module) for module in net.modules()]
    with torch.no_grad():
        before = net(IMAGES)
        fv.insert(net, "se after conv1, bn2", input_size=12)
        after = net(IMAGES)
        assert isinstance(net.conv1, nn.Conv2d)
        assert repr(net.conv1).startswith("Conv2dWithAttention(")
        for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):  # noqa: S301 - our own bytes
            assert torch.equal(copied(IMAGES), after)
            copied.conv1.foveate.fc2.bias.add_(1)
            assert not torch.equal(copied(IMAGES), after)
            fv.remove(copied)
            assert torch.equal(copied(IMAGES), before)
        assert torch.equal(net(IMAGES), after)
        inside = copy.deepcopy(nn.Sequential(net.conv1))
        assert torch.equal(inside(IMAGES), net.conv1(IMAGES))
        assert type(copy.deepcopy(net.conv1)) is nn.Conv2d
    fv.remove(net)
    assert [type(module) for module in net.modules()] == classes
    assert list(net.state_dict()) == keys
    assert not net._forward_pre_hooks
    assert torch.equal(net(IMAGES), before)


def test_a_network_cut_short_is_no_error(net):
    model = nn.Sequential(nn.Sequential(net.conv1, net.bn1), nn.Sequential(net.conv2, net.bn2)).eval()
    fv.insert(model, "se after 0.1, 1.1", input_size=12)
    del model[1]
    with torch.no_grad():
        assert model(IMAGES).shape == (2, 8, 12, 12)
    model[0][1] = nn.BatchNorm2d(8).eval()
    with pytest.raises(fv.FoveateError, match=re.escape("the attention after '0.1' is lost")):
        model(IMAGES)
    fv.remove(model)
    model(IMAGES)


def test_script_is_refused_in_a_sentence(net):
    fv.insert(net, "se after bn1", input_size=12)
    with pytest.raises(fv.FoveateError, match="cannot be compiled by torch.jit.script"):
        torch.jit.script(net)
    torch.jit.script(fv.remove(net))
