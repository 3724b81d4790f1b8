"""A network whose attention works, one where it is static, inert, harmful: the audit names each."""

import copy
import csv
import io
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.studies.comparison.statistics import Difference
from foveate.studies.evaluation.attention_metrics import MapStatistics, contribution, factor_of, low_precision, own_maps
from foveate.studies.evaluation.audit import audit
from foveate.studies.evaluation.audit_result import Effect, verdict_of
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
def held():
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


def test_one_that_works(working, held):
    (row,) = audit(working, held).rows
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


def test_an_inert_one(useless, held):
    (row,) = audit(useless, held).rows
    assert row.verdict == "inert"
    assert row.gate == 0
    assert row.contribution == 0
    assert row.off.changed == 0
    assert row.off.difference.mean == 0
    assert row.varies > 0.1  # its map is not to blame
    assert row.bf16.changed == row.int8.changed == 0


def test_a_harmful_one(useless, held):
    model = copy.deepcopy(useless)
    set_gate(model, -12)
    (row,) = audit(model, held).rows
    assert row.verdict == "harmful"
    assert row.off.difference.low > 0
    assert row.gate == -12
    assert "better without it" in row.reason


def test_a_static_one(held):
    model = with_ulsam(8)
    scores = attentions(model)["body"].bn_point
    with torch.no_grad():
        scores.weight.zero_()  # all scores are equal: the map is 1/N at each of the 16 places
    scores.weight.requires_grad_(False)
    train(model)
    (row,) = audit(model, held).rows
    assert row.verdict == "static"
    assert row.entropy == pytest.approx(1)
    assert row.area == pytest.approx(1)
    assert row.varies < 1e-6
    assert row.constant == 1
    assert row.contribution == pytest.approx(0.5)
    assert row.shuffled.changed == 0
    assert row.off.difference.high < 0  # it does matter: a fixed gain would do
    assert "the same for every image" in row.reason


def test_each_module_alone(held):
    torch.manual_seed(0)
    model = train(insert(Tiny(), "se after stem; non_local after body; attention_pool as pool", seed=0))
    found = audit(model, held)
    assert [row.site for row in found.rows] == ["stem", "body", "pool"]
    by = {row.site: row for row in found.rows}
    # SE multiplies by its weights; non-local adds what it computes from all places.
    assert (by["stem"].shuffles, by["body"].shuffles, by["pool"].shuffles) == ("map", "contribution", None)
    assert by["pool"].shuffled is None
    assert by["pool"].int8 is None
    assert by["pool"].contribution > 0
    assert all(row.verdict in ("works", "static", "inert", "harmful", "unclear") for row in found.rows)


@pytest.mark.parametrize("name", ["ltpa", "saol"])
def test_a_head_cannot_be_switched_off(held, name):
    torch.manual_seed(0)
    model = train(insert(Tiny(), f"{name} as head on stem, body", seed=0), steps=2)
    (row,) = audit(model, held).rows
    assert row.off is None
    assert row.contribution is None
    assert (row.verdict, row.reason) == ("unclear", "a head is the classifier: it cannot be switched off")
    assert row.entropy is not None
    assert row.maps == (2 if name == "ltpa" else 1)


def test_a_module_without_a_map(held):
    torch.manual_seed(0)
    model = train(insert(Tiny(), "timm:eca after body", seed=0), steps=20)
    (row,) = audit(model, held).rows
    assert row.maps == 0
    assert row.entropy is row.varies is row.constant is None
    assert row.contribution > 0
    assert row.shuffles == "contribution"


def test_in_a_blocks_place_its_input_is_passed_on(held):
    torch.manual_seed(0)
    model = Tiny()
    model.body = nn.Sequential(
        *model.body[:2], nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()), model.body[2:]
    )
    insert(model, "se replacing body.2", seed=0)
    train(model, steps=30)
    (row,) = audit(model, held).rows
    module = attentions(model)["body.2"]
    kept = []
    hook = module.register_forward_hook(lambda _, args, out: kept.append((args[0], out)))
    images = torch.cat([batch for batch, _ in held])
    labels = torch.cat([right for _, right in held])
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


def test_the_model_is_left_as_found(working, held):
    model = copy.deepcopy(working).train()
    model.stem.eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    hooks = {name: list(module._forward_hooks) for name, module in model.named_modules()}
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    random = torch.get_rng_state()
    first = audit(model, held)
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert hooks == {name: list(module._forward_hooks) for name, module in model.named_modules()}
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    again = audit(model, held)
    assert [row.off for row in again.rows] == [row.off for row in first.rows]

    def broken(x):
        raise ZeroDivisionError

    attentions(model)["body"].attend = broken
    with pytest.raises(ZeroDivisionError):
        audit(model, held)
    assert modes == [module.training for module in model.modules()]
    assert hooks == {name: list(module._forward_hooks) for name, module in model.named_modules()}


def test_table_csv_and_words(working, held, tmp_path):
    found = audit(working, held)
    lines = str(found).splitlines()
    assert max(map(len, found.table().splitlines())) <= 100
    assert lines[0].startswith(f"images: 200 images, accuracy {found.accuracy:.1f}%")
    assert "verdict" in lines[1]
    assert lines[2].split()[:2] == ["body", "works"]
    assert lines[-1].startswith("body (ulsam(groups=2, start='identity') after): works: without it -")
    (row,) = csv.DictReader(io.StringIO(found.write_csv(tmp_path / "audit.csv").read_text("utf-8")))
    assert row["verdict"] == "works"
    assert float(row["off_high"]) < 0
    assert json.loads(json.dumps(found.as_dicts()))[0]["bf16_correlation"] <= 1 + 1e-9
    with pytest.raises(FoveateError, match="cannot write"):
        found.write_csv(tmp_path / "no" / "audit.csv")


def test_what_cannot_be_audited(working, held):
    with pytest.raises(FoveateError, match="no inserted attention to audit"):
        audit(Tiny(), held)
    with pytest.raises(FoveateError, match="batch_size=1"):
        audit(working, held, batch_size=1)
    with pytest.raises(FoveateError, match="no batch"):
        audit(working, [])
    with pytest.raises(FoveateError, match="normalised float"):
        audit(working, [(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.zeros(2))])
    with pytest.raises(FoveateError, match="batches"):
        audit(working, [torch.zeros(2, 3, 16, 16)])
    with pytest.raises(FoveateError, match="has the label 9"):
        audit(working, [(torch.zeros(2, 3, 16, 16), torch.tensor([0, 9]))])
    with pytest.raises(FoveateError, match="image_size="):
        audit(working, held, image_size=32)
    with pytest.raises(FoveateError, match="limit 0"):
        audit(working, held, limit=0)


@pytest.mark.parametrize("size", [32, 33, 64])
def test_batches_do_not_matter_to_what_is_switched_off(working, held, size):
    (row,) = audit(working, held, batch_size=size).rows
    assert row.off == audit(working, held).rows[0].off


def effect(low, high, p=0.01, changed=0.5, images=300):
    return Effect(Difference((low + high) / 2, low, high, 1, p), p, changed, images)


@pytest.mark.parametrize(
    ("off", "shuffled", "size", "constant", "verdict"),
    [
        (effect(1, 5), None, 0.1, 0.0, "harmful"),
        (effect(1, 5, p=0.2), None, 0.1, 0.0, "unclear"),  # a handful of images: McNemar does not agree
        (effect(1, 5), None, 1e-5, 1.0, "harmful"),
        (effect(-5, -1), None, 1e-5, 0.0, "inert"),
        (effect(0, 0, changed=0.0), None, 0.1, 1.0, "inert"),
        (effect(0, 0, changed=0.0, images=299), None, 0.1, 0.0, "unclear"),
        (effect(-0.9, 0.9, images=299), None, 0.1, 0.0, "unclear"),
        (effect(-5, -1), None, 0.1, 1.0, "static"),
        (effect(-5, -1), None, 0.1, 0.5, "works"),
        (effect(-0.9, 0.9), None, 0.1, 0.0, "inert"),
        (effect(-3, 0.9, p=0.5), None, 0.1, 0.0, "unclear"),
        (None, None, None, 0.0, "unclear"),
        (None, None, None, 1.0, "static"),
    ],
)
def test_the_rule(off, shuffled, size, constant, verdict):
    found, reason = verdict_of(off, shuffled, size, 0.5 * (1 - constant), constant)
    assert found == verdict
    assert reason


def test_another_images_map_that_does_as_well():
    assert "does as well" in verdict_of(effect(-5, -1), effect(-0.5, 0.5), 0.1, 0.5, 0.0)[1]
    assert "with another image's map -3.0" in verdict_of(effect(-5, -1), effect(-5, -1), 0.1, 0.5, 0.0)[1]


def test_how_uniform_a_map_is():
    peak = torch.zeros(3, 16)
    peak[:, 3] = 1
    seen = MapStatistics()
    seen.see([torch.full((3, 16), 1 / 16), peak])
    seen.see([torch.full((2, 16), 1 / 16), peak[:2]])
    assert seen.entropy == pytest.approx([1, 1, 1, 0, 0, 0, 1, 1, 0, 0])
    assert seen.area[3] == pytest.approx(1 / 16)
    assert seen.variation() == [0, 0]
    assert seen.constant == 1
    seen.see([torch.full((5, 16), 1 / 16), peak.roll(1, 1)[[0, 1, 2, 0, 1]]])
    assert seen.variation()[1] == pytest.approx(2 * 0.5 / 16 / (1 / 16))  # at two places, half of the time
    assert seen.constant == 0.5
    signed = MapStatistics()
    signed.see([torch.randn(4, 9)])
    assert all(value != value for value in signed.entropy)


@pytest.mark.parametrize(
    "plan", ["ulsam(groups=4)", "se", "bam", "cbam", "cbam(order='parallel')", "non_local", "double", "position"]
)
def test_the_factor_of_a_mechanism(plan):
    torch.manual_seed(0)
    model = insert(Tiny(), f"{plan} after body", seed=0)
    module = attentions(model)["body"].eval()
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
        assert all(values.shape[0] == 2 and values.ndim == 2 for values in own_maps(module, (x,)))


def test_low_precision_erases_a_small_contribution():
    class Times(nn.Module):
        def __init__(self, gain):
            super().__init__()
            self.gain = gain

        def forward(self, x):
            return x * self.gain

    x = torch.randn(2, 4, 8, 8).relu()
    strong, weak = (low_precision(Times(gain), x, x * gain) for gain in (1.5, 1 + 1e-4))
    assert all(strong[name].correlation > 0.99 and strong[name].changed > 0.9 for name in ("bf16", "fp16", "int8"))
    assert weak["bf16"].changed == 0
    assert weak["bf16"].correlation == 0
    assert weak["fp16"].changed < 0.5
    assert weak["int8"].changed < 0.05
    assert contribution(x, 1.5 * x).tolist() == pytest.approx([0.5, 0.5])
