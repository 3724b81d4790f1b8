"""Attention pooling against its equations, written out token by token and head by head."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from foveate import registry
from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.errors import FoveateError
from foveate.kernels import as_built
from foveate.kernels.dispatch import use_fused
from foveate.pooling.attention_pool import AttentionPool

PAGE = Path(__file__).parents[2] / "docs" / "pooling" / "attention_pool.md"


def layer_norm(norm, rows):
    centred = rows - rows.sum(-1, keepdim=True) / rows.shape[-1]
    variance = (centred**2).sum(-1, keepdim=True) / rows.shape[-1]
    return centred / torch.sqrt(variance + 1e-6) * norm.weight + norm.bias


def linear(layer, rows):
    return torch.einsum("...i,oi->...o", rows, layer.weight) + layer.bias


def gelu(z):
    return z * (1 + torch.erf(z / 2**0.5)) / 2


def tokens_of(m):
    return [m.token] if m.classes is None else list(m.token)


def weights_of(m, token, rows):
    """Softmax of one token's scores, a tensor (keys,) for each head, and the keys it is over."""
    seen = rows if m.classes is not None else torch.cat([token[None], rows])
    u, asks = layer_norm(m.norm1, seen), linear(m.query, layer_norm(m.norm1, token))
    width, found = len(token) // m.heads, []
    for head in range(m.heads):
        of_head = slice(head * width, (head + 1) * width)
        scores = torch.exp(linear(m.key, u)[:, of_head] @ asks[of_head] / width**0.5)
        found.append(scores / scores.sum())
    return found, u


def equations(m, x):
    images = []
    for image in x:
        rows, out = image.flatten(1).T, []
        for token in tokens_of(m):
            weights, u = weights_of(m, token, rows)
            width = len(token) // m.heads
            answers = [w @ linear(m.value, u)[:, n * width : (n + 1) * width] for n, w in enumerate(weights)]
            t = token + m.gamma_1 * linear(m.proj, torch.cat(answers))
            t = t + m.gamma_2 * linear(m.fc2, gelu(linear(m.fc1, layer_norm(m.norm2, t))))
            out.append(t if isinstance(m.norm, torch.nn.Identity) else layer_norm(m.norm, t))
        images.append(out[0] if m.classes is None else torch.stack(out))
    return torch.stack(images)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("classes", [None, 1, 5])
def test_equals_the_equations(agree, randomise, classes, heads, norm):
    module = randomise(AttentionPool(16, classes=classes, heads=heads, norm=norm, mlp_ratio=1.5))
    x = torch.randn(2, 16, 7, 11)
    agree(module, equations, x)
    attention = module.attend(x.double())
    for number, image in enumerate(x.double()):
        for n, token in enumerate(tokens_of(module)):
            expected = torch.stack(weights_of(module, token, image.flatten(1).T)[0])
            if classes is None:
                expected, found = expected[:, 1:], attention[number]
            else:
                found = attention[number, n]
            torch.testing.assert_close(found.reshape(heads, 77), expected)


def test_the_maps_of_classes_sum_to_1_and_the_map_of_one_token_to_less(randomise):
    x = torch.randn(3, 16, 7, 11, dtype=torch.float64)
    for heads in (1, 2):
        sums = randomise(AttentionPool(16, classes=4, heads=heads)).attend(x).sum((-2, -1))
        torch.testing.assert_close(sums, torch.ones_like(sums))
        assert (randomise(AttentionPool(16, heads=heads)).attend(x).sum((-2, -1)) < 1).all()


@pytest.mark.parametrize("classes", [None, 4])
def test_without_layer_scale_the_output_is_the_token(classes):
    module, x = AttentionPool(16, classes=classes, init_values=0.0, norm=False), torch.randn(3, 16, 7, 11)
    assert torch.equal(module(x), module.token.expand(3, *module.token.shape))


def test_a_class_depends_on_its_own_token_alone(randomise):
    module, x = randomise(AttentionPool(16, classes=5)), torch.randn(2, 16, 6, 5, dtype=torch.float64)
    before = module(x)
    with torch.no_grad():
        module.token[2] += torch.randn(16)  # a number added to all channels would be lost in the norms
    changed = (module(x) - before).abs().amax((0, 2)) > 1e-9
    assert changed.tolist() == [False, False, True, False, False]


def test_one_token_is_among_its_own_keys_and_a_token_per_class_is_not(randomise):
    # Where all patches look like the token after the norm, each of the N + 1 keys gets the same weight.
    one, each = randomise(AttentionPool(16)), randomise(AttentionPool(16, classes=1))
    each.load_state_dict(one.state_dict() | {"token": one.token[None]})
    x = one.token.detach()[None, :, None, None].expand(2, 16, 3, 4)
    torch.testing.assert_close(one.attend(x), torch.full((2, 1, 3, 4), 1 / 13, dtype=torch.float64))
    torch.testing.assert_close(each.attend(x), torch.full((2, 1, 3, 4), 1 / 12, dtype=torch.float64))
    torch.testing.assert_close(one(x), each(x)[:, 0])


def test_a_key_bias_changes_nothing(randomise):
    module, x = randomise(AttentionPool(16, heads=2)), torch.randn(2, 16, 6, 5, dtype=torch.float64)
    before = module(x)
    with torch.no_grad():
        module.key.bias += 1
    torch.testing.assert_close(module(x), before)


def test_start_is_the_authors():
    torch.manual_seed(0)
    module = AttentionPool(256, classes=50)
    for key, parameter in module.named_parameters():
        if "gamma" in key:
            assert torch.equal(parameter, torch.full_like(parameter, 1e-4))
        elif key == "token" or parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.03), key
        else:
            assert torch.equal(parameter, torch.full_like(parameter, float("norm" in key and "weight" in key))), key


@pytest.mark.parametrize("channels,height,width", [(512, 14, 14), (512, 7, 11), (48, 1, 1)])
@pytest.mark.parametrize("classes", [None, 10])
@pytest.mark.parametrize("norm", [True, False])
def test_cost_is_the_formula_of_the_page(channels, height, width, classes, norm):
    c, n, t = channels, height * width, classes or 1
    with torch.device("meta"):
        module = AttentionPool(channels, classes=classes, norm=norm).eval()
    assert sum(p.numel() for p in module.parameters()) == 10 * c**2 + 14 * c + t * c + 2 * c * norm
    macs = 8 * t * c**2 + 2 * (c**2 + t * c) * (n + (classes is None))
    assert count_operations(module, (c, height, width))[""].macs == macs


@pytest.mark.parametrize(
    "channels,side,options,params,macs",
    [
        (512, 14, {"heads": 8}, 2_630_144, 105_583_616),
        (512, 14, {"norm": False}, 2_629_120, 105_583_616),
        (512, 14, {"classes": 1000}, 3_141_632, 2_400_616_448),
        (2048, 7, {}, 41_977_856, 453_189_632),
        # What is left of PatchConvNet-S60's published totals without its stem, blocks, last norm and classifier.
        (384, 14, {"norm": False}, 1_480_320, 59_428_608),
        (384, 14, {"norm": False, "classes": 1000}, 1_863_936, 1_387_978_752),
    ],
)
def test_costs_by_number(channels, side, options, params, macs):
    with torch.device("meta"):
        module = AttentionPool(channels, **options).eval()
    assert sum(p.numel() for p in module.parameters()) == params
    assert count_operations(module, (channels, side, side))[""].macs == macs
    page = PAGE.read_text(encoding="utf-8")
    assert all(re.search(rf"(?<![\d,]){figure:,}(?![\d,])", page) for figure in (params, macs))


@pytest.mark.parametrize(
    "spec,message",
    [
        ("attention_pool(heads=3)", "heads=3. does not fit 16 channels: it divides them, as 1, 2, 4, 8, 16"),
        ("attention_pool(heads=0)", "heads=0. does not fit 16 channels"),
        ("attention_pool(classes=0)", "classes=0.: at least 1; without a value there is one token"),
        ("attention_pool(classes=2.5)", "cannot be built for 16 channels"),
        ("attention_pool(mlp_ratio=0.01)", "no hidden layer; the paper takes 3"),
        ("attention_pool(head=2)", "has no option 'head'; did you mean 'heads'"),
    ],
)
def test_errors_are_one_line(spec, message):
    with pytest.raises(FoveateError, match=message) as error:
        registry.build(spec, 16, kind="pooling")
    assert "\n" not in str(error.value)


@pytest.fixture
def macs_of(monkeypatch):
    """Counts what runs. Torch's counter follows modules by hooks on all of them, which ask for the definition."""
    monkeypatch.setattr(as_built, "_global_hooks", ())
    return _macs_of


def _macs_of(module, x):
    with FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("classes", [None, 1, 5])
def test_without_gradients_the_positions_are_attended_before_k_and_v_are_made(randomise, macs_of, classes, heads):
    module = randomise(AttentionPool(16, classes=classes, heads=heads)).double()
    x = torch.randn(3, 16, 7, 11, dtype=torch.float64)
    definition, counted = module(x).detach(), macs_of(module, x)
    with torch.no_grad():
        assert (module(x) - definition).abs().max() <= 1e-12
        assert macs_of(module, x) < counted
        with use_fused(False):
            assert macs_of(module, x) == counted
        assert torch.equal(module(x[:0]), definition[:0])
        single = module.float()(x.float())
    assert (single - definition).norm() <= 1e-5 * definition.norm()


def test_where_it_saves_nothing_k_and_v_are_made_first(randomise, macs_of):
    module, x = randomise(AttentionPool(16, classes=60)).double(), torch.randn(2, 16, 7, 7, dtype=torch.float64)
    counted = macs_of(module, x)
    with torch.no_grad():
        assert macs_of(module, x) == counted


@pytest.mark.parametrize("name", ["key", "value"])
def test_a_hook_on_k_or_v_sees_every_place(randomise, name):
    module, x, seen = randomise(AttentionPool(16)).double(), torch.randn(2, 16, 3, 4, dtype=torch.float64), []
    getattr(module, name).register_forward_hook(lambda _module, _args, out: seen.append(out.shape))
    with torch.no_grad():
        module(x)
    assert seen == [(2, 13, 16)]
