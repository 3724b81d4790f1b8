"""Which plans are tried, where they are too many for all: TPE by Optuna, asked and told through a storage.

Several processes may share a storage. Each trial has a heartbeat; what a process that died has left is asked again, and
goes on from its last checkpoint, for the folder of a run is that of its plan. TPE: Bergstra, Bardenet, Bengio and Kégl,
Algorithms for Hyper-Parameter Optimization, NeurIPS 2011.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from foveate.errors import FoveateError, first_line
from foveate.families.family import Family
from foveate.spec import Placement, Plan
from foveate.studies.search.candidates import Candidate, Candidates

__all__ = ["default_storage", "propose"]

# Optuna is optional: its types are not there where it is not.
OptunaStudy: TypeAlias = Any
OptunaTrial: TypeAlias = Any
_BEAT, _STALE = 30, 120  # seconds
_MOST_RETRIES = 3
_ATTEMPTS = 8  # to open a storage that other processes make at the same time
_PLAN = "plan"
_IDLE = 100  # plans that were known or not allowed in a row, before the rest is drawn at random


def propose(
    candidates: Candidates,
    evaluate: Callable[[Candidate], float | None],
    count: int,
    *,
    name: str,
    storage: str,
    seed: int,
) -> list[Candidate]:
    """Ask for plans and tell how good they are, until so many different ones are told.

    Args:
        candidates: that may be tried.
        evaluate: trains a plan and gives its accuracy; None where it diverged.
        count: how many.
        name: of the study; processes that search for the same use the same.
        storage: a URL that SQLAlchemy takes; "" keeps the study in memory.
        seed: of the sampler.

    Returns:
        The first whose values came, in the order in which they came: the same for all processes that share a study,
        though more come afterwards.

    Raises:
        FoveateError: Optuna is not installed, or the storage cannot be opened.
    """
    with _quiet_optuna() as optuna:
        study = _study(optuna, name, storage, seed)
        idle = 0
        while len(told := _told(optuna, study, candidates)) < count:
            optuna.storages.fail_stale_trials(study)
            trial = study.ask()
            plan = _suggested(trial, candidates.family)
            candidate = candidates.allowed(plan) if plan.placements else None
            if candidate is None or str(plan) in told:
                # What is not allowed is worse than anything that is; what is known is told as it was.
                study.tell(trial, told.get(str(plan), (None, -1.0))[1])
                idle += 1
                if idle == _IDLE:
                    idle = 0
                    if not _enqueue_one(study, candidates, told, trial.number):
                        break
                continue
            idle = 0
            trial.set_user_attr(_PLAN, str(plan))
            with _heartbeat(study, trial):
                value = evaluate(candidate)
            study.tell(trial, -1.0 if value is None else value)
        return [candidate for candidate, _ in _told(optuna, study, candidates).values()][:count]


@contextmanager
def _quiet_optuna() -> Iterator[Any]:
    try:
        import optuna
    except ImportError:
        raise FoveateError(
            "a search in a family with more plans than trials needs Optuna: pip install 'foveate[search]', or take "
            "sampler='random'"
        ) from None
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of its heartbeat
            warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")  # ``_heartbeat`` sees to it
            yield optuna
    finally:
        optuna.logging.set_verbosity(before)


def _study(optuna: Any, name: str, storage: str, seed: int) -> OptunaStudy:
    for attempt in range(_ATTEMPTS):
        try:
            opened = None
            if storage:
                retry = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=_MOST_RETRIES)
                opened = optuna.storages.RDBStorage(
                    storage, heartbeat_interval=_BEAT, grace_period=_STALE, heartbeat_stale_trial_callback=retry
                )
            study = optuna.create_study(study_name=name, storage=opened, direction="maximize", load_if_exists=True)
            break
        except Exception as error:
            # Of two processes that find a database empty, one makes the tables, and the other finds them there.
            if attempt + 1 < _ATTEMPTS and any(word in str(error).lower() for word in ("exist", "unique", "locked")):
                time.sleep(0.2 * (attempt + 1))
                continue
            shown = storage.partition("@")[2] or storage  # without a password
            raise FoveateError(f"the storage {shown!r} cannot be opened: {first_line(error)}") from error
    # Another process, or the same one later, does not draw the same again.
    study.sampler = optuna.samplers.TPESampler(seed=seed + 7919 * len(study.get_trials(deepcopy=False)))
    return study


def _told(optuna: Any, study: OptunaStudy, candidates: Candidates) -> dict[str, tuple[Candidate, float]]:
    """The plans that were trained, by text, with their values; in the order in which these came."""
    found: dict[str, tuple[Candidate, float]] = {}
    trials = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    for trial in sorted(trials, key=lambda trial: (trial.datetime_complete, trial.number)):
        text = trial.user_attrs.get(_PLAN)
        if text is not None and text not in found:
            candidate = candidates.allowed(Plan.parse(text))
            if candidate is not None:
                found[text] = candidate, float(trial.value or 0.0)
    return found


def _suggested(trial: OptunaTrial, family: Family) -> Plan:
    """A plan by categories: for each placement what, where, and of ``some of`` each site by itself."""
    chosen: list[Placement] = []
    for number, each in enumerate(family.placements):
        heads = {"none" if head is None else f"{head[0]} {head[1]}": head for head in each.heads}
        head = heads[_category(trial, f"{number} what", list(heads))]
        parts = {f"{'some of ' * is_set}{', '.join(sites)}": (sites, is_set) for sites, is_set in each.site_lists.parts}
        sites, is_set = parts[_category(trial, f"{number} where", list(parts))]
        if is_set:
            sites = tuple(site for site in sites if _category(trial, f"{number} at {site}", ["no", "yes"]) == "yes")
        if head is not None and (sites or not is_set):
            chosen.append(Placement(*head, sites))
        elif head is not None:
            return Plan()  # the empty set is not in the family
    return Plan(tuple(chosen))


def _category(trial: OptunaTrial, name: str, choices: list[str]) -> str:
    return str(trial.suggest_categorical(name, choices)) if len(choices) > 1 else choices[0]


def _enqueue_one(study: OptunaStudy, candidates: Candidates, told: dict[str, Any], seed: int) -> bool:
    """TPE asks for what it knows again and again: name a plan that it does not know, where there is one."""
    fresh = [one for one in candidates.draw(len(told) + 1, seed) if str(one.plan) not in told]
    if fresh:
        study.enqueue_trial(_parameters(fresh[0].plan, candidates.family), skip_if_exists=False)
    return bool(fresh)


def _parameters(plan: Plan, family: Family) -> dict[str, str]:
    """The categories of a plan: the reverse of ``_suggested``."""
    rest, found = list(plan.placements), {}
    for number, each in enumerate(family.placements):
        own = rest[0] if rest and (rest[0].spec, rest[0].verb) in each.heads else None
        if own is None:
            found[f"{number} what"] = "none"
            continue
        rest.pop(0)
        found[f"{number} what"] = f"{own.spec} {own.verb}"
        for sites, is_set in each.site_lists.parts:
            if is_set and set(own.sites) <= set(sites):
                found[f"{number} where"] = f"some of {', '.join(sites)}"
                found |= {f"{number} at {site}": "yes" if site in own.sites else "no" for site in sites}
            elif sites == own.sites:
                found[f"{number} where"] = ", ".join(sites)
    return found


@contextmanager
def _heartbeat(study: OptunaStudy, trial: OptunaTrial) -> Iterator[None]:
    """Say while a plan trains that this process lives; ``study.optimize`` would, ask and tell does not."""
    storage, over = study._storage, threading.Event()
    record = getattr(storage, "record_heartbeat", None)
    if record is None or storage.get_heartbeat_interval() is None:
        yield
        return

    def beat() -> None:
        while True:
            record(trial._trial_id)
            if over.wait(_BEAT):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def default_storage(folder: Path | None) -> str:
    """SQLite in the output folder, or memory.

    Raises:
        FoveateError: the folder's name cannot stand in the address of a database.
    """
    if folder is None:
        return ""
    from sqlalchemy.engine import make_url

    file = str(folder.resolve() / "search.db")
    for address in (f"sqlite:///{file}", f"sqlite:///{quote(file)}"):
        if make_url(address).database == file and not make_url(address).query:
            return address
    raise FoveateError(f"output={str(folder)!r} cannot stand in the address of a database: take a name without ? and %")
