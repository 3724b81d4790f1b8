"""The tables: each operation once, by its formula; what has none is named; bytes by hand."""

import logging

import pytest
import torch
import torch.utils.flop_counter
import torchvision
from torch import nn
from torch.nn import functional as F

import foveate as fv
from foveate.accounting.counting import dispatch_counter as count
from foveate.accounting.counting import formulas as operations
from foveate.accounting.counting.dispatch_counter import count_operations

C, S = 4, 8
N = C * S * S  # elements of the image
FLOAT = 4


class Does(nn.Module):
    """A network that does one thing to an image."""

    def __init__(self, do, *weights):
        super().__init__()
        self.do = do
        self.anchor = nn.Parameter(torch.zeros(()))  # says where the images are to be
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for shape in weights)

    def forward(self, x):
        return self.do(x, *self.weights)


def counted(do, *weights, size=(C, S, S), device="meta"):
    return count_operations(Does(do, *weights).to(device).eval(), size)[""]


ELEMENT_OPS = {
    "relu": (lambda x: x.relu(), N),
    "relu in place": (lambda x: F.relu(x, inplace=True), N),
    "hardswish": (lambda x: F.hardswish(x), N),
    **{  # older versions of torch do not say of all of these that they go element by element
        f"{name} {inplace}": (lambda x, name=name, inplace=inplace: getattr(F, name)(x, inplace=inplace), N)
        for name in ("relu6", "hardtanh", "leaky_relu", "elu", "celu", "selu", "hardsigmoid", "silu")
        for inplace in (False, True)
    },
    "gelu": (lambda x: F.gelu(x), N),
    "sum of two": (lambda x: x + x, N),
    "broadcast product": (lambda x: x * x[:, :, :1, :1], N),
    "a + b * c": (lambda x: torch.addcmul(x, x, x), 2 * N),
    "softmax": (lambda x: x.softmax(1), 5 * N),
    "log-softmax": (lambda x: x.log_softmax(1), 5 * N),
    "batch norm": (lambda x: F.batch_norm(x, x.new_zeros(C), x.new_ones(C)), 2 * N),
    "layer norm, plain": (lambda x: F.layer_norm(x, (S,)), 5 * N),
    "layer norm": (lambda x: F.layer_norm(x, (S,), x.new_ones(S), x.new_zeros(S)), 7 * N),
    "group norm, plain": (lambda x: F.group_norm(x, 2), 5 * N),
    "instance norm": (lambda x: F.instance_norm(x), 5 * N),
    "max-pool": (lambda x: F.max_pool2d(x, 2), 4 * N // 4),
    "overlapping max-pool": (lambda x: F.max_pool2d(x, 3, 1, 1), 9 * N),
    "oblong average pool": (lambda x: F.avg_pool2d(x, (1, 4)), N),
    "global average pool": (lambda x: F.adaptive_avg_pool2d(x, 1), N),
    "adaptive pool": (lambda x: F.adaptive_avg_pool2d(x, 4), N),
    "adaptive pool, windows overlap": (lambda x: F.adaptive_avg_pool2d(x, 3), C * 10 * 10),  # windows 3 + 4 + 3
    "adaptive pool of volumes": (lambda x: F.adaptive_avg_pool3d(x[None], (2, 4, 3)), C * S * 10),
    "adaptive max-pool of volumes": (lambda x: F.adaptive_max_pool3d(x[None], 2), N),
    "max-pool undone": (lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), 4 * N // 4),
    "adaptive max-pool": (lambda x: F.adaptive_max_pool2d(x, 2), N),
    "mean": (lambda x: x.mean((2, 3)), N),
    "amax": (lambda x: x.amax(1), N),
    "variance": (lambda x: x.var(1), 4 * N),
    "length": (lambda x: x.norm(dim=1), 2 * N),
    "sort": (lambda x: x.sort(dim=3)[0], 3 * N),
    "topk": (lambda x: x.topk(2, dim=3)[0], 3 * N),
    "running sum": (lambda x: x.cumsum(2), N),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), 0),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 8 * 4 * N),
    "views": (lambda x: x.transpose(1, 2)[:, 1:].unsqueeze(0).expand(3, -1, -1, -1, -1), 0),
    "copies": (lambda x: torch.cat([F.pad(x, (1, 1)), F.pad(x, (1, 1)).flip(2)]).repeat(1, 2, 1, 1).contiguous(), 0),
    "index": (lambda x: x[:, torch.zeros(3, dtype=torch.long, device=x.device)], 0),
    "new tensors": (lambda x: (x.new_zeros(3), torch.rand_like(x), torch.arange(3, device=x.device))[1], 0),
    "linear with a bias": (lambda x: F.linear(x, x.new_zeros(5, S), x.new_zeros(5)), 0),
}


@pytest.mark.parametrize("name", ELEMENT_OPS)
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_element_operations(name, device):
    do, expected = ELEMENT_OPS[name]
    found = counted(do, device=device)
    assert found.element_ops == expected
    assert found.unsupported == set()


PRODUCTS = {
    "linear": (lambda x: F.linear(x, x.new_zeros(5, S)), N * 5),
    "linear with a bias": (lambda x: F.linear(x, x.new_zeros(5, S), x.new_zeros(5)), N * 5),
    "matrix": (lambda x: x @ x, N * S),
    "matrix and vector": (lambda x: x[0, 0] @ x[0, 0, 0], S * S),
    "vectors": (lambda x: x[0, 0, 0] @ x[0, 0, 1], S),
    "einsum": (lambda x: torch.einsum("bchw,bdhw->bcd", x, x), C * C * S * S),
    "baddbmm": (lambda x: torch.baddbmm(x[0], x[0], x[0]), N * S),
    "baddbmm in place": (lambda x: torch.clone(x[0]).baddbmm_(x[0], x[0]), N * S),
    "addbmm": (lambda x: torch.addbmm(x[0, 0], x[0], x[0]), N * S),
    "addmv": (lambda x: torch.addmv(x[0, 0, 0], x[0, 0], x[0, 0, 0]), S * S),
    "addr": (lambda x: torch.addr(x[0, 0], x[0, 0, 0], x[0, 0, 1]), S * S),
    "conv1d": (lambda x: F.conv1d(x[0], x.new_zeros(6, S, 3), padding=1), C * 6 * 3 * S * S),
    "conv3d": (lambda x: F.conv3d(x[:, None], x.new_zeros(2, 1, 1, 3, 3)), 2 * 9 * C * 6 * 6),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), 2 * C * S * S * S),
    "attention with a mask": (
        lambda x: F.scaled_dot_product_attention(x, x, x, x.new_ones(S, S, dtype=torch.bool)),
        2 * C * S * S * S,
    ),
    "attention, other widths": (
        lambda x: F.scaled_dot_product_attention(x, x, x[..., :3]),
        C * S * S * (S + 3),
    ),
    "attention of three axes": (lambda x: F.scaled_dot_product_attention(x[0], x[0], x[0]), 2 * C * S * S * S),
    "causal attention": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), 2 * C * S * S * S),
    "shared heads": (
        lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], enable_gqa=True),
        2 * C * S * S * S,
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_products(name, device):
    do, expected = PRODUCTS[name]
    found = counted(do, device=device)
    assert found.macs == expected
    assert found.unsupported == set()


def test_fused_attention_is_one_operation_with_and_without_data():
    """A scale and a softmax for each pair, a mask one more; the map is written nowhere."""
    do = lambda x: F.scaled_dot_product_attention(x, x, x)  # noqa: E731
    found, real = counted(do), counted(do, device="cpu")
    assert found == real
    assert found.element_ops == 6 * C * S * S
    assert found.bytes_read == N * FLOAT
    masked = counted(lambda x: F.scaled_dot_product_attention(x, x, x, x.new_zeros(S, S)))
    assert masked.element_ops == 7 * C * S * S


@pytest.mark.parametrize("masked", [True, False])
def test_deformable_convolution(masked):
    """2 * 3 x 3 offsets for each place; 6 channels out; every value is a weighted sum of four."""

    def do(x):
        offset, mask = x.new_zeros(1, 18, S, S), x.new_ones(1, 9, S, S) if masked else None
        return torchvision.ops.deform_conv2d(x, offset, x.new_zeros(6, C, 3, 3), padding=1, mask=mask)

    found = counted(do)
    assert (found.macs, found.element_ops, found.unsupported) == (6 * C * 9 * S * S, N * 9 * (8 + masked), set())


@pytest.mark.parametrize("kind,gates", [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_are_counted_step_by_step(kind, gates):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = kind(S, 16, batch_first=True)

        def forward(self, x):
            return self.layer(x[:, 0])[0]

    found = count_operations(Recurrent().to("meta").eval(), (C, S, S))[""]
    assert (found.macs, found.unsupported) == (S * gates * 16 * (S + 16), set())


def test_sparse_products_are_named_and_not_taken_for_dense_ones():
    found = counted(lambda x: torch.sparse.mm(torch.eye(S).to_sparse(), x[0, 0]) @ x[0, 1], device="cpu")
    assert found.macs == S * S * S  # the second one
    assert "aten::_sparse_addmm (sparse or nested)" in found.unsupported


def test_a_composite_counts_once():
    """Each of these is made of others, which are counted in its place: never both."""
    assert counted(lambda x: F.linear(x, x.new_zeros(5, S))).macs == N * 5
    assert counted(lambda x: F.softmax(x, 1)).element_ops == 5 * N
    assert counted(lambda x: F.layer_norm(x, (S,))).element_ops == 5 * N

    def inside(x):
        with torch.inference_mode():  # where the dispatcher takes nothing apart
            y = torch.zeros_like(x)
            return F.softmax(F.linear(y, y.new_zeros(S, S)), 1).reshape(1, -1)

    found = counted(inside, device="cpu")
    assert (found.macs, found.element_ops, found.unsupported) == (N * S, 5 * N, set())


def test_what_has_no_formula_is_named_once(caplog, monkeypatch):
    monkeypatch.setattr(count, "_logged", set())

    class Fourier(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return torch.fft.rfft2(self.conv(x)).abs()

    with caplog.at_level(logging.WARNING, "foveate"):
        cost = fv.cost(Fourier(), S)
        assert fv.cost(Fourier(), S).unsupported == cost.unsupported == ("aten::_fft_r2c",)
    assert [record.getMessage() for record in caplog.records] == [
        "unsupported operations, which are not counted: aten::_fft_r2c"
    ]
    assert (cost - cost).unsupported == ("aten::_fft_r2c",)
    assert cost.macs == 3 * 4 * S * S


def test_an_operation_of_ones_own(monkeypatch):
    """MACs go into torch's table, element operations into ours; without the second it is named."""
    library = torch.library.Library("foveate_test", "DEF")
    library.define("scale_rows(Tensor x, Tensor w) -> Tensor")
    library.impl("scale_rows", lambda x, w: torch.empty_like(x), "CompositeExplicitAutograd")
    operation = torch.ops.foveate_test.scale_rows
    monkeypatch.setattr(count, "_logged", set())
    do = lambda x: operation(x, x)  # noqa: E731
    assert counted(do).unsupported == {"foveate_test::scale_rows"}
    monkeypatch.setitem(
        torch.utils.flop_counter.flop_registry, operation, lambda *args, out_val, **kwargs: 2 * 7 * out_val.numel()
    )
    monkeypatch.setitem(operations.ELEMENT_OPS, "foveate_test::scale_rows", lambda args, kwargs, out: out.numel())
    found = counted(do)
    assert (found.macs, found.element_ops, found.unsupported) == (7 * N, N, set())


BYTES = {
    "relu": (lambda x: x.relu(), N, N),
    "relu in place": (lambda x: F.relu(x, inplace=True), N, N),
    "sum of two": (lambda x: x + x.relu(), 3 * N, 2 * N),
    "the same twice": (lambda x: x + x, N, N),
    "views": (lambda x: x.transpose(1, 2)[:, 1:].unsqueeze(0), 0, 0),
    "copy": (lambda x: x.clone(), N, N),
    "copy of a part": (lambda x: x[:, :1].clone(), N // C, N // C),
    "expanded": (lambda x: x[:, :1].expand(1, C, S, S) + 1, N // C, N),
    "zeros": (lambda x: x.new_zeros(C, S, S), 0, N),
    "zeros like x": (lambda x: torch.zeros_like(x), 0, N),
    "empty": (lambda x: torch.empty_like(x), 0, 0),
    "filled": (lambda x: torch.empty_like(x).fill_(1.0), 0, N),
    "joined": (lambda x: torch.cat([x, x.relu()]), 3 * N, 3 * N),
    "double": (lambda x: x.double(), N, 2 * N),
    "convolution": (lambda x, w: F.conv2d(x, w), N + 6 * C, 6 * S * S, (6, C, 1, 1)),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes(name):
    """In elements of four bytes: each input and each output once."""
    do, read, written, *weights = BYTES[name]
    found = counted(do, *weights)
    assert (found.bytes_read, found.bytes_written) == (FLOAT * read, FLOAT * written)


def test_bytes_of_what_is_looked_up():
    """Eight positions of eight bytes are read, and eight rows of a table of 999."""
    found = counted(lambda x, w: F.embedding(torch.arange(8, device=x.device), w), (999, 5))
    rows, positions = 8 * 5 * FLOAT, 8 * 8
    assert (found.bytes_read, found.bytes_written) == (positions + rows, positions + rows)


def test_bytes_follow_the_dtype():
    half, full = (fv.cost(nn.Conv2d(C, 6, 1).to(dtype), (C, S, S)) for dtype in (torch.bfloat16, torch.float32))
    assert full.bytes_moved == 2 * half.bytes_moved
    assert full.activation_bytes_inference == 2 * half.activation_bytes_inference
    assert full.macs == half.macs
