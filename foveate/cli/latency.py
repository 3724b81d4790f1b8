"""The command ``foveate latency``."""

from __future__ import annotations

import json as json_format
from typing import Annotated, Literal

from cyclopts import Parameter

import foveate as fv
from foveate.cli.options import open_network_or_file, say
from foveate.cli.tables import csv_lines
from foveate.io import JsonObject

__all__ = ["latency"]

_SETTING = {"threads": "threads", "dtype": "dtype", "memory_format": "memory format", "backend": "backend"}


def latency(
    model: str,
    *,
    plan: str | None = None,
    reference: str | None = None,
    input_size: int | None = None,
    batch_size: list[int] | None = None,
    threads: list[int] | None = None,
    dtype: list[Literal["float32", "bfloat16", "float16"]] | None = None,
    memory_format: list[Literal["contiguous", "channels_last"]] | None = None,
    backend: list[Literal["eager", "compile", "onnxruntime"]] | None = None,
    rounds: int = 30,
    seconds: float = 60.0,
    memory: Annotated[bool, Parameter(negative="--no-memory")] = True,
    json: bool = False,
    csv: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
) -> None:
    """Time a network in turns with a reference, and measure its peak memory.

    An option that is given several times is measured with each value, one after the other.

    Example: `foveate latency mobilenetv2_100 --plan "se after blocks.4.2" --batch-size 8`

    Args:
        model: a timm model, torchvision:NAME, a folder that foveate saved, or a file that foveate exported: that is
            measured in its own runtime.
        plan: attention to insert first.
        reference: another network or file to take turns with; without it the same network without its plan.
        input_size: side of the images in pixels; without it the model's own.
        batch_size: images of a call; 1 without a word.
        threads: of the CPU; without it as many as torch takes.
        dtype: numbers to compute with; without it the model's own.
        memory_format: how feature maps lie in memory; contiguous without a word.
        backend: eager without a word; onnxruntime exports the network and runs it on the CPU.
        rounds: how often each is timed.
        seconds: of a setting: no round begins later, but three are run at least.
        memory: measure peak memory, too, in fresh processes.
        json: print JSON.
        csv: write a line for each setting to this file; "-" prints them, and nothing else.
    """
    csv_lines.check(csv, json=json)
    network = open_network_or_file(model, plan, input_size)
    found = fv.latency(
        network,
        input_size,
        reference=None if reference is None else open_network_or_file(reference, None, input_size),
        batch_size=batch_size or 1,
        threads=threads,
        dtype=dtype,
        memory_format=memory_format or "contiguous",
        backend=backend or "eager",
        rounds=rounds,
        seconds=seconds,
        memory=memory,
    )
    for note in found.notes:
        say(note)
    if csv is not None:
        csv_lines.write_csv(found.as_dicts(), csv)
    if json:
        plan = (
            network.metadata["plan"] if isinstance(network, fv.ExportedClassifier) else str(fv.plan_of(network) or "")
        )
        print(json_format.dumps({"plan": plan, "settings": found.as_dicts()}, indent=2))
    elif csv != "-":
        _print(found)


def _print(found: fv.Latency) -> None:
    """A table with what differs between the settings, and below it what they share."""
    from rich.console import Console
    from rich.table import Table

    rows = found.as_dicts()
    varied = {key: words for key, words in _SETTING.items() if len({row[key] for row in rows}) > 1}
    table = Table(box=None, pad_edge=False, collapse_padding=True, padding=(0, 2, 0, 0))
    for heading in ("batch", *varied.values(), *_numbers(rows[0])):
        table.add_column(heading, justify="right", no_wrap=" " not in heading)
    for row in rows:
        table.add_row(str(row["batch_size"]), *(str(row[key]) for key in varied), *_numbers(row).values())
    console = Console()
    console.print(table)
    shared = [f"{words} {rows[0][key]}" for key, words in _SETTING.items() if key not in varied]
    rounds = " to ".join(map(str, sorted({min(r["rounds"] for r in rows), max(r["rounds"] for r in rows)})))
    where = [f"{rounds} rounds", *shared, found.device, found.versions]
    if found.reference:
        where.insert(0, f"Reference: {found.reference}")
    console.print(". ".join([where[0], ", ".join(where[1:])]), style="dim", highlight=False)


def _numbers(row: JsonObject) -> dict[str, str]:
    """The numbers of a setting by their heading: of what was measured."""
    found = {
        "ms": _digits(1000 * row["seconds"]),
        "quartiles": _between(1000 * row["seconds_lower_quartile"], 1000 * row["seconds_upper_quartile"]),
        "images/s": _digits(row["images_per_second"]),
        "MB": _megabytes(row["peak_bytes"]),
    }
    if row["ratio"] is not None:
        found["ref. ms"] = _digits(1000 * row["reference_seconds"])
        found["ref. MB"] = _megabytes(row["reference_peak_bytes"])
        found["ratio"], found["95%"] = f"{row['ratio']:.2f}", f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
    return found


def _between(low: float, high: float) -> str:
    return f"{_digits(low)} to {_digits(high)}"


def _digits(number: float) -> str:
    """Three digits."""
    return f"{number:.0f}" if number >= 99.95 else f"{number:.3g}"


def _megabytes(number: int | None) -> str:
    return "-" if number is None else _digits(number / 1e6)
