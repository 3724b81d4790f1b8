"""Vision transformers: the weights that fused attention hides, the class token's maps, and Grad-CAM on tokens."""

import pytest
import timm
import torch
from timm.models.beit import Beit
from timm.models.convit import ConVit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer as TorchvisionViT

from foveate.dense import Segmenter
from foveate.errors import FoveateError
from foveate.explanations.explain import explain
from foveate.explanations.layers import find_layer
from foveate.explanations.transformers.networks import grid_of, transformer_of
from foveate.networks.create import create_model

SMALL = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}
GRID = (4, 6)
NETWORKS = {
    "vit": lambda: VisionTransformer(**SMALL),
    "qk norm": lambda: VisionTransformer(**SMALL, qk_norm=True),
    "registers": lambda: VisionTransformer(**SMALL, reg_tokens=4),
    "distilled": lambda: VisionTransformerDistilled(**SMALL),
    "patches": lambda: VisionTransformer(**SMALL, global_pool="avg", class_token=False),
    "patches beside a class token": lambda: VisionTransformer(**SMALL, global_pool="avg"),
    "attention pool": lambda: VisionTransformer(**SMALL, global_pool="map", class_token=False),
    "attention pool, registers": lambda: VisionTransformer(**SMALL, global_pool="map", reg_tokens=2),
    "rotary": lambda: Eva(**SMALL, use_rot_pos_emb=True, global_pool="token"),
    "relative positions": lambda: Beit(**SMALL, use_rel_pos_bias=True, global_pool="token"),
    "other relative positions": lambda: VisionTransformerRelPos(**SMALL, class_token=True, global_pool="token"),
    "convit": lambda: ConVit(**{**SMALL, "img_size": 48}, local_up_to_layer=1),
}


@pytest.fixture(scope="module")
def networks():
    """By name, with weights that make attention far from uniform."""
    made = {}
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        made[name] = make()
        with torch.no_grad():
            for module in made[name].modules():
                if isinstance(module, nn.Linear):
                    module.weight.normal_(0, 0.4)
            for parameter in ("cls_token", "dist_token", "reg_token", "pos_embed"):
                if isinstance(getattr(made[name], parameter, None), nn.Parameter):
                    getattr(made[name], parameter).normal_()
    return made


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(3))


def weights_without_fused_attention(model, images):
    """What timm's own code computes where it does not call fused attention: {block: (B, heads, N, N)}."""
    kept, handles = {}, []
    fused = [module for module in model.modules() if hasattr(module, "fused_attn")]
    before = [module.fused_attn for module in fused]
    for module in fused:
        module.fused_attn = False
    for number, block in enumerate(model.blocks):
        keep = lambda _, inputs, number=number: kept.update({number: inputs[0]})  # noqa: E731 - one line says it
        handles.append(block.attn.attn_drop.register_forward_pre_hook(keep))
    with torch.no_grad():
        model.eval()(images)
    for handle in handles:
        handle.remove()
    for module, was in zip(fused, before, strict=True):
        module.fused_attn = was
    return kept


@pytest.mark.parametrize(
    "name", ["vit", "qk norm", "registers", "rotary", "relative positions", "other relative positions"]
)
@pytest.mark.parametrize("fused", [True, False])
def test_the_class_tokens_weights_are_those_of_the_path_that_is_not_fused(networks, images, name, fused):
    model = networks[name]
    expected = weights_without_fused_attention(model, images)
    for block in model.blocks:
        assert block.attn.fused_attn  # else the test would compare a path with itself
        block.attn.fused_attn = fused
    prefix = model.num_prefix_tokens
    for layer in (1, 2):
        found = explain(model, images, layer=f"blocks.{layer}").maps
        assert [one.name for one in found] == [f"blocks.{layer}.attn class token head {n}/3" for n in (1, 2, 3)]
        for head, one in enumerate(found):
            assert one.values.shape == (2, *GRID)
            torch.testing.assert_close(
                one.values.flatten(1), expected[layer][:, head, 0, prefix:], rtol=1e-5, atol=1e-7
            )
            assert float(one.values.std()) > 0.01 / 24
    for block in model.blocks:
        block.attn.fused_attn = True


def test_the_weights_give_what_the_attention_gives(networks, images):
    """Not the formula again: the class token's weights times the values are what the network goes on with."""
    model, kept = networks["registers"].eval(), {}
    attention = model.blocks[2].attn
    hooks = [
        attention.qkv.register_forward_hook(lambda _, __, out: kept.update(qkv=out)),
        attention.proj.register_forward_pre_hook(lambda _, inputs: kept.update(mixed=inputs[0])),
    ]
    maps = torch.stack([one.values for one in explain(model, images).maps], 1).flatten(2)  # (B, heads, patches)
    for hook in hooks:
        hook.remove()
    query, key, value = kept["qkv"].unflatten(2, (3, 3, 8)).permute(2, 0, 3, 1, 4).detach()
    rest = (query[:, :, 0] * 8**-0.5)[:, :, None] @ key.transpose(-2, -1)
    others = rest.softmax(-1)[:, :, 0, :5]  # the class token itself and four registers
    every = torch.cat([others, maps], 2)
    torch.testing.assert_close(every.sum(2), torch.ones(2, 3))
    mixed = torch.einsum("bhn,bhnd->bhd", every, value).flatten(1)
    torch.testing.assert_close(mixed, kept["mixed"][:, 0].detach(), rtol=1e-4, atol=1e-5)


def test_a_distilled_network_has_two_readers(networks, images):
    model = networks["distilled"]
    expected = weights_without_fused_attention(model, images)[2]
    found = explain(model, images, head="mean")
    assert [one.name for one in found.maps] == [
        "blocks.2.attn class token mean of heads",
        "blocks.2.attn distillation token mean of heads",
    ]
    for place, one in enumerate(found.maps):
        torch.testing.assert_close(one.values.flatten(1), expected[:, :, place, 2:].mean(1))
    assert not torch.equal(found.maps[0].values, found.maps[1].values)


@pytest.mark.parametrize("name", ["patches", "patches beside a class token"])
def test_where_the_classifier_reads_the_patches_their_mean_is_shown_and_said(networks, images, name):
    model = networks[name]
    expected = weights_without_fused_attention(model, images)[2]
    prefix = model.num_prefix_tokens
    found = explain(model, images, head=2)
    assert [one.name for one in found.maps] == ["blocks.2.attn head 2/3, mean over patches"]
    torch.testing.assert_close(found.maps[0].values.flatten(1), expected[:, 1, prefix:, prefix:].mean(1))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["attention pool", "attention pool, registers"])
def test_an_attention_pool_shows_its_own_query(networks, images, name, fused):
    model = networks[name].eval()
    pool, kept = model.attn_pool, {}
    hook = pool.register_forward_pre_hook(lambda _, inputs: kept.update(x=inputs[0]))
    pool.fused_attn = fused
    found = explain(model, images)
    pool.fused_attn = True
    hook.remove()
    query = pool.q(pool.latent).unflatten(2, (3, 8)).transpose(1, 2)
    key = pool.kv(kept["x"]).unflatten(2, (2, 3, 8))[:, :, 0].transpose(1, 2)
    expected = (query @ key.transpose(-2, -1) * 8**-0.5).softmax(-1)[:, :, 0].detach()
    assert [one.name for one in found.maps] == [f"attn_pool head {n}/3" for n in (1, 2, 3)]
    for head, one in enumerate(found.maps):
        torch.testing.assert_close(one.values.flatten(1), expected[:, head, -24:])
    rolled = explain(model, images, rollout=True).maps
    assert [one.name for one in rolled] == ["rollout to attn_pool"]
    blocks = product(weights_without_fused_attention(model, images))
    own = expected.mean(1)
    torch.testing.assert_close(
        rolled[0].values.flatten(1), (own[:, None] @ blocks[:, -own.shape[1] :])[:, 0, -24:], rtol=1e-4, atol=1e-6
    )


def product(weights):
    """Abnar and Zuidema, from the first block to the last."""
    total = torch.eye(weights[0].shape[-1])
    for number in sorted(weights):
        total = (0.5 * weights[number].mean(1) + 0.5 * torch.eye(weights[0].shape[-1])) @ total
    return total


def test_rollout(networks, images):
    model = networks["vit"]
    weights = weights_without_fused_attention(model, images)
    found = explain(model, images, rollout=True)
    assert [one.name for one in found.maps] == ["rollout to blocks.2.attn class token"]
    torch.testing.assert_close(found.maps[0].values.flatten(1), product(weights)[:, 0, 1:], rtol=1e-5, atol=1e-7)
    first = explain(model, images, rollout=True, layer="blocks.0.attn").maps[0].values.flatten(1)
    torch.testing.assert_close(first, 0.5 * weights[0].mean(1)[:, 0, 1:], rtol=1e-5, atol=1e-7)
    mean = explain(networks["patches"], images, rollout=True).maps[0]
    assert mean.name == "rollout to blocks.2.attn, mean over patches"
    torch.testing.assert_close(mean.values.sum((1, 2)), torch.ones(2))  # there are no other tokens


def test_convit_computes_its_weights_itself_and_has_a_class_token_from_its_second_block_on(networks):
    model, images = networks["convit"], torch.randn(1, 3, 48, 48)
    expected = {}
    hook = model.blocks[2].attn.attn_drop.register_forward_pre_hook(lambda _, inputs: expected.update(w=inputs[0]))
    found = explain(model, images, head=1)
    hook.remove()
    torch.testing.assert_close(found.maps[0].values.flatten(1), expected["w"][:, 0, 0, 1:].detach())
    with pytest.raises(FoveateError, match=r"'blocks.0.attn' is not over all patches of an image|not one map"):
        explain(model, images, rollout=True)


def test_torchvisions_vit(images):
    torch.manual_seed(0)
    model = TorchvisionViT(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight)
    images, kept = images[:, :, :, :32], {}
    attention = model.encoder.layers[1].self_attention
    with torch.no_grad():
        expected_logits = model(images)
        hook = attention.register_forward_pre_hook(lambda _, inputs: kept.update(x=inputs[0]))
        model(images)
        hook.remove()
        _, expected = attention(kept["x"], kept["x"], kept["x"], average_attn_weights=False)
    found = explain(model, images)
    name = "encoder.layers.encoder_layer_1.self_attention"
    assert [one.name for one in found.maps] == [f"{name} class token head {n}/2" for n in (1, 2)]
    for head, one in enumerate(found.maps):
        torch.testing.assert_close(one.values.flatten(1), expected[:, head, 0, 1:])
    torch.testing.assert_close(found.scores, expected_logits.softmax(1))
    assert explain(model, images, "gradcam").maps[0].name == "Grad-CAM encoder.layers.encoder_layer_1.ln_1"


@pytest.mark.parametrize(("options", "message"), [
    ({"layer": "blocks.7"}, "no block with attention is called 'blocks.7'; did you mean 'blocks.2'"),
    ({"layer": "head"}, "no block with attention is called 'head'"),
    ({"head": 4}, r"head=4: 'blocks.2.attn' has 3 heads, counted from 1"),
    ({"head": 0}, r"head=0: give the number of a head, counted from 1, or 'mean'"),
    ({"head": "last"}, r"head='last': give the number of a head, counted from 1, or 'mean'"),
    ({"head": 1, "rollout": True}, "head= and rollout= do not go together"),
    ({"method": "gradcam", "head": 1}, "head= is for the attention of a vision transformer"),
    ({"method": "gradcam", "rollout": True}, "rollout= is for the attention of a vision transformer"),
    ({"target": 1}, "target= does not change a module's own map"),
])  # fmt: skip
def test_what_cannot_be_shown_is_one_line(networks, images, options, message):
    with pytest.raises(FoveateError, match=message) as caught:
        explain(networks["vit"], images, **options)
    assert "\n" not in str(caught.value)


def test_options_of_transformers_are_refused_elsewhere(model):
    for option in ({"head": 1}, {"rollout": True}):
        with pytest.raises(FoveateError, match=f"{next(iter(option))}= is for the attention of a vision transformer"):
            explain(model, torch.zeros(1, 3, 32, 32), **option)


@pytest.mark.parametrize(("name", "message"), [
    ("swin_tiny_patch4_window7_224", "SwinTransformer attends inside windows of the image"),
    ("cait_xxs24_224", "is not over all patches of an image"),
    ("xcit_nano_12_p16_224", "is not over all patches of an image"),
])  # fmt: skip
def test_other_kinds_of_attention_are_refused_in_one_line(name, message):
    options = {"depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2), "embed_dim": 24} if "swin" in name else {"depth": 2}
    model = timm.create_model(name, num_classes=3, **options)
    with pytest.raises(FoveateError, match=f"{message}.*use method='gradcam'") as caught:
        explain(model, torch.zeros(1, 3, 224, 224))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vit", "registers", "patches", "rotary"])
def test_grad_cam_looks_at_the_tokens_that_enter_the_last_attention(networks, images, name):
    model = networks[name].eval()
    assert find_layer(model, images).name == "blocks.2.norm1"
    kept = {}

    def keep(_, __, output):
        kept["tokens"] = output.detach().requires_grad_()
        return kept["tokens"]

    hook = model.blocks[2].norm1.register_forward_hook(keep)
    score = model(images)[:, 3].sum()
    hook.remove()
    (gradient,) = torch.autograd.grad(score, kept["tokens"])
    prefix = model.num_prefix_tokens
    tokens, gradient = kept["tokens"].detach()[:, prefix:], gradient[:, prefix:]
    expected = F.relu((tokens * gradient.mean(1, keepdim=True)).sum(2)).unflatten(1, GRID)
    found = explain(model, images, "gradcam", target=3)
    assert [one.name for one in found.maps] == ["Grad-CAM blocks.2.norm1"]
    assert float(expected.max()) > 0
    torch.testing.assert_close(found.maps[0].values, expected, rtol=1e-4, atol=1e-7)


def test_the_patches_of_the_last_block_have_no_part_in_the_class_tokens_logit(networks, images):
    """Why the layer before it is looked at."""
    found = explain(networks["vit"], images, "hirescam", layer="blocks.2", target=1)
    assert float(found.maps[0].values.abs().max()) == 0
    inner = explain(networks["vit"], images, "hirescam", layer="blocks.1", target=1).maps[0].values
    assert inner.shape == (2, *GRID)
    assert float(inner.abs().max()) > 0
    embedded = explain(networks["vit"], images, "gradcam", layer="patch_embed").maps[0].values  # no class token yet
    assert embedded.shape == (2, *GRID)


def test_where_the_norm_stands_behind_the_attention_the_block_before_is_looked_at(images):
    model = VisionTransformer(**SMALL, block_fn=ResPostBlock)
    assert find_layer(model, images).name == "blocks.1"
    assert explain(model, images, "gradcam").maps[0].values.shape == (2, *GRID)


def test_a_segmentation_network_on_a_vision_transformer():
    torch.manual_seed(0)
    trunk = timm.create_model(
        "vit_tiny_patch16_224", features_only=True, img_size=64, embed_dim=24, num_heads=3, depth=4,
        out_indices=(0, 1, 2, 3),
    )  # fmt: skip
    model = Segmenter(trunk, "upernet(width=8, aux_width=8)", classes=3).eval()
    found = explain(model, torch.randn(1, 3, 64, 64), "gradcam", region="image")
    assert [one.module for one in found.maps] == ["backbone.model.blocks.3.norm1"]
    own = explain(model, torch.randn(1, 3, 64, 64), head="mean")
    assert [one.name for one in own.maps] == ["backbone.model.blocks.3.attn mean of heads, mean over patches"]
    assert own.maps[0].values.shape == (1, 4, 4)


def test_nothing_of_the_model_changes(networks, images, untouched):
    model = networks["distilled"].train()
    check = untouched(model)
    explain(model, images)
    explain(model, images, rollout=True)
    explain(model, images, "gradcam++")
    with pytest.raises(FoveateError):
        explain(model, images, head=9)
    check()


def test_an_inserted_module_stands_before_the_class_tokens_maps(images):
    from foveate.surgery.insert import insert

    model = create_model("vit_small_r26_s32_224", num_classes=3, img_size=64, embed_dim=24, num_heads=3, depth=2)
    insert(model, "ulsam after patch_embed.backbone.stages.2", input_size=64)
    found = explain(model, torch.randn(1, 3, 64, 64))
    assert [one.module for one in found.maps] == ["patch_embed.backbone.stages.2"] * 4 + ["blocks.1.attn"] * 3
    assert [one.module for one in explain(model, torch.randn(1, 3, 64, 64), head=1).maps] == ["blocks.1.attn"]


@pytest.mark.parametrize(("count", "size", "grid"), [
    (196, (224, 224), (14, 14)), (195, (224, 224), None), (24, (32, 48), (4, 6)), (24, (48, 32), (6, 4)),
    (0, (32, 32), None), (1, (8, 8), (1, 1)), (20, (64, 80), (4, 5)), (20, (60, 80), (4, 5)),
])  # fmt: skip
def test_the_grid_of_patches(count, size, grid):
    assert grid_of(count, *size) == grid


def test_what_is_no_vision_transformer_is_none(model):
    assert transformer_of(model) is None
    assert transformer_of(timm.create_model("resnet10t")) is None
