"""Segmentation after SIGKILL ends with the same bits, and two processes train as one."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from foveate.training.fit import fit

pytestmark = pytest.mark.slow(
    reason="it starts and kills processes; of classification tests/training has that in every run",
    guards=(
        "foveate/training/",
        "foveate/dense/",
        "foveate/data/segmentation/",
    ),
)

SCRIPT = Path(__file__).parent / "processes.py"


@pytest.fixture(scope="module")
def processes():
    """The script as a module: its recipes and networks."""
    spec = importlib.util.spec_from_file_location("segmentation_processes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ended(folder, tmp_path_factory):
    """The folder of what the processes wrote, and how they ended."""
    place = tmp_path_factory.mktemp("processes")
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(SCRIPT), str(folder), str(place)]
    done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return place, json.loads(done.stdout.splitlines()[-1]), done.stderr


def rows(result):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in result.history]


def test_killed_in_the_middle_it_ends_with_the_same_bits(ended, data, new_net, processes):
    place, codes, said = ended
    assert codes[0] == -signal.SIGKILL, said
    recipe = processes.RECIPE.with_(**processes.KILLED)
    resumed, whole = new_net(), new_net()
    found = fit(resumed, data, recipe, output=place / "killed", resume=True, progress=False)
    wanted = fit(whole, data, recipe, progress=False)
    assert len(found.history) == 3
    assert rows(found) == rows(wanted)
    assert torch.equal(found.evaluation.counts, wanted.evaluation.counts)
    other = whole.state_dict()
    assert all(torch.equal(value, other[key]) for key, value in resumed.state_dict().items())


def test_two_processes_train_as_one(ended, data, processes):
    place, codes, said = ended
    assert codes[1:] == [0, 0], said
    weights = [load_file(place / f"weights{rank}") for rank in range(2)]
    results = [json.loads((place / f"result{rank}").read_text()) for rank in range(2)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert results[0] == results[1]
    model = processes.plain_net()
    one = processes.RECIPE.with_(**processes.SAME | {"batch_size": 4, "accumulate": 1})
    alone = fit(model, data, one, progress=False)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(weights[0][key], value, rtol=1e-4, atol=1e-6)
    for row, expected in zip(results[0][0], rows(alone), strict=True):
        assert row == pytest.approx(expected, rel=1e-3)
    counts = torch.tensor(results[0][1])
    assert counts.shape == alone.evaluation.counts.shape
    assert (counts - alone.evaluation.counts).abs().sum() <= 0.01 * counts.sum()  # a pixel at a border may tip over
