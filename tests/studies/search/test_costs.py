"""The table of costs: its sums are what cost counts, and a budget is a number or a percentage."""

import pytest
import timm
import torch

import foveate as fv
from foveate.errors import FoveateError
from foveate.studies.search.candidates import Candidates
from foveate.studies.search.costs import Budget, CostTable, read_budget


@pytest.fixture(scope="module")
def mobilenet():
    return fv.create_model("mobilenetv2_100")


@pytest.fixture(scope="module")
def table(mobilenet):
    return CostTable(mobilenet, 224)


@pytest.mark.parametrize(
    "plan",
    [
        "ulsam(groups=4) replacing blocks.4.1; se after blocks.5.0, blocks.3; timm:eca after blocks.6.0",
        "cbam(start='identity') after blocks.2.1; non_local replacing blocks.5.1; attention_pool as pool",
        "identity replacing blocks.1.1, blocks.5.2; saol as head on blocks.4, blocks.6",
    ],
)
def test_the_sum_of_the_parts_is_the_cost(table, plan):
    whole = fv.cost(fv.insert(fv.create_model("mobilenetv2_100"), plan), 224)
    found = table(fv.Plan.parse(plan))
    assert (found.params, found.macs) == (whole.params, whole.macs)


def test_start_is_in_the_sum(mobilenet):
    plan = "se after blocks.4.1; ulsam replacing blocks.4.2"
    whole = fv.cost(fv.insert(fv.create_model("mobilenetv2_100"), plan, start="identity"), 224)
    found = CostTable(mobilenet, 224, "identity")(fv.Plan.parse(plan))
    assert (found.params, found.macs) == (whole.params, whole.macs)


def test_the_papers_plan_is_within_its_own_cost(mobilenet, table):
    family = fv.resolve_family(mobilenet, "ulsam(groups=4) replacing some of block:replaceable", 224)
    budget = read_budget({"parameters": "2.64M", "macs": 224_600_000}, table.baseline)
    candidates = Candidates(family, table, budget)
    assert len(candidates.listed) + candidates.over == len(family) == 2**10 - 1
    found = candidates.listed["ulsam(groups=4) replacing blocks.4.1, blocks.4.2, blocks.5.1, blocks.5.2"]
    assert (found.cost.params, found.cost.macs) == (2_630_936, 224_544_384)


def test_ten_thousand_plans_are_judged_by_a_few_entries(mobilenet, table, monkeypatch):
    monkeypatch.setattr("foveate.studies.search.costs.cost", lambda *_: pytest.fail("counted a whole network"))
    monkeypatch.setattr("foveate.studies.search.costs.insert", lambda *_, **__: pytest.fail("built a network"))
    text = "ulsam(groups=1|2|4|8|16) after|replacing some of block:replaceable"
    family = fv.resolve_family(mobilenet, text, 224)
    candidates = Candidates(fv.Family(family.placements * 1), table, Budget())
    assert candidates.listed is None  # 10,230: one drawn is judged as one listed is
    drawn = candidates.draw(200, seed=0)
    assert len({str(one.plan) for one in drawn}) == 200
    assert len(table._entries) < 100


class Tied(torch.nn.Module):
    """Two blocks of one convolution: without one of them the other still has it."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), Twice()) for _ in range(2)))
        self.blocks[1][0].weight = self.blocks[0][0].weight
        self.head = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Twice(torch.nn.Module):
    def forward(self, x):
        return 2 * x


def test_shared_parameters_are_counted_by_building():
    plan = fv.Plan.parse("se replacing blocks.0")
    whole = fv.cost(fv.insert(Tied(), plan, input_size=16), 16)
    found = CostTable(Tied(), 16)(plan)
    assert (found.params, found.macs) == (whole.params, whole.macs)


def test_what_does_not_fit_is_left_out_and_counted(mobilenet, table):
    family = fv.Family.parse("ulsam(groups=4|16) after blocks.1.1|blocks.4.1; se|none after blocks.1.1")
    candidates = Candidates(family, table, Budget(macs=302e6))
    # groups=16 does not divide 24 channels, and blocks.1.1 takes one mechanism.
    assert len(family) == 8
    assert candidates.unfit == 3
    assert candidates.over == 0
    assert len(candidates.listed) == 5
    assert candidates.allowed(fv.Plan.parse("se after blocks.0.0")) is None


def test_errors_of_a_family_that_has_nothing_to_offer(table):
    with pytest.raises(FoveateError, match="keeps the budget.*1,000 MACs.*the cheapest has.*'se after blocks.4.1'"):
        Candidates(fv.Family.parse("se|cbam after blocks.4.1"), table, Budget(macs=1000))
    with pytest.raises(FoveateError, match="no plan of the family fits the network: no mechanism is called 'seq'"):
        Candidates(fv.Family.parse("seq after blocks.4.1|blocks.4.2"), table, Budget())


def test_budgets():
    baseline = fv.cost(timm.create_model("test_resnet"), 32)
    found = read_budget({"parameters": 3_000_000, "macs": "-15%", "latency": "+2%"}, baseline)
    assert (found.parameters, found.macs, found.latency) == (3e6, pytest.approx(0.85 * baseline.macs), 1.02)
    assert read_budget({"params": "2.5M", "macs": "1_000"}, baseline) == Budget(2.5e6, 1000)
    assert str(read_budget(None, baseline)) == "no budget"
    assert found.excess(baseline) == pytest.approx(1 / 0.85 - 1)
    for budget, message in (
        ({"memory": 3}, "no 'memory'; there are: parameters"),
        ({"maks": 3}, "did you mean 'macs'"),
        ({"macs": "few"}, "means nothing: write 3_000_000"),
        ({"latency": 3}, "means nothing: write '\\+2%'"),
        ({"macs": "-100%"}, "leaves nothing"),
        ({"macs": "nan"}, "leaves nothing"),
    ):
        with pytest.raises(FoveateError, match=message):
            read_budget(budget, baseline)
