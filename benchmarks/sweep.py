"""Every convolutional network of timm, and torchvision's classifiers: attention goes in, does its work, and comes out.

    python benchmarks/sweep.py [--only PATTERN] [--processes 1] [--output benchmarks/sweep.csv]

For each network, with random weights and small images:

1. sites are found;
2. ULSAM goes after the last block of each stage with the identity start: the output stays as it was to the last bit;
3. one backward pass gives a finite gradient to each attention's gate;
4. save and load give the same output, bit for bit;
5. remove gives back every module, key and weight, and the output;
6. SE goes in instead, each runs once, and comes out again.

A network counts as convolutional when at least five of its convolutions are larger than 1x1: transformers have one, in
their patches. The CSV has a row for every network, with the reason of each failure. A run that is stopped goes on where
it was: rows that the file holds are not done again.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import functools
import multiprocessing
import random
import re
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

FIELDS = (
    *("model", "library", "verdict", "step", "reason", "input", "sites", "stages", "parameters", "seconds"),
    *("versions",),
)
SECONDS = 600  # of the processor, for one network
LARGE = 500_000_000  # parameters: of such networks one runs at a time, for the sake of memory
SIDES = (64, 96, 128, 224, 256)
_DRAWN = ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_", "xavier_uniform_")
LATER = "later"


def names() -> Iterator[tuple[str, str]]:
    """(library, name) of every architecture of timm, and of torchvision's classifiers."""
    import timm
    from torchvision import models

    theirs = (name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith("timm."))
    yield from (("timm", name) for name in theirs)
    yield from (("torchvision", f"torchvision:{name}") for name in models.list_models(module=models))


class StepError(Exception):
    """A step did not do what it should."""

    def __init__(self, step: str, reason: str) -> None:
        super().__init__(reason)
        self.step, self.reason = step, reason


def examine(name: str, alone: bool = True) -> dict[str, object]:
    """One network, all steps; a row of the CSV. A large one is left for later where others run beside it."""
    import timm
    import torch
    import torchvision

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    versions = f"timm {timm.__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    row: dict[str, object] = {"model": name, "library": "torchvision" if ":" in name else "timm", "versions": versions}
    began = time.perf_counter()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        _steps(name, row, alone)
        row["verdict"] = row.get("verdict", "passed")
    except StepError as failed:
        row.update(verdict="failed", step=failed.step, reason=failed.reason)
    except TimeoutError:
        row.update(verdict="failed", step="time", reason=f"more than {SECONDS} s of the processor")
    except MemoryError:
        row.update(verdict="failed", step="memory", reason="out of memory")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    row["seconds"] = round(time.perf_counter() - began, 1)
    return row


def _steps(name: str, row: dict[str, object], alone: bool) -> None:
    import torch
    from torch import nn

    import foveate as fv

    torch.manual_seed(0)
    skeleton = _created(name, "meta")
    large = [m for m in skeleton.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    row["parameters"] = sum(parameter.numel() for parameter in skeleton.parameters())
    if len(large) < 5:
        row.update(verdict="not convolutional", reason=f"{len(large)} convolutions larger than 1x1")
        return
    if row["parameters"] > LARGE and not alone:
        row["verdict"] = LATER
        return
    model = _created(name, "cpu").eval()
    image = _image(model, row)
    size = tuple(image.shape[1:])
    sites = _tried("sites", lambda: fv.sites(model, size))
    row["sites"] = len(sites)
    stages = [site for site in sites if site.kind == "stage"] or [site for site in sites if site.kind == "branch"]
    if not stages:  # the last site of each resolution stands for a stage
        stages = list({(site.height, site.width): site for site in sites}.values())
    row["stages"] = len(stages)
    if not stages:
        raise StepError("sites", "no site is listed")
    with torch.no_grad():
        before, state = model(image), {key: value.clone() for key, value in model.state_dict().items()}
    ulsam = "; ".join(f"ulsam(groups={_groups(site.channels)}) after {site.name}" for site in stages)
    _tried("insert", lambda: fv.insert(model, ulsam, start="identity", input_size=size))
    with torch.no_grad():
        if not _same(model(image), before):
            raise StepError("identity", "the output changed")
    _backward(model, image)
    with tempfile.TemporaryDirectory() as folder:
        _tried("save", lambda: fv.save(model, folder))
        loaded = _tried("load", lambda: fv.load(folder))
        with torch.no_grad():
            if not _same(loaded(image), model(image)):
                raise StepError("load", "another output")
        del loaded
    _removed(model, state, before, image)
    _tried(
        "insert SE", lambda: fv.insert(model, "; ".join(f"se after {site.name}" for site in stages), input_size=size)
    )
    ran: list[str] = []
    for site, mechanism in fv.attentions(model).items():
        mechanism.register_forward_hook(lambda *_, site=site: ran.append(site))
    with torch.no_grad():
        model(image)  # deep networks with random weights may give the same output, so what runs is counted
    if sorted(ran) != sorted(site.name for site in stages):
        raise StepError("insert SE", f"{len(ran)} of {len(stages)} ran")
    _removed(model, state, before, image)


def _quick(tensor: object, *_: object, **__: object) -> object:
    import torch

    with torch.no_grad():
        return tensor.uniform_(-0.05, 0.05)


def _created(name: str, device: str) -> object:
    import torch
    from torch import nn

    import foveate as fv

    try:
        # Most of the time would go into drawing weights.
        with torch.device(device), mock.patch.multiple(nn.init, **dict.fromkeys(_DRAWN, _quick)):
            return fv.create_model(name)
    except Exception as error:  # some networks compute with data while they are built
        if device == "meta":
            return _created(name, "cpu")
        raise StepError("create", _line(error)) from error


def _image(model: object, row: dict[str, object]) -> object:
    """An image of the smallest side at which the network runs and its last feature map has several places."""
    import torch

    config = getattr(model, "pretrained_cfg", None) or {}
    own = config.get("input_size", (3, 224, 224)) if isinstance(config, dict) else config.input_size
    sides = [own[-1]] if isinstance(config, dict) and config.get("fixed_input_size") else [*SIDES, own[-1]]
    reason = ""
    for side in sides:
        image = torch.rand(1, own[0], side, side, generator=torch.Generator().manual_seed(1))
        try:
            with torch.no_grad():
                model(image)
        except Exception as error:  # noqa: BLE001 - any refusal of this size
            reason = _line(error)
            continue
        row["input"] = f"{own[0]}x{side}x{side}"
        return image
    raise StepError("run", reason)


def _groups(channels: int) -> int:
    return next(groups for groups in (4, 2, 1) if channels % groups == 0)


def _outputs(output: object) -> list[object]:
    return [part for item in output for part in _outputs(item)] if isinstance(output, tuple | list) else [output]


def _same(one: object, other: object) -> bool:
    import torch

    pairs = list(zip(_outputs(one), _outputs(other), strict=True))
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan()) for a, b in pairs)


def _backward(model: object, image: object) -> None:
    import torch

    import foveate as fv

    state = {key: value for key, value in model.state_dict().items() if "num_batches" in key or "running" in key}
    found = {key: value.clone() for key, value in state.items()}
    try:
        sum(part.float().square().sum() for part in _outputs(model(image))).backward()
    except Exception as error:
        raise StepError("backward", _line(error)) from error
    gates = [parameter for key, parameter in model.named_parameters() if key.endswith("foveate.gate")]
    if len(gates) != len(fv.attentions(model)) or any(gate.grad is None for gate in gates):
        raise StepError("backward", "an attention gets no gradient")
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for key, value in found.items():
            state[key].copy_(value)


def _removed(model: object, state: dict[str, object], before: object, image: object) -> None:
    import torch

    import foveate as fv

    _tried("remove", lambda: fv.remove(model))
    after = model.state_dict()
    if list(after) != list(state) or not all(torch.equal(after[key], state[key]) for key in state):
        raise StepError("remove", "the state dict is another")
    with torch.no_grad():
        if not _same(model(image), before):
            raise StepError("remove", "the output is another")


def _tried(step: str, task: object) -> object:
    try:
        return task()
    except (MemoryError, TimeoutError):
        raise
    except Exception as error:
        raise StepError(step, _line(error)) from error


def _line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return re.sub(r"/\S*/", "", text)[:300]


def _start() -> None:
    def late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGPROF, late)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="*", help="names that match this pattern")
    parser.add_argument("--every", type=int, default=1, help="each N-th name only")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    done = set()
    if options.output.exists():
        with options.output.open(newline="") as file:
            done = {row["model"] for row in csv.DictReader(file)}
    wanted = [name for _, name in names() if fnmatch.fnmatch(name, options.only)][:: options.every]
    left = [name for name in wanted if name not in done]
    random.Random(0).shuffle(left)  # noqa: S311 - so that a run that is stopped is a fair sample
    print(f"{len(wanted)} networks, {len(left)} left")
    context = multiprocessing.get_context("spawn")
    with options.output.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if not done:
            writer.writeheader()
        for processes, alone in ((options.processes, options.processes == 1), (1, True)):
            later = []
            with context.Pool(processes, _start, maxtasksperchild=4) as pool:
                task = functools.partial(examine, alone=alone)
                for count, row in enumerate(pool.imap_unordered(task, left), 1):
                    if row["verdict"] == LATER:
                        later.append(row["model"])
                        continue
                    writer.writerow(row)
                    file.flush()
                    said = (row["model"], row["verdict"], row.get("step", ""), row.get("reason", ""), row["seconds"])
                    print(count, *said, flush=True)
            left = later


if __name__ == "__main__":
    main()
