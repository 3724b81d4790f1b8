"""OpenVINO in 8 bits by NNCF: what is read behind each FakeQuantize, and attention that stays in 32 bits."""

import numpy as np
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.errors import FoveateError
from foveate.exporters.formats.onnx import to_onnx
from foveate.exporters.options import ExportOptions
from foveate.exporters.program import prepare
from foveate.exporters.quantization.keep import REMEDY, quantize_keeping
from foveate.exporters.quantization.nncf_openvino import check_nncf, nncf_quantizer, quantize
from foveate.exporters.quantization.static_onnx import static_quantizer

for needed in ("onnx", "onnxruntime", "onnxscript", "openvino", "nncf"):
    pytest.importorskip(needed)

SIZE = 32


@pytest.fixture(scope="module")
def made(small_network):
    """A network whose second attention adds less than a step of 8 bits."""
    torch.manual_seed(0)
    model = fv.insert(small_network(), "se after stem; position after block", start="identity", input_size=SIZE).eval()
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
    assert sum(op.get_type_name() == "FakeQuantize" for op in file.get_ops()) >= 2


def test_no_images():
    with pytest.raises(FoveateError, match="too few images"):
        quantize(None, ())


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FoveateError, match="pip install nncf onnx onnxscript"):
        check_nncf()


def test_export(made, tmp_path):
    """Through ``export``: the file is opened, its metadata is read back, and it predicts as the network does."""
    program, _, _ = made
    images = [Image.fromarray(np.random.default_rng(n).integers(0, 256, (SIZE, SIZE, 3), np.uint8)) for n in range(8)]
    for n, image in enumerate(images):
        (tmp_path / "photos" / "abcd"[n % 4]).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "photos" / "abcd"[n % 4] / f"{n}.png")
    found = fv.export(
        *(program.network.network, "openvino", tmp_path / "out"),
        precision="int8",
        data=tmp_path / "photos",
        size=SIZE,
        time=False,
    )
    assert all(check.passed is not False for check in found.checks), found
    assert found.metadata["precision"] == "int8"
    assert {one.site for one in found.contributions} == {"stem", "block"}
    assert found.agreement_without is not None
