"""ExecuTorch: any number of images up to a bound, or beyond it in parts; 8 bit by real images."""

import numpy as np
import pytest

import foveate as fv
from foveate.errors import FoveateError
from foveate.exporters.formats.executorch import LARGEST_BATCH

pytest.importorskip("executorch")
pytest.importorskip("torchao")
SIZE = 64


@pytest.fixture(scope="module")
def made(network, tmp_path_factory):
    model = network("ulsam after layer3; cbam after layer2; se after layer1")
    place = tmp_path_factory.mktemp("executorch")
    return fv.export(model, "executorch", place, size=SIZE, maps="attention", softmax=True, images=12, time=False)


def test_it_does_what_the_network_does(made):
    assert all(check.passed for check in made.checks), made
    assert made.difference < 1e-5
    assert {check.name for check in made.checks} >= {"batch of 1", "batch of 3", "attention_0", "metadata"}
    assert {path.name for path in made.path.parent.iterdir()} == {"test_resnet_fp32.pte", "test_resnet_fp32.pte.json"}


def test_the_largest_batch_and_more(made):
    opened = fv.open_exported(made.path)
    assert opened.metadata["input"]["largest_batch"] == LARGEST_BATCH
    images = np.random.default_rng(0).standard_normal((2 * LARGEST_BATCH + 1, 3, SIZE, SIZE), dtype=np.float32)
    together = opened.run(images)
    assert np.allclose(together[0][-1:], opened.run(images[-1:])[0], atol=1e-4)
    assert np.array_equal(together[0][:LARGEST_BATCH], opened.run(images[:LARGEST_BATCH])[0])


def test_the_lowering_may_narrow_the_batch(network, tmp_path):
    """sparse makes it ask about the number of images; with a number that is fixed there is no question."""
    model, given = network("sparse after layer3"), {"size": SIZE, "images": 2, "time": False}
    with pytest.raises(FoveateError, match="number of images of this network free .its plan has sparse.: give batch=1"):
        fv.export(model, "executorch", tmp_path, **given)
    made = fv.export(model, "executorch", tmp_path, batch=1, **given)
    assert all(check.passed for check in made.checks), made


def test_8_bit(network, folder, tmp_path):
    model = network("ulsam after layer3", classes=2)
    made = fv.export(model, "executorch", tmp_path, precision="int8", size=SIZE, data=folder, images=8, time=False)
    assert made.agreement >= 0.5
    assert made.path.stat().st_size < 0.5 * sum(p.numel() * 4 for p in model.parameters())
    assert any("calibrated on 8 images" in note for note in made.notes)


def test_an_operation_that_it_does_not_have(odd_network, tmp_path):
    with pytest.raises(FoveateError, match="ExecuTorch.*cummax.* in odd at layer2") as caught:
        fv.export(odd_network, "executorch", tmp_path / "out", size=SIZE, images=1)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def test_damaged_files(made, tmp_path):
    place = tmp_path / "net.pte"
    place.write_bytes(b"not a program")
    with pytest.raises(FoveateError, match="net.pte.json beside it cannot be read"):
        fv.open_exported(place)
    place.with_name("net.pte.json").write_bytes(made.path.with_name(made.path.name + ".json").read_bytes())
    with pytest.raises(FoveateError, match="cannot be opened by ExecuTorch"):
        fv.open_exported(place)
