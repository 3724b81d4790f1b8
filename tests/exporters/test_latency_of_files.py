"""Exported files are timed in turns with others, through ``latency`` and its command."""

import json

import pytest
import timm
import torch

import foveate as fv
from foveate.cli import main
from foveate.errors import FoveateError

pytestmark = pytest.mark.slow(
    reason="it exports four files and times them",
    guards=(
        "foveate/exporters/",
        "foveate/accounting/latency.py",
        "foveate/accounting/file_latency.py",
        "foveate/prediction/",
    ),
)

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    plain = timm.create_model("test_resnet", num_classes=5).eval()
    paths = {"plain": fv.export(plain, "onnx", folder / "plain.onnx", size=64, images=1, time=False).path}
    paths["four"] = fv.export(plain, "onnx", folder / "four.onnx", size=32, batch=4, images=1, time=False).path
    fv.insert(plain, "ulsam after layer2")
    made = fv.export(plain, "onnx", folder / "plan.onnx", size=64, input="uint8", images=1, time=False)
    return paths | {"plan": made.path, "model": plain}


def test_two_files_take_turns(files):
    plan, plain = fv.open_exported(files["plan"]), fv.open_exported(files["plain"])
    found = fv.latency(plan, reference=plain, batch_size=[1, 2], threads=1, rounds=3)
    assert [timing.setting.batch_size for timing in found.timings] == [1, 2]
    assert all(timing.setting.backend == "file" and timing.ratio.median > 0 for timing in found.timings)
    assert "plain.onnx" in found.reference
    assert "plan.onnx" in found.notes[0]


def test_a_file_beside_its_network(files):
    threads = torch.get_num_threads()
    found = fv.latency(fv.open_exported(files["plain"]), reference=files["model"], rounds=3)
    assert found.reference == "ResNet"
    assert found.timings[0].ratio is not None
    assert torch.get_num_threads() == threads


def test_fixed_batch_and_other_sizes(files):
    four = fv.open_exported(files["four"])
    assert fv.latency(four, rounds=3).timings[0].setting.batch_size == 4
    with pytest.raises(FoveateError, match=r"batch_size=\[8\]: a file takes 4 images"):
        fv.latency(four, batch_size=8, rounds=3)
    with pytest.raises(FoveateError, match="different shapes"):
        fv.latency(four, reference=fv.open_exported(files["plain"]), rounds=3)


def test_the_command(files, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["latency", str(files["plan"]), "--reference", str(files["plain"]), "--rounds", "3", "--json"])
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    assert found["plan"] == "ulsam after layer2"
    assert found["settings"][0]["ratio"] > 0
