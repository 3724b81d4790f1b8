"""The table of all runs of docs/reports/evidence.md, and a page for each protocol with as many seeds as are finished.

    python benchmarks/evidence/tables.py DATA... [--folder FOLDER...] [--table-only]

DATA are the data sets' folders; the protocols of others are left out. ``--folder`` is what ``run.py`` filled: its
results are first added to docs/reports/evidence_runs.csv. The pages come from that table alone; nothing is trained.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from run import jobs_of

import foveate as fv
from foveate.studies.comparison.protocol import run_table
from foveate.studies.comparison.run import read_result
from foveate.studies.comparison.scheduler import Job
from foveate.studies.search.halving import rungs_of

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs" / "reports"
RUNS = DOCS / "evidence_runs.csv"
FEWEST = 2  # seeds, below which there is no verdict


def add(folder: Path, jobs: list[Job], classes: int) -> None:
    """Put what is finished, or was paused, into the table."""
    stages = [(job.run, until) for job in jobs for until in (*rungs_of(job.run.recipe.epochs)[:-1], None)]
    found = [(run, read_result(folder / "runs" / run.name, until), until) for run, until in stages]
    rows = [run_table.row_of(run, result, classes, until) for run, result, until in found if result is not None]
    run_table.keep(RUNS, rows)


def page(name: str, protocol: fv.Protocol, data: fv.ImageData, jobs: list[Job]) -> str:
    """Write the page of a protocol, and say with how many seeds."""
    rows = run_table.read_table(RUNS)
    there = [(job.run.name, str(job.run.recipe.epochs)) in rows for job in jobs]
    plans = len(jobs) // protocol.seeds
    seeds = next((n for n in range(protocol.seeds) if not all(there[n * plans : (n + 1) * plans])), protocol.seeds)
    done = f"{name}: {sum(there)} of {len(there)} runs, {seeds} of {protocol.seeds} seeds of all plans"
    if seeds >= FEWEST:
        with tempfile.TemporaryDirectory() as output:
            call = {**protocol.request(), "seeds": seeds, "output": output, "runs": RUNS, "progress": False}
            found = fv.compare(data=data, **call)
            options = (
                f"--protocol benchmarks/evidence/{name}.yaml --runs docs/reports/evidence_runs.csv --seeds {seeds}"
            )
            command = f"foveate compare path/to/{protocol.data} {options}"
            if "ulsam_form" in str(protocol.plans):  # which the command line does not know
                command = f"python benchmarks/evidence/tables.py path/to/{protocol.data}"
            fv.write_page(found, DOCS / f"evidence_{name}.md", command)
            found.print()
    return done


def main() -> None:
    """Write what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--folder", nargs="+", type=Path, default=())
    parser.add_argument("--table-only", action="store_true")
    asked = parser.parse_args()
    protocols = {file.stem: fv.read_protocol(file) for file in sorted(HERE.glob("*.yaml"))}
    folders = {folder.resolve().name: folder for folder in asked.data}
    protocols = {name: protocol for name, protocol in protocols.items() if protocol.data in folders}
    parts = {(each.data, each.parts) for each in protocols.values()}
    opened = {(data, part): fv.open_data(folders[data], parts=part) for data, part in parts}
    for name, protocol in protocols.items():
        data = opened[protocol.data, protocol.parts]
        protocol.check(data)
        jobs = jobs_of(protocol, data)
        for folder in asked.folder:
            add(folder, jobs, len(data.classes))
        if not asked.table_only:
            print(page(name, protocol, data, jobs))


if __name__ == "__main__":
    main()
