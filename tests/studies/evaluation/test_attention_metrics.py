"""Maps and contributions as numbers, where they are known by hand."""

import pytest
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.studies.evaluation.attention_metrics import (
    ContributionStatistics,
    MapStatistics,
    factor_of,
    own_maps,
    plain_of,
)
from foveate.surgery.insert import attentions, insert


def statistics(*batches):
    seen = MapStatistics()
    for maps in batches:
        seen.see([values[:, None, None] if values.ndim == 2 else values for values in maps])
    return seen


def test_how_uniform_a_map_is():
    peak = torch.zeros(3, 16)
    peak[:, 3] = 1
    even = torch.full((3, 16), 1 / 16)
    seen = statistics([even, peak], [even[:2], peak[:2]])
    assert seen.entropy == pytest.approx([1, 1, 1, 0, 0, 0, 1, 1, 0, 0])
    assert seen.area[3] == pytest.approx(1 / 16)
    assert seen.variation() == seen.largest_variation() == [0, 0]
    assert (seen.constant, seen.count) == (1, 2)
    seen = statistics(
        [even, peak], [even[:2], peak[:2]], [torch.full((5, 16), 1 / 16), peak.roll(1, 1)[[0, 1, 2, 0, 1]]]
    )
    assert seen.variation()[1] == pytest.approx(2 * 0.5 / 16 / (1 / 16))  # at two positions, half of the time
    assert seen.largest_variation()[1] == pytest.approx(1)
    assert seen.constant == 0.5
    assert all(value != value for value in statistics([torch.randn(4, 9)]).entropy)


class Gives(nn.Module):
    def __init__(self, axes, values):
        super().__init__()
        self.map_axes, self.values = axes, values

    def attend(self, x):
        return self.values


# Each varies between images, and its mean over what a drawing averages is the same for every image.
PATTERN = torch.tensor([1.0, -1.0, 1.0, -1.0])
VARYING = {
    "b c h w": 0.5 + 0.4 * PATTERN[:, None, None, None] * PATTERN[None, :, None, None].expand(4, 4, 3, 5),
    "b q h w": 0.5 + 0.4 * PATTERN[:, None, None, None] * PATTERN[None, :, None, None].expand(4, 4, 3, 5),
    "b k q h w": 0.5 + 0.4 * PATTERN.view(4, 1, 1, 1, 1) * PATTERN.view(1, 1, 4, 1, 1).expand(4, 2, 4, 3, 5),
    "b q c": 0.5 + 0.4 * PATTERN[:, None, None] * PATTERN[None, :, None].expand(4, 4, 6),
    "b h w": 0.5 + 0.4 * PATTERN[:, None, None].expand(4, 3, 5),
    "b c": 0.5 + 0.4 * PATTERN[:, None] * torch.eye(6)[2],  # one channel of six
}


@pytest.mark.parametrize("axes", VARYING)
def test_what_varies_is_measured_before_anything_is_averaged(axes):
    seen = MapStatistics()
    (maps,) = own_maps(Gives(axes, VARYING[axes]), (None,))
    assert maps.numel() == VARYING[axes].numel()
    assert seen.count == 0
    seen.see([maps])
    assert seen.count == (2 if "k" in axes else 1)
    assert seen.constant == 0
    assert max(seen.largest_variation()) == pytest.approx(0.8)
    fixed = MapStatistics()
    fixed.see(own_maps(Gives(axes, VARYING[axes][:1].expand_as(VARYING[axes])), (None,)))
    assert fixed.constant == 1
    assert fixed.variation() == [0] * fixed.count


def test_each_query_position_has_a_map_of_its_own():
    # Each position looks at one position alone: on average that is everywhere.
    seen = MapStatistics()
    seen.see(own_maps(Gives("b q h w", torch.eye(12).view(1, 12, 3, 4).expand(2, -1, -1, -1)), (None,)))
    assert seen.entropy == pytest.approx([0, 0])
    assert seen.area == pytest.approx([1 / 12, 1 / 12])


def test_the_entropy_of_a_map_is_the_mean_over_its_rows():
    maps = torch.eye(12).view(12, 3, 4).clone()
    maps[:6] = 1 / 12  # half of the query positions look everywhere
    seen = MapStatistics()
    seen.see(own_maps(Gives("b q h w", maps.expand(2, -1, -1, -1)), (None,)))
    assert seen.entropy == pytest.approx([0.5, 0.5])
    assert seen.area == pytest.approx([(1 + 1 / 12) / 2] * 2)


def test_many_large_maps_are_summed_in_parts(monkeypatch):
    maps = torch.rand(7, 2, 3, 20, generator=torch.Generator().manual_seed(0))
    whole, parts = MapStatistics(), MapStatistics()
    whole.see([maps])
    monkeypatch.setattr("foveate.studies.evaluation.attention_metrics._AT_ONCE", 130)
    parts.see([maps])
    assert parts.entropy == pytest.approx(whole.entropy)
    assert parts.variation() == pytest.approx(whole.variation())
    exact = maps.double()
    assert whole.variation()[1] == pytest.approx(
        float(exact[:, 1].std(dim=0, correction=0).mean() / exact[:, 1].mean(dim=0).mean())
    )


def test_maps_are_compared_between_images_of_one_size():
    wide, tall = torch.full((6, 1, 1, 12), 2.0), torch.rand(2, 1, 1, 12, generator=torch.Generator().manual_seed(0))
    seen, other = MapStatistics(), MapStatistics()
    for part in wide.split(3):
        seen.see([part], (3, 4))
    seen.see([tall], (4, 3))  # as many positions, but others
    seen.see([torch.full((4, 1, 1, 20), 5.0)], (4, 5))
    other.see([tall], (4, 3))
    assert seen.count == 1
    assert seen.variation() == pytest.approx([2 / 12 * other.variation()[0]])
    assert seen.largest_variation() == other.largest_variation()
    assert seen.constant == 0
    assert len(seen.entropy) == 12


def test_axes_that_a_map_does_not_have():
    with pytest.raises(FoveateError, match="not the axes 'b c'"):
        own_maps(Gives("b c", torch.zeros(2, 3, 4)), (None,))
    with pytest.raises(FoveateError, match="only 'b c'"):
        own_maps(Gives("b t", torch.zeros(2, 3)), (None,))


def test_a_contribution_in_one_channel_is_seen_beside_an_outlier():
    given = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) + 0.5
    given[:, 0] = 1e6
    output = given.clone()
    output[:, 2] *= 1.5
    found = ContributionStatistics()
    found.see(given[:2], output[:2])
    found.see(given[2:], output[2:])
    assert found.mean < 1e-5
    assert found.largest_channel == pytest.approx(0.5)
    half = ContributionStatistics()
    half.see(given, 1.5 * given)
    assert half.relative == pytest.approx([0.5] * 4)
    assert half.largest_channel == pytest.approx(0.5)
    faint = torch.ones(2, 3, 4, 4)
    faint[:, 1] = 1e-9  # as good as dead: what is added to it is nothing, however many times as large
    nearly = ContributionStatistics()
    nearly.see(faint, faint + 1e-6)
    assert nearly.largest_channel == pytest.approx(1e-3, rel=0.01)
    dead = ContributionStatistics()
    dead.see(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
    assert (dead.mean, dead.largest_channel) == (0, 0)
    assert ContributionStatistics().mean is ContributionStatistics().largest_channel is None


def test_what_stands_in_a_pools_place():
    given = torch.randn(2, 3, 4, 4)
    assert plain_of("after", given, given) is given
    assert torch.equal(plain_of("as pool", given, torch.zeros(2, 3)), given.mean((2, 3)))
    assert plain_of("as pool", given, torch.zeros(2, 5, 3)).shape == (2, 5, 3)


@pytest.mark.parametrize(
    "plan", ["ulsam(groups=4)", "se", "bam", "cbam", "cbam(order='parallel')", "non_local", "double", "position"]
)
def test_the_factor_of_an_attention_module(plan):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Flatten(), nn.LazyLinear(2))
    net(torch.zeros(1, 3, 6, 5))
    module = attentions(insert(net, f"{plan} after 0", seed=0, input_size=(6, 5)))["0"].eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_()
        x = torch.randn(2, 16, 6, 5)
        output = module(x)
        factor = factor_of(module, x, output)
    multiplies = plan.split("(")[0] in ("ulsam", "se", "bam", "cbam")
    assert (factor is not None) == multiplies
    if multiplies:
        torch.testing.assert_close(factor * x, output)
    with torch.no_grad():
        assert all(values.shape[0] == 2 and values.ndim == 4 for values in own_maps(module, (x,)))


def test_a_map_that_does_not_multiply_is_no_factor():
    x = torch.rand(2, 3, 4, 4) + 0.5
    values = torch.rand(2, 3, 4, 4)
    module = Gives("b c h w", values)
    assert torch.equal(factor_of(module, x, x * values), values)
    assert torch.equal(factor_of(module, x, x * (1 + values)), 1 + values)
    assert factor_of(module, x, x + values) is None
    # An outlier in one channel is no excuse for the others.
    x[:, 0] = 1e6
    output = x * values
    output[:, 1] += 1
    assert factor_of(module, x, output) is None
