"""Faults that are injected into real runs. docs/faults.md says where each of the others is tested."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.cli import main
from foveate.data import ImageData, Split
from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.training.fit import fit
from foveate.training.input import loaders
from foveate.training.input.loaders import Source
from foveate.training.input.sampler import of_whole

HERE = Path(__file__).parent


def run(*command: str, **options) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False, timeout=240, **options
    )


def train(data: Path, output: Path, *more: str, side: int = 32, **options) -> subprocess.CompletedProcess[str]:
    small = ("--model", "mobilenetv2_035", "--image-size", str(side), "--epochs", "2", "--batch-size", "16")
    return run("-m", "foveate", "train", str(data), *small, "--output", str(output), *more, **options)


@pytest.fixture
def images(tmp_path):
    for part, count in (("train", 8), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng(100 * label + number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "images"


def test_14_killed_while_saving_the_last_always_loads(tmp_path):
    ended = run(str(HERE / "killed_saves.py"), str(tmp_path), "12")
    assert ended.returncode == 0, ended.stderr
    assert "loaded after every kill" in ended.stdout


def test_17_20_any_flipped_bit_of_a_checkpoint_is_refused(tmp_path, data, new_net, recipe):
    recipe = recipe.with_(epochs=1)
    fit(new_net(), data, recipe, output=tmp_path, progress=False)
    path = tmp_path / "training.safetensors"
    whole = path.read_bytes()
    for at in np.random.default_rng(0).integers(8, len(whole), 12).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(FoveateError, match="is damaged and cannot be resumed from|cannot resume"):
            fit(new_net(), data, recipe, output=tmp_path, resume=True, progress=False)
    path.write_bytes(whole)
    fit(new_net(), data, recipe, output=tmp_path, resume=True, progress=False)


class Hangs(Split):
    def load(self, index: int, at_least: int | None = None):
        time.sleep(3600)


@pytest.mark.filterwarnings("ignore")
def test_22_a_hung_worker_is_a_clear_error(data: ImageData, monkeypatch):
    monkeypatch.setattr(loaders, "_HUNG_SECONDS", 1)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)  # it is waited for before it is killed
    hung = Hangs("train", data.train.sources, data.train.labels, data.train.names)
    source = Source(hung, "", Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3), 1)
    with pytest.raises(FoveateError, match="a process that loads images failed .*timed out.*: try workers=0"):
        list(source.stream()(of_whole(6, 2)))


def test_2_13_exit_codes_of_the_command(images, tmp_path, capsys):
    command = ["train", str(images), "--model", "mobilenetv2_035", "--image-size", "32", "--batch-size", "16"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--output", str(tmp_path / "nan"), "--optimiser", "sgd", "--learning-rate", "1e30"])
    said = capsys.readouterr().err
    assert ended.value.code == 3, said
    assert "NaN or infinite" in said or "the loss is" in said
    assert "Traceback" not in said
    assert not (tmp_path / "nan" / "training.safetensors").exists()
    (images / "train" / "cat" / "text.jpg").write_text("no picture")
    ended = train(images, tmp_path / "text")
    assert ended.returncode == 2
    assert "text.jpg" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


@pytest.mark.slow(
    reason="memory really runs out, in a process of its own; test_options.py raises the same error by hand",
    guards=("foveate/training/", "foveate/cli/", "foveate/errors.py"),
)
def test_23_out_of_memory_is_advice_and_code_5(images, tmp_path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))

    ended = train(images, tmp_path / "run", "--no-cache", side=1536, preexec_fn=limit)
    assert ended.returncode == 5, ended.stderr
    assert "out of memory with batch_size=16: take a smaller batch_size" in ended.stderr.replace("\n", " ")
    assert "Traceback" not in ended.stderr
