"""The commands. torch is imported only when a command runs, so that ``foveate --help`` answers at once."""

from __future__ import annotations

import codecs
import io
import json
import logging
import os
import select
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

import foveate as fv
from foveate.cli.audit import audit
from foveate.cli.compare import compare, results
from foveate.cli.data import data
from foveate.cli.doctor import doctor
from foveate.cli.evaluate import evaluate
from foveate.cli.explain import explain
from foveate.cli.export import export
from foveate.cli.latency import latency
from foveate.cli.options import ModelOptions, open_network, say
from foveate.cli.predict import predict
from foveate.cli.process.allocator import keep_freed_memory
from foveate.cli.process.stopping import after_demo, nothing, stop_on_sigterm, stopped, when_stopped
from foveate.cli.process.usage_errors import usage_error
from foveate.cli.reproduce import reproduce
from foveate.cli.search import search
from foveate.cli.serve import serve
from foveate.cli.tables import cost_tree
from foveate.cli.train import train
from foveate.errors import FoveateError, near, printable

__all__ = ["app", "main"]

app = App(
    name="foveate",
    help="Give a convolutional network spatial attention, and learn what it bought.",
    version=lambda: fv.__version__,
    version_flags=("--version", "-V"),
    default_parameter=Parameter(negative=()),  # no --no-json, no --empty-plans; what is on by default can be turned off
    suppress_keyboard_interrupt=False,  # else cyclopts exits without a word
)

app.command(predict)
app.command(evaluate)
app.command(audit)
app.command(explain)
app.command(export)
app.command(data)
app.command(train)
app.command(compare)
app.command(results)
app.command(search)
app.command(latency)
app.command(reproduce)
app.command(serve)
app.command(doctor)


def _console() -> Any:
    from rich.console import Console

    return Console()


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


@app.command
def sites(model: str, *, input_size: int | None = None, json: bool = False) -> None:
    """List where attention can go: name, channels, height, width.

    Example: `foveate sites mobilenetv2_100`

    Args:
        model: a timm model, torchvision:NAME, or a folder that foveate saved.
        input_size: side of the images in pixels; without it the model's own.
        json: print JSON.
    """
    found = fv.sites(open_network(ModelOptions(model)), input_size)
    if json:
        _print_json([site.__dict__ for site in found])
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("#", "site", "kind", "channels", "height", "width", "replaceable"):
        table.add_column(heading, justify="right" if heading in ("#", "channels", "height", "width") else "left")
    for index, site in enumerate(found):
        row = (f"#{index}", site.name, site.kind, str(site.channels), str(site.height), str(site.width))
        table.add_row(*row, "yes" if site.replaceable else "")
    _console().print(table)


@app.command
def cost(
    model: str,
    *,
    plan: str | None = None,
    input_size: int | None = None,
    counting: Literal["exact", "paper"] = "exact",
    depth: int = 2,
    time: bool = False,
    json: bool = False,
    csv: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
) -> None:
    """Count parameters, MACs, element operations and memory, module by module, with and without the plan.

    Example: `foveate cost mobilenetv2_100 --plan "se after blocks.4.2"`

    Args:
        model: a timm model, torchvision:NAME, or a folder that foveate saved.
        plan: attention to insert first.
        input_size: side of the images in pixels; without it the model's own.
        counting: "exact" counts the real modules, and shows what the compact-CNN papers would print beside it where
            that differs; "paper" counts only as they do.
        depth: how far down the tree of modules goes; what the plan adds and removes is shown wherever it is.
        time: measure the share of time that each module takes, too.
        json: print JSON.
        csv: write a line for each module to this file; "-" prints them, and nothing else.
    """
    cost_tree.check(counting, depth, json=json, csv=csv)
    network = open_network(ModelOptions(model, plan=plan), input_size)
    found = fv.cost(network, input_size, counting=counting, time=time)
    if csv is not None:
        cost_tree.write_csv(found, csv)
    if json:
        _print_json({"plan": str(fv.plan_of(network) or ""), "counting": counting, **cost_tree.as_json(found)})
    elif csv != "-":
        console = _console()
        if found.modules:
            console.print(cost_tree.tree(found, depth, console))
            console.print()
        console.print(cost_tree.totals(found, console))
        changes = cost_tree.changes(found)
        if changes is not None:
            console.print()
            console.print(changes)


@app.command
def demo(*, quick: bool = False, output: Path | None = None) -> None:
    """The main job on real input: a pretrained network, real solar cells, attention against none.

    Example: `foveate demo --quick`

    Args:
        quick: fewer images and epochs: under a minute.
        output: folder for the report; without it the next free runs/demo.
    """
    when_stopped(lambda: after_demo(output, quick=quick))
    fv.demo(quick=quick, output=output)


app.register_install_completion_command()

_COMMANDS = sorted(name for name in app if not name.startswith("-"))
_TRAIN = ("demo", "train", "compare")
_LOOPS = (*_TRAIN, "predict", "evaluate", "explain")  # on Linux they decide themselves, again and again
_COMPUTE = (*_LOOPS, "audit", "serve")
_STAT = Path("/proc/stat")


def _share_the_cores() -> None:
    """Let threads sleep while they wait when other programs keep the cores busy.

    By default they spin, which is faster alone and much slower beside another program (benchmarks/waiting.py). It must
    be decided before torch is imported. A user's own OMP_WAIT_POLICY stands.
    """
    if "OMP_WAIT_POLICY" not in os.environ and _busy() > 1 / 4:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _busy() -> float:
    """The share of the cores that other programs use at this moment; the load average tells of the last minute."""
    try:
        first = _ticks()
        time.sleep(0.15)
        idle, whole = (after - before for before, after in zip(first, _ticks(), strict=True))
    except (OSError, ValueError):  # another system
        return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0
    return 1 - idle / whole if whole else 0.0


def _ticks() -> tuple[int, int]:
    """Of all cores since the start: idle or waiting for a disk, and all."""
    ticks = [int(word) for word in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def _show_every_name() -> None:
    """Let stdout and stderr take every name: bytes that are not text as they are, letters that they lack as codes.

    A stream that takes ASCII alone, as in the C locale, gets UTF-8, which is what most names of files are in.
    """
    codecs.register_error("foveate.name", _name_bytes)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="foveate.name")


def _name_bytes(error: UnicodeError) -> tuple[bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    encoding = "utf-8" if error.encoding == "ascii" else "ascii"
    each = (
        bytes([ord(letter) - 0xDC00]) if "\udc80" <= letter <= "\udcff" else letter.encode(encoding, "backslashreplace")
        for letter in letters
    )
    return b"".join(each), error.end


def _nobody_reads(pipe: int) -> bool:
    """Whether the other end of a pipe was closed."""
    watch = select.poll()
    watch.register(pipe, 0)
    return any(state & select.POLLERR for _, state in watch.poll(0))


def _log_level() -> str:
    """From the variable FOVEATE_LOG.

    Raises:
        FoveateError: there is no such level.
    """
    asked = os.environ.get("FOVEATE_LOG") or "WARNING"
    levels = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    if asked.upper() not in logging.getLevelNamesMapping():
        raise FoveateError(f"FOVEATE_LOG={asked!r} is not a level; {near(asked.upper(), levels)}")
    return asked.upper()


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. A user's error is one line on stderr and exit code 2 (or the error's own)."""
    _show_every_name()
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] in _COMPUTE and not (sys.platform == "linux" and given[0] in _LOOPS):
        _share_the_cores()
    if arguments is None and given and given[0] in _TRAIN:  # a process of our own
        keep_freed_memory()
    if arguments is None:
        stop_on_sigterm()
    when_stopped(nothing)
    try:
        logging.basicConfig(level=_log_level(), format="%(message)s")
        app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads(sys.stdout.fileno()):
            raise  # it was another pipe
        # The reader, such as head, has seen enough; Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except CycloptsError as error:
        print(f"foveate: {printable(usage_error(error, _COMMANDS))}", file=sys.stderr)
        sys.exit(2)
    except FoveateError as error:
        print(f"foveate: {printable(str(error))}", file=sys.stderr)  # of whichever process it is
        sys.exit(error.exit_code)
    except KeyboardInterrupt as error:
        text, code = stopped(error)
        say(text)
        sys.exit(code)
