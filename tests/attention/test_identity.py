"""The control: it changes nothing, costs nothing, and a network with it in a block's place lacks that block alone."""

import pytest
import torch
from torch import nn

import foveate as fv
from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.attention.identity import Identity
from foveate.errors import FoveateError


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(self.conv1(x).relu())


def network():
    torch.manual_seed(0)
    body = nn.Sequential(*(Block() for _ in range(3)))
    return nn.Sequential(nn.Conv2d(3, 4, 3), body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()


def test_gives_the_tensor_itself_and_costs_nothing():
    module, x = Identity(8), torch.randn(2, 8, 5, 7)
    assert module(x) is x
    assert not list(module.state_dict())
    counted = count_operations(module.to("meta"), (8, 5, 7))[""]
    assert (counted.macs, counted.element_ops) == (0, 0)
    assert module.paper_cost(8, 5, 7) == (0, 0)


def test_after_a_site_changes_no_output_and_no_cost():
    model, x = network(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
        fv.insert(model, "identity after 1.0", input_size=16)
        assert torch.equal(model(x), expected)
    found = fv.cost(model, 16)
    assert found.baseline is not None
    assert (found.params, found.macs) == (found.baseline.params, found.baseline.macs)


def test_in_a_blocks_place_only_the_block_is_lost(tmp_path):
    model, x = network(), torch.randn(2, 3, 16, 16)
    blocks = model[1]
    with torch.no_grad():
        full = model(x)
        without = model[4](model[3](model[2](blocks[2](blocks[0](model[0](x))))))
        block = sum(p.numel() for p in blocks[1].parameters())
        before = fv.cost(model, 16)
        fv.insert(model, "identity replacing 1.1", input_size=16)
        assert torch.equal(model(x), without)
        assert not torch.equal(without, full)
        assert before.params - fv.cost(model, 16).params == block
        (gone,) = fv.dropped(model, 16)
        assert before.macs - fv.cost(model, 16).macs == gone.macs > 0
        fv.save(model, tmp_path / "saved")
        other = fv.load(tmp_path / "saved", network())
        assert torch.equal(other(x), without)
        fv.remove(model)
        assert torch.equal(model(x), full)


def test_it_has_no_options():
    with pytest.raises(FoveateError, match="identity has no option 'groups'"):
        fv.build("identity(groups=2)", 8)
