"""Train the runs of several protocols, the seeds in turns: each question has as many seeds as there was time for.

    python benchmarks/evidence/run.py DATA FOLDER PROTOCOL... [--pause PROTOCOL] [--until HH:MM]

``foveate compare DATA --protocol PROTOCOL --output FOLDER`` makes the same runs, one protocol at a time; this script
takes them in the order of the protocols, pauses those of the protocol after ``--pause`` as a search does (their results
at the pauses are what ``search_replay.py`` replays), and deletes the weights of what is finished. Several processes may
share a folder.
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import replace
from pathlib import Path

import forms

import foveate as fv
from foveate.studies.comparison.config import labelled_plans
from foveate.studies.comparison.networks.maker import Maker
from foveate.studies.comparison.protocol.protocol_file import Protocol, read_protocol
from foveate.studies.comparison.scheduler import Grid, Job
from foveate.studies.search.halving import rungs_of

REGISTERED = forms.FORMS  # importing forms registers them


def jobs_of(protocol: Protocol, data: fv.ImageData) -> list[Job]:
    """The runs of a protocol, the first seed of all plans first."""
    maker, recipe = Maker(protocol.model, protocol.pretrained, protocol.start, classes=data.classes), protocol.recipe
    labelled, _ = labelled_plans(list(protocol.plans), lambda family: maker.resolve(recipe, 0, family), 64)
    return [
        maker.job(label, plan, recipe.with_(seed=seed), data)
        for seed in range(protocol.seeds)
        for label, plan in labelled.items()
    ]


def main() -> None:
    """Do what is left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("folder", type=Path)
    parser.add_argument("protocols", nargs="+")
    parser.add_argument("--pause", help="the protocol whose runs pause as a search's do")
    parser.add_argument("--until", help="begin no run after this time of the day")
    asked = parser.parse_args()
    protocols = [read_protocol(file) for file in asked.protocols]
    data = fv.open_data(asked.data, parts=protocols[0].parts)
    for protocol in protocols:
        protocol.check(data)
    paused = {job.run.name for job in jobs_of(read_protocol(asked.pause), data)} if asked.pause else set()
    grid = Grid(asked.folder / "runs", progress=False, cache=fv.FeatureCache())
    done: set[str] = set()
    for job in (job for protocol in protocols for job in jobs_of(protocol, data)):
        name = job.run.name
        place = asked.folder / "runs" / name
        if name in done or (place / "result.json").exists():
            continue
        if asked.until and time.strftime("%H:%M") >= asked.until:
            return
        rungs = rungs_of(job.run.recipe.epochs)[:-1] if name in paused else ()
        stages = [*(replace(job, until_epoch=rung) for rung in rungs), job]
        if all(grid.try_one(stage) is not None for stage in stages):
            done.add(name)
            for attempt in place.glob("attempt.*"):
                shutil.rmtree(attempt)
            print(time.strftime("%H:%M:%S"), name, flush=True)


if __name__ == "__main__":
    main()
