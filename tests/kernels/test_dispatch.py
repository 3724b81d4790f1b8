"""Which backend is chosen, and the reason where none is; and ``fuse``."""

import copy

import pytest
import torch
from torch import nn

import foveate as fv
from foveate.attention.ulsam import ULSAM
from foveate.kernels import dispatch as backends
from foveate.kernels.ulsam import cpu as ulsam_cpu
from foveate.surgery import fuse

pytestmark = pytest.mark.skipif(bool(ulsam_cpu.why_not(torch.float32)), reason="no C compiler: the plain kernels serve")


class Small(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 16, 3), ULSAM(16), nn.ReLU(), ULSAM(16, groups=2))


def test_fuse(x):
    torch.manual_seed(0)
    model, images = Small(), torch.randn(2, 3, 8, 8)
    model.train()(images)
    model.eval()
    keys, expected = list(model.state_dict()), model(images)
    maps = model[1].attend(model[0](images))
    assert fv.fuse(model) is model
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[1].attend(model[0](images)), maps, rtol=1e-5, atol=1e-6)
    for on in (True, False):
        with torch.no_grad(), fv.use_fused(on):
            torch.testing.assert_close(copy.deepcopy(model)(images), expected, rtol=1e-5, atol=1e-6)
            low = copy.deepcopy(model).bfloat16()(images.bfloat16())
            torch.testing.assert_close(low.float(), expected, rtol=0.1, atol=0.1)


def test_fuse_lets_gradients_of_the_input_through():
    torch.manual_seed(0)
    model, images = Small().eval(), torch.randn(2, 3, 8, 8, requires_grad=True)
    (expected,) = torch.autograd.grad(model(images).square().sum(), images)
    (found,) = torch.autograd.grad(fv.fuse(model)(images).square().sum(), images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_fuse_keeps_nothing_and_compiles_at_once(monkeypatch):
    """What a later change of a weight does is in test_changed_weights.py."""
    asked = []
    monkeypatch.setattr(fuse, "ready", lambda *given: asked.append(given))
    model = Small().eval()
    before = [dict(vars(module)) for module in model.modules()]
    fv.fuse(model.bfloat16())
    assert asked == [("cpu", torch.bfloat16, "ulsam")] * 2
    assert [set(vars(module)) for module in model.modules()] == [set(each) for each in before]
    with fv.use_fused(False):
        fv.fuse(model)
    assert len(asked) == 2


def test_fuse_refuses_training_mode():
    with pytest.raises(fv.FoveateError, match=r"in training mode: call model.eval\(\) first"):
        fv.fuse(Small())
    model = Small().eval()
    model[1].bn_dws.train()
    with pytest.raises(fv.FoveateError, match="in training mode"):
        fv.fuse(model)


def test_a_reason_for_each_way_to_the_definition(module, x):
    """``choose`` says why none of the backends computes a call."""

    def reason(module, x):
        choice = module._choose(x)[0]
        assert not choice.backend
        return choice.reason

    assert module._choose(x)[0] == ("foveate.kernels.ulsam.cpu", "")
    with fv.use_fused(False):
        assert "use_fused(False)" in reason(module, x)
    assert "(B, C, h, w)" in reason(module, x[0])
    assert "(B, C, h, w)" in reason(module, x[:0])
    assert reason(module, x.double()) == "the backend for cpu takes float32, bfloat16, not float64"
    assert reason(module, x.to("meta")) == "there is no backend for meta, only for cpu, cuda"
    with torch.autograd.forward_ad.dual_level():
        assert "forward-mode" in reason(module, x)
    assert reason(module, nn.Parameter(x)) == "the input is not a plain tensor"
    for change, expected in (
        (lambda m: m.bn_dws.register_forward_hook(lambda *_: None), "'bn_dws' has a forward hook"),
        (lambda m: m.bn_dws.register_full_backward_hook(lambda *_: None), "'bn_dws' has a backward hook"),
        (lambda m: setattr(m, "bn_dws", nn.Identity()), "'bn_dws' is not the BatchNorm2d that was built"),
        (lambda m: delattr(m, "bn_dws"), "'bn_dws' is not the BatchNorm2d that was built"),
        (lambda m: setattr(m.conv_dws, "forward", m.conv_dws.forward), "the forward method of 'conv_dws' was replaced"),
        (lambda m: setattr(m, "attend", m.attend), "its method 'attend' was replaced"),
        (lambda m: setattr(m.conv_point, "bias", None), "'conv_point.bias' is missing or has another size"),
        (lambda m: setattr(m.bn_point, "running_mean", None), "'bn_point.running_mean' is missing or has another size"),
        (lambda m: setattr(m.conv_dws, "padding", (1, 1)), "a convolution has another stride or padding"),
        (lambda m: setattr(m.bn_dws.train(), "momentum", None), "keeps its statistics in another way"),
        (lambda m: m.bn_dws.to("meta"), "'bn_dws.weight' is not a plain tensor on the device of the input"),
    ):
        changed = copy.deepcopy(module)
        change(changed)
        assert expected in reason(changed, x)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert reason(module, x) == "a hook for all modules is registered"
    handle.remove()


def test_what_this_machine_has_is_listed():
    rows = {row[:3]: row[3] for row in backends.backends()}
    assert rows["ulsam", "cpu", "float32"].backend == "foveate.kernels.ulsam.cpu"
    for family, device in (("ulsam", "cuda"), ("gates", "cuda")):
        choice = rows[family, device, "float16"]
        assert bool(choice.backend) != bool(choice.reason)
        assert bool(choice.backend) == backends.ready("cuda", torch.float16, family).backend.startswith("foveate")
    with fv.use_fused(False):
        assert {row[3].reason for row in backends.backends()} == {
            "fused operations are switched off, by use_fused(False) or FOVEATE_FUSED=0"
        }


def test_one_backend_is_one_line():
    assert set(backends.BACKENDS) <= {"cpu", "cuda"}
