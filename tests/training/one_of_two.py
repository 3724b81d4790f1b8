"""Run by test_processes.py, once for each process: trains together with the other, and keeps what came of it."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from conftest import RECIPE, make_data, make_norm_net, make_plain_net
from safetensors.torch import save_file

from foveate.training.fit import fit


def main(folder: str, changes: str, fault: str) -> None:
    rank, fields = int(os.environ["RANK"]), json.loads(changes)
    Path(folder, f"pid{rank}").write_text(str(os.getpid()))
    model = make_norm_net() if fields.pop("norm", False) else make_plain_net()
    batches = 0

    def break_down(module, inputs):
        nonlocal batches
        batches += module.training
        if batches == 5 and rank == 1 and fault:
            os.kill(os.getpid(), getattr(signal, fault))

    model.register_forward_pre_hook(break_down)
    options = {"output": Path(folder, "run"), "resume": fields.pop("resume", False)}
    result = fit(model, make_data(), RECIPE.with_(**fields), timeout_seconds=8 if fault else 120, **options)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, f"{folder}/weights{rank}")
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in result.history]
    probabilities = result.evaluation.probabilities.tolist()
    Path(folder, f"result{rank}").write_text(json.dumps([rows, probabilities]))


if __name__ == "__main__":
    main(*sys.argv[1:])
