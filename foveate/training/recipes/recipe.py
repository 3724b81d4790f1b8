"""How to train, as data: one frozen dataclass. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foveate.arguments import checked_class
from foveate.errors import FoveateError, near
from foveate.html import html_table
from foveate.io import JsonObject
from foveate.training.recipes.optimiser_name import check_optimiser

__all__ = ["AMP", "AUGMENTATIONS", "CLASSIFIERS", "LOSSES", "SCHEDULES", "THREADS", "Recipe"]

SCHEDULES = ("cosine", "constant", "step")
AUGMENTATIONS = ("none", "flip", "standard", "randaugment")
AMP = ("no", "bf16", "fp16", "auto")
LOSSES = ("cross_entropy", "bce", "dice", "cross_entropy+dice")
CLASSIFIERS = ("by name", "keep", "new")
THREADS = ("all", "auto")

_CHOICES = {"schedule": SCHEDULES, "augmentation": AUGMENTATIONS, "amp": AMP, "loss": LOSSES, "classifier": CLASSIFIERS}
_CHOICES |= {"threads": THREADS}

_COMPILE = {"on": "inductor", "off": ""}

# Field -> (lowest value, is the lowest value itself allowed, highest value). Highest values are included.
_BOUNDS: dict[str, tuple[float, bool, float]] = {
    "epochs": (0, True, math.inf),
    "learning_rate": (0, True, math.inf),
    "head_learning_rate_scale": (0, False, math.inf),
    "warmup_epochs": (0, True, math.inf),
    "weight_decay": (0, True, math.inf),
    "momentum": (0, True, 1),
    "label_smoothing": (0, True, 1),
    "image_size": (1, True, math.inf),
    "batch_size": (1, True, math.inf),
    "seed": (0, True, math.inf),
    "workers": (0, True, math.inf),
    "bn_momentum": (0, True, 1),
    "head_init_scale": (0, True, math.inf),
    "gradient_clip": (0, False, math.inf),
    "ema_decay": (0, True, 1),
    "checkpoint_every": (1, True, math.inf),
    "evaluate_every": (1, True, math.inf),
    "randaugment_operations": (1, True, 14),
    "randaugment_magnitude": (0, True, 30),
    "mixup": (0, True, math.inf),
    "cutmix": (0, True, math.inf),
    "accumulate": (1, True, math.inf),
    "distillation": (0, True, 1),
    "temperature": (0, False, math.inf),
    "matching_steps": (0, True, math.inf),
}


@checked_class
@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a model is trained, apart from the model and the data.

    Two runs with the same model, data and recipe end with the same weights on the same machine (on a CPU: bit for
    bit, for any number of workers, unless ``amp``, ``compile`` or ``threads`` is "auto").

    Args:
        epochs: passes over the training images; 0 only evaluates.
        optimiser: a name of ``timm.optim.list_optimizers()``: "adamw", "sgd" (with Nesterov's momentum), "lamb", ...
        learning_rate: the highest learning rate of the run, after the warm-up.
        head_learning_rate_scale: the classifier's learning rate as a multiple of ``learning_rate``.
        schedule: "cosine" falls to 0 at the end; "step" is ten times lower after each third of the run; "constant".
        warmup_epochs: epochs in which the learning rate rises linearly from nearly 0; fractions count.
        weight_decay: on weights only; biases and the parameters of norms have none.
        momentum: for the optimisers that have one.
        loss: "cross_entropy", or "bce": binary cross-entropy for each class, where every class that makes up more than
            0.2 of a mixed image counts as present. For segmentation "cross_entropy", "dice" or "cross_entropy+dice".
        label_smoothing: the share of the target that is spread over all classes, 0 to 1.
        augmentation: "none"; "flip" (left to right); "standard" (a random crop of 8% to 100% of the area, resized, and
            flip); "randaugment" ("standard", then random operations of RandAugment). For segmentation "standard" is a
            random scale of 0.5 to 2, a random crop and flip, and there is no "randaugment".
        randaugment_operations: how many operations RandAugment does to an image.
        randaugment_magnitude: how strong they are, 0 to 30.
        mixup: mix each image with another of its batch, in shares drawn from Beta(mixup, mixup); 0 does not.
        cutmix: paste a box of another image of the batch, its area drawn from Beta(cutmix, cutmix); 0 does not. With
            both, one of the two is drawn for each batch.
        image_size: height and width in pixels; None is the model's own. For segmentation the shorter side, and the side
            of a random crop.
        batch_size: images that a process computes at a time. A step trains on ``batch_size`` x ``accumulate`` x
            processes.
        accumulate: how many batches' gradients are averaged before a step.
        freeze: "" trains everything; "trunk" freezes all but the classifier; a module's dotted name freezes
            everything that runs up to and including that module. What is frozen runs in eval mode.
        seed: decides the new classifier, the order of the images, the augmentation and dropout.
        workers: processes that load images; 0 loads in the main process. The result does not depend on it.
        bn_momentum: momentum of the network's own BatchNorm layers during training; None leaves them. Attention that
            was inserted keeps its own.
        head_init_scale: the classifier starts anew from a normal distribution with this standard deviation and a bias
            of 0, such as 0.01; None leaves it (a classifier with the wrong number of classes is replaced all the same).
        classifier: "by name": where the model carries class names, what it learned of each of the data's classes is
            kept, and a class that it does not know means a new classifier for all (with ``epochs`` 0 an error); a model
            without names keeps its classifier where the number of classes is right. "keep": the classifier is kept as
            it is, whatever its classes are called. "new": it is replaced.
        gradient_clip: the longest 2-norm of all gradients together; None does not clip.
        ema_decay: an exponential moving average of the weights with this decay is what is evaluated and kept; None: no.
        checkpoint_every: steps between two checkpoints inside an epoch; None: only after each epoch.
        evaluate_every: epochs between two evaluations on the validation images; the last epoch, and one after which the
            run pauses, are always evaluated. The weights do not depend on it.
        amp: mixed precision: "no", "bf16", "fp16" (needs a GPU), or "auto": bf16 where a step, measured before the run,
            is faster in it. The choice is kept with the run.
        channels_last: keep feature maps in memory with the channels last, which is faster for convolutions.
        cache: keep what every epoch would compute again: the prepared images when augmentation is "none" or "flip",
            the decoded images when it crops at random, and with ``freeze`` the frozen part's features.
        compile: a backend of torch.compile, such as "inductor", for full batches; "on" is "inductor", "off" or "" does
            not compile, "auto" compiles where that is expected to save more time than it takes, and is measured to.
            The choice is kept with the run. What cannot be compiled is trained without it, and a line says so.
        threads: "all": a step on a CPU has as many threads as PyTorch has (``torch.get_num_threads()``). "auto": one
            fewer while other programs want the cores and steps are then faster, decided anew by the steps' own times,
            on Linux and without compilation; results then differ in their last bits from run to run.
        sync_bn: BatchNorm over the images of all processes instead of each process's own (on GPUs).
        teacher: a model's name or a folder that foveate saved, to learn from; "" learns from the labels alone.
        distillation: the teacher's share of the loss, 0 to 1.
        temperature: of the softmax over the teacher's and the student's scores.
        matching_steps: steps before training in which attention in a block's place (``replacing``) learns to
            give what the block gave, and nothing else changes; 0 has none.

    Raises:
        FoveateError: a value has the wrong type or is out of its range.
    """

    epochs: int = 10
    optimiser: str = "adamw"
    learning_rate: float = 1e-3
    head_learning_rate_scale: float = 1.0
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    weight_decay: float = 0.01
    momentum: float = 0.9
    loss: str = "cross_entropy"
    label_smoothing: float = 0.0
    augmentation: str = "flip"
    randaugment_operations: int = 2
    randaugment_magnitude: int = 9
    mixup: float = 0.0
    cutmix: float = 0.0
    image_size: int | None = None
    batch_size: int = 32
    accumulate: int = 1
    freeze: str = ""
    seed: int = 0
    workers: int = 0
    bn_momentum: float | None = None
    head_init_scale: float | None = None
    classifier: str = "by name"
    gradient_clip: float | None = None
    ema_decay: float | None = None
    checkpoint_every: int | None = None
    evaluate_every: int = 1
    amp: str = "no"
    channels_last: bool = True
    cache: bool = True
    compile: str = ""
    threads: str = "all"
    sync_bn: bool = False
    teacher: str = ""
    distillation: float = 0.5
    temperature: float = 1.0
    matching_steps: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _typed(field.name, getattr(self, field.name), str(field.type))
            if field.name == "compile":
                value = _COMPILE.get(value, value)
            object.__setattr__(self, field.name, value)
            if field.name in _CHOICES and value not in _CHOICES[field.name]:
                raise FoveateError(f"recipe: {field.name}={value!r} is unknown; {near(value, _CHOICES[field.name])}")
            if field.name in _BOUNDS and value is not None:
                _check_bounds(field.name, value)
        if self.warmup_epochs > self.epochs:
            raise FoveateError(
                f"recipe: warmup_epochs={self.warmup_epochs} is longer than epochs={self.epochs}; make it shorter"
            )

    def with_(self, **overrides: Any) -> Recipe:
        """The same recipe with some fields changed.

        Raises:
            FoveateError: a field is unknown (the nearest name is shown), or its value is wrong.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in overrides:
            if name not in names:
                raise FoveateError(f"a recipe has no field {name!r}; {near(name, names)}")
        return dataclasses.replace(self, **overrides)

    def check(self) -> None:
        """Make sure that what the recipe names exists; ``fit`` does so, too. This imports torch.

        Raises:
            FoveateError: no optimiser has this name (the nearest names are shown), or ``fit`` cannot drive it.
        """
        check_optimiser(self.optimiser)

    def changes(self) -> JsonObject:
        """The fields that differ from the defaults, with their values."""
        usual = Recipe().to_dict()
        return {name: value for name, value in self.to_dict().items() if value != usual[name]}

    def _repr_html_(self) -> str:
        usual = Recipe().to_dict()
        rows = [(name, repr(value), repr(usual[name])) for name, value in self.to_dict().items()]
        changed = [n for n, (_, value, default) in enumerate(rows) if value != default]
        return html_table(("field", "value", "default"), rows, bold=changed)

    def to_dict(self) -> JsonObject:
        """Field -> value, plain numbers, text and None: ``Recipe.from_dict(r.to_dict()) == r``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Recipe:
        """A recipe from field -> value; a field that is missing has its default.

        Raises:
            FoveateError: a field is unknown (the nearest name is shown), or its value is wrong.
        """
        return cls().with_(**{str(name): value for name, value in fields.items()})


def _typed(name: str, value: object, wanted: str) -> Any:
    """The value in its field's type (an int becomes a float), or the error that says what is wanted."""
    if value is None and "None" in wanted:
        return None
    kind = wanted.removesuffix(" | None")
    if kind == "float" and type(value) in (int, float):
        return float(value)  # type: ignore[arg-type]  # mypy does not follow type()
    if type(value).__name__ != kind:
        words = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}[kind]
        raise FoveateError(f"recipe: {name}={value!r} is not {words}")
    return value


def _check_bounds(name: str, value: float) -> None:
    low, inclusive, high = _BOUNDS[name]
    if not math.isfinite(value) or value > high or value < low or (value == low and not inclusive):
        least = f"at least {low}" if inclusive else f"more than {low}"
        most = f" and at most {high:g}" if math.isfinite(high) else ""
        raise FoveateError(f"recipe: {name}={value} must be {least}{most}")
