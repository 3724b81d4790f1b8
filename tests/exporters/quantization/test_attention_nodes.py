"""What is found in a graph is what the modules read and give in PyTorch: every mechanism, verb, gate and layout."""

import functools

import pytest
import timm
import torch
from torch import nn

import foveate as fv
from foveate.exporters.formats.onnx import to_onnx
from foveate.exporters.options import ExportOptions
from foveate.exporters.program import prepare
from foveate.exporters.quantization.keep import quantize_keeping
from foveate.exporters.quantization.static_onnx import static_quantizer
from foveate.registry import names

pytestmark = pytest.mark.slow(
    reason="it exports each mechanism and reads the graphs",
    guards=(
        "foveate/exporters/",
        "foveate/attention/",
        "foveate/surgery/",
    ),
)

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


SIZE = 64


class Followed(nn.Module):
    """Attention before a ReLU and before a change of layout, two in a row, and in a block's place."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=8)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Hardtanh(-1, 1))
        self.early, self.late = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.block(self.early(self.stem(x).relu()).relu())
        x = self.norm(self.late(x).clamp(-2, 2).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.fc(x.mean((2, 3)))


def followed():
    torch.manual_seed(0)
    return fv.insert(
        Followed(), "bam after early; se after stem; cbam replacing block; ulsam after late", input_size=SIZE
    )


def channels_last():
    torch.manual_seed(0)
    model = timm.create_model("test_mambaout", num_classes=5)
    return fv.insert(model, "se after stages.0; ulsam after stages.1; cbam after stages.2", input_size=SIZE)


@pytest.fixture(scope="module")
def graph_of(blocks, randomised):
    """(name) -> a network's graph, made once."""
    makers = {
        "everywhere": lambda: blocks(names("attention"), start="identity"),  # each behind a gate
        "followed": followed,
        "channels_last": channels_last,
    }

    @functools.cache
    def graph(name):
        return made(randomised(makers[name]()))

    return graph


def made(model):
    program = prepare(model, ExportOptions("int8", size=SIZE), format_name="onnx")
    program.images = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).numpy()
    return program, static_quantizer(to_onnx(program), program)


def read_in_torch(program, sites):
    """x and out of each module, as hooks see them."""
    seen, network = {}, program.network.network
    hooks = [
        network.get_submodule(site.module).register_forward_hook(
            lambda _, x, out, site=site: seen.update({site: (x[0].numpy(), out.numpy())})
        )
        for site in sites
    ]
    with torch.no_grad():
        program.network(torch.from_numpy(program.images))
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.slow(
    reason="it quantizes a network with every mechanism, some eight seconds",
    guards=("foveate/exporters/", "foveate/attention/"),
)
def test_every_mechanism_in_8_bits(graph_of):
    """Each is quantized and run, and what is left of it is a number, or it is said why there is none."""
    program, tool = graph_of("everywhere")
    program.calibration = tuple(torch.from_numpy(program.images).split(1))
    quantize_keeping(program, tool)
    assert [one.site for one in program.contributions] == [site.site for site in program.sites]
    for one in program.contributions:
        assert one.reason if one.correlation is None else -1 <= one.correlation <= 1, one
    assert sum(one.correlation is not None for one in program.contributions) >= len(program.sites) - 1


@pytest.mark.parametrize("name", ["everywhere", "followed", "channels_last"])
def test_it_finds_what_the_modules_read_and_give(graph_of, name):
    program, tool = graph_of(name)
    found = [one for one in tool.attention if one.x]
    absent = {one.site.site: one.reason for one in tool.attention if not one.x}
    assert len(absent) <= 1
    assert set(absent.values()) <= {"it computes nothing"}, absent
    expected = read_in_torch(program, [one.site for one in found])
    _, arrays = tool.reader(None)(program.images)
    for n, one in enumerate(found):
        x, out = expected[one.site]
        for step in one.steps:
            x, out = step(x), step(out)
        for given, right in ((arrays[2 * n], x), (arrays[2 * n + 1], out)):
            assert abs(given - right).max() <= 1e-5 * max(1, abs(right).max()), one
    if name == "followed":
        kinds = {one.site.site: [step.kind for step in one.steps] for one in found}
        assert kinds == {"early": ["Relu"], "stem": ["Relu"], "block": [], "late": ["Clip", "Transpose"]}
