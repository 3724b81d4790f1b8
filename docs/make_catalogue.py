"""Write docs/catalogue.md from the code: every name that foveate knows, with its options and its exact cost.

python docs/make_catalogue.py            # write the page
python docs/make_catalogue.py --check    # exit with 1 when the page is not what the code gives

Nothing is run on data: the modules are built without storage and multiply-adds are counted operation by operation.
Times are those of benchmarks/mechanisms_cpu.csv.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import foveate as fv
from foveate import registry
from foveate.accounting.counting.dispatch_counter import count_operations
from foveate.attention import _timm
from foveate.networks import names as network_names
from foveate.surgery.presets import PRESETS

DOCS = Path(__file__).parent
PAGE = DOCS / "catalogue.md"
COMMAND = "python docs/make_catalogue.py"
MAP = (512, 14, 14)  # of the mechanisms and pools
HEAD_MAPS = ((512, 28, 28), (1024, 14, 14), (2048, 7, 7))
FEATURES, CLASSES = 2048, 1000
TIMES = DOCS.parent / "benchmarks" / "mechanisms_cpu.csv"
NAMED = {"ours": "", "timm": ", timm's", "timm_as_wide": ", timm's, as wide"}  # forms that the page shows
COUNTS = ("parameters", "MACs", "parameters, paper", "MACs, paper")


def cost(module: nn.Module, *inputs: Any) -> tuple[int, int]:
    """Parameters, and the MACs of one image by the definition; the module and its inputs have no storage."""
    with torch.no_grad(), fv.use_fused(False), FlopCounterMode(display=False) as counter:
        module.eval()(*inputs)
    return sum(parameter.numel() for parameter in module.parameters()), counter.get_total_flops() // 2


def built(make: Callable[[], nn.Module]) -> nn.Module:
    """What ``make`` builds, without storage."""
    with torch.device("meta"):
        return make()


def feature_map(channels: int, height: int, width: int) -> Tensor:
    """A feature map without storage."""
    return torch.empty(1, channels, height, width, device="meta")


def first_sentence(thing: object) -> str:
    """The first line of a docstring, without the name before its colon."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def paper(module: object) -> str:
    """The first paper that a docstring links to."""
    address = r"https://(?:arxiv\.org/abs|doi\.org|openaccess\.thecvf\.com)/([\w./-]+[^\s.,:;)>])"
    found = re.search(address, inspect.getdoc(module) or "")
    return f"[{found[1]}]({found[0]})" if found else ""


def link(name: str, room: str) -> str:
    """The name, as a link where it has a page."""
    return f"[`{name}`]({room}/{name}.md)" if (DOCS / room / f"{name}.md").is_file() else f"`{name}`"


def written(options: dict[str, Any]) -> str:
    """Options with their defaults, as a plan writes them."""
    return ", ".join(f"`{key}={value!r}`" for key, value in options.items()) or "none"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table; columns that hold numbers are flush right."""
    rows = list(rows)
    right = [all(re.fullmatch(r"[\d,]*", row[n]) for row in rows) for n in range(len(heads))]
    lines = [heads, ["--:" if flush else "---" for flush in right], *rows]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]


def registered(kind: str, sizes: tuple[Any, ...], inputs: tuple[Any, ...]) -> list[str]:
    """The two tables of a registry: what each name is and costs, and its options."""
    costs, options = [], []
    for name in registry.names(kind):
        module = built(lambda name=name: registry.build(name, *sizes, kind=kind))
        counted = [f"{number:,}" for number in cost(module, *inputs)]
        formula = getattr(module, "paper_cost", None)
        papers = [f"{number:,}" for number in formula(*MAP)] if formula else ["", ""]
        source = inspect.getmodule(type(module))
        costs.append([link(name, kind), *counted, *papers, paper(source)])
        options.append([f"`{name}`", first_sentence(source), written(registry.options(name, kind))])
    if not costs:
        return ["None yet."]
    heads = ["name", *COUNTS, "source"]
    if not any(row[3] for row in costs):
        costs, heads = [[*row[:3], row[5]] for row in costs], [*heads[:3], "source"]
    return [*table(heads, costs), "", *table(["name", "what it does", "options, with their defaults"], options)]


def times() -> list[str]:
    """What inference takes, in copies of the input, as benchmarks/mechanisms.py measured it."""
    with TIMES.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["step"] == "inference" and row["format"] == "channels_last"]
    found = {
        (row["name"], row["form"], f"{row['channels']}@{row['side']}", row["batch"]): f"{float(row['copies']):.3g}"
        for row in rows
    }
    columns = list(dict.fromkeys((size, batch) for _, _, size, batch in found))
    names = list(dict.fromkeys((name, form) for name, form, *_ in found if form in NAMED))
    first = rows[0]
    return [
        "In copies of the input (`x.clone()`), inference: the median of ratios within a round, channels last,",
        f"{first['device']}, {first['threads']} threads, torch {first['torch']}, from",
        "`benchmarks/mechanisms_cpu.csv`. A small map is copied in microseconds: there the calls themselves take",
        "the time. A head got the same map at each level. timm's `non_local` has an eighth of the channels",
        "inside, ours and the paper's half; with half it takes the time of the line *as wide*.",
        "",
        *table(
            ["name", *(f"{size}, batch {batch}" for size, batch in columns)],
            [[f"`{name}`" + NAMED[form], *(found[name, form, *c] for c in columns)] for name, form in names],
        ),
    ]


def of_timm() -> list[str]:
    """timm's own layers: what each costs, or why it could not be built with its defaults."""
    rows, failures = [], []
    for name in _timm.names():
        try:
            module = built(lambda name=name: registry.build(f"timm:{name}", MAP[0]))
            counted = cost(module, feature_map(*MAP))
        except fv.FoveateError as error:
            failures.append([f"`timm:{name}`", str(error)])
        except Exception as error:  # noqa: BLE001 - whatever timm's layer raises belongs in the table
            failures.append([f"`timm:{name}`", f"it is built, and fails on this map: {type(error).__name__} {error}"])
        else:
            rows.append([f"`timm:{name}`", *(f"{n:,}" for n in counted), written(registry.options(f"timm:{name}"))])
    lines = table(["name", "parameters", "MACs", "options, with their defaults"], rows)
    if failures:
        lines += ["", "These could not be built with their defaults:", "", *table(["name", "error"], failures)]
    return lines


def networks() -> list[str]:
    """The networks that foveate registers with timm, by the file that does it; those that cost the same, once."""
    files: dict[str, dict[Any, list[str]]] = {}
    for name in sorted({*network_names(), *PRESETS}, key=natural):
        groups = files.setdefault(timm.model_entrypoint(name).__module__, {})
        groups.setdefault(build_up(name), []).append(name)
    lines = []
    for file, groups in sorted(files.items()):
        module = importlib.import_module(file)
        page = f"networks/{file.rpartition('.')[2]}.md"
        lines += [f"{first_sentence(module)} {paper(module)}".strip(), ""]
        lines[-2] += f" [More]({page})" if (DOCS / page).is_file() else ""
        rows = []
        for same in groups.values():
            model = built(lambda name=same[0]: timm.create_model(name))
            size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
            exact = sum(p.numel() for p in model.parameters()), count_operations(model.eval(), size)[""].macs
            printed = fv.cost(model, counting="paper") if fv.plan_of(model) else None
            counted = [*exact, printed.params, printed.macs] if printed else exact
            rows.append([", ".join(f"`{name}`" for name in same), str(size[1]), *(f"{n:,}" for n in counted)])
        lines += [*table(["name", "pixels", *COUNTS][: len(rows[0])], rows), ""]
    return lines or ["None yet."]


def natural(name: str) -> list[tuple[str, int]]:
    """A key that puts 9 before 10."""
    return [(letters, int(digits or 0)) for letters, digits in re.findall(r"(\D*)(\d*)", name)]


def build_up(name: str) -> Any:
    """What a network is made of, equal for presets whose places are alike: these cost the same."""
    if name not in PRESETS:
        return name
    network, plan = PRESETS[name]
    model, shapes = plain(network)
    parts = []
    for placement in plan.placements:
        for site in placement.sites:
            block = repr(model.get_submodule(site)) if placement.verb == "replacing" else ""
            parts.append((str(placement.spec), placement.verb, block, shapes[site]))
    return network, tuple(parts)


@functools.cache
def plain(network: str) -> tuple[nn.Module, dict[str, tuple[int, int, int]]]:
    """A network without a plan, and the shapes at its sites."""
    model = built(lambda: fv.create_model(network))
    return model, {site.name: (site.channels, site.height, site.width) for site in fv.sites(model)}


def text() -> str:
    """The whole page."""
    channels, height, width = MAP
    head_maps = tuple(feature_map(*size) for size in HEAD_MAPS)
    head_sizes = (tuple(size[0] for size in HEAD_MAPS), FEATURES, CLASSES)
    lines = [
        "# Catalogue",
        "",
        f"Written by `{COMMAND}` from the code; a test holds it to the code. All numbers are of the defaults, exact,",
        "for one image in evaluation mode: every parameter, and every multiply-add of a convolution or a matrix",
        'product. "Paper" is a count by the formula that a paper prints, where there is one; see',
        "[how counting works](explanation/counting.md).",
        "`fv.names(kind)` and `fv.options(name, kind)` give the names and options in Python.",
        "",
        "## Mechanisms",
        "",
        f"At {channels}x{height}x{width}: `NAME after SITE` or `NAME replacing SITE`.",
        "",
        *registered("attention", (channels,), (feature_map(*MAP),)),
        "",
        "## Pools",
        "",
        f"At {channels}x{height}x{width}: `NAME as pool`.",
        "",
        *registered("pooling", (channels,), (feature_map(*MAP),)),
        "",
        "## Heads",
        "",
        f"`NAME as head`. Of three feature maps, {', '.join('x'.join(map(str, size)) for size in HEAD_MAPS)},",
        f"{FEATURES} pooled features and {CLASSES} classes.",
        "",
        *registered("heads", head_sizes, (head_maps, torch.empty(1, FEATURES, device="meta"))),
        "",
        "## Time",
        "",
        *times(),
        "",
        "## Networks",
        "",
        "Registered with timm by `import foveate`: `timm.create_model(NAME)`, `fv.create_model(NAME)`.",
        "",
        *networks(),
        "",
        "## timm's own layers",
        "",
        f"At {channels}x{height}x{width}, timm {timm.__version__}. They have no map of their own for `fv.explain`.",
        "",
        *of_timm(),
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when the page is out of date")
    new, old = text(), PAGE.read_text("utf-8") if PAGE.is_file() else ""
    if not parser.parse_args(arguments).check:
        PAGE.write_text(new, "utf-8")
    elif new != old:
        difference = difflib.unified_diff(old.splitlines(), new.splitlines(), "docs/catalogue.md", "the code", n=0)
        raise SystemExit("\n".join([*list(difference)[:20], f"docs/catalogue.md is out of date: run {COMMAND}"]))


if __name__ == "__main__":
    main()
