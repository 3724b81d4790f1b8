"""What can be said of one plan against the baseline, in numbers and in words."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import stdev

from foveate.io import JsonObject
from foveate.studies.comparison.margin import MarginTest
from foveate.studies.comparison.power import Power
from foveate.studies.comparison.statistics import Difference, McNemar, p_text

__all__ = ["ALPHA", "PlanAnalysis"]

ALPHA = 0.05
_KEYS = (
    "difference",
    "difference_low",
    "difference_high",
    "difference_per_seed",
    "bootstrap_low",
    "bootstrap_high",
    "p",
    "p_holm",
    "only_plan_right",
    "only_baseline_right",
    "p_mcnemar",
    "seed_sd",
    "smallest_difference",
    "seeds_needed",
    "images_needed",
    "sign",
    "verdict",
    "margin",
    "margin_verdict",
    "p_not_worse",
    "p_equivalent",
    "p_worse",
    "verdict_text",
    "power_text",
)


@dataclass(frozen=True)
class PlanAnalysis:
    """One plan against the baseline, in points of what they are compared by: top-1 accuracy, mIoU or mAP.

    Args:
        label: the plan.
        difference: paired over seeds and images.
        per_seed: the difference with each seed.
        bootstrap: 95% interval of the bootstrap over seeds and images; with one seed, over images alone.
        mcnemar: on the predictions of all seeds together; None where an image is neither right nor wrong.
        p_holm: ``difference.p``, corrected for the number of plans; None where there can be no verdict.
        plans: how many plans that is.
        images: how many test images.
        power: None where there can be no verdict.
        margin: whether the plan is worse by more than a margin; None without a margin or a verdict.
        obstacle: why there can be no verdict, or None.
    """

    label: str
    difference: Difference
    per_seed: tuple[float, ...]
    bootstrap: tuple[float, float]
    mcnemar: McNemar | None
    p_holm: float | None
    plans: int
    images: int
    power: Power | None
    margin: MarginTest | None
    obstacle: str | None

    @staticmethod
    def of_baseline() -> JsonObject:
        """The keys of ``as_dict``, for the row of the baseline, which has no difference."""
        return dict.fromkeys(_KEYS) | {"verdict": "baseline"}

    @property
    def sign(self) -> int | None:
        """1: better than the baseline; -1: worse; 0: no evidence of a difference; None: there can be no verdict."""
        if self.p_holm is None:
            return None
        if self.p_holm >= ALPHA:
            return 0
        return 1 if self.difference.mean > 0 else -1

    @property
    def word(self) -> str:
        """The verdict without numbers."""
        words = {1: "better", -1: "worse", 0: "no evidence of a difference", None: f"no verdict: {self.obstacle}"}
        return words[self.sign]

    @property
    def verdict(self) -> str:
        """In words and numbers: what the data allow one to say."""
        d = self.difference
        if self.p_holm is None or self.sign is None:
            over = " over these images alone" if d.seeds == 1 else ""
            return f"{self.word}: {d.mean:+.1f} points [{d.low:+.1f}, {d.high:+.1f}]{over}"
        p = p_text("p_Holm", self.p_holm)
        if self.sign:
            low, high = sorted((self.sign * d.low, self.sign * d.high))
            text = f"{self.word} by {abs(d.mean):.1f} points [{low:.1f}, {high:.1f}], {p}"
        else:
            corrected = f" after Holm's correction for {self.plans} plans" if d.p < ALPHA else ""
            text = f"{self.word}{corrected}: {d.mean:+.1f} points [{d.low:+.1f}, {d.high:+.1f}], {p}"
        return f"{text}; {self.margin.text}" if self.margin else text

    @property
    def power_text(self) -> str:
        """In words: what this many seeds and images show, and how many would be needed."""
        power, d = self.power, self.difference
        if power is None:
            if d.seeds == 1:
                return "one seed: how much seeds differ, and so how many are needed, is unknown"
            return f"{self.obstacle}: what more seeds would show is unknown"
        shown = f"{power.smallest:.1f} points or more" if power.smallest <= 100 else "no difference, however large,"
        text = f"{d.seeds} seeds and {self.images:,} images show {shown} with 80% power"
        return text if d.mean == 0 else f"{text}; {self._needed(power)}"

    def _needed(self, power: Power) -> str:
        """What would show a difference as large as the one found."""
        size, seeds, images = abs(self.difference.mean), power.seeds_needed, power.images_needed
        if seeds is not None and seeds <= self.difference.seeds:
            return f"{seeds:,} seeds are enough for {size:.1f} points"
        of_images = images and f"about {float(f'{images:.2g}'):,.0f} validation images with these seeds"
        if seeds is not None:
            return (
                f"{seeds:,} seeds{f', or {of_images},' if of_images else ''} would be needed to see {size:.1f} points"
            )
        if of_images:
            return f"no number of seeds would show {size:.1f} points on these images: {of_images} would be needed"
        return f"{size:.1f} points would need both more seeds and more validation images"

    def as_dict(self) -> JsonObject:
        """As plain values; what cannot be said is None."""
        power, margin = self.power, self.margin
        return {
            "difference": self.difference.mean,
            "difference_low": self.difference.low,
            "difference_high": self.difference.high,
            "difference_per_seed": list(self.per_seed),
            "bootstrap_low": self.bootstrap[0],
            "bootstrap_high": self.bootstrap[1],
            "p": None if self.obstacle else self.difference.p,
            "p_holm": self.p_holm,
            "only_plan_right": self.mcnemar and self.mcnemar.better,
            "only_baseline_right": self.mcnemar and self.mcnemar.worse,
            "p_mcnemar": self.mcnemar and self.mcnemar.p,
            "seed_sd": stdev(self.per_seed) if len(self.per_seed) > 1 else None,
            "smallest_difference": power and power.smallest,
            "seeds_needed": power and power.seeds_needed,
            "images_needed": power and power.images_needed,
            "sign": self.sign,
            "verdict": self.word,
            "margin": margin and margin.margin,
            "margin_verdict": margin and margin.word,
            "p_not_worse": margin and margin.p_not_worse,
            "p_equivalent": margin and margin.p_equivalent,
            "p_worse": margin and margin.p_worse,
            "verdict_text": self.verdict,
            "power_text": self.power_text,
        }
