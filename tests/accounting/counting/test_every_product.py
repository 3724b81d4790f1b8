"""Whatever multiplies matrices is counted once or named, however torch, in any version, dispatches it."""

import contextlib
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torchvision  # noqa: F401 - registers its operations
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import flop_registry

import foveate as fv
from foveate.accounting.counting import products
from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.accounting.counting.formulas import ELEMENT_OPS, rule_of

C, S, V = 4, 8, 6  # heads, positions (and width), width of the values
PAIRS = C * S * S


class Does(nn.Module):
    def __init__(self, do):
        super().__init__()
        self.do = do
        self.anchor = nn.Parameter(torch.zeros(()))  # says where the images are to be

    def forward(self, x):
        return self.do(x)


def counted(do, device="meta"):
    return count_operations(Does(do).to(device).eval(), (C, S, S))[""]


class Layer(nn.Module):
    """One of torch's own layers with attention, of two heads."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.layer = kind(S, 2, batch_first=True, **({} if kind is nn.MultiheadAttention else {"dim_feedforward": 16}))

    def forward(self, x):
        x = x[:, 0]
        return self.layer(x, x, x, need_weights=False)[0] if self.kind is nn.MultiheadAttention else self.layer(x)


def attend(x, *options, **more):
    return F.scaled_dot_product_attention(x, x, x, *options, **more)


def within(context):
    def do(x):
        with context():
            return attend(x)

    return do


def in_inference_mode(x):
    with torch.inference_mode():  # where the dispatcher takes nothing apart
        return attend(torch.zeros_like(x))


def scripted(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit, which people still have
        return torch.jit.script(attend_in_torchscript)(x)


def attend_in_torchscript(x: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(x, x, x)


WAYS = {
    "plain": (attend, 2 * PAIRS * S),
    "by the operation": (lambda x: torch.ops.aten.scaled_dot_product_attention(x, x, x), 2 * PAIRS * S),
    "causal": (lambda x: attend(x, is_causal=True), 2 * PAIRS * S),
    "masked": (lambda x: attend(x, x.new_zeros(S, S)), 2 * PAIRS * S),
    "hidden pairs": (lambda x: attend(x, x.new_ones(S, S, dtype=torch.bool)), 2 * PAIRS * S),
    "own scale": (lambda x: attend(x, scale=0.5), 2 * PAIRS * S),
    "dropout": (lambda x: attend(x, dropout_p=0.5), 2 * PAIRS * S),
    "narrow values": (lambda x: F.scaled_dot_product_attention(x, x, x[..., :V]), PAIRS * (S + V)),
    "fewer keys": (lambda x: F.scaled_dot_product_attention(x, x[:, :, :3], x[:, :, :3]), 2 * C * S * 3 * S),
    "one query": (lambda x: F.scaled_dot_product_attention(x[:, :, :1], x, x), 2 * C * S * S),
    "shared heads": (
        lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], enable_gqa=True),
        2 * PAIRS * S,
    ),
    "three axes": (lambda x: attend(x[0]), 2 * PAIRS * S),
    "transposed": (lambda x: attend(x.transpose(2, 3)), 2 * PAIRS * S),
    "half precision": (lambda x: attend(x.bfloat16()), 2 * PAIRS * S),
    "inference mode": (in_inference_mode, 2 * PAIRS * S),
    "TorchScript": (scripted, 2 * PAIRS * S),
    "definition": (within(lambda: sdpa_kernel(SDPBackend.MATH)), 2 * PAIRS * S),
    "flash": (within(lambda: sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])), 2 * PAIRS * S),
}


CASES = [(way, device) for way in WAYS for device in ("meta", "cpu")]
CASES.remove(("inference mode", "meta"))  # what it makes has data


@pytest.mark.parametrize("way,device", CASES)
def test_attention_is_counted_once_whatever_computes_it(way, device):
    do, macs = WAYS[way]
    found = counted(do, device)
    assert (found.macs, found.unsupported) == (macs, set())


@pytest.mark.parametrize("kind", [nn.MultiheadAttention, nn.TransformerEncoderLayer])
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_torchs_own_layers_do_not_hide_their_attention(kind, device):
    """torch has one operation for each, which has no formula: they are counted part by part."""
    found = count_operations(Layer(kind).to(device).eval(), (C, S, S))[""]
    weights = 4 * S * S + (2 * S * 16 if kind is nn.TransformerEncoderLayer else 0)
    assert (found.macs, found.unsupported) == (S * weights + 2 * S * S * S, set())


KERNELS = {
    "flash_attention_for_cpu": lambda f, q, k, v: f(q, k, v),
    "flash_attention": lambda f, q, k, v: f(q, k, v),
    "efficient_attention": lambda f, q, k, v: f(q, k, v, None, False),
    "cudnn_attention": lambda f, q, k, v: f(q, k, v, None, False),
    "fused_attention_overrideable": lambda f, q, k, v: f(q, k, v),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("torchs_table", [True, False])
def test_each_kernel_of_attention_has_our_formula(kernel, torchs_table, monkeypatch):
    """Also when torch's table lacks it, as it did with the CPU's before 2.15: it was counted as nothing."""
    if not torchs_table:
        for operation in list(flop_registry):
            monkeypatch.delitem(flop_registry, operation)
    operation = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}")

    def do(x):
        try:
            return KERNELS[kernel](operation, x, x, x)[0]
        except NotImplementedError:
            pytest.skip(f"{operation} gives nothing without data in torch {torch.__version__}")

    found = counted(do)
    assert (found.macs, found.element_ops, found.unsupported) == (2 * PAIRS * S, 6 * PAIRS, set())


FORMULAS = {
    "mm": lambda x: torch.mm(x[0, 0], x[0, 1, :, :3]),
    "addmm": lambda x: torch.addmm(x[0, 0, 0], x[0, 0], x[0, 1]),
    "bmm": lambda x: torch.bmm(x[0], x[0, :, :, :3]),
    "baddbmm": lambda x: torch.baddbmm(x[0], x[0], x[0]),
    "convolution": lambda x: F.conv2d(x, x.new_zeros(6, 2, 3, 3), stride=2, groups=2),
    "convolution of volumes": lambda x: F.conv3d(x[:, None], x.new_zeros(2, 1, 1, 3, 3)),
    "transposed": lambda x: F.conv_transpose2d(x, x.new_zeros(C, 6, 3, 3), stride=2),
    "transposed in groups": lambda x: F.conv_transpose1d(x[0], x.new_zeros(S, 3, 2), stride=2, groups=2),
    "efficient attention": lambda x: torch.ops.aten._scaled_dot_product_efficient_attention(x, x, x, None, False)[0],
}


@pytest.mark.parametrize("name", FORMULAS)
def test_where_both_have_a_formula_ours_is_torchs(name, monkeypatch):
    ours = counted(FORMULAS[name])
    for product in [product for product in products.PRODUCTS if product.startswith("aten::")]:
        monkeypatch.delitem(products.PRODUCTS, product)
    assert ours.macs == counted(FORMULAS[name]).macs > 0


@pytest.mark.parametrize("name", FORMULAS)
def test_a_product_that_every_table_has_lost_is_named(name, monkeypatch):
    """Its element operations are still known; that says nothing of its multiply-adds."""
    monkeypatch.setattr(products, "PRODUCTS", {})
    for registered in list(flop_registry):
        monkeypatch.delitem(flop_registry, registered)
    found = counted(FORMULAS[name])
    assert (found.macs, len(found.unsupported)) == (0, 1)


ADDED = {  # to ResNet-18: convolutions and matrix products, by hand in test_registry_by_hand
    "channel after layer3": 25_690_112,
    "danet after layer3": 52_810_240,
    "non_local after layer3": 35_524_608,
    "sparse after layer3": 106_975_232,
    "attention_pool as pool": 28_362_752,
}


def test_what_attention_adds_to_resnet18_is_the_same_in_every_version_of_torch():
    found = {}
    for plan in ADDED:
        cost = fv.cost(fv.insert(fv.create_model("resnet18"), plan))
        assert cost.unsupported == ()
        found[plan] = cost.macs - cost.baseline.macs
    assert found == ADDED


class Outside(nn.Module):
    """One product is NumPy's."""

    def __init__(self, out):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 1), out

    def forward(self, x):
        return self.conv(x) + torch.from_numpy(self.out(x) @ self.out(x)).sum()


@pytest.mark.parametrize("out", [lambda x: x.numpy(), np.asarray, np.from_dlpack], ids=["numpy", "array", "dlpack"])
def test_what_is_computed_outside_torch_is_named(out):
    cost = fv.cost(Outside(out), S)
    assert cost.macs == 3 * 4 * S * S
    assert [name.split()[0] for name in cost.unsupported if name.startswith("Tensor.")] != []


class InAThread(nn.Module):
    """Its convolution runs in another thread, where no counter of this one sees it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self.conv, x).result().relu()


def test_what_runs_in_another_thread_is_named():
    cost = fv.cost(InAThread(), S)
    assert cost.unsupported == ("operations in another thread",)
    assert cost.element_ops == 4 * S * S


def operations():
    """Each operation of torch and torchvision that the dispatcher shows a counter."""
    for name in sorted({schema.name for schema in torch._C._jit_get_all_schemas()}):
        library, _, operation = name.partition("::")
        if library in ("prim", "_test", "foveate_test"):  # TorchScript's own, and tests'
            continue
        packet = getattr(getattr(torch.ops, library), operation, None)
        for overload in packet.overloads() if packet is not None else ():
            with contextlib.suppress(RuntimeError):  # of TorchScript alone
                rule = rule_of(getattr(packet, overload))
                if not rule.composite:
                    yield rule


def test_no_operation_of_torch_or_torchvision_can_lose_its_products():
    """Of each that multiplies matrices by its name the products are counted, or it is named when it runs."""
    rules = {rule.name: rule for rule in operations()}
    multiplying = {name: rule for name, rule in rules.items() if rule.product}
    assert len(multiplying) > 100  # else this test sees nothing
    assert {"aten::convolution", "aten::_scaled_dot_product_flash_attention_for_cpu"} < set(multiplying)
    silent = {name for name, rule in multiplying.items() if rule.macs is None and rule.element_ops is not None}
    assert silent == set()  # they would be named, too; but whoever adds a formula for elements adds both


def test_every_formula_for_elements_of_a_product_stands_beside_one_for_its_products():
    wanted = {name for name in (*ELEMENT_OPS, *products.PRODUCTS) if products.is_product(name)}
    assert wanted == set(products.PRODUCTS)


def test_words_that_only_sound_like_products():
    for name in ("upsample_bilinear2d", "upsample_linear1d", "convert_element_type", "linalg_vector_norm", "addcmul"):
        assert not products.is_product(f"aten::{name}")
    for name in ("my_attention", "conv2d_relu", "fused_linear", "grouped_gemm", "hspmm"):
        assert products.is_product(f"library::{name}")
