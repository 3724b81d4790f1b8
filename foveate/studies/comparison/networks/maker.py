"""Makes the networks of a comparison: the same ones for the same seed, with what tells one from another."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeAlias

import timm
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.families.family import Family
from foveate.model_info import pretrained_config, update_pretrained_config
from foveate.networks import create_model
from foveate.registry import find
from foveate.spec import Plan, Spec
from foveate.studies.comparison.config import BASELINE
from foveate.studies.comparison.networks.own_code import own_code
from foveate.studies.comparison.run import Run, digest_of
from foveate.studies.comparison.scheduler import Job
from foveate.surgery.families import resolve_family
from foveate.surgery.insert import insert
from foveate.surgery.resolve import KINDS
from foveate.surgery.saving.checkpoint import load
from foveate.surgery.trace import input_size_of
from foveate.training.classifier import has_classes, has_layers_for_classes, replace_classifier
from foveate.training.input.sampler import mix
from foveate.training.recipes.recipe import Recipe
from foveate.training.speed.automatic import AUTO
from foveate.training.tasks.choose import OpenedData
from foveate.training.teacher.distillation import is_saved

__all__ = ["Maker", "Model"]

logger = logging.getLogger("foveate")

Model: TypeAlias = str | nn.Module | Callable[[int], nn.Module]


class Maker:
    """Makes networks with plans: the same ones for the same seed.

    Args:
        model: as in ``compare``.
        pretrained: as in ``compare``.
        start: as in ``insert``.
        create: makes a network by name; without it ``create_model`` does.
        classes: of images with one class each. A plan that puts layers for each class into a network of other classes
            gets the network with a classifier for these.
    """

    def __init__(
        self,
        model: Model,
        pretrained: bool,
        start: str | None,
        create: Callable[[str], nn.Module] | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        self.model, self.pretrained, self.start, self.classes = model, pretrained, start, classes
        self._create = create or partial(create_model, pretrained=pretrained)
        self._networks: dict[int, tuple[str, tuple[object, ...]]] = {}
        self._teachers: dict[str, tuple[str | None, tuple[object, ...]]] = {}
        self._unread: set[str] = set()

    @property
    def name(self) -> str:
        """What the network is called."""
        if isinstance(self.model, str):
            return f"{self.model}, {'ImageNet' if self.pretrained else 'random'} weights"
        network = self.model if isinstance(self.model, nn.Module) else self._plain(0)
        return str(pretrained_config(network).get("architecture") or type(network).__name__)

    def job(self, label: str, plan: Plan | None, recipe: Recipe, data: OpenedData) -> Job:
        """A run of the grid.

        Raises:
            FoveateError: the recipe leaves to each run in which precision it trains, or its teacher cannot be loaded.
        """
        if recipe.amp == AUTO:
            raise FoveateError(
                "amp='auto' could train plans in different precision, and a comparison would compare that, too: take "
                "amp='no' or amp='bf16'"
            )
        words, start = (str(plan), self.start) if plan else (BASELINE, None)
        code = self.code([(each.spec, each.verb) for each in plan.placements] if plan else [], recipe)
        network, teacher = self._network(recipe.seed)[0], self._teacher(recipe.teacher)[0]
        run = Run(network, words, start, recipe, data.fingerprint, code, teacher)
        build, plain = (partial(self.build, each, recipe, recipe.seed) for each in (plan, None))
        return Job(run, label, data, build, plain)

    def code(self, mechanisms: Iterable[tuple[Spec, str]], recipe: Recipe) -> str | None:
        """A digest of the user's own code in the network, the recipe's teacher, and mechanisms, each with its verb.

        None where there is no such code. What has no code in Python is named in a warning, once.
        """
        constructors = [find(spec.name, KINDS.get(verb, "attention")) for spec, verb in mechanisms]
        found = own_code([*constructors, *self._network(recipe.seed)[1], *self._teacher(recipe.teacher)[1]])
        if new := sorted(set(found.unread) - self._unread):
            self._unread.update(new)
            logger.warning(
                "%s: the code cannot be read, so a finished run is taken for the same though it may have changed: name "
                "another output where it has",
                ", ".join(new),
            )
        return found.digest

    def build(self, plan: Plan | None, recipe: Recipe, seed: int) -> nn.Module:
        """The network with a plan."""
        network = self._plain(seed)
        if plan is None:
            return network
        if self.classes and recipe.classifier != "keep" and has_layers_for_classes(plan):
            self._fit_classes(network, recipe, seed)
        return insert(network, plan, start=self.start, seed=seed, input_size=recipe.image_size)

    def _fit_classes(self, network: nn.Module, recipe: Recipe, seed: int) -> None:
        """Give a network a classifier for the data's classes, if its own is for others."""
        size = input_size_of(network, recipe.image_size)
        if has_classes(network, self.classes, size):
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(seed, "classifier"))
            replace_classifier(network, len(self.classes), size)
        update_pretrained_config(network, {"num_classes": len(self.classes), "label_names": self.classes})

    def resolve(self, recipe: Recipe, seed: int, family: Family) -> Family:
        """A family with the network's names of sites."""
        return resolve_family(self._plain(seed), family, recipe.image_size)

    def _network(self, seed: int) -> tuple[str, tuple[object, ...]]:
        """What identifies the network without a plan, and what its code is looked for in."""
        if seed not in self._networks:
            self._networks[seed] = self._identified(seed)
        return self._networks[seed]

    def _teacher(self, teacher: str) -> tuple[str | None, tuple[object, ...]]:
        """What identifies a teacher from a folder, whose weights may change, and what its code is looked for in."""
        if teacher not in self._teachers:
            network = load(teacher) if teacher and is_saved(teacher) else None
            self._teachers[teacher] = (digest_of(network), _classes_of(network)) if network is not None else (None, ())
        return self._teachers[teacher]

    def _identified(self, seed: int) -> tuple[str, tuple[object, ...]]:
        if isinstance(self.model, str):
            architecture = self.model.partition(".")[0]
            entry = (timm.model_entrypoint(architecture),) if timm.is_model(architecture) else ()
            return f"{self.model} pretrained={self.pretrained}", entry
        network = self._plain(seed)
        return digest_of(network), _classes_of(network)

    def _plain(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if isinstance(self.model, str):
                return self._create(self.model)
            return copy.deepcopy(self.model) if isinstance(self.model, nn.Module) else self.model(seed)


def _classes_of(network: nn.Module) -> tuple[object, ...]:
    return tuple({type(module) for module in network.modules()})
