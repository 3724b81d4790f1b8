"""OpenVINO: both files, what they say of themselves, and both ways of computing."""

import numpy as np
import pytest

import foveate as fv
from foveate.errors import FoveateError
from foveate.exporters.formats.openvino import OpenVINO

openvino = pytest.importorskip("openvino")
SIZE = 64


@pytest.fixture(scope="module")
def made(network, tmp_path_factory):
    """Everything at once: pixels in, probabilities, classes and maps out, any number of images of any size."""
    model = network("ulsam after layer3; cbam after layer2; se after layer1")
    given = {"input": "uint8", "softmax": True, "top": 2, "maps": ("cam", "attention"), "images": 4}
    return fv.export(model, "openvino", tmp_path_factory.mktemp("openvino"), size=SIZE, time=False, **given)


def test_it_does_what_the_network_does(made):
    assert all(check.passed for check in made.checks), made
    assert made.difference < 1e-5
    assert {check.name for check in made.checks} >= {"batch of 1", "batch of 3", "cam", "top_classes", "metadata"}
    names = {path.name for path in made.path.parent.iterdir()}
    assert names == {"test_resnet_fp32.xml", "test_resnet_fp32.bin"}


def test_its_names_are_those_of_the_metadata(made):
    model = openvino.Core().read_model(made.path)
    assert model.input("images").partial_shape.to_string() == f"[?,{SIZE},{SIZE},3]"
    assert [port.any_name for port in model.outputs] == [each["name"] for each in made.metadata["outputs"]]


def test_what_it_says_of_itself(made):
    assert fv.open_exported(made.path).metadata == made.metadata
    model = openvino.Core().read_model(made.path)
    assert model.get_rt_info(["foveate", "plan"]).astype(str) == f'"{made.metadata["plan"]}"'


def test_the_processors_own_precision_is_told(made):
    """Where the default is not float32, the check of it stands beside that of float32."""
    default = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    names = [check.name for check in made.checks if "default" in check.name]
    assert names == ([] if default == "f32" else [f"logits at this processor's default, {default}"])


def test_half_precision_and_dynamic_size(network, tmp_path):
    model = network("ulsam after layer3")
    half = fv.export(model, "openvino", tmp_path, precision="fp16", size="dynamic", images=2, time=False)
    weights = (tmp_path / "test_resnet_fp16.bin").stat().st_size
    assert 0 < half.difference < 3e-2
    assert weights < 0.6 * sum(p.numel() * 4 for p in model.parameters())
    assert any(check.name.startswith("size ") and check.passed for check in half.checks)


def test_what_is_beside_it_is_not_overwritten(network, tmp_path):
    (tmp_path / "net.bin").write_text("mine")
    with pytest.raises(FoveateError, match="net.bin, which belongs to net.xml, is there already"):
        fv.export(network(), "openvino", tmp_path / "net.xml", size=SIZE, images=1, time=False)
    assert [path.name for path in tmp_path.iterdir()] == ["net.bin"]
    assert (tmp_path / "net.bin").read_text() == "mine"


def test_an_operation_that_it_does_not_have(odd_network, tmp_path):
    with pytest.raises(
        FoveateError, match="OpenVINO has no form for the operation 'cummax' in odd at layer2"
    ) as caught:
        fv.export(odd_network, "openvino", tmp_path / "out", size=SIZE, images=1)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_files_that_are_not_ours(made, tmp_path):
    lonely = tmp_path / "lonely.xml"
    lonely.write_bytes(made.path.read_bytes())
    with pytest.raises(FoveateError, match="lonely.bin, are not beside it"):
        fv.open_exported(lonely)
    (tmp_path / "lonely.bin").write_bytes(b"")
    lonely.write_text("<net>")
    with pytest.raises(FoveateError, match="cannot be opened by OpenVINO"):
        fv.open_exported(lonely)
    node = openvino.opset8.parameter([1, 3], np.float32)
    openvino.save_model(openvino.Model([openvino.opset8.relu(node)], [node]), tmp_path / "other.xml")
    with pytest.raises(FoveateError, match="was not exported by foveate"):
        fv.open_exported(tmp_path / "other.xml")
    assert OpenVINO().foreign_operations(made.path) == ()
