"""What describes a saved model: the model card for people, and ``config.json`` in timm's form."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from timm.models import model_entrypoint
from torch import nn

from foveate.dense import Detector, Segmenter
from foveate.errors import FoveateError
from foveate.io import JsonObject, markdown_table, markdown_text
from foveate.model_info import pretrained_config
from foveate.spec import Spec
from foveate.surgery.record import unwrapped
from foveate.surgery.saving.checkpoint import describe
from foveate.surgery.saving.weights_file import as_text

__all__ = ["ENTRY", "model_card", "timm_config"]

ENTRY = "foveate_planned"  # what timm builds a model with a plan by
# What config.json keeps of timm's data on a network: how images are prepared, and the names of its ends. The rest is of
# the weights that it started from. Other sizes for testing are left out: ours are measured as they are trained.
_KEPT = (
    *("input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "label_names"),
    *("label_descriptions", "pool_size", "first_conv", "classifier"),
)
# The task, in the hub's words, of a network that is no classifier, and what it does.
_TASKS: Mapping[type[nn.Module], tuple[str, str]] = {
    Segmenter: ("image-segmentation", "It gives each pixel a class."),
    Detector: ("object-detection", "It finds objects: boxes, each with a class."),
}


def model_card(
    model: nn.Module,
    *,
    metrics: Mapping[str, float] | None = None,
    dataset: str | None = None,
    license: str | None = None,
    cost: object = None,
    sections: Mapping[str, str] | None = None,
) -> ModelCard:
    """What the hub shows of a model: its data for the hub's search, plan, cost, results, images, how to load it.

    Args:
        model: with or without a plan.
        metrics: as for ``save_pretrained``, and so are the others.
        dataset: see there.
        license: see there.
        cost: see there.
        sections: see there.

    Raises:
        FoveateError: a metric is not a finite number, or no data set is named for it.
    """
    facts, results = describe(unwrapped(model)), _results(metrics, dataset)
    classes = facts["num_classes"]
    usual = "image-feature-extraction" if classes == 0 else "image-classification"
    task, does = next((said for kind, said in _TASKS.items() if isinstance(unwrapped(model), kind)), (usual, ""))
    title = f"{_architecture(facts)}{' with attention' if facts['plan'] else ''}"
    data = ModelCardData(
        library_name="foveate",
        license=license,
        pipeline_tag=task,
        tags=[
            "foveate",
            *([facts["library"]] if facts["library"] else []),
            *(["attention"] if facts["plan"] else []),
        ],
        model_name=title,
        eval_results=[
            EvalResult(task, re.sub(r"[^\w.-]+", "-", str(dataset).lower()), str(dataset), key, value)
            for key, value in results.items()
        ]
        or None,
    )
    ending = f", {classes} classes" if classes else ""
    parts = {
        "": f"The network is {_origin(facts)}{ending}.{' ' * bool(does)}{does}",
        "Plan": f"```\n{facts['plan']}\n```" if facts["plan"] else "",
        "Cost": "" if cost is None else str(cost),
        "Results": _table(("metric", f"on {markdown_text(str(dataset))}"), results),
        "Images": _table(("preparation", ""), {k: _brief(v) for k, v in facts["preparation"].items()}),
        **(sections or {}),
        "Loading": _loading(facts),
    }
    text = "\n\n".join(f"## {heading}\n\n{part}" if heading else part for heading, part in parts.items() if part)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{text}")


def _is_dense(facts: Mapping[str, Any]) -> bool:
    """Whether it is a segmentation network or a detector that is built anew on a trunk."""
    return facts["library"] in ("segmenter", "detector")


def _architecture(facts: Mapping[str, Any]) -> str:
    """The name; of a network on a trunk no name of timm's, which would build the trunk as a classifier."""
    head = f", {Spec.parse(facts['options']['head']).name}" if _is_dense(facts) else ""
    return f"{facts['architecture']}{head}"


def _origin(facts: Mapping[str, Any]) -> str:
    if _is_dense(facts):
        return f"the head `{facts['options']['head']}` on `{facts['architecture']}` of timm"
    return f"`{facts['architecture']}` of {facts['library'] or 'its author'}"


def _results(metrics: Mapping[str, float] | None, dataset: str | None) -> dict[str, float]:
    if metrics and not dataset:
        raise FoveateError(f"what were {', '.join(metrics)} measured on? give dataset='...' with metrics")
    results = {}
    for key, value in (metrics or {}).items():
        try:
            results[key] = float(value)
        except (TypeError, ValueError):
            results[key] = math.nan
        if not math.isfinite(results[key]):
            raise FoveateError(f"metrics: {key}={value!r} is not a finite number")
    return results


def _table(heads: tuple[str, str], rows: Mapping[str, object]) -> str:
    return (
        "\n".join(markdown_table(heads, [(one, markdown_text(str(other))) for one, other in rows.items()], right=()))
        if rows
        else ""
    )


def _brief(value: object) -> str:
    parts = value if isinstance(value, list | tuple) else [value]
    return ", ".join(map(str, parts[:10])) + (f", and {len(parts) - 10} more" if len(parts) > 10 else "")


def _loading(facts: Mapping[str, object]) -> str:
    lines = ["import foveate as fv", "", 'model = fv.from_pretrained("NAME OR FOLDER")']
    if facts["library"] is None:
        lines[1:] = ["", "network = ...  # the plain network", 'model = fv.from_pretrained("NAME OR FOLDER", network)']
    elif not _is_dense(facts):
        alone = is_timms(facts) and model_entrypoint(facts["architecture"]).__module__.startswith("timm.")
        ours = [] if alone else ["import foveate  # after timm, which learns to build this network from it"]
        lines += ["", "# or", "import timm", *ours, "", 'model = timm.create_model("hf-hub:NAME", pretrained=True)']
    return "\n".join(["```python", *lines, "```"])


def is_timms(facts: Mapping[str, Any]) -> bool:
    """Whether it is a plain network of timm's; timm keeps the weights of ``features_only`` in another form."""
    return facts["library"] == "timm" and not facts["plan"] and not facts["options"].get("features_only")


def timm_config(model: nn.Module, facts: Mapping[str, Any]) -> str:
    """``config.json``: what timm reads, and under ``foveate`` the description of the weights file.

    Nothing for timm of a network that timm cannot build: one of one's own, a segmentation network, a detector.
    """
    config: JsonObject = {"architecture": _architecture(facts)}
    if facts["library"] and not _is_dense(facts):
        arguments = {
            **facts["options"],
            "num_classes": facts["num_classes"],
            "in_chans": facts["in_chans"],
        }
        if not is_timms(facts):
            config["architecture"] = ENTRY
            network = f"{'torchvision:' * (facts['library'] == 'torchvision')}{facts['architecture']}"
            arguments |= {
                "network": network,
                "plan": facts["plan"],
                "plan_input_size": facts["plan_input_size"],
            }
        own = pretrained_config(unwrapped(model))
        kept = {key: own[key] for key in _KEPT if key in own}
        if kept.get("input_size"):
            kept["input_size"] = [facts["in_chans"], *kept["input_size"][1:]]
        kept["num_classes"] = facts["num_classes"]
        config |= {"num_classes": facts["num_classes"], "model_args": arguments, "pretrained_cfg": kept}
    return as_text({**config, "foveate": facts})
