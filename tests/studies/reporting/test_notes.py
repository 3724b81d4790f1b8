"""What the report says beside its numbers, and which of its effects it paints."""

import re
from types import SimpleNamespace

import foveate as fv
from foveate.studies.comparison.measure import TOP1
from foveate.studies.reporting.charts.factor_effects import effect_plot
from foveate.studies.reporting.notes import notes


def comparison(recipe, seeds=(0, 1), margin=None):
    setup = SimpleNamespace(
        seeds=seeds,
        recipe=recipe,
        network="net",
        train_images=10,
        val_images=5,
        data="photos",
        margin=margin,
        note="",
        licence=None,
        measure=TOP1,
    )
    return SimpleNamespace(setup=setup, left_out=[], tuning_words="none was tuned", made_with=({"torch": "2"},))


def test_the_recipe_is_what_differs_from_the_default():
    told = notes(comparison(fv.Recipe(epochs=7, image_size=64)))
    recipe = next(text for text in told if text.startswith("Recipe"))
    assert recipe == "Recipe, where it is not the default: epochs=7, image_size=64."
    assert any("all defaults" in text for text in notes(comparison(fv.Recipe())))


def test_one_seed_and_a_margin_are_said():
    assert any("With one seed there is no verdict" in text for text in notes(comparison(fv.Recipe(), (0,))))
    assert not any("With one seed" in text for text in notes(comparison(fv.Recipe())))
    assert any("worse by more than 1 point: one-sided" in text for text in notes(comparison(fv.Recipe(), margin=1.0)))


def row(level, effect, low, high, p):
    return {
        "factor": "g",
        "level": level,
        "effect": effect,
        "effect_low": low,
        "effect_high": high,
        "p_holm": p,
    }


def test_effects_are_painted_by_their_test():
    """Blue or red only where the factor matters and the interval leaves out 0; the picture holds all that is drawn."""
    rows = [
        row("a", 2.0, 1.0, 3.0, 0.01),
        row("b", -2.0, -3.0, -1.0, 0.01),
        row("c", 2.0, 1.0, 3.0, 0.5),
        row("d", 0.5, -1.0, 2.0, 0.01),
        row("e", 0.5, -1.0, 2.0, None),
    ]
    plot = effect_plot(rows, 760)
    assert re.findall(r'class="point ([a-z]+)"', plot)[:4] == ["better", "worse", "same", "same"]
    height = float(re.search(r'viewBox="0 0 760 (\d+)"', plot)[1])
    lowest = max(float(y) for y in re.findall(r'<text[^>]* y="([\d.]+)"', plot))
    assert 5 <= height - lowest <= 15  # the last line of text has room, and nothing is empty below it
