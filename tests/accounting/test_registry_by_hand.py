"""MACs of every mechanism, pool and head, against products written down by hand from the papers' equations."""

import pytest
import torch
from torch import nn

from foveate import registry
from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.attention import cbam, se

M, H, W = 512, 14, 14
HW = H * W
MAPS, FEATURES, CLASSES = ((512, 28, 28), (1024, 14, 14), (2048, 7, 7)), 2048, 1000


def product(*rows_columns):
    """MACs of a chain of matrix products: product((n, k, m), ...) for each n x k times k x m."""
    return sum(rows * inner * columns for rows, inner, columns in rows_columns)


def position(d=M // 8):
    convolutions = product((HW, M, d), (HW, M, d), (HW, M, M))
    return convolutions + product((HW, d, HW), (HW, HW, M))  # q k^T; the map times v


CHANNEL = product((M, HW, M), (M, M, HW))  # A A^T; the map times A


def bam(hidden=M // 16):
    branch = product((HW, M, hidden), (HW, 9 * hidden, hidden), (HW, 9 * hidden, hidden), (HW, hidden, 1))
    return product((1, M, hidden), (1, hidden, M)) + branch


def double(t=M // 8):
    convolutions = product((HW, M, t), (HW, M, t), (HW, M, t), (HW, t, M))  # phi, theta, rho, W
    return convolutions + product((t, HW, t), (t, t, HW))  # gather; hand out


def sparse(heads=2, stride=W):
    """Local: each of n places sees a block of 2 * stride; strided: its own column of n / stride."""
    d, width = M // heads, 2 * stride
    pairs = heads * product((HW, d, width), (HW, width, d)) + heads * product((HW, d, H), (HW, H, d))
    return pairs + 2 * product((HW, M, 3 * M), (HW, M, M))


ATTENTION = {
    "bam": bam(),
    "cbam": 2 * product((1, M, M // 16), (1, M // 16, M)) + product((HW, 2 * 7 * 7, 1)),
    "channel": CHANNEL,
    "danet": position() + CHANNEL,
    "double": double(),
    "identity": 0,
    "non_local": product(*[(HW, M, M // 2)] * 3, (HW, M // 2, M)) + product((HW, M // 2, HW), (HW, HW, M // 2)),
    "position": position(),
    "se": product((1, M, M // 16), (1, M // 16, M)),
    "sparse": sparse(),
    "ulsam": product(*[(HW, 1, 1)] * M, *[(HW, M // 4, 1)] * 4),  # depthwise 1x1, then one map for each of 4 groups
}
POOLING = {
    # One token: its q, W_o and two hidden layers; k and v of the places and itself; q k^T and the weighted sum.
    "attention_pool": product((1, M, M), (1, M, M), (1, M, 3 * M), (1, 3 * M, M))
    + product((HW + 1, M, M), (HW + 1, M, M), (1, M, HW + 1), (1, HW + 1, M)),
    "gap": 0,
}


def ltpa(maps, features, classes):
    """For each map: V^T g and V of the sum where the widths differ; the comparison and the sum; one classifier."""
    projected = sum(2 * product((1, c, features)) for c, _, _ in maps if c != features)
    looked = sum(product((h * w, c, 1), (1, h * w, c)) for c, h, w in maps)
    return projected + looked + product((1, len(maps) * features, classes))


def saol(maps, features, classes, width=256):
    """The map's two convolutions at the last size; each feature map's own; the classifier of places."""
    (last, h, w), levels = maps[-1], len(maps)
    reduced = sum(product((height * breadth, c, width)) for c, height, breadth in maps)
    return product((h * w, last, width), (h * w, width, 1)) + reduced + product((h * w, levels * width, classes))


HEADS = {"ltpa": ltpa, "saol": saol}


def ours(kind):
    """Registered names without what other tests register."""
    return {n for n in registry.names(kind) if registry.find(n, kind).__module__.startswith("foveate.")}


def macs(module, size=(M, H, W)):
    return count_operations(module.to("meta").eval(), size)[""].macs


@pytest.mark.parametrize("kind,table", [("attention", ATTENTION), ("pooling", POOLING), ("heads", HEADS)])
def test_every_name_has_a_formula_here(kind, table):
    assert set(table) == ours(kind)


@pytest.mark.parametrize("name", ATTENTION)
def test_mechanisms(name):
    assert macs(registry.build(name, M)) == ATTENTION[name]


@pytest.mark.parametrize("name", POOLING)
def test_pools(name):
    assert macs(registry.build(name, M, kind="pooling")) == POOLING[name]


# One token in inference: its q and W_o, W_k and W_v moved to it, two hidden layers; each place is asked and summed.
ATTENTION_POOL_INFERENCE = product(*[(1, M, M)] * 4, (1, M, 3 * M), (1, 3 * M, M), (HW + 1, M, 1), (1, HW + 1, M))


def test_inference_runs_other_products_only_where_the_page_of_cost_says():
    """Everything else takes the same in training and inference."""
    found = {}
    for kind, table in (("attention", ATTENTION), ("pooling", POOLING)):
        for name in table:
            module = registry.build(name, M, kind=kind).to("meta").eval()
            inference = count_operations(module, (M, H, W), fused=True)[""]
            assert inference.unsupported == set()
            if inference.macs != table[name]:
                found[name] = inference.macs
    assert found == {"attention_pool": ATTENTION_POOL_INFERENCE}


class OnMaps(nn.Module):
    """A head on feature maps of given sizes, whatever the image."""

    def __init__(self, name, maps, features):
        super().__init__()
        self.head = registry.build(name, [c for c, _, _ in maps], features, CLASSES, kind="heads")
        self.maps, self.features = maps, features

    def forward(self, x):
        return self.head([x.new_zeros(1, *size) for size in self.maps], x.new_zeros(1, self.features))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("maps,features", [(MAPS, FEATURES), (((M, H, W),), M)])
def test_heads(name, maps, features):
    assert macs(OnMaps(name, maps, features), (3, 8, 8)) == HEADS[name](maps, features, CLASSES)


def test_known_numbers():
    """To the unit, as the pages print them."""
    assert ATTENTION["ulsam"] == 200_704
    assert ATTENTION["se"] == 32_768
    assert ATTENTION["double"] == 131_072 * HW + 1_605_632
    assert ATTENTION["non_local"] == 102_760_448 + 19_668_992


def element_ops(module, size=(M, H, W)):
    return count_operations(module.to("meta").eval(), size)[""].element_ops


def test_element_operations_of_ulsam():
    """Norm 2, ReLU 1 and a pool of 9 for each element; the same, and a softmax of 5, for each map; x + A * x."""
    norm, relu, pool, softmax, reweighted = 2, 1, 9, 5, 2
    by_hand = M * HW * (norm + relu + pool + reweighted) + 4 * HW * (norm + relu + softmax)
    assert element_ops(registry.build("ulsam", M)) == by_hand == 1_411_200


def test_element_operations_of_se_and_gap():
    assert element_ops(registry.build("gap", M, kind="pooling")) == M * HW
    assert element_ops(registry.build("se", M)) == M * HW + M // 16 + M + M * HW  # mean, ReLU, sigmoid, the product


def test_element_operations_of_position_attention():
    """For each pair a scale and a softmax of 5; then gamma times y, and x."""
    assert element_ops(registry.build("position", M)) == 6 * HW * HW + 2 * M * HW


@pytest.mark.parametrize("name", sorted(ATTENTION))
def test_no_operation_of_ours_is_unsupported(name):
    assert count_operations(registry.build(name, M).to("meta").eval(), (M, H, W))[""].unsupported == set()


@pytest.mark.parametrize("name", sorted(set(ATTENTION) - {"danet", "position"}))  # padded with zeros for the CPU
def test_with_data_the_count_is_the_same(name):
    """Whatever fused operation of ours there is: it counts as the definition does."""
    found = [
        count_operations(registry.build(name, 64).eval().to(device), (64, 14, 14))[""] for device in ("cpu", "meta")
    ]
    for number in ("macs", "element_ops", "unsupported"):
        assert getattr(found[0], number) == getattr(found[1], number)


def test_the_fused_ulsam_counts_as_the_definition():
    """Called on shapes alone, which no kernel takes: its formulas are what is tested."""
    ulsam = registry.build("ulsam", 64, kind="attention")

    class Fused(nn.Module):
        def forward(self, x):
            return torch.ops.foveate.ulsam_infer(x, x.new_empty(3 * 64 + 4), 4)

    fused, plain = count_operations(Fused(), (64, 14, 14))[""], count_operations(ulsam.eval(), (64, 14, 14))[""]
    assert (fused.macs, fused.element_ops, fused.unsupported) == (plain.macs, plain.element_ops, set())


@pytest.mark.parametrize(
    "spec",
    [
        *("se", "se(reduction=4, bias=False)", "cbam", "cbam(channel_pool='avg')", "cbam(channel_pool='max')"),
        *(f"cbam(order={order!r})" for order in ("spatial-channel", "parallel", "channel", "spatial")),
    ],
)
def test_the_passes_of_the_gates_count_as_the_definition(spec, monkeypatch):
    """Called on shapes alone, which no kernel takes: their formulas are what is tested."""
    module, counts, read = registry.build(spec, 64, kind="attention").eval().to("meta"), [], []
    for taken in (False, True):
        for room in (se, cbam):
            monkeypatch.setattr(room, "use_fused_path", lambda *_, taken=taken: taken)
        found = count_operations(module, (64, 14, 14))[""]
        counts.append((found.macs, found.element_ops, found.unsupported))
        read.append(found.bytes_read)
    assert counts[0] == counts[1]
    assert counts[0][2] == set()
    assert read[1] < read[0]


def test_attention_does_not_move_the_map_of_all_pairs():
    """Places 56 x 56: the map would be 39 MB, and torch's fused kernels never write it."""
    module = registry.build("position", 64).to("meta").eval()
    assert count_operations(module, (64, 56, 56))[""].peak_bytes < 56**4 * torch.float32.itemsize / 4
