"""What must be said beside the numbers of a comparison, in paragraphs."""

from __future__ import annotations

from foveate.studies.comparison.margin import points_text
from foveate.studies.comparison.results import Comparison

__all__ = ["notes"]


def notes(comparison: Comparison) -> list[str]:
    """The data, what is fair about the comparison, how the learning rates came about, the statistics, what made it."""
    setup = comparison.setup
    seeds = ", ".join(map(str, setup.seeds))
    changed = {k: v for k, v in setup.recipe.to_dict().items() if v != getattr(type(setup.recipe)(), k)}
    recipe = ", ".join(f"{k}={v}" for k, v in changed.items() if k != "seed") or "all defaults"
    fair = (
        f"{setup.network}; {setup.train_images} training and {setup.val_images} validation images of {setup.data}. "
        f"Seeds {seeds}: for one seed every plan starts from the same shared weights and sees the same images in the "
        "same order. The weights of the last epoch are compared."
    )
    statistics = (
        f"The difference is in points of {setup.measure.noun} against the network without attention, paired over seeds "
        "and images, with a 95% interval: the variance between seeds is pooled over the plans, that between images is "
        "the plan's own, and each has Student's quantile of its own degrees of freedom. The interval is that plan's "
        f"own; p_Holm is corrected for the number of plans, and a verdict needs p_Holm below 0.05.{setup.measure.note}"
    )
    if len(setup.seeds) == 1:
        statistics += " With one seed there is no verdict: the interval is over images alone."
    if setup.margin is not None:
        statistics += (
            f" Whether a plan is worse by more than {points_text(setup.margin)}: one-sided tests at 5%, corrected for "
            "the number of plans."
        )
    kinds = [", ".join(f"{key} {value}" for key, value in kind.items()) for kind in comparison.made_with]
    made = f"Made with {kinds[0]}."
    if len(kinds) > 1:
        made = f"The runs were not all made alike, so their last bits may differ: {'; '.join(kinds)}."
    return [
        *(f"{line}." for line in comparison.left_out),
        *([f"The split: {setup.note}."] if setup.note else []),
        *([setup.licence] if setup.licence else []),
        fair,
        comparison.tuning_words,
        statistics,
        f"Recipe, where it is not the default: {recipe}.",
        made,
    ]
