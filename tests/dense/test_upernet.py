"""UperNet's head: its equations, its size, the pyramid of a column."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import foveate as fv
from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.dense import FCNHead, UPerHead
from foveate.dense.upernet import UperNetDecoder
from foveate.errors import FoveateError
from foveate.training.tasks.segmentation_loss import SegmentationObjective

# C of a column, parameters of the pyramid, of UPerHead and of FCNHead, MACs of the pyramid and UPerHead at 512 x 2048
COLUMNS = [
    (384, 1_771_392, 29_187_222, 923_798, 869_338_054_656),
    (768, 7_081_728, 32_332_950, 1_808_534, 931_557_801_984),
    (1024, 12_588_032, 34_430_102, 2_398_358, 989_143_760_896),
]


class OnOneMap(nn.Module):
    """The decoder as a column calls it."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, x):
        return self.decoder([x] * 4)["out"]


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("channels, pyramid, head, aux, macs", COLUMNS)
def test_size_on_a_column(channels, pyramid, head, aux, macs):
    with torch.device("meta"):
        decoder = UperNetDecoder([channels] * 4, [16] * 4, 150).eval()
    assert parameters(decoder.pyramid) == pyramid
    assert parameters(decoder.decode_head) == head
    assert parameters(decoder.auxiliary_head) == aux
    assert count_operations(OnOneMap(decoder), (channels, 32, 128))[""].macs == macs


def test_size_on_resnet_50():
    with torch.device("meta"):
        head, aux = UPerHead([256, 512, 1024, 2048], 150), FCNHead(1024, 150)
    assert parameters(head) == 40_590_486
    assert parameters(aux) == 2_398_358


def test_without_auxiliary_head_and_with_norms():
    maps = [torch.randn(2, c, side, side) for c, side in ((4, 16), (6, 8), (8, 4), (10, 2))]
    decoder = UperNetDecoder((4, 6, 8, 10), (4, 8, 16, 32), 3, width=8, aux_width=0, map_norm=True)
    assert decoder.loss_weights == {"out": 1.0}
    assert set(decoder(maps)) == {"out"}
    decoder.eval()
    normed = [F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=1e-6).permute(0, 3, 1, 2) for x in maps]
    torch.testing.assert_close(decoder(maps)["out"], decoder.decode_head(normed))
    assert UperNetDecoder.loss_weights == {"out": 1.0, "aux": 0.4}
    segmenter = fv.create_segmenter("test_resnet", "upernet(width=8, aux_width=0)", classes=("a", "b"))
    labels, scores = torch.zeros(2, 32, 32, dtype=torch.int64), segmenter(torch.randn(2, 3, 32, 32))
    assert SegmentationObjective(segmenter, fv.Recipe()).loss(scores, labels) > 0


def conv(layers, x):
    kernel = layers.conv.weight
    y = F.conv2d(x, kernel, None, padding=kernel.shape[-1] // 2)
    scale = layers.bn.weight / (layers.bn.running_var + layers.bn.eps).sqrt()
    y = (y - layers.bn.running_mean[:, None, None]) * scale[:, None, None] + layers.bn.bias[:, None, None]
    return y.clamp(min=0)


def up(x, like):
    """Bilinear: the pixel at i + 1/2 of n lies at (i + 1/2) m / n among m, clamped to the outermost centres."""
    for axis in (2, 3):
        m, n = x.shape[axis], like.shape[axis]
        at = ((torch.arange(n, dtype=x.dtype) + 0.5) * m / n - 0.5).clamp(0, m - 1)
        low = at.floor().long()
        high = (low + 1).clamp(max=m - 1)
        part = (at - low).view([-1 if a == axis else 1 for a in range(4)])
        x = x.index_select(axis, low) * (1 - part) + x.index_select(axis, high) * part
    return x


def equations(head, maps):
    x1, x2, x3, x4 = maps
    pooled = [F.adaptive_avg_pool2d(x4, side) for side in (1, 2, 3, 6)]
    pooled = [up(conv(layers[1], p), x4) for layers, p in zip(head.psp_modules, pooled, strict=True)]
    t4 = conv(head.bottleneck, torch.cat([x4, *pooled], 1))
    t3 = conv(head.lateral_convs[2], x3)
    t3 = t3 + up(t4, t3)
    t2 = conv(head.lateral_convs[1], x2)
    t2 = t2 + up(t3, t2)
    t1 = conv(head.lateral_convs[0], x1)
    t1 = t1 + up(t2, t1)
    fine = [conv(layers, t) for layers, t in zip(head.fpn_convs, (t1, t2, t3), strict=True)]
    joined = torch.cat([fine[0], up(fine[1], t1), up(fine[2], t1), up(t4, t1)], 1)
    return F.conv2d(conv(head.fpn_bottleneck, joined), head.conv_seg.weight, head.conv_seg.bias)


def test_equations(randomise, agree):
    head = randomise(UPerHead([4, 5, 6, 7], 3, width=8))
    sizes = [(4, 25, 33), (5, 13, 17), (6, 7, 9), (7, 4, 5)]
    maps = [torch.randn(2, *size, dtype=torch.float64, requires_grad=True) for size in sizes]
    agree(head, maps, head(maps), equations(head, maps))


def test_equations_of_the_auxiliary_head(randomise, agree):
    head = randomise(FCNHead(5, 3, width=8))
    x = torch.randn(2, 5, 6, 9, dtype=torch.float64, requires_grad=True)
    agree(head, [x], head(x), F.conv2d(conv(head.convs[0], x), head.conv_seg.weight, head.conv_seg.bias))


def test_pyramid_of_a_column(randomise):
    decoder = randomise(UperNetDecoder([6] * 4, [16] * 4, 3, width=4))
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    fine, finer, same, coarse = (rescale(x) for rescale in decoder.pyramid)
    assert torch.equal(same, x)
    # A transposed convolution of 2 x 2 at stride 2 turns each place into four, each by a matrix of its own.
    blow_up = lambda layer, y: F.pixel_shuffle(  # noqa: E731
        torch.einsum("bihw,ioyx->boyxhw", y, layer.weight).flatten(1, 3)
        + layer.bias.repeat_interleave(4)[:, None, None],
        2,
    )
    once = blow_up(decoder.pyramid[1][0], x)
    assert torch.allclose(finer, once)
    deconvolve, norm, _, again = decoder.pyramid[0]
    y = norm(blow_up(deconvolve, x))
    assert torch.allclose(fine, blow_up(again, F.gelu(y)))
    assert fine.shape == (2, 6, 20, 28)
    padded = F.pad(x, (0, 1, 0, 1), value=-torch.inf)
    assert torch.equal(coarse, padded.unflatten(3, (4, 2)).unflatten(2, (3, 2)).amax((3, 5)))


@pytest.mark.parametrize(
    "stride, sides", [(4, (1, 1 / 2, 1 / 4, 1 / 8)), (8, (2, 1, 1 / 2, 1 / 4)), (32, (8, 4, 2, 1))]
)
def test_pyramid_of_other_strides(stride, sides):
    decoder = UperNetDecoder([2] * 4, [stride] * 4, 3, width=4)
    maps = [rescale(torch.randn(2, 2, 8, 16)) for rescale in decoder.pyramid]
    assert [m.shape[2:] for m in maps] == [(8 * side, 16 * side) for side in sides]


def test_maps_of_several_sizes_stay_as_they_are():
    decoder = UperNetDecoder([2, 3, 4, 5], [4, 8, 8, 8], 3, width=4)
    assert parameters(decoder.pyramid) == 0
    x = torch.randn(1, 2, 3, 4)
    assert all(torch.equal(rescale(x), x) for rescale in decoder.pyramid)


def test_one_image_in_training_is_refused():
    head = UPerHead([2, 2, 2, 2], 3, width=4).train()
    maps = [torch.randn(1, 2, side, side) for side in (8, 4, 2, 2)]
    with pytest.raises(FoveateError, match="two images"):
        head(maps)
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert head(maps).shape == (1, 3, 8, 8)


def test_stride_that_does_not_fit_is_refused():
    with pytest.raises(FoveateError, match="stride 14"):
        UperNetDecoder([2] * 4, [14] * 4, 3)


def test_a_state_dict_of_mmsegmentation_fits():
    keys = set(UPerHead([2, 2, 2, 2], 3, width=4).state_dict())
    for part in ("psp_modules.3.1", "bottleneck", "lateral_convs.2", "fpn_convs.2", "fpn_bottleneck"):
        assert {f"{part}.conv.weight", f"{part}.bn.weight", f"{part}.bn.bias", f"{part}.bn.running_var"} <= keys
    assert {key for key in keys if key.startswith("conv_seg")} == {"conv_seg.weight", "conv_seg.bias"}
    assert {"convs.0.conv.weight", "convs.0.bn.bias"} <= set(FCNHead(2, 3).state_dict())
