"""OpenVINO in 8 bits by NNCF: what is read behind each FakeQuantize, and attention that stays in 32 bits."""

import pytest
import torch
from torch import nn

import foveate as fv
from foveate.errors import FoveateError
from foveate.exporters.formats.onnx import to_onnx
from foveate.exporters.options import ExportOptions
from foveate.exporters.program import prepare
from foveate.exporters.quantization.keep import REMEDY, quantize_keeping
from foveate.exporters.quantization.nncf_openvino import nncf_quantizer, quantize
from foveate.exporters.quantization.static_onnx import static_quantizer

for needed in ("onnx", "onnxruntime", "onnxscript", "openvino", "nncf"):
    pytest.importorskip(needed)

SIZE = 32


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU())
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        return self.fc(self.last(self.block(self.stem(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def made():
    """A network whose second attention adds less than a step of 8 bits."""
    torch.manual_seed(0)
    model = fv.insert(Small(), "se after stem; position after block", start="identity", input_size=SIZE).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            parameter.data.fill_(1.0)
        if name.endswith("gate"):
            parameter.data.fill_(1.0 if name.startswith("stem") else 0.005)
    program = prepare(model, ExportOptions("int8", size=SIZE, keep="none"), format_name="openvino")
    program.images = torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).numpy()
    program.calibration = tuple(torch.from_numpy(program.images).split(1))
    graph = to_onnx(program)
    return program, graph, nncf_quantizer(graph, program)


def test_in_32_bits_it_reads_what_onnxruntime_reads(made):
    program, graph, tool = made
    (logits, arrays), (right, others) = (
        one.reader(None)(program.images) for one in (tool, static_quantizer(graph, program))
    )
    for found, expected in ((logits, right), *zip(arrays, others, strict=True)):
        assert abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("keep", ["none", "attention"])
def test_what_is_left(made, keep):
    program, _, tool = made
    object.__setattr__(program.options, "keep", keep)
    file = quantize_keeping(program, tool)
    strong, faint = program.contributions
    assert strong.correlation > 0.95
    assert faint.lost == (keep == "none")
    assert (faint.remedy == REMEDY) == (keep == "attention")
    assert sum(op.get_type_name() == "FakeQuantize" for op in file.get_ops()) >= 3


def test_no_images():
    with pytest.raises(FoveateError, match="too few images"):
        quantize(None, ())
