"""DANet's head: its equations, its size, its options."""

import pytest
import torch
from torch.nn import functional as F

from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.dense import DANetHead
from foveate.errors import FoveateError


def test_size_of_the_paper():
    head = DANetHead(2048, 150)
    assert sum(p.numel() for p in head.parameters()) == 24_156_228


def test_macs():
    n = 64 * 64
    position = n * (512 * 64 * 2 + 512 * 512) + n * n * (64 + 512)
    channel = 2 * 512 * 512 * n
    convolutions = n * (2 * 2048 * 512 * 9 + 2 * 512 * 512 * 9 + 3 * 512 * 150)
    head = torch.nn.Sequential(DANetHead(2048, 150)).to("meta").eval()
    assert count_operations(head, (2048, 64, 64))[""].macs == position + channel + convolutions == 110_733_819_904


def conv(layers, x):
    convolution, norm = layers[0], layers[1]
    y = F.conv2d(x, convolution.weight, None, padding=1)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    y = (y - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
    return y.clamp(min=0)


def classify(layers, x):
    weight = layers[1].weight[:, :, 0, 0]
    return torch.einsum("kc,bchw->bkhw", weight, x) + layers[1].bias[:, None, None]


def equations(head, x, sign):
    p = conv(head.conv5a, x)
    q, k, v = (
        F.conv2d(p, m.weight, m.bias).flatten(2) for m in (head.sa.query_conv, head.sa.key_conv, head.sa.value_conv)
    )
    pairs = torch.softmax(torch.einsum("bci,bcj->bij", q, k), -1)
    p = p + head.sa.gamma * torch.einsum("bij,bcj->bci", pairs, v).view_as(p)
    c = conv(head.conv5c, x)
    rows = c.flatten(2)
    alike = torch.softmax(sign * torch.einsum("bci,bdi->bcd", rows, rows), -1)
    c = c + head.sc.gamma * torch.einsum("bcd,bdi->bci", alike, rows).view_as(c)
    p, c = conv(head.conv51, p), conv(head.conv52, c)
    return classify(head.conv8, p + c), classify(head.conv6, p), classify(head.conv7, c)


@pytest.mark.parametrize("form, sign", [("nearest", 1), ("farthest", -1)])
def test_equations(form, sign, randomise, agree):
    head = randomise(DANetHead(32, 5, form=form))
    x = torch.randn(2, 32, 5, 7, dtype=torch.float64, requires_grad=True)
    agree(head, [x], head(x), equations(head, x, sign))


def test_a_state_dict_of_the_authors_fits():
    theirs = {"conv5a", "conv5c", "sa", "sc", "conv51", "conv52", "conv6", "conv7", "conv8"}
    keys = set(DANetHead(16, 3).state_dict())
    assert {key.partition(".")[0] for key in keys} == theirs
    assert {"conv5a.0.weight", "conv5a.1.running_mean", "sa.query_conv.bias", "sc.gamma", "conv8.1.bias"} <= keys


def test_reduction():
    assert DANetHead(64, 3).sa.query_conv.out_channels == 2
    assert DANetHead(64, 3, reduction=1).sa.query_conv.out_channels == 16


def test_dropout_is_of_whole_channels_and_in_training_only():
    head = DANetHead(8, 3, dropout=1.0)
    x = torch.randn(2, 8, 4, 4)
    out, position, channel = head.train()(x)
    for scores, layers in ((out, head.conv8), (position, head.conv6), (channel, head.conv7)):
        assert torch.equal(scores, layers[1].bias[:, None, None].expand_as(scores))
    assert not torch.equal(head.eval()(x)[0], out)


def test_errors():
    with pytest.raises(FoveateError, match="farthest"):
        DANetHead(8, 3, form="farest")
    with pytest.raises(FoveateError, match="reduction"):
        DANetHead(8, 3, reduction=0)
