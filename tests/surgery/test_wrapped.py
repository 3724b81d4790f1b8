"""A network inside a wrapper, in a part of a larger one, and blocks whose attributes the network reads."""

import copy

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

import foveate as fv
from foveate.errors import FoveateError

PLAN = "se after stage1.0; ulsam replacing stage2.1"


def data_parallel(model):
    return nn.DataParallel(model)


def compiled(model):
    return torch.compile(model, backend="eager")


WRAPPERS = [data_parallel, AveragedModel, ModelEmaV3, compiled, lambda model: AveragedModel(nn.DataParallel(model))]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapper_shows_and_saves_the_plan(wrap, make_blocks, images, tmp_path):
    model = fv.insert(make_blocks(), PLAN)
    wrapper = wrap(model)
    assert str(fv.plan_of(wrapper)) == PLAN
    assert list(fv.attentions(wrapper)) == ["stage1.0", "stage2.1"]
    loaded = fv.load(fv.save(wrapper, tmp_path / "saved"), make_blocks())
    assert str(fv.plan_of(loaded)) == PLAN
    assert torch.equal(loaded(images), model(images))
    with pytest.raises(FoveateError, match="carries the plan"):
        fv.insert(wrapper, "se after stage1.1")
    if wrap is compiled:
        with pytest.raises(FoveateError, match="a compiled model would go on"):
            fv.remove(wrapper)
    else:
        assert fv.remove(wrapper) is wrapper
    assert (fv.plan_of(wrapper) is None) == (wrap is not compiled)


def test_a_wrapper_of_ones_own_is_the_model(make_blocks, tmp_path):
    class Normalised(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            return self.module(x - 0.5)

    model = Normalised(fv.insert(make_blocks(), PLAN))
    assert str(fv.plan_of(model)) == "se after module.stage1.0; ulsam replacing module.stage2.1"
    with pytest.raises(FoveateError, match="its part 'module' carries a plan of its own"):
        fv.save(model, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_part_that_carries_a_plan(make_blocks, tmp_path):
    """As a detector, whose body does."""
    whole = nn.Sequential(nn.Identity(), fv.insert(make_blocks(), PLAN))
    plan = fv.plan_of(whole)
    assert str(plan) == "se after 1.stage1.0; ulsam replacing 1.stage2.1"
    again = fv.insert(nn.Sequential(nn.Identity(), make_blocks()), plan)
    assert list(again.state_dict()) == list(whole.state_dict())
    with pytest.raises(FoveateError, match="save that part"):
        fv.save(whole, tmp_path / "saved")
    two = nn.Sequential(fv.insert(make_blocks(), PLAN), fv.insert(make_blocks(), PLAN))
    with pytest.raises(FoveateError, match="belong to parts of Sequential, '0', '1'"):
        fv.plan_of(two)
    pooled = nn.Sequential(fv.insert(make_blocks(), "gap as pool"))
    with pytest.raises(FoveateError, match="belong to parts of Sequential, '0'"):
        fv.plan_of(pooled)


def test_a_wrapper_has_the_attributes_of_what_it_replaces(make_blocks, images):
    """As in ultralytics' networks, whose forward asks each module where its input comes from."""

    class Numbered(nn.Module):
        def __init__(self, blocks):
            super().__init__()
            layers = [blocks.stem, *blocks.stage1, *blocks.stage2]
            self.model = nn.ModuleList(layers)
            for index, layer in enumerate(layers):
                layer.i, layer.f, layer.type = index, -1, type(layer).__name__
                layer.np = sum(p.numel() for p in layer.parameters())

        def forward(self, x):
            outputs = []
            for module in self.model:
                x = module(x if module.f == -1 else outputs[module.f])
                outputs.append(x if module.i >= 0 else None)
            return x

    model = Numbered(make_blocks())
    before = model(images)
    fv.insert(model, "se replacing model.1; cbam after model.2")
    wrapper = model.model[1]
    assert (wrapper.i, wrapper.f, wrapper.type) == (1, -1, "Block")
    assert wrapper.np > 0
    assert wrapper.same is True
    assert "conv1" not in dict(wrapper.named_children())
    assert copy.deepcopy(model)(images).shape == before.shape
    fv.remove(model)
    assert torch.equal(model(images), before)


def test_a_missing_key_in_a_replaced_block_is_reported(make_blocks):
    model, plain = fv.insert(make_blocks(), PLAN), make_blocks().state_dict()
    lost = {key: value for key, value in plain.items() if key != "stage2.1.conv2.weight"}
    report = model.load_state_dict({**lost, "stage2.1.more": torch.ones(1)}, strict=False)
    assert report.missing_keys == ["stage2.1.conv2.weight"]
    assert report.unexpected_keys == ["stage2.1.more"]
    fv.remove(model)
    assert torch.equal(model.stage2[1].conv1.weight, plain["stage2.1.conv1.weight"])
    for state in (lost, {key: value for key, value in plain.items() if not key.startswith("stage2.1.")}):
        with pytest.raises(RuntimeError, match=r"Missing key.*stage2\.1\.conv2\.weight"):
            fv.insert(make_blocks(), PLAN).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"(?s)in 'stage2\.1', which the plan replaced.*size mismatch"):
        fv.insert(make_blocks(), PLAN).load_state_dict(
            {**plain, "stage2.1.conv2.weight": torch.ones(1, 1, 3, 3)}, strict=False
        )


NETWORKS = {
    "densenet": lambda: timm.create_model("densenet121", features_only=True),
    "regnet": lambda: timm.create_model("regnetx_002", features_only=True),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_features_only_of_networks_whose_stages_run_their_children(name):
    torch.manual_seed(0)
    model, x = NETWORKS[name]().eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
        fv.insert(model, "se after stage:all", start="identity", input_size=64)
        assert all(torch.equal(one, other) for one, other in zip(model(x), before, strict=True))
        assert len(fv.attentions(model)) >= 2
        for parameter in (p for key, p in model.named_parameters() if key.endswith("gate")):
            parameter.fill_(1)
        assert not torch.equal(model(x)[-1], before[-1])
        other = copy.deepcopy(model)
        assert torch.equal(other(x)[-1], model(x)[-1])
        fv.remove(model)
        assert all(torch.equal(one, other) for one, other in zip(model(x), before, strict=True))


def test_the_stages_of_an_encoder_are_stages(make_blocks):
    """As in segmentation_models_pytorch: the encoder gives a list of maps, and the decoder has blocks of its own."""

    class Encoder(nn.Module):
        def __init__(self, blocks):
            super().__init__()
            self.stem, self.layer1, self.layer2 = blocks.stem, blocks.stage1, blocks.stage2

        def forward(self, x):
            maps = [x, self.stem(x)]
            maps.append(self.layer1(maps[-1]))
            maps.append(self.layer2(maps[-1]))
            return maps

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            blocks, other = make_blocks(), make_blocks()
            self.encoder, self.decoder = Encoder(blocks), nn.Sequential(other.stage1[0], other.stage1[1])
            self.narrow = nn.Conv2d(16, 8, 1)

        def forward(self, x):
            return self.decoder(self.narrow(self.encoder(x)[-1]))

    model = Net().eval()
    kinds = {site.name: site.kind for site in fv.sites(model, 64)}
    assert kinds["encoder.layer1"] == kinds["encoder.layer2"] == "stage"
    assert kinds["encoder.layer2.0"] == "block"
    fv.insert(model, "se after stage:all", input_size=64)
    assert {"encoder.layer1", "encoder.layer2"} <= set(fv.attentions(model))
