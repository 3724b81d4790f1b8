"""ncnn: what pnnx leaves over is found in the file, and named before ncnn ends the process with it."""

import pytest

import foveate as fv
from foveate.errors import FoveateError
from foveate.exporters.formats.ncnn import Ncnn

pytest.importorskip("ncnn")
pytest.importorskip("pnnx")
SIZE = 64


@pytest.fixture(scope="module")
def made(network, tmp_path_factory):
    model = network("ulsam after layer3; cbam after layer2; se after layer1")
    place = tmp_path_factory.mktemp("ncnn") / "net.ncnn.param"
    return fv.export(model, "ncnn", place, size=SIZE, maps="attention", softmax=True, images=3, time=False)


def test_it_does_what_the_network_does(made):
    assert all(check.passed for check in made.checks), made
    assert made.difference < 1e-5
    assert {check.name for check in made.checks} >= {"logits", "probabilities", "attention_0", "metadata"}
    names = {path.name for path in made.path.parent.iterdir()}
    assert names == {"net.ncnn.param", "net.ncnn.bin", "net.ncnn.param.json"}  # nothing of pnnx's is left
    assert fv.open_exported(made.path).batch == 1
    assert any("1 at a time" in note for note in made.notes)


def test_half_precision(network, made, tmp_path):
    half = fv.export(network("ulsam after layer3"), "ncnn", tmp_path, precision="fp16", size=SIZE, images=2, time=False)
    assert 0 < half.difference < 3e-2
    assert half.megabytes < 0.6 * made.megabytes


def test_an_operation_that_it_does_not_have(odd_network, tmp_path):
    with pytest.raises(FoveateError, match="ncnn has no form for the operation 'cummax' in odd at layer2") as caught:
        fv.export(odd_network, "ncnn", tmp_path / "out", size=SIZE, images=1)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_left_over_operations_are_found_in_the_file(made, tmp_path):
    text = made.path.read_text()
    assert Ncnn().foreign_operations(made.path) == ()
    spoiled = tmp_path / "spoiled.ncnn.param"
    spoiled.write_text(text.replace("ReLU ", "aten::relu6 ", 1))
    assert Ncnn().foreign_operations(spoiled) == ("aten::relu6",)


@pytest.mark.parametrize("options, message", [({"batch": 4}, "1 image at a time"), ({"input": "uint8"}, "uint8")])
def test_what_it_does_not_take(network, tmp_path, options, message):
    with pytest.raises(FoveateError, match=message):
        fv.export(network(), "ncnn", tmp_path, size=SIZE, **options)


def test_damaged_files(made, tmp_path):
    """ncnn ends the process when a net runs that was not loaded whole."""
    param, weights, beside = (tmp_path / f"net.ncnn.{end}" for end in ("param", "bin", "param.json"))
    param.write_bytes(made.path.read_bytes())
    with pytest.raises(FoveateError, match="param.json beside it cannot be read"):
        fv.open_exported(param)
    beside.write_bytes(made.path.with_name("net.ncnn.param.json").read_bytes())
    with pytest.raises(FoveateError, match="net.ncnn.bin, are not beside it"):
        fv.open_exported(param)
    weights.write_bytes(made.path.with_name("net.ncnn.bin").read_bytes()[:1000])
    with pytest.raises(FoveateError, match="net.ncnn.bin, are not beside it or are damaged"):
        fv.open_exported(param)
    param.write_text("7767517\n1 1\nNothing x 0 1 in0\n")
    with pytest.raises(FoveateError, match="cannot be opened by ncnn"):
        fv.open_exported(param)
