"""LiteRT: what the environment that converts says becomes one line; LITERT_PYTHON names one for the whole way."""

import os
import sys

import pytest

import foveate as fv
from foveate.errors import FoveateError

pytest.importorskip("ai_edge_litert")
SIZE = 64
PYTHON = os.environ.get("LITERT_PYTHON")


@pytest.mark.parametrize(
    "python, message",
    [
        (None, "litert is converted in an environment of its own.*pip install litert-torch"),
        ("no/such/python", "python='no/such/python' is not a program"),
        (sys.executable, "has no litert-torch: install it there with pip"),
    ],
)
def test_the_environment_that_converts(network, tmp_path, python, message):
    with pytest.raises(FoveateError, match=message) as caught:
        fv.export(network(), "litert", tmp_path / "out", size=SIZE, images=1, python=python)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.*"))


def test_an_operation_that_it_does_not_have(odd_network, tmp_path, monkeypatch):
    """What the other process raises is searched for the network's operations, as what is raised here is."""
    script = "raise RuntimeError('Lowering not found: aten.cummax.default')"
    monkeypatch.setattr("foveate.exporters.formats.litert._SCRIPT", script)
    with pytest.raises(FoveateError, match="LiteRT has no form for the operation 'cummax' in odd at layer2"):
        fv.export(odd_network, "litert", tmp_path, size=SIZE, images=1, python=sys.executable)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file(tmp_path):
    from foveate.exporters.formats.litert import LiteRT

    (tmp_path / "net.tflite").write_bytes(b"not a network")
    with pytest.raises(FoveateError, match="net.tflite cannot be opened by LiteRT"):
        LiteRT().foreign_operations(tmp_path / "net.tflite")
    with pytest.raises(FoveateError, match="net.tflite.json beside it cannot be read"):
        fv.open_exported(tmp_path / "net.tflite")


@pytest.mark.skipif(PYTHON is None, reason="LITERT_PYTHON names no environment with litert-torch")
def test_it_does_what_the_network_does(network, tmp_path):
    model = network("ulsam after layer3; cbam after layer2; se after layer1")
    given = {"input": "uint8", "softmax": True, "top": 2, "maps": ("cam", "attention"), "images": 3, "time": False}
    made = fv.export(model, "litert", tmp_path, size=SIZE, python=PYTHON, **given)
    assert made.difference < 1e-5, made
    assert {path.name for path in tmp_path.iterdir()} == {"test_resnet_fp32.tflite", "test_resnet_fp32.tflite.json"}
