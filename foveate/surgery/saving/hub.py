"""Saved models that Hugging Face's and timm's own conventions understand.

A folder of ``save_pretrained`` is one of ``save`` with three things more: ``config.json`` is in timm's form,
``README.md`` is a model card, and ``SHA256SUMS`` lists what programs read. So timm builds the model, too:
``timm.create_model("local-dir:FOLDER", pretrained=True)``, and ``"hf-hub:NAME"`` from the hub. A plain network of
timm's needs nothing of ours for that; all others are built by the entry ``foveate_planned``, which foveate registers.

These are functions, not huggingface_hub's ``PyTorchModelHubMixin``. The mixin is for classes that are built from what
``config.json`` says; timm's and torchvision's networks are made by functions, and a plan goes into a network that is
there. The mixin also removes ``config.json`` before it writes, keeps an old card, and loads what fits without a word.
A class of one's own that builds its network and its plan can use the mixin as it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import nn

from foveate import __version__
from foveate.errors import FoveateError, first_line
from foveate.surgery.saving.checkpoint import load, write
from foveate.surgery.saving.model_card import model_card, timm_config
from foveate.surgery.saving.weights_file import CONFIG, SUMS, WEIGHTS

__all__ = ["downloaded", "from_pretrained", "push_to_hub", "save_pretrained"]

CARD = "README.md"


def save_pretrained(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    metrics: Mapping[str, float] | None = None,
    dataset: str | None = None,
    license: str | None = None,
    cost: object = None,
    sections: Mapping[str, str] | None = None,
    info: Mapping[str, object] | None = None,
) -> Path:
    """Keep a model as ``save`` does, with a model card, in the form that timm and the Hugging Face hub expect.

    Args:
        model: with or without a plan.
        folder: made when it does not exist; a model and a card that it holds are replaced, other files in it stay.
        metrics: what was measured, such as ``{"accuracy": 0.93}``; for the card.
        dataset: what it was measured on; ``metrics`` need it.
        license: of the weights, in the hub's words, such as ``apache-2.0``; without it the card says none.
        cost: what the card says of cost: a text, or ``fv.cost(model)``.
        sections: further headings of the card and their texts.
        info: more to say in ``config.json``; plain JSON values.

    Returns:
        The folder.

    Raises:
        FoveateError: the model cannot be saved or the folder not be written, as for ``save``; or a metric is not a
            finite number, or no data set is named for it.
    """
    card = model_card(model, metrics=metrics, dataset=dataset, license=license, cost=cost, sections=sections)
    return write(
        model,
        folder,
        info,
        lambda facts: {CONFIG: timm_config(model, facts), CARD: str(card)},
        (CONFIG, WEIGHTS),
    )


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str = "Add model",
    **details: Any,
) -> str:
    """Save a model into a repository of the Hugging Face hub, which is made when there is none.

    Args:
        model: with or without a plan.
        repo_id: such as ``me/dogs``.
        private: make a private repository.
        token: of the hub; without it, the one that ``hf auth login`` keeps.
        revision: a branch of the repository, which must exist; without it the main one.
        commit_message: of the commit.
        details: ``metrics``, ``dataset``, ``license``, ``cost``, ``sections``, ``info``: as for ``save_pretrained``.

    Returns:
        The address of the commit.

    Raises:
        FoveateError: the model cannot be saved, and the hub was not asked; or the hub does not take it.
    """
    with TemporaryDirectory() as folder:
        save_pretrained(model, folder, **details)
        try:
            api = HfApi(token=token, library_name="foveate", library_version=__version__)
            name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            done = api.upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message=commit_message)
        except Exception as error:
            raise FoveateError(f"the Hugging Face hub does not take {repo_id!r}: {first_line(error)}") from error
    return str(done)


def from_pretrained(
    name_or_folder: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    revision: str | None = None,
    strict: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> nn.Module:
    """Build a saved model anew, from a folder or from the Hugging Face hub.

    Args:
        name_or_folder: a folder; where there is none of this name, a repository of the hub, such as ``me/dogs``.
        model: the plain network, as for ``load``.
        revision: a branch, tag or commit of the repository.
        strict: as for ``load``.
        cache_dir: where the hub's files are kept; without it, where huggingface_hub keeps them.
        token: for a private repository; without it, the one that ``hf auth login`` keeps.
        local_files_only: take the hub's files from the cache alone.

    Returns:
        The model, in eval mode.

    Raises:
        FoveateError: there is no such folder or repository, the hub cannot be reached, or ``load`` refuses the files.
    """
    options = {"cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
    return load(_found(name_or_folder, revision, **options), model, strict=strict)


def _found(name: str | os.PathLike[str], revision: str | None, **options: object) -> Path:
    """The folder of this name, or what the hub has under it."""
    folder = Path(name)
    if folder.is_dir() or not isinstance(name, str):
        if revision is not None:
            raise FoveateError(f"revision={revision!r} is for a repository of the hub, and {folder} is a folder")
        return folder
    try:
        return downloaded(name, revision, **options)
    except HFValidationError:
        return folder  # no name that the hub could know: load will not find it either, and say so


def downloaded(name: str, revision: str | None, **options: object) -> Path:
    """A folder with what the hub has under a name: weights, description and sums, nothing else."""
    request: dict[str, Any] = {"library_name": "foveate", "library_version": __version__, **options}
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[WEIGHTS, CONFIG, SUMS], **request))
    except HFValidationError:
        raise
    except Exception as error:
        at = f" at revision {revision!r}" if revision is not None else ""
        raise FoveateError(
            f"no folder is called {name!r}, and the Hugging Face hub does not give it{at}: {first_line(error)}"
        ) from error
