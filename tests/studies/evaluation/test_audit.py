"""A network whose attention works, one where it is static, inert, harmful: the audit names each."""

import copy
import csv
import dataclasses
import io
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.studies.evaluation.audit import audit
from foveate.studies.evaluation.faithfulness import faithfulness
from foveate.studies.evaluation.in_memory import SharedImages
from foveate.surgery.insert import attentions, insert

LEVELS = 4


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        # Without biases the features grow in proportion to the brightness: what scales them, shifts the classes.
        convs = [nn.Conv2d(*sides, 1, bias=False) for sides in ((3, 8, 3, 2), (8, 16, 3, 2), (16, 16, 3, 1))]
        self.stem = nn.Sequential(convs[0], nn.ReLU())
        self.body = nn.Sequential(convs[1], nn.ReLU(), convs[2], nn.ReLU())
        self.head = nn.Linear(16, LEVELS)
        self.pretrained_cfg = {"input_size": (3, 16, 16)}

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def squares(count, seed):
    """A square somewhere; how bright it is is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % LEVELS
    images = 0.02 * torch.randn(count, 3, 16, 16, generator=generator)
    for image, label, place in zip(images, labels, torch.randint(0, 10, (count, 2), generator=generator), strict=True):
        row, column = place.tolist()
        image[:, row : row + 6, column : column + 6] += 0.5 + 0.4 * label
    return images, labels


def train(model, steps=150):
    model.train()
    images, labels = squares(256, 1)
    some = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(some, 0.03)
    for step in range(steps):
        chosen = torch.randperm(256, generator=torch.Generator().manual_seed(step))[:64]
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def loaded():
    images, labels = squares(200, 2)
    return [(images[start : start + 50], labels[start : start + 50]) for start in range(0, 200, 50)]


def with_ulsam(gate):
    """The network with ULSAM behind a gate of fixed size."""
    torch.manual_seed(0)
    model = insert(Tiny(), "ulsam(groups=2) after body", start="identity", seed=0)
    set_gate(model, gate)
    return model


def set_gate(model, value):
    gate = next(p for name, p in model.named_parameters() if name.endswith("gate"))
    gate.requires_grad_(False).fill_(value)


@pytest.fixture(scope="module")
def working():
    return train(with_ulsam(8))


@pytest.fixture(scope="module")
def useless():
    """Trained while its attention did nothing."""
    return train(with_ulsam(0))


@pytest.fixture(scope="module")
def found(working, loaded):
    return audit(working, loaded)


def test_one_that_works(found):
    (row,) = found.rows
    assert (row.verdict, row.site, row.spec, row.verb) == (
        "works",
        "body",
        "ulsam(groups=2, start='identity')",
        "after",
    )
    assert row.off.difference.high < 0
    assert row.off.p < 0.05
    assert row.off.changed > 0
    assert row.maps == 2
    assert 0 < row.entropy < 1
    assert row.varies > 0.1
    assert row.constant == 0
    assert row.shuffles == "map"
    assert row.gate == 8
    assert "without it -" in row.reason
    assert 0 < row.time < 1


def test_an_inert_one(useless, loaded):
    (row,) = audit(useless, loaded).rows
    assert row.verdict == "inert"
    assert row.gate == 0
    assert row.contribution == 0
    assert row.off.changed == 0
    assert row.off.difference.mean == 0
    assert row.varies > 0.1  # its map is not to blame
    assert row.bf16.changed == row.int8.changed == 0
    assert row.bf16.relative_error is None  # there is nothing to keep


def test_a_harmful_one(useless, loaded):
    model = copy.deepcopy(useless)
    set_gate(model, -12)
    (row,) = audit(model, loaded).rows
    assert row.verdict == "harmful"
    assert row.off.difference.low > 0
    assert row.gate == -12
    assert "better without it" in row.reason


def test_a_static_one(loaded):
    model = with_ulsam(8)
    scores = attentions(model)["body"].bn_point
    with torch.no_grad():
        scores.weight.zero_()  # all scores are equal: the map is 1/N at each of the 16 places
    scores.weight.requires_grad_(False)
    train(model)
    (row,) = audit(model, loaded).rows
    assert row.verdict == "static"
    assert row.entropy == pytest.approx(1)
    assert row.area == pytest.approx(1)
    assert row.varies < 1e-6
    assert row.constant == 1
    assert row.contribution == pytest.approx(0.5)
    assert row.shuffled.changed == 0
    assert row.off.difference.high < 0  # it does matter: a fixed gain would do
    assert "the same for every image" in row.reason


def test_each_module_alone(loaded):
    torch.manual_seed(0)
    model = train(insert(Tiny(), "se after stem; non_local after body; attention_pool as pool", seed=0), steps=40)
    found = audit(model, loaded)
    assert [row.site for row in found.rows] == ["stem", "body", "pool"]
    by = {row.site: row for row in found.rows}
    # SE multiplies by its weights; non-local adds what it computes from all places.
    assert (by["stem"].shuffles, by["body"].shuffles, by["pool"].shuffles) == ("map", "contribution", None)
    assert by["pool"].shuffled is None
    assert by["pool"].int8 is None
    assert by["pool"].contribution > 0
    assert all(row.verdict in ("works", "static", "inert", "harmful", "unclear") for row in found.rows)


@pytest.mark.parametrize("name", ["ltpa", "saol"])
def test_a_head_cannot_be_switched_off(loaded, name):
    torch.manual_seed(0)
    model = train(insert(Tiny(), f"{name} as head on stem, body", seed=0), steps=2)
    (row,) = audit(model, loaded).rows
    assert row.off is None
    assert row.contribution is None
    assert (row.verdict, row.reason) == ("unclear", "a head is the classifier: it cannot be switched off")
    assert row.entropy is not None
    assert row.maps == (2 if name == "ltpa" else 1)


def test_a_module_without_a_map(loaded):
    torch.manual_seed(0)
    model = train(insert(Tiny(), "timm:eca after body", seed=0), steps=20)
    (row,) = audit(model, loaded).rows
    assert row.maps == 0
    assert row.entropy is row.varies is row.constant is None
    assert row.contribution > 0
    assert row.shuffles == "contribution"


def test_in_a_blocks_place_its_input_is_passed_on(loaded):
    torch.manual_seed(0)
    model = Tiny()
    model.body = nn.Sequential(
        *model.body[:2], nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()), model.body[2:]
    )
    insert(model, "se replacing body.2", seed=0)
    train(model, steps=30)
    (row,) = audit(model, loaded).rows
    module = attentions(model)["body.2"]
    kept = []
    hook = module.register_forward_hook(lambda _, args, out: kept.append((args[0], out)))
    images = torch.cat([batch for batch, _ in loaded])
    labels = torch.cat([right for _, right in loaded])
    with torch.no_grad():
        before = model(images).argmax(1)
        hook.remove()
        hook = module.register_forward_hook(lambda _, args, out: args[0])
        after = model(images).argmax(1)
    hook.remove()
    given, gives = kept[0]
    assert row.contribution == pytest.approx(
        float(((gives - given).flatten(1).norm(dim=1) / given.flatten(1).norm(dim=1)).mean())
    )
    accuracy = [float((of == labels).double().mean()) for of in (before, after)]
    assert row.off.difference.mean == pytest.approx(100 * (accuracy[1] - accuracy[0]))
    assert row.off.changed == pytest.approx(float((before != after).double().mean()))


def test_the_model_is_left_as_found(working, loaded):
    model = copy.deepcopy(working).train()
    model.stem.eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    hooks = {name: list(module._forward_hooks) for name, module in model.named_modules()}
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    random = torch.get_rng_state()
    first = audit(model, loaded)
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert hooks == {name: list(module._forward_hooks) for name, module in model.named_modules()}
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    again = audit(model, loaded)
    assert [row.off for row in again.rows] == [row.off for row in first.rows]

    def broken(x):
        raise ZeroDivisionError

    attentions(model)["body"].attend = broken
    with pytest.raises(ZeroDivisionError):
        audit(model, loaded)
    assert modes == [module.training for module in model.modules()]
    assert hooks == {name: list(module._forward_hooks) for name, module in model.named_modules()}


def test_table_csv_and_words(found, tmp_path):
    lines = str(found).splitlines()
    assert max(map(len, found.table().splitlines())) <= 100
    assert lines[0].startswith(f"images: 200 images, accuracy {found.accuracy:.1f}%")
    assert "verdict" in lines[1]
    assert lines[2].split()[:2] == ["body", "works"]
    assert lines[-1].startswith("body (ulsam(groups=2, start='identity') after): works: without it -")
    (row,) = csv.DictReader(io.StringIO(found.write_csv(tmp_path / "audit.csv").read_text("utf-8")))
    assert row["verdict"] == "works"
    assert float(row["off_high"]) < 0
    flat = json.loads(json.dumps(found.as_dicts()))[0]
    assert flat["bf16_correlation"] <= 1 + 1e-9
    assert (flat["bf16_norm_ratio"], flat["bf16_relative_error"]) == (
        found.rows[0].bf16.norm_ratio,
        found.rows[0].bf16.relative_error,
    )
    (tmp_path / "taken").touch()
    with pytest.raises(FoveateError, match="cannot make the folder"):
        found.write_csv(tmp_path / "taken" / "audit.csv")


def test_what_cannot_be_audited(working, loaded):
    with pytest.raises(FoveateError, match="no inserted attention to audit"):
        audit(Tiny(), loaded)
    with pytest.raises(FoveateError, match="batch_size=1"):
        audit(working, loaded, batch_size=1)
    with pytest.raises(FoveateError, match="no batch"):
        audit(working, [])
    with pytest.raises(FoveateError, match="normalised float"):
        audit(working, [(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.zeros(2))])
    with pytest.raises(FoveateError, match="batches"):
        audit(working, [torch.zeros(2, 3, 16, 16)])
    with pytest.raises(FoveateError, match="a label outside 0..3, such as 9"):
        audit(working, [(torch.zeros(2, 3, 16, 16), torch.tensor([0, 9]))])
    with pytest.raises(FoveateError, match="such as -1"):
        audit(working, [(torch.zeros(2, 3, 16, 16), torch.tensor([0, -1]))])
    with pytest.raises(FoveateError, match="one class number for each image"):
        audit(working, [(torch.zeros(2, 3, 16, 16), torch.tensor([0.7, 0]))])
    with pytest.raises(FoveateError, match="NaN or infinite for 1 of 3 images"):
        audit(working, [(torch.zeros(3, 3, 16, 16).index_fill(0, torch.tensor(1), torch.nan), torch.zeros(3).long())])
    with pytest.raises(FoveateError, match="image_size="):
        audit(working, loaded, image_size=32)
    with pytest.raises(FoveateError, match="limit 0"):
        audit(working, loaded, limit=0)


@pytest.mark.parametrize("size", [33, 64, 200])  # without an option: 32
def test_batches_do_not_matter(working, loaded, found, size):
    (row,) = audit(working, loaded, batch_size=size).rows
    assert row.off == found.rows[0].off
    for name in ("bf16", "fp16", "int8"):
        for measure in ("correlation", "norm_ratio", "relative_error", "changed"):
            of = getattr(getattr(found.rows[0], name), measure)
            assert getattr(getattr(row, name), measure) == pytest.approx(of, rel=1e-3)


# Networks without training, in which the truth is known by construction. Channel 0 of an image tells what the module
# may look at, channel 1 is what the classifier compares with 1, and the class is 1 where it is larger.


class Known(nn.Module):
    """1x1 features equal to the image; class 1 where the mean of channel 1 is above that of channel 2."""

    def __init__(self, module):
        super().__init__()
        self.body = nn.Conv2d(3, 3, 1, bias=False)
        self.head = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.body.weight.copy_(torch.eye(3)[:, :, None, None])
            self.head.weight.copy_(torch.tensor([[0.0, 0, 1], [0, 1, 0]]))
        insert(self, "se after body", input_size=8)
        self.body.foveate = module

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def known_images(cues, values, reference=1.0, count=60):
    """Cue, value and reference of class 0 and class 1, in channels 0, 1 and 2."""
    labels = torch.arange(count) % 2
    images = torch.empty(count, 3, 8, 8)
    for label in (0, 1):
        images[labels == label] = torch.tensor([cues[label], values[label], reference]).view(3, 1, 1)
    return [(images[:40], labels[:40]), (images[40:], labels[40:])]


class Module(nn.Module):
    """x * attend(x), or x + its contribution."""

    def __init__(self, axes, attend, add=False):
        super().__init__()
        self.map_axes, self.attend, self.add = axes, attend, add

    def forward(self, x):
        found = self.attend(x)
        if self.add:
            return x + torch.einsum("bqhw,bchw->bcq", found, x).unflatten(2, x.shape[2:])
        return x * (found[:, None] if found.ndim == 3 else found)


def one_channel(x):
    """Halves channel 2, which the classifier reads; the others, one of them of large values, stay."""
    return torch.tensor([1.0, 1, 0.5]).view(1, 3, 1, 1).expand_as(x)


def opposite(x):
    """Channel 1 up and channel 2 down, or the other way round, by the image: the mean over channels is always 1."""
    sign = x[:, :1].mean((2, 3), keepdim=True).sign()
    return 1 + 0.5 * sign * torch.tensor([0.0, 1, -1]).view(1, 3, 1, 1) + 0 * x


def by_image(x):
    """The same everywhere in an image, and another value for another image."""
    return x[:, 0].mean((1, 2), keepdim=True).expand(-1, 8, 8)


def rest(values):
    """Gives a module that multiplies channel 1 alone by what ``values`` gives for the image."""

    def attend(x):
        factor = torch.ones_like(x)
        factor[:, 1] = values(x)
        return factor

    return attend


def uniform_context(x):
    return torch.full((len(x), 64, 8, 8), 1 / 64)


def test_an_attention_that_matters_through_one_channel_beside_an_outlier():
    # Without it 0.4 and 0.9 are both below 1: everything is class 0.
    (row,) = audit(Known(Module("b c h w", one_channel)), known_images((1e5, 1e5), (0.4, 0.9))).rows
    assert row.contribution < 1e-3
    assert row.contribution_channel == pytest.approx(0.5)
    assert row.off.difference.mean == -50
    # The same weights for every image: a fixed weight would do.
    assert row.verdict == "static"
    assert "without it -50.0" in row.reason
    varying = Module("b c h w", rest(lambda x: (x[:, 1] > 0.5) * 1.5 + 0.5))
    (row,) = audit(Known(varying), known_images((1e5, 1e5), (0.4, 0.9))).rows
    assert row.contribution < 1e-3
    assert row.off.difference.mean == -50
    assert row.verdict == "works"


def test_an_attention_whose_channels_vary_against_each_other():
    (row,) = audit(Known(Module("b c h w", opposite)), known_images((-1, 1), (1, 1))).rows
    assert row.verdict == "works"
    assert row.constant == 0
    assert row.varies > 0.1
    assert row.shuffles == "map"
    assert row.shuffled.difference.high < 0


def test_an_attention_that_is_constant_in_each_image_and_depends_on_the_image():
    scaled = Module("b c h w", rest(by_image))
    (row,) = audit(Known(scaled), known_images((0.5, 1.5), (0.8, 0.8))).rows
    assert (row.verdict, row.constant) == ("works", 0)
    (plain,) = audit(Known(Module("b h w", by_image)), known_images((0.5, 1.5), (0.8, 0.8))).rows
    assert plain.entropy == pytest.approx(1)
    assert plain.constant == 0
    assert plain.verdict != "static"


def test_an_attention_that_is_uniform():
    (row,) = audit(Known(Module("b c h w", rest(lambda x: 1.5))), known_images((1, 1), (0.5, 0.9))).rows
    assert (row.verdict, row.constant) == ("static", 1)
    assert row.shuffled.changed == 0
    # Averaging over all positions is a fixed map, and what it adds depends on the image all the same.
    context = Module("b q h w", lambda x: uniform_context(x) * 1.0, add=True)
    (row,) = audit(Known(context), known_images((0, 0), (0.8, 1.6))).rows
    assert row.shuffles == "contribution"
    assert row.entropy == pytest.approx(1)
    assert row.constant == 1
    assert row.verdict not in ("static", "works")  # here both sides of the comparison double: nothing changes
    assert row.off.changed == 0
    add_to_one = Known(context)
    with torch.no_grad():
        add_to_one.head.weight.copy_(torch.tensor([[0.0, 0, 0], [0, 1, 0]]))
        add_to_one.head.bias = nn.Parameter(torch.tensor([1.0, 0.0]))
    (row,) = audit(add_to_one, known_images((0, 0), (0.4, 0.8))).rows
    assert row.off.difference.mean == -50
    assert row.shuffled.difference.high < 0
    assert (row.verdict, row.constant) == ("works", 1)


def test_data_of_one_class():
    images = known_images((1, 1), (0.5, 0.9))
    zeros = [(batch[labels == 0], labels[labels == 0]) for batch, labels in images]
    found = audit(Known(Module("b c h w", rest(lambda x: 1.5))), zeros)
    assert found.accuracy == 100
    assert found.rows[0].verdict == "static"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_in_another_dtype_on_images_in_a_folder(data, dtype):
    torch.manual_seed(0)
    model = insert(Tiny(), "se after body", seed=0).to(dtype)
    model.pretrained_cfg["label_names"] = ["left", "right", "up", "down"]
    found = audit(model, data, limit=8)
    assert found.images == 8
    assert found.rows[0].bf16.norm_ratio is not None
    assert "gradcam" in str(faithfulness(model, data, ["gradcam"], ["drop"], limit=4))


def test_networks_that_share_images_decode_each_once(data, monkeypatch):
    """And what is found is the same; other images are decoded anew."""
    torch.manual_seed(0)
    model = insert(Tiny(), "se after body", seed=0)
    model.pretrained_cfg["label_names"] = ["left", "right", "up", "down"]
    decoded, load = [], type(data.val).load
    monkeypatch.setattr(
        type(data.val), "load", lambda self, index, *more: [decoded.append(index), load(self, index, *more)][1]
    )
    shared = SharedImages.of(data)
    one, other = audit(model, data, limit=8), audit(model, shared, limit=8)
    assert len(decoded) == 16
    again, fewer = audit(model, shared, limit=8), audit(model, shared, limit=4)
    assert (len(decoded), again.images, fewer.images) == (20, 8, 4)
    for found in (other, again):
        assert found.data == one.data
        assert dataclasses.replace(found.rows[0], time=0.0) == dataclasses.replace(one.rows[0], time=0.0)


def test_one_image_whose_output_is_not_a_multiple_tells_for_all():
    class Jump(nn.Module):
        map_axes = "b c h w"

        def attend(self, x):
            return torch.full_like(x, 0.5)

        def forward(self, x):
            return x * self.attend(x) + (x[:, :1] > 2)

    images = known_images((1, 1), (0.5, 0.9))
    images[1][0][-1, 0] = 3
    found = [audit(Known(Jump()), images, batch_size=20, seed=seed).rows[0].shuffles for seed in range(4)]
    assert found == ["contribution"] * 4  # in whichever batch it is


def test_the_widest_table_has_100_columns(found):
    of = found.rows[0]
    lost = dataclasses.replace(of.bf16, correlation=-1.0, norm_ratio=12345.6, relative_error=1e9, overflow=0.5)
    numbers = [(-100.0, -100.0, -100.0), (-12.0, -24.0, -0.0004), (12.0, 0.0004, 24.0)]
    rows = [
        dataclasses.replace(
            of,
            site="backbone.body." + "blocks." * 9,
            verdict="harmful",
            off=dataclasses.replace(
                of.off, difference=dataclasses.replace(of.off.difference, mean=mean, low=low, high=high)
            ),
            shuffled=dataclasses.replace(
                of.off, difference=dataclasses.replace(of.off.difference, mean=-100.0, low=low, high=high)
            ),
            contribution=1.2e-05,
            varies=123.45,
            time=0.9876,
            bf16=lost,
            fp16=None,
            int8=lost,
        )
        for mean, low, high in numbers
    ]
    table = dataclasses.replace(found, rows=tuple(rows), data="d" * 90).table()
    assert max(map(len, table.splitlines())) <= 100
    assert "[-24.0000, -0.0004]" in table
    assert "overfl." in table
    assert "…: 200 images, accuracy" in table
    assert table.splitlines()[0].endswith("another image's map")
