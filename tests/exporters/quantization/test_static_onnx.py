"""ONNX in 8 bits: one network through ``export``, and one whose attention is too small for 8 bits."""

import numpy as np
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.errors import FoveateError
from foveate.exporters.formats.onnx import to_onnx
from foveate.exporters.options import ExportOptions
from foveate.exporters.program import prepare
from foveate.exporters.quantization import static_onnx
from foveate.exporters.quantization.keep import REMEDY, quantize_keeping
from foveate.exporters.quantization.static_onnx import quantize, static_quantizer

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


SIZE = 32


@pytest.fixture(scope="module")
def small(small_network):
    torch.manual_seed(0)
    return small_network().eval()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 6)):
        for label in "abcd":
            (folder / part / label).mkdir(parents=True)
            for n in range(count // 2):
                pixels = draw.integers(0, 256, (SIZE // 4, SIZE // 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((SIZE, SIZE)).save(folder / part / label / f"{n}.png")
    return folder


def gated(model, gate, plan):
    """A copy of a network with attention that does more or less."""
    made = fv.insert(type(model)(), plan, start="identity", input_size=SIZE)
    made.load_state_dict(model.state_dict(), strict=False)
    for name, parameter in made.named_parameters():
        if name.endswith("foveate.gate"):
            parameter.data.fill_(gate)
        if name.endswith("gamma"):
            parameter.data.fill_(1.0)
    return made.eval()


def test_export(small, photos, tmp_path):
    model = gated(small, 3.0, "cbam after block; se after stem")
    made = fv.export(
        model,
        "onnx",
        tmp_path,
        precision="int8",
        data=photos,
        size=SIZE,
        maps=("attention", "cam"),
        input="uint8",
        softmax=True,
        top=2,
        keep="none",
    )
    assert made.path.name.endswith("int8.onnx")
    assert made.precision == made.metadata["precision"] == "int8"
    assert all(check.passed for check in made.checks), made
    assert "calibrated on 16 images" in str(made.notes)
    assert {one.site for one in made.contributions} == {"block", "stem"}
    assert all(one.correlation > 0.9 for one in made.contributions)
    assert 0 <= made.agreement_without <= 1
    assert made.to_dict()["agreement_without"] == made.agreement_without
    graph = onnx.load(made.path).graph
    convs = [node for node in graph.node if node.op_type == "Conv"]
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    assert set(weights) <= {name for node in graph.node for name in node.input}  # onnxruntime warns of others
    plain = 0
    for conv in convs:
        assert {producers[name].op_type for name in conv.input[:2]} == {"DequantizeLinear"}
        weight, scale = (weights[name] for name in producers[conv.input[1]].input[:2])
        assert weight.dtype == np.int8
        assert scale.shape == weight.shape[:1]
        quantized = producers[producers[conv.input[0]].input[0]]
        plain += weights[quantized.input[2]].dtype == np.uint8
    assert plain == len(convs) == 4
    # Maps are computed from what the attention gives before it is rounded, and are written in 32 bits.
    session = runtime.InferenceSession(made.path)
    images = np.random.default_rng(1).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    found = dict(
        zip([output.name for output in session.get_outputs()], session.run(None, {"images": images}), strict=True)
    )
    assert found["cam"].shape[0] == found["attention_0"].shape[0] == 5
    assert all(value.dtype == np.float32 for name, value in found.items() if name != "top_classes")
    assert len(np.unique(found["attention_0"])) > 256
    assert len(np.unique(found["logits"] / np.abs(found["logits"]).max())) == 20
    assert found["probabilities"].sum(1) == pytest.approx(1, abs=1e-5)  # not rounded to 8 bits


@pytest.fixture(scope="module")
def faint(small):
    """A network whose attention adds less than a step of 8 bits, and 8 images."""
    program = prepare(gated(small, 0.005, "position after block"), ExportOptions("int8", size=SIZE), format_name="onnx")
    draw = torch.Generator().manual_seed(0)
    program.calibration = tuple(torch.randn(1, 3, SIZE, SIZE, generator=draw) for _ in range(8))
    program.images = torch.cat(program.calibration).numpy()
    return program, to_onnx(program)


def test_too_small_for_8_bits(faint):
    program, model = faint
    tool = static_quantizer(model, program)
    quantize_keeping(program, tool)
    [one] = program.contributions
    assert one.lost
    assert not one.remedy
    assert "below the quantization noise" in program.notes[-1]


def test_kept_out_of_8_bits(faint):
    program, model = faint
    object.__setattr__(program.options, "keep", "attention")
    tool = static_quantizer(model, program)
    file = quantize_keeping(program, tool)
    object.__setattr__(program.options, "keep", "auto")
    [one] = program.contributions
    assert one.correlation > 0.99
    assert one.remedy == REMEDY
    kinds = [node.op_type for node in file.graph.node]
    assert kinds.count("QuantizeLinear") > 2  # the rest of the network is in 8 bits


@pytest.mark.parametrize("saturates", [False, True])
def test_weights_have_7_bits_where_products_saturate(saturates, faint, monkeypatch):
    monkeypatch.setattr(static_onnx, "products_saturate", lambda: saturates)
    program, model = faint
    stored = [
        one for one in quantize(model, program.calibration).graph.initializer if one.data_type == onnx.TensorProto.INT8
    ]
    largest = max(int(np.abs(onnx.numpy_helper.to_array(one).astype(int)).max()) for one in stored if len(one.dims) > 1)
    assert largest == (64 if saturates else 127)


def test_no_images(faint):
    with pytest.raises(FoveateError, match="too few images"):
        quantize(faint[1], ())
