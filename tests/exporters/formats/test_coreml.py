"""Core ML: converted here, run on a Mac only; what the file says of itself is read back everywhere."""

import gc
import sys

import pytest

import foveate as fv
from foveate.errors import FoveateError

coremltools = pytest.importorskip("coremltools")
SIZE = 64
# A model that coremltools did not make to its end leaves a folder of its own.
pytestmark = pytest.mark.filterwarnings("ignore:Implicitly cleaning up <TemporaryDirectory:ResourceWarning")


@pytest.fixture(autouse=True)
def _collected():
    yield
    gc.collect()


@pytest.fixture(scope="module")
def made(network, tmp_path_factory):
    model = network("ulsam after layer3; cbam after layer2; se after layer1")
    given = {"softmax": True, "maps": ("attention",), "images": 2}
    return fv.export(model, "coreml", tmp_path_factory.mktemp("coreml"), size=SIZE, time=False, **given)


def test_it_is_converted_and_says_that_it_did_not_run(made):
    assert not [check for check in made.checks if check.passed is False], made
    if sys.platform != "darwin":
        assert "converted, not run" in str(made)
        assert not made.ran
        assert made.milliseconds is None
        with pytest.raises(FoveateError, match="Core ML runs on a Mac only"):
            made.open()


def test_its_names_and_what_it_says_of_itself(made):
    model = coremltools.models.MLModel(str(made.path), skip_model_load=True)
    described = model.get_spec().description
    assert [each.name for each in described.input] == ["images"]
    assert [each.name for each in described.output] == [each["name"] for each in made.metadata["outputs"]]
    assert "foveate.classes" in model.user_defined_metadata
    assert {check.name: check.passed for check in made.checks}["metadata"]


def test_half_precision(network, made, tmp_path):
    half = fv.export(network("ulsam after layer3"), "coreml", tmp_path, precision="fp16", size=SIZE, images=1)
    assert half.megabytes < 0.6 * made.megabytes


def test_an_operation_that_it_does_not_have(odd_network, tmp_path):
    with pytest.raises(FoveateError, match="Core ML has no form for the operation 'cummax' in odd at layer2") as caught:
        fv.export(odd_network, "coreml", tmp_path / "out", size=SIZE, images=1)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_a_damaged_package(tmp_path):
    (tmp_path / "net.mlpackage").mkdir()
    from foveate.exporters.formats.coreml import CoreML

    with pytest.raises(FoveateError, match="cannot be opened by coremltools"):
        CoreML().open(tmp_path / "net.mlpackage")
