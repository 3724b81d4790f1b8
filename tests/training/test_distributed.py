"""Two real processes that talk by gloo: the same result as one, exact resume, and an end in bounded time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from foveate.errors import FoveateError
from foveate.training.fit import fit
from foveate.training.input.sampler import Order, of_whole
from foveate.training.restore import synchronised

SCRIPT = Path(__file__).parent / "one_of_two.py"


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **more}


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def start_two(folder: Path, changes: dict, fault: str = "") -> list[subprocess.Popen[str]]:
    folder.mkdir(exist_ok=True)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = [sys.executable, str(SCRIPT), str(folder), json.dumps(changes), fault]
    return [
        subprocess.Popen(
            command,
            env=environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank)),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def two(folder: Path, **changes) -> list[str]:
    """Run both to their end; what they said."""
    processes = start_two(folder, changes)
    said = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return said


def result(folder: Path, rank: int = 0):
    return load_file(folder / f"weights{rank}"), *json.loads((folder / f"result{rank}").read_text())


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "processes"), [(4, 1, 2), (2, 2, 2), (1, 3, 2), (3, 2, 3), (7, 1, 4)]
)
def test_shares_make_up_the_steps_of_one_process(batch_size, accumulate, processes):
    count, step = 31, batch_size * accumulate * processes
    whole = Order(count, step, 5, 2)
    parts = [
        Order(count, batch_size, 5, 2, accumulate=accumulate, rank=rank, processes=processes)
        for rank in range(processes)
    ]
    streams = [iter(part) for part in parts]
    for epoch, expected in ((epoch, at) for epoch in range(2) for at in range(parts[0].steps_per_epoch)):
        got = []
        for part, stream in zip(parts, streams, strict=True):
            batches = [next(stream) for _ in range(part.batches(expected))]
            assert all(len(batch) <= batch_size + 1 for batch in batches)
            assert batch_size == 1 or all(len(batch) > 1 for batch in batches)
            got += [where for batch in batches for where in batch]
        assert len(got) == parts[0].images(expected)
        assert sorted(got) == sorted(list(whole)[epoch * whole.steps_per_epoch + expected])
    assert parts[0].steps_per_epoch == whole.steps_per_epoch
    assert all(next(stream, None) is None for stream in streams)


def test_every_image_is_evaluated_once():
    rows = [batch for rank in range(3) for batch in of_whole(10, 2, rank, 3)]
    assert sorted(index for batch in rows for _, index in batch) == list(range(10))
    assert of_whole(1, 4, 1, 2) == []


def test_two_processes_train_as_one_with_the_same_global_batch(tmp_path, data, new_plain_net, recipe):
    changes = {"batch_size": 2, "accumulate": 2, "ema_decay": 0.5, "gradient_clip": 0.5, "label_smoothing": 0.1}
    said = two(tmp_path, **changes)
    assert "2 processes on cpu, 8 images in a step" in said[0]
    assert said[1] == ""
    weights, rows, probabilities = result(tmp_path)
    assert equal(weights, result(tmp_path, 1)[0])
    assert result(tmp_path, 1)[1:] == (rows, probabilities)

    model = new_plain_net()
    alone = fit(model, data, recipe.with_(**(changes | {"batch_size": 8, "accumulate": 1})), progress=False)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.tensor(probabilities), alone.evaluation.probabilities, rtol=1e-4, atol=1e-6)
    for row, expected in zip(rows, alone.history, strict=True):
        assert row == pytest.approx({key: expected[key] for key in row}, rel=1e-4)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


BROKEN = {"norm": True, "checkpoint_every": 3, "ema_decay": 0.5, "mixup": 0.4, "batch_size": 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What two processes that nothing disturbs end with."""
    folder = tmp_path_factory.mktemp("two") / "whole"
    two(folder, **BROKEN)
    return result(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "seconds"), [("SIGKILL", 180), ("SIGSTOP", 220)])
def test_a_lost_process_ends_the_run_and_resume_gives_the_same_bits(tmp_path, whole, fault, seconds):
    """Faults of the other process: it is killed, or hangs; torchrun waits (by default 30 s) before it kills that."""
    folder = tmp_path / "broken"
    folder.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    command = [*launcher, str(SCRIPT), str(folder), json.dumps(BROKEN), fault]
    began = time.monotonic()
    patience = environment(TORCH_ELASTIC_SHUTDOWN_TIMEOUT="3")
    ended = subprocess.run(command, env=patience, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode not in (0, None)
    assert time.monotonic() - began < seconds
    pids = [int((folder / f"pid{rank}").read_text()) for rank in range(2)]
    assert not any(alive(pid) for pid in pids)
    if fault == "SIGSTOP":
        assert "another of the 2 processes has ended or hangs" in ended.stderr

    two(folder, **BROKEN, resume=True)
    assert equal(result(folder)[0], whole[0])
    assert result(folder)[1:] == whole[1:]


def test_without_torchrun_the_other_notices_too(tmp_path):
    processes = start_two(tmp_path, {"checkpoint_every": 1}, "SIGKILL")
    said = processes[0].communicate(timeout=120)[1]
    processes[1].communicate(timeout=10)
    assert processes[1].returncode == -signal.SIGKILL
    assert processes[0].returncode == 1, said  # the script does not catch it; the command line exits with 4
    assert "foveate.training.distributed.ProcessLost: another of the 2 processes has ended" in said


def test_synchronised_batch_norm_is_put_back():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    modules = list(net.modules())
    with synchronised(net):
        assert [type(m).__name__ for m in net.modules()].count("SyncBatchNorm") == 2
        assert net[1].weight is modules[2].weight
    assert list(net.modules()) == modules
    net[1].register_forward_hook(print)
    with pytest.raises(FoveateError, match="hangs on the BatchNorm layer '1'"), synchronised(net):
        pass
