"""When SE and CBAM take the fused passes, with a stand-in for the backend that only CUDA has."""

import sys
import types

import pytest
import torch

from foveate.attention._gates import choose_gates, use_fused_path
from foveate.attention.se import _BUILT, SE
from foveate.kernels.dispatch import GATES, ready


@pytest.fixture
def backend(monkeypatch):
    name = "passes_on_the_cpu"
    monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(TYPES=(torch.float32,), why_not=lambda dtype: ""))
    monkeypatch.setitem(GATES, "cpu", name)
    ready.cache_clear()
    yield name
    ready.cache_clear()


@pytest.fixture
def module():
    return SE(8, reduction=2).eval().requires_grad_(False)


X = torch.ones(1, 8, 3, 3)


def test_inference_takes_the_backend(backend, module):
    assert choose_gates(module, X, _BUILT) == (backend, "")
    assert use_fused_path(module, X, _BUILT) is True


def test_what_wants_gradients_or_trains_takes_the_definition(backend, module):
    cases = (
        (module, X.clone().requires_grad_()),
        (module.requires_grad_(), X),
        (SE(8).requires_grad_(False).train(), X),
    )
    for asked, x in cases:
        assert choose_gates(asked, x, _BUILT) == ("", "the module is in training mode, or its output wants gradients")
    with torch.no_grad():
        assert choose_gates(module, X, _BUILT).backend == backend


def test_compiled_and_elsewhere_it_is_the_definition(backend, module, monkeypatch):
    assert "no backend for this device" in choose_gates(module, X.to("meta"), _BUILT).reason
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    compiled = choose_gates(module, X, _BUILT)
    assert compiled.backend == ""
    assert "torch.compile joins the steps" in compiled.reason
