import pytest
import torch
from torch import nn

from foveate import registry
from foveate.errors import FoveateError
from foveate.explanations.attention import split_map
from foveate.explanations.explain import explain
from foveate.surgery.insert import attentions, insert


@pytest.mark.parametrize("start", ["mechanism", "identity"])
@pytest.mark.parametrize("verb", ["after", "replacing"])
def test_maps_are_the_mechanisms_own(model, images, start, verb):
    site = "body"
    if verb == "replacing":
        model.body = nn.Sequential(model.body, nn.Sequential(nn.Conv2d(12, 12, 3, padding=1)))
        site = "body.1"
    insert(model, f"ulsam(groups=4) {verb} {site}", start=start)
    model.eval()
    inputs = []
    hook = attentions(model)[site].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad():
        logits = model(images)
        expected = attentions(model)[site].attend(inputs[0])
    hook.remove()

    found = explain(model, images)

    note = ", gate 0, changes nothing" if start == "identity" else ""
    assert [m.name for m in found.maps] == [f"{site} subspace {n}/4{note}" for n in (1, 2, 3, 4)]
    assert {m.module for m in found.maps} == {site}
    torch.testing.assert_close(torch.stack([m.values for m in found.maps], 1), expected)
    assert torch.equal(found.predictions, logits.argmax(1))
    torch.testing.assert_close(found.probabilities, logits.softmax(1).amax(1))
    assert found.targets is None
    assert found.channels == ()


def test_several_mechanisms(model, images):
    insert(model, "se after stem; cbam after body")
    found = explain(model, images)
    assert [(m.name, m.module) for m in found.maps] == [("body, mean over channels", "body")]
    assert [(name, weights.shape) for name, weights in found.channels] == [("stem", (3, 8)), ("body", (3, 12))]


def test_a_mechanism_without_a_map_is_passed_over(model, images):
    insert(model, "timm:eca after stem; ulsam after body")
    assert {m.module for m in explain(model, images).maps} == {"body"}


def test_only_mechanisms_without_a_map(model, images):
    insert(model, "timm:eca after stem")
    with pytest.raises(FoveateError, match="no map of its own.*gradcam"):
        explain(model, images)


def test_without_attention(model, images):
    with pytest.raises(FoveateError, match="no inserted attention.*insert.*gradcam"):
        explain(model, images)


@pytest.mark.parametrize("name", registry.names())
def test_every_registered_mechanism_can_be_shown(model, images, name):
    insert(model, f"{name} after body")
    if not hasattr(registry.find(name), "attend"):
        with pytest.raises(FoveateError, match=r"\(Identity\).*no map of its own.*gradcam"):
            explain(model, images)
        assert explain(model, images, "gradcam").maps
        return
    found = explain(model, images)
    assert found.maps or found.channels
    assert all(m.values.ndim == 3 and len(m.values) == 3 and m.values.isfinite().all() for m in found.maps)
    assert all(weights.shape == (3, 12) for _, weights in found.channels)
    assert found.draw(1).width > 100


@pytest.mark.parametrize(
    ("axes", "shape", "names", "averaged"),
    [
        ("b h w", (2, 5, 7), ["s"], ()),
        ("b g h w", (2, 3, 5, 7), ["s subspace 1/3", "s subspace 2/3", "s subspace 3/3"], ()),
        ("b g h w", (2, 1, 5, 7), ["s"], ()),
        ("b c h w", (2, 3, 5, 7), ["s, mean over channels"], (1,)),
        ("b q h w", (2, 35, 5, 7), ["s, mean over positions"], (1,)),
        ("b k q h w", (2, 2, 35, 5, 7), ["s head 1/2, mean over positions", "s head 2/2, mean over positions"], (2,)),
    ],
)
def test_split(axes, shape, names, averaged):
    values = torch.randn(shape)
    maps, channels = split_map(values, axes, "s")
    assert [m.name for m in maps] == names
    expected = values.mean(averaged) if averaged else values
    expected = expected if expected.ndim == 4 else expected[:, None]
    torch.testing.assert_close(torch.stack([m.values for m in maps], 1), expected)
    assert bool(channels) == (axes == "b c h w")


def test_split_finds_the_places_wherever_they_stand():
    values = torch.randn(2, 5, 3, 7)
    maps, _ = split_map(values, "b h g w", "s")
    torch.testing.assert_close(maps[2].values, values[:, :, 2])


def test_split_channels():
    values = torch.randn(2, 3, 6)
    assert torch.equal(split_map(values[:, 0], "b c", "s")[1][0][1], values[:, 0])
    torch.testing.assert_close(split_map(values, "b q c", "s")[1][0][1], values.mean(1))


@pytest.mark.parametrize(("axes", "shape"), [("b g h w", (2, 5, 7)), ("g b", (2, 5)), ("b n", (2, 5))])
def test_split_refuses(axes, shape):
    with pytest.raises(FoveateError, match=f"map at s .*'{axes}'"):
        split_map(torch.zeros(shape), axes, "s")
