"""Every request that cannot be met gets one line that says why and what instead; the model stays as it was."""

import pytest
import torch
from torch import nn

import foveate as fv
from foveate import registry
from foveate.errors import FoveateError
from foveate.surgery.apply import KEY

CASES = [
    ("ulsm after stage1.0", "no mechanism is called 'ulsm'; did you mean 'ulsam'"),
    ("timm:ecaa after stage1.0", "timm has no attention layer 'ecaa'; did you mean 'eca'"),
    ("se(reduktion=4) after stage1.0", "se has no option 'reduktion'; did you mean 'reduction'"),
    ("se(reduction='four') after stage1.0", "reduction='four' is not of type int; the default is reduction=16"),
    ("se(reduction=True) after stage1.0", "reduction=True is not of type int"),
    ("se(reduction=0) after stage1.0", r"the reduction is at least 1.* \(at site 'stage1.0'\)"),
    ("se(start='zero') after stage1.0", "start='zero' does not exist; there are: mechanism, identity"),
    ("ulsam(groups=3) after stage2.1", "does not fit 16 channels: take groups from 1, 2, 4, 8, 16"),
    ("se after stage1.7", r"no site 'stage1.7'; did you mean 'stage1"),
    ("se after conv1", "no site 'conv1'; did you mean 'stage1.0.conv1' or"),
    ("se after nowhere", "no site 'nowhere'; there are: stage1"),
    ("se after blocks.*", "no site matches 'blocks.\\*'; "),
    ("se after stage3.*", "no site matches 'stage3.\\*'; did you mean 'stage2.2'"),
    ("se after #99", "site #99 does not exist: the network has sites #0 to #6"),
    ("se after head", r"site 'head' gives shape \(1, 5\), not one \(B, C, H, W\) feature map"),
    (
        "ulsam(groups=2) replacing stage2.0",
        "cannot replace 'stage2.0': it turns 8x16x16 into 16x8x8.*stage1.0.*stage2.2",
    ),
    ("se replacing stem", "cannot replace 'stem': it turns 3x32x32 into 8x16x16"),
    ("se replacing stage1; ulsam after stage1.0", "site 'stage1.0' lies in 'stage1', which the plan replaces"),
    ("ulsam after stage1.0; se replacing stage1", "site 'stage1.0' lies in 'stage1', which the plan replaces"),
    ("se after stage1.0; ulsam after stage1.0", "two mechanisms at site 'stage1.0': 'se after stage1.0' and"),
    ("se after stage1.*, stage1.0", "two mechanisms at site 'stage1.0'"),
    ("se after stage1; ulsam after stage1.1", "sites 'stage1' and 'stage1.1', which are one place"),
    ("se after stage2; ulsam replacing stage2.2", "sites 'stage2' and 'stage2.2', which are one place"),
    ("se after #0, stage1", "two mechanisms at site 'stage1'"),
    ("se as pool", "no pool is called 'se'; there are: "),
    ("gap as head", "no head is called 'gap'; there are: "),
    ("gap after stage1", "no mechanism is called 'gap'"),
    ("gap as pool; gap as pool", "'gap as pool': a network has one pool, and the plan names two"),
    ("se after", "a site is expected, but the text ends"),
    ("", "the name of a mechanism is expected"),
    ("timm:bottleneck after stage1.0", "cannot be built for 8 channels"),
    (fv.Plan(), "the name of a mechanism is expected"),
    (fv.Plan((fv.Placement(fv.Spec("se"), "within", ("stage1.0",)),)), "'within' is not a verb"),
    (fv.Plan((fv.Placement(fv.Spec("se"), "after", ("stage1.0; import os",)),)), "cannot read the plan"),
    (None, "a plan is text"),
    (fv.Placement(fv.Spec("se"), "after", ("stage1.0",)), "a plan is text"),
]


@pytest.mark.parametrize("plan,message", CASES, ids=[str(plan) for plan, _ in CASES])
@pytest.mark.parametrize("training", [False, True])
def test_refused(plan, message, training, blocks, untouched):
    blocks.train(training)
    with untouched(blocks), pytest.raises(FoveateError, match=message) as caught:
        fv.insert(blocks, plan, input_size=32)
    assert "\n" not in str(caught.value)
    assert fv.plan_of(blocks) is None


def test_a_start_that_does_not_exist(blocks, untouched):
    with (
        untouched(blocks),
        pytest.raises(FoveateError, match="start='identiy' does not exist; did you mean 'identity'"),
    ):
        fv.insert(blocks, "se after stage1.0", start="identiy")


def test_a_second_plan(blocks, untouched):
    fv.insert(blocks, "se after stage1.0")
    with untouched(blocks), pytest.raises(FoveateError, match="the model carries the plan 'se after stage1.0' already"):
        fv.insert(blocks, "cbam after stage1.1")


def test_a_part_with_a_plan(blocks, untouched):
    whole = nn.Sequential(fv.insert(blocks, "se after stage1.0"), nn.Softmax(1))
    with untouched(whole), pytest.raises(FoveateError, match="part '0' of the model carries the plan"):
        fv.insert(whole, "se after 0.stage1.0")


def test_what_is_no_module():
    with pytest.raises(FoveateError, match="is expected, not a str: foveate.create_model"):
        fv.insert("resnet18", "se after layer1")


@pytest.mark.parametrize("wrap", ["compile", "compile in place", "parallel"])
def test_a_compiled_or_wrapped_model(wrap, blocks, untouched):
    if wrap == "compile":
        model = torch.compile(blocks, backend="eager")
    elif wrap == "parallel":
        model = nn.DataParallel(blocks)
    else:
        model = blocks
        model.compile(backend="eager")
    with untouched(blocks), pytest.raises(FoveateError, match="insert first, then compile or wrap"):
        fv.insert(model, "se after stage1.0")


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.shared, self.pair = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), Pair()
        self.never = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.shared(self.shared(self.stem(x)))
        one, other = self.pair(x)
        return one + other


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return x, self.conv(x)


@pytest.mark.parametrize(
    "plan,message",
    [
        ("se after shared", "site 'shared' runs 2 times in a forward pass"),
        ("se replacing shared", "site 'shared' runs 2 times"),
        ("se after never", "site 'never' runs 0 times"),
        ("se after pair", r"site 'pair' gives a tuple, not one \(B, C, H, W\) feature map"),
        ("se after stem.*", "no site matches"),
    ],
)
def test_places_that_cannot_take_attention(plan, message, untouched):
    model = Twice()
    with untouched(model), pytest.raises(FoveateError, match=message):
        fv.insert(model, plan, input_size=16)


def test_a_name_that_the_network_uses_itself(untouched):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3)))
    model[0].foveate = nn.Identity()
    with untouched(model), pytest.raises(FoveateError, match="the module there has a 'foveate' of its own"):
        fv.insert(model, "se after 0", input_size=16)
    assert KEY == "foveate"


def test_a_network_of_containers_only():
    class Running(nn.ModuleList):
        def forward(self, x):
            for part in self:
                x = part(x)
            return x

    model = Running([Running([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)]), nn.ReLU()])
    x = torch.rand(1, 3, 16, 16)
    before = model(x)
    fv.insert(model, "se after 0; cbam after 0.0", input_size=16)  # the last layer inside keeps the first
    assert [name for name, module in model.named_modules() if type(module).__name__ == "SE"] == ["0.1.0_foveate"]
    assert not torch.equal(model(x), before)
    assert torch.equal(fv.remove(model)(x), before)
    fv.insert(model, "se after 0.1", input_size=16)  # a layer can keep its own


def test_a_module_that_runs_all_its_children_is_no_obstacle(untouched):
    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, x):
            for part in self.children():
                x = part(x)
            return x

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.stage = nn.Conv2d(3, 8, 3), Stage()

        def forward(self, x):
            return self.stage(self.stem(x))

    model, x = Network(), torch.rand(2, 3, 16, 16)
    with untouched(model):
        expected = model(x)
        fv.insert(model, "se after stage", input_size=16)
        assert torch.equal(model(x), fv.attentions(model)["stage"](expected))
        fv.remove(model)


class Grows(nn.Module):
    def __init__(self, channels, to=2):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * to, 1)

    def forward(self, x):
        return self.conv(x)


class Pools(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x.mean((2, 3), keepdim=True) * self.scale[:, None, None]


class Fails(nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        raise KeyError("no such luck")


class Gives(nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return x, x


class NeedsData(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x):
        return x * 0 if x.abs().sum().item() < -1 else x + torch.zeros(1) * self.fc(x.mean((2, 3)))[:, :, None, None]


@pytest.mark.parametrize("start", ["identity", "mechanism"])
@pytest.mark.parametrize(
    "constructor,message",
    [
        (Grows, "turns 8x16x16 into 16x16x16 at site 'stage1.0'; attention keeps the shape"),
        (Pools, "turns 8x16x16 into 8x1x1 at site 'stage1.0'; attention keeps the shape"),
        (Fails, "does not work at site 'stage1.0', 8x16x16: 'no such luck'"),
        (Gives, "at site 'stage1.0'"),
    ],
)
def test_mechanisms_that_do_not_fit(constructor, message, start, blocks, untouched, monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})
    fv.register("mine", constructor)
    for plan in ("mine after stage1.0", "mine replacing stage1.0"):
        with untouched(blocks), pytest.raises(FoveateError, match=message) as caught:
            fv.insert(blocks, plan, input_size=32, start=start)
        assert "\n" not in str(caught.value)


def test_a_mechanism_that_cannot_run_without_data_is_welcome(blocks, images, monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})
    fv.register("mine", NeedsData)
    expected = blocks(images)
    fv.insert(blocks, "mine after stage1.0")
    assert torch.equal(blocks(images), expected)
    assert fv.cost(blocks, 32).params > fv.cost(blocks, 32).baseline.params


def test_a_network_that_relies_on_its_block(untouched):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return self.block(self.stem(x)) * self.block.weight.shape[0]

    model = Network()
    with untouched(model), pytest.raises(FoveateError, match="does not run with this plan: .*weight.*take other"):
        fv.insert(model, "se replacing block", input_size=16)
