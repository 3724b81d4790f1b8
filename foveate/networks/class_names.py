"""The names of a model's classes, and where the classes of a data set stand among them."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError, near
from foveate.model_info import pretrained_config

__all__ = [
    "class_index",
    "class_names",
    "class_positions",
    "output_positions",
    "positions_by_name",
    "stored_names",
    "to_outputs",
]

_SHOWN = 12  # names in a message


def stored_names(model: nn.Module, count: int) -> tuple[str, ...]:
    """The class names that a model carries, ``label_names`` of its ``pretrained_cfg``.

    Args:
        model: a classifier.
        count: its outputs. Names of another number are not its own (its classifier was replaced) and are left alone.

    Returns:
        ``count`` names, or none.
    """
    names = pretrained_config(model).get("label_names") or ()
    return tuple(map(str, names)) if not isinstance(names, str) and len(names) == count else ()


def class_names(model: nn.Module, count: int) -> tuple[str, ...]:
    """The names that a model carries, or ImageNet's where timm marks its weights as trained on ImageNet-1k.

    Args:
        model: a classifier.
        count: its outputs.

    Returns:
        ``count`` names, or none.
    """
    names = stored_names(model, count)
    return names or (tuple(each[0] for each in _imagenet()) if _is_imagenet(model, count) else ())


def class_positions(model: nn.Module, classes: Sequence[str], count: int) -> tuple[int, ...] | None:
    """Where each class of a data set stands among the outputs of a model, by the rule of :func:`output_positions`.

    Args:
        model: a classifier.
        classes: of the data set, in the order of its labels.
        count: the model's outputs.

    Returns:
        For each class the index of its output; None where outputs and classes are the same, in the same order.

    Raises:
        FoveateError: see there.
    """
    return output_positions(class_names(model, count), classes, count)


def output_positions(names: Sequence[str] | None, classes: Sequence[str], count: int) -> tuple[int, ...] | None:
    """Where each class of a data set stands among the outputs of a classifier.

    Outputs with names are read by name: the data's classes may be fewer, and in another order. ImageNet's are known by
    their WordNet ids and each of their words, too. Outputs without names must be as many as the data has classes, in
    the same order.

    Args:
        names: of the outputs; none where they are not known.
        classes: of the data set, in the order of its labels.
        count: outputs.

    Returns:
        For each class the index of its output; None where outputs and classes are the same, in the same order.

    Raises:
        FoveateError: a class of the data is not a class of the classifier, or their numbers differ and the classifier
            has no names. The message lists both.
    """
    names = tuple(names or ())
    if len(names) == 1000 and names == tuple(each[0] for each in _imagenet()):
        if tuple(classes) == tuple(map(str, range(count))):
            return None
        known: Sequence[Sequence[str]] = _imagenet()
    elif names:
        known = [(name,) for name in names]
    elif len(classes) == count:
        return None
    else:
        raise FoveateError(
            f"the model has {count} classes without names and the data has {len(classes)} ({_listed(classes)}), so no "
            "output can be told for a class: train the model on this data, or name its classes in "
            "model.pretrained_cfg['label_names']"
        )
    found = positions_by_name(known, classes)
    if found is None:
        raise FoveateError(
            f"the model's classes ({_listed([each[0] for each in known])}) do not hold all of the data's "
            f"({_listed(classes)}): give data of the model's classes, or train the model on this data"
        )
    return None if found == tuple(range(count)) else found


def class_index(model: nn.Module, name: str) -> int:
    """The output of a model for a class, by the class's name.

    Raises:
        FoveateError: the model has no class names, or none like this.
    """
    own = pretrained_config(model).get("label_names") or ()
    known = [(str(each),) for each in own] or (_imagenet() if _is_imagenet(model, 1000) else ())
    if not known:
        raise FoveateError(f"class {name!r}: the model carries no class names, so give the index of the class")
    found = positions_by_name(known, [name])
    if found is None:
        raise FoveateError(f"the model has no class {name!r}; {near(name, [names[0] for names in known])}")
    return found[0]


def positions_by_name(known: Iterable[Sequence[str]], classes: Sequence[str]) -> tuple[int, ...] | None:
    """The index of each class among the classes that are known, each by one name or more; None if one is missing.

    Accents count, but not how Unicode composes them. A name that two known classes share names neither.
    """
    at = [(_plain(name), index) for index, names in enumerate(known) for name in {_plain(each) for each in names}]
    shared = Counter(name for name, _ in at)
    where = {name: index for name, index in at if shared[name] == 1}
    found = [where.get(_plain(name)) for name in classes]
    return (
        None if None in found or len(set(found)) < len(found) else tuple(index for index in found if index is not None)
    )


def to_outputs(labels: Tensor, positions: tuple[int, ...] | None) -> Tensor:
    """Labels of the data as outputs of the model.

    Args:
        labels: (N,) int64, positions among the data's classes.
        positions: from :func:`class_positions`.

    Returns:
        (N,) int64; ``labels`` themselves where there is nothing to change.

    Raises:
        FoveateError: a label is not a class of the data.
    """
    if positions is None:
        return labels
    wrong = labels[(labels < 0) | (labels >= len(positions))]
    if len(wrong):
        raise FoveateError(f"an image has the label {int(wrong[0])} and the data has {len(positions)} classes")
    return torch.tensor(positions, device=labels.device)[labels]


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", str(name))


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _is_imagenet(model: nn.Module, count: int) -> bool:
    return count == 1000 and re.search(r"in1k\b", str(pretrained_config(model).get("tag") or "")) is not None


@functools.cache
def _imagenet() -> tuple[tuple[str, ...], ...]:
    """For each class of ImageNet-1k its first words, the others, and its WordNet id."""
    from timm.data import ImageNetInfo

    # timm reads its files again each time, which takes longer than a small network's forward pass.
    info = ImageNetInfo("imagenet-1k")
    found = []
    for identity, text in zip(info.label_names(), info.label_descriptions(), strict=True):
        words = [each.strip() for each in text.split(",")]
        found.append((*words, text, *(each.replace(" ", "_") for each in words), identity))
    return tuple(found)
