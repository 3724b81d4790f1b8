"""Sites of many networks: they exist, have the shapes of a real pass, and each takes attention and gives it back."""

import pytest
import timm
import torch
from torchvision import models

import foveate as fv
from foveate.surgery.apply import hook_target

SIDE = 128
IMAGE = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
TIMM = [
    "vgg11",
    "densenet121",
    "regnety_002",
    "convnext_atto",
    "mobilenetv3_small_050",
    "ghostnet_050",
    "hrnet_w18_small",
    "inception_v3",
    "efficientvit_b0",
    "repvgg_a0",
    "resnet18",
]
TORCHVISION = ["shufflenet_v2_x0_5", "squeezenet1_1"]
SOME = {  # what a person would look for first, and how many places there are
    "vgg11": ({"features.0", "features.20"}, 21),
    "densenet121": ({"features.denseblock2", "features.transition1"}, 65),
    "regnety_002": ({"s3", "s4.b7"}, 16),
    "convnext_atto": ({"stages.2", "stages.2.blocks.5"}, 16),
    "mobilenetv3_small_050": ({"blocks.3", "blocks.4.2"}, 17),
    "ghostnet_050": ({"blocks.6.4", "blocks.8"}, 26),
    "hrnet_w18_small": ({"layer1", "stage4.0.branches.3.1"}, 42),
    "inception_v3": ({"Mixed_5b", "Mixed_7c"}, 16),
    "efficientvit_b0": ({"stages.1", "stages.2.blocks.1"}, 17),
    "repvgg_a0": ({"stages.1", "stages.2.13"}, 26),
    "resnet18": ({"layer3", "layer4.1"}, 12),
    "shufflenet_v2_x0_5": ({"stage3", "stage4.3"}, 19),
    "squeezenet1_1": ({"features.3", "features.12"}, 9),
}


def build(name):
    """The network with weights drawn here, at once: its own way of drawing takes most of a test's time."""
    # A RegNet computes its widths with an operation that torch 2.9 lacks without data.
    with torch.device("cpu" if "regnet" in name else "meta"):
        if name in TORCHVISION:
            model = models.get_model(name, weights=None)
        else:
            model = timm.create_model(name, **({"mlp_ratio": 1 / 64} if name == "vgg11" else {}))
    model = model.to_empty(device="cpu").eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5)
            else:
                parameter.fill_(1.0 if key.endswith("weight") or "gamma" in key else 0.01)
        for key, buffer in model.named_buffers():
            buffer.fill_(1 if key.endswith("running_var") else 0)
    return model


@pytest.fixture(scope="module", params=[*TIMM, *TORCHVISION])
def network(request):
    model = build(request.param)
    return request.param, model, fv.sites(model, SIDE)


def shapes(model, x):
    seen = {}
    handles = [
        module.register_forward_hook(lambda m, args, out, name=name: seen.setdefault(name, []).append((args, out)))
        for name, module in model.named_modules()
    ]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return seen


def test_sites(network):
    name, model, found = network
    names = [site.name for site in found]
    expected, count = SOME[name]
    assert expected <= set(names)
    assert len(found) == count
    assert len(set(names)) == len(names)
    order = [key for key, _ in model.named_modules()]
    assert sorted(names, key=order.index) == names
    seen = shapes(model, torch.zeros(1, 3, SIDE, SIDE))
    for site in found:
        ((args, output),) = seen[site.name]
        assert output.shape == (1, site.channels, site.height, site.width), site
        kept = len(args) == 1 and isinstance(args[0], torch.Tensor) and args[0].shape == output.shape
        assert site.replaceable == kept, site
        assert site.kind in ("stage", "block", "branch", "layer")


def test_attention_at_every_place_and_back(network, untouched):
    _, model, listed = network
    places = {hook_target(model, site.name): site.name for site in listed}
    before = list(model.state_dict())
    with untouched(model):
        torch_state = torch.get_rng_state()
        with torch.no_grad():
            expected = model(IMAGE)
        fv.insert(model, f"se after {', '.join(places.values())}", start="identity", input_size=SIDE)
        assert len(fv.attentions(model)) == len(places) > 5
        assert [key for key in model.state_dict() if "foveate" not in key] == before
        assert fv.sites(model, SIDE) == listed
        with torch.no_grad():
            assert torch.equal(model(IMAGE), expected)
        assert torch.equal(torch.get_rng_state(), torch_state)
        fv.remove(model)


def test_blocks_can_be_replaced(network, untouched):
    name, model, listed = network
    blocks = [site.name for site in listed if site.replaceable and site.kind not in ("stage", "branch")]
    assert bool(blocks) == (name != "densenet121")  # there every layer adds channels
    if name in ("resnet18", "ghostnet_050", "hrnet_w18_small", "shufflenet_v2_x0_5", "vgg11"):  # an insert each
        with untouched(model):
            fv.insert(model, f"se replacing {', '.join(blocks)}", input_size=SIDE)
            with torch.no_grad():
                assert model(IMAGE).isfinite().all()
            fv.remove(model)


def test_the_convolutions_inside_the_patch_embedding_of_a_hybrid():
    with torch.device("meta"):
        model = timm.create_model("vit_small_r26_s32_224")
    names = [site.name for site in fv.sites(model)]
    assert {"patch_embed.backbone.stages.2", "patch_embed.backbone.stages.3.blocks.1"} <= set(names)
    assert not any(name.startswith("blocks") for name in names)  # they give tokens
