"""What is found in a graph is what the modules read and give in PyTorch: every mechanism, verb, gate and layout."""

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

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


SIZE = 64


def randomised(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def everywhere():
    """A network with every mechanism, each after a block of its own; every second one behind a gate."""
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_large_075", num_classes=5)
    found = [site.name for site in fv.sites(model, SIZE) if site.name.startswith("blocks.")]
    blocks = [name for name in found if name.count(".") == 2]
    plan = "; ".join(f"{name} after {block}" for name, block in zip(names("attention"), blocks, strict=False))
    return fv.insert(model, plan, input_size=SIZE, start="identity")


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


def graph_of(model, images=2, **options):
    program = prepare(randomised(model), ExportOptions("int8", size=SIZE, **options), format_name="onnx")
    program.images = torch.randn(images, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).numpy()
    return program, static_quantizer(to_onnx(program), program)


def read_in_torch(program, sites):
    """x and out of each module, as hooks see them."""
    seen, network = {}, program.network.network
    for site in sites:
        module = network.get_submodule(site.module)
        module.register_forward_hook(lambda _, x, out, site=site: seen.update({site: (x[0].numpy(), out.numpy())}))
    with torch.no_grad():
        program.network(torch.from_numpy(program.images))
    return seen


def test_every_mechanism_in_8_bits():
    """Each is quantized and run, and what is left of it is a number, or it is said why there is none."""
    program, tool = graph_of(everywhere(), images=4)
    program.calibration = tuple(torch.from_numpy(program.images).split(1))
    quantize_keeping(program, tool)
    assert [one.site for one in program.contributions] == [site.site for site in program.sites]
    for one in program.contributions:
        assert one.reason if one.correlation is None else -1 <= one.correlation <= 1, one
    assert sum(one.correlation is not None for one in program.contributions) >= len(program.sites) - 1


@pytest.mark.parametrize("make", [everywhere, followed, channels_last], ids=lambda make: make.__name__)
def test_it_finds_what_the_modules_read_and_give(make):
    program, tool = graph_of(make())
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
    if make is followed:
        kinds = {one.site.site: [step.kind for step in one.steps] for one in found}
        assert kinds == {"early": ["Relu"], "stem": ["Relu"], "block": [], "late": ["Clip", "Transpose"]}
