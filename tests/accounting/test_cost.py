"""Costs derived by hand, of small networks; what may be added and subtracted; and the model, which is left alone."""

import warnings

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import flex_attention

import foveate as fv
from foveate.accounting.cost import Cost
from foveate.errors import FoveateError

SIZE = 16
HW = SIZE * SIZE


class Attention(nn.Module):
    """Self-attention over places, with torch's own product or written out."""

    def __init__(self, way, channels=8, heads=2):
        super().__init__()
        self.way, self.heads = way, heads
        self.qkv, self.out = nn.Conv2d(3, 3 * channels, 1), nn.Linear(channels, channels)

    def forward(self, x):
        q, k, v = (part.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3) for part in self.qkv(x).chunk(3, 1))
        if self.way == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.way == "einsum":
            y = torch.einsum("bhnm,bhmc->bhnc", torch.einsum("bhnc,bhmc->bhnm", q, k).softmax(-1), v)
        else:
            y = (q @ k.transpose(2, 3)).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Multihead(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.attention(x, x, x)[0]


def conv(*args, **options):
    return nn.Sequential(nn.Conv2d(*args, **options))


N = (SIZE // 4) ** 2
BY_HAND = {
    "convolution": (conv(3, 8, 3, padding=1), 3 * 8 * 9 + 8, 3 * 8 * 9 * HW, 8 * HW),
    "stride": (conv(3, 8, 3, stride=2, padding=1), 3 * 8 * 9 + 8, 3 * 8 * 9 * HW // 4, 8 * HW // 4),
    "no padding": (conv(3, 8, 3), 3 * 8 * 9 + 8, 3 * 8 * 9 * 14 * 14, 8 * 14 * 14),
    "oblong": (conv(3, 8, (1, 5), padding=(0, 2), bias=False), 3 * 8 * 5, 3 * 8 * 5 * HW, 8 * HW),
    "dilation": (conv(3, 8, 3, dilation=2, padding=2), 3 * 8 * 9 + 8, 3 * 8 * 9 * HW, 8 * HW),
    "groups": (conv(4, 8, 3, padding=1, groups=2), 2 * 8 * 9 + 8, 2 * 8 * 9 * HW, 8 * HW),
    "depthwise": (conv(6, 6, 5, padding=2, groups=6), 6 * 25 + 6, 6 * 25 * HW, 6 * HW),
    "transposed": (
        nn.Sequential(nn.ConvTranspose2d(3, 8, 2, stride=2)),
        3 * 8 * 4 + 8,
        3 * 8 * 4 * HW,
        8 * 4 * HW,
    ),
    "linear": (nn.Sequential(nn.Flatten(), nn.Linear(3 * HW, 10)), 3 * HW * 10 + 10, 3 * HW * 10, 10),
    "linear over places": (nn.Linear(SIZE, 5, bias=False), SIZE * 5, 3 * SIZE * SIZE * 5, 3 * SIZE * 5),
    "no products": (
        nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)),
        6,
        0,
        0,
    ),
    **{
        f"attention, {way}": (
            Attention(way),
            3 * 24 + 24 + 8 * 8 + 8,
            3 * 24 * HW + 2 * HW * HW * 8 + 8 * 8 * HW,
            None,  # what is written depends on the way
        )
        for way in ("sdpa", "einsum", "matmul")
    },
    "torch's multi-head attention": (
        Multihead(),
        3 * 8 * 16 + 8 + 4 * (8 * 8 + 8),
        3 * 8 * 16 * N + 4 * 8 * 8 * N + 2 * N * N * 8,
        None,
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("training", [True, False])
def test_by_hand(name, training, untouched):
    model, params, macs, activations = BY_HAND[name]
    model.train(training)
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)), 3)
    with untouched(model):
        cost = fv.cost(model, (channels, SIZE, SIZE))
    assert (cost.params, cost.macs) == (params, macs)
    assert activations in (None, cost.activations)
    assert cost.baseline is None
    assert cost.counting == "exact"


def test_a_model_that_needs_data_costs_the_same(untouched):
    class Needs(nn.Module):
        def __init__(self, needs):
            super().__init__()
            self.conv, self.fc, self.needs = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 2), needs

        def forward(self, x):
            x = self.conv(x)
            if self.needs and (x.sum() > 1e9).item():
                raise RuntimeError
            return self.fc(x.mean((2, 3)))

    one, other = (fv.cost(Needs(needs), SIZE) for needs in (False, True))
    for cost in (one, other):
        assert (cost.params, cost.macs, cost.activations) == (3 * 8 * 9 + 8 + 18, 3 * 8 * 9 * HW + 16, 8 * HW + 2)
    assert other.element_ops - one.element_ops == 8 * HW + 1  # the sum, and the comparison
    assert other.activation_bytes_training == one.activation_bytes_training
    model = Needs(True).train()
    with untouched(model):
        fv.cost(model, SIZE)


def test_a_module_that_runs_twice_costs_twice():
    layer = nn.Conv2d(3, 3, 1)
    cost = fv.cost(nn.Sequential(layer, layer), SIZE)
    assert (cost.params, cost.macs) == (12, 2 * 9 * HW)


def test_tied_parameters_count_once():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    model[1].weight = model[0].weight
    assert fv.cost(model, SIZE).params == 9 + 3 + 3


def test_the_size_of_the_image():
    model = conv(3, 8, 1)
    assert fv.cost(model, 8).macs == 24 * 64
    assert fv.cost(model, (4, 8)).macs == 24 * 32
    assert fv.cost(model, (3, 4, 4)).macs == 24 * 16
    assert fv.cost(model).macs == 24 * 224 * 224
    model.pretrained_cfg = {"input_size": (3, 10, 10)}
    assert fv.cost(model).macs == 24 * 100


def test_with_and_without_the_plan(blocks, untouched):
    alone = fv.cost(blocks, 32)
    assert alone.baseline is None
    fv.insert(blocks, "ulsam(groups=2) after stage1.0; se(reduction=4) replacing stage2.1", input_size=32)
    with untouched(blocks):
        cost = fv.cost(blocks, 32)
    assert cost.baseline == alone
    ulsam, se = (5 * 8 + 3 * 2, 2 * 8 * 16 * 16), (2 * 16 * 4 + 16 + 4, 2 * 16 * 4)
    block = (2 * 16 * 16 * 9 + 4 * 16, 2 * 16 * 16 * 9 * 8 * 8)
    plus = cost - alone
    assert plus.params == ulsam[0] + se[0] - block[0]
    assert plus.macs == ulsam[1] + se[1] - block[1]
    assert fv.cost(fv.remove(blocks), 32) == alone


def test_a_loaded_model_knows_what_it_replaced(blocks, make_blocks, tmp_path):
    fv.insert(blocks, "ulsam(groups=2) replacing stage2.1; se after stage1", input_size=32)
    again = fv.load(fv.save(blocks, tmp_path), make_blocks())
    for counting in ("exact", "paper"):
        one, other = (fv.cost(model, 32, counting=counting) for model in (blocks, again))
        assert one == other
        assert one.baseline == other.baseline


def test_the_paper_counts_a_network_that_no_paper_printed(blocks):
    plain = fv.cost(blocks, 32)
    counted = fv.cost(blocks, 32, counting="paper")
    assert (counted.params, counted.macs, counted.activations) == (plain.params, plain.macs, 0)
    fv.insert(blocks, "timm:eca after stage1.0; ulsam(groups=2) replacing stage2.1", input_size=32)
    counted = fv.cost(blocks, 32, counting="paper")
    eca = fv.attentions(blocks)["stage1.0"]
    kernel = sum(p.numel() for p in eca.parameters())
    # timm's layer has no formula of a paper here: the real module counts. The block counts its convolutions alone.
    assert counted.params == plain.params + kernel + 2 * 16 - 2 * 16 * 16 * 9
    assert counted.macs == plain.macs + kernel * 8 + 2 * 16 * 64 - 2 * 16 * 16 * 9 * 64


def test_both_countings_side_by_side(blocks):
    plain = fv.cost(blocks, 32)
    assert (plain.paper.params, plain.paper.macs, plain.paper.counting) == (plain.params, plain.macs, "paper")
    assert plain.paper.baseline is None
    fv.insert(blocks, "ulsam(groups=2) replacing stage2.1; timm:eca after stage1.0", input_size=32)
    cost, alone = fv.cost(blocks, 32), fv.cost(blocks, 32, counting="paper")
    assert alone.paper is None
    assert cost.paper == alone
    assert cost.paper.baseline == alone.baseline == cost.baseline.paper
    assert cost.paper != cost
    assert (cost - cost.baseline).paper == alone - alone.baseline
    assert (cost - Cost(1, 2, 3)).paper is None


def test_what_the_papers_print_stands_beside_the_exact():
    with torch.device("meta"):
        model = timm.create_model("mobilenetv2_100")
    found = fv.cost(model).paper
    assert (found.params, found.macs) == (3_400_000, 300_000_000)
    found = fv.cost(fv.insert(model, "ulsam(groups=4) replacing blocks.5.1, blocks.5.2")).paper
    assert (found.params, found.macs) == (2_768_960, 269_079_040)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compiled", "parallel"])
@pytest.mark.parametrize("counting", ["exact", "paper"])
def test_what_is_around_a_network_is_looked_through(blocks, wrap, counting, untouched):
    fv.insert(blocks, "ulsam(groups=2) replacing stage2.1; se after stage1.0", input_size=32)
    wrapped, plain = wrap(blocks), fv.cost(blocks, 32, counting=counting)
    with untouched(wrapped):
        cost = fv.cost(wrapped, 32, counting=counting)
    assert (cost, cost.baseline, cost.modules) == (plain, plain.baseline, plain.modules)


def test_a_network_of_torchscript_is_counted_as_a_whole():
    model = torch.export.export(conv(3, 8, 1), (torch.zeros(1, 3, 8, 8),)).module()
    assert fv.cost(model, 8).macs == 24 * 64
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated
        script = torch.jit.script(conv(3, 8, 1).eval())
    cost = fv.cost(nn.Sequential(script, nn.Conv2d(8, 2, 1)), (3, 8, 8))
    rows = {row.name: row.macs for row in cost.modules}
    assert (rows[""], rows["1"]) == (24 * 64 + 16 * 64, 16 * 64)
    assert fv.cost(script, (3, 8, 8)).macs == 24 * 64


def test_a_network_of_functions_alone():
    class Functions(nn.Module):
        def forward(self, x):
            return {"scores": F.relu(x).flatten(2) @ x.flatten(2).mT}

    cost = fv.cost(Functions(), (3, 4, 4))
    assert (cost.params, cost.macs, cost.element_ops) == (0, 3 * 16 * 3, 3 * 16)


def test_a_function_with_a_gradient_of_its_own():
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x @ w

        @staticmethod
        def backward(ctx, grad):
            x, w = ctx.saved_tensors
            return grad @ w.mT, x.mT @ grad

    class Has(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(SIZE, 5))

        def forward(self, x):
            return Product.apply(x, self.w)

    cost = fv.cost(Has(), SIZE)
    assert (cost.macs, cost.activation_bytes_training) == (3 * HW * 5, 3 * HW * 4)


def test_the_gate_costs_one_parameter_and_no_macs(blocks, make_blocks):
    one = fv.cost(fv.insert(blocks, "se after stage1.0"), 32)
    other = fv.cost(fv.insert(make_blocks(), "se after stage1.0", start="identity"), 32)
    plus = other - one
    assert (plus.params, plus.macs, plus.activations) == (1, 0, 0)
    assert plus.element_ops == 3 * 8 * 16 * 16  # x + gate * (y - x)


def test_sums_and_differences():
    one, other = Cost(10, 200, 30, element_ops=4, bytes_moved=50), Cost(1, 20, 3, element_ops=5)
    assert one - other == Cost(9, 180, 27, element_ops=-1, bytes_moved=50)
    assert one + other == Cost(11, 220, 33, element_ops=9, bytes_moved=50)
    assert (one + other) - other == one
    assert Cost(1, 2, 3, baseline=one) == Cost(1, 2, 3)  # the baseline is said beside it


def test_inference_beside_the_definition_where_they_differ(blocks):
    """At 16 x 8 x 8: k and v at each of 65 keys in training; at the token alone in inference."""
    cost = fv.cost(fv.insert(blocks, "attention_pool as pool"), 32)
    assert cost.macs - cost.macs_inference == 2 * 65 * 16**2 - 2 * 16**2
    assert f"MACs (inference runs {cost.macs_inference:,})" in str(cost)
    assert cost.baseline.macs_inference == cost.baseline.macs
    assert (cost - cost.baseline).macs_inference == cost.macs_inference - cost.baseline.macs
    assert "inference" not in str(cost.baseline)


def test_the_former_name_of_unsupported_operations():
    with pytest.deprecated_call(match="unsupported"):
        assert Cost(1, 2, 3, unsupported=("a::b",)).uncounted == ("a::b",)


def test_countings_do_not_mix():
    with pytest.raises(FoveateError, match="'exact' and 'paper' counting cannot be"):
        Cost(1, 2, 3) + Cost(1, 2, 3, "paper")
    with pytest.raises(FoveateError, match="'paper' and 'exact' counting cannot be"):
        Cost(1, 2, 3, "paper") - Cost(1, 2, 3)


def test_text(blocks):
    assert str(Cost(1234, 5_678_901, 2)) == "1,234 parameters, 5,678,901 MACs, 2 activations"
    assert str(Cost(1234, 5, 0, "paper")) == "1,234 parameters, 5 MACs, counted as the papers do"
    text = str(fv.cost(fv.insert(blocks, "se replacing stage2.1"), 32))
    assert "(the plan: -4,6" in text
    assert "+" not in text
    assert str(Cost(1, 2, 3, unsupported=("a::b", "a::c"))).endswith(
        "3 activations; unsupported operations: a::b, a::c"
    )
    assert "\n" not in text


def test_known_networks():
    with torch.device("meta"):
        resnet = timm.create_model("resnet18")
    cost = fv.cost(resnet)
    assert cost.params == 11_689_512
    assert cost.macs == 1_814_073_344


def test_a_counting_that_does_not_exist(blocks, untouched):
    with untouched(blocks), pytest.raises(FoveateError, match="counting='papre' does not exist; did you mean 'paper'"):
        fv.cost(blocks, counting="papre")


@pytest.mark.parametrize("given,said", [("resnet18", "not a str: foveate.create_model"), (None, "not a NoneType")])
def test_no_network(given, said):
    with pytest.raises(FoveateError, match=f"a network .* is expected, {said}"):
        fv.cost(given)
    with pytest.raises(FoveateError, match=f"a network .* is expected, {said}"):
        fv.dropped(given)


def test_a_lazy_layer_says_what_to_do():
    with pytest.raises(FoveateError, match="^Sequential has lazy layers without weights: run it once"):
        fv.cost(nn.Sequential(nn.LazyConv2d(4, 3)), SIZE)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_what_only_the_compiler_runs_is_said_in_plain_words():
    class Flex(nn.Module):
        def forward(self, x):
            return flex_attention.flex_attention(x, x, x)

    with pytest.raises(FoveateError, match="it calls what torch.compile alone can run, such as flex_attention"):
        fv.cost(Flex(), SIZE)


def test_a_network_that_fails_half_way_is_left_alone(untouched):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.drop, self.fc = nn.Dropout(), nn.Linear(3, 3)

        def forward(self, x):
            return self.fc(self.drop(self.bn(self.conv(x))))

    model, calls = Half().train(), []
    model.conv.eval()
    model.bn.register_forward_hook(lambda *_: calls.append(1))
    for options in ({}, {"counting": "paper"}, {"time": True}):
        with untouched(model), pytest.raises(FoveateError, match="cannot count Half on an image of 3 x 16 x 16"):
            fv.cost(model, SIZE, **options)
    assert calls == []


def test_a_size_that_does_not_fit(blocks, untouched):
    with (
        untouched(blocks),
        pytest.raises(FoveateError, match="cannot count Blocks on an image of 4 x 32 x 32") as caught,
    ):
        fv.cost(blocks, (4, 32, 32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("way", ["linear", "sum", "batched"])
def test_shapes_that_do_not_fit_are_refused_without_data_too(way):
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(7, 2)

        def forward(self, x):
            if way == "linear":
                return self.fc(x.mean((2, 3)))
            return x + x[:, :2] if way == "sum" else torch.bmm(x.flatten(2), x.flatten(2))

    with pytest.raises(FoveateError, match="cannot count Wrong on an image of 3 x 16 x 16"):
        fv.cost(Wrong(), (3, SIZE, SIZE))
