"""The command ``foveate reproduce``."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

import foveate as fv
from foveate.cli.options import say
from foveate.cli.tables import csv_lines

__all__ = ["reproduce"]


def reproduce(
    table: str | None = None,
    *,
    json: bool = False,
    csv: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    page: Path | None = None,
    measured: Path | None = None,
) -> None:
    """Work out again what the papers' tables print: ours beside each cost, and a verdict for each cell.

    Example: `foveate reproduce ulsam-mobilenetv2`

    Args:
        table: one table, cell by cell; without it a line for each table, and the total.
        json: print every cell as JSON.
        csv: write a line for each cell to this file; "-" prints them, and nothing else.
        page: write all tables as a page of Markdown, with its pictures in images/ beside it.
        measured: a CSV of benchmarks/tradeoff.py, to stand beside the printed speeds and memory.
    """
    csv_lines.check(csv, json=json)
    if page is not None and table is not None:
        raise fv.FoveateError(f"--page shows all tables: leave {table!r} out")
    if page is not None:
        csv_lines.check(str(page), json=False, option="--page")
    if table is None:
        say("counting real networks, about half a minute ...")
    found = fv.reproduce(table, measured=measured)
    if csv == "-":
        print(found.as_csv(), end="")
    elif csv is not None:
        found.write_csv(csv)
    if page is not None:
        fv.write_page(found, page)
    if json:
        print(json_format.dumps({"counts": found.counts(), "cells": found.as_dicts()}, indent=2))
    elif csv != "-":
        found.print()
