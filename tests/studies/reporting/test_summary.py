import pytest

from foveate.studies.reporting.summary import summary

NONE = {"plan": "none", "macs": 200.0, "params": 50.0, "verdict_text": None}


def row(plan, macs, sign=0, margin=None, word=None, **more):
    return {
        "plan": plan,
        "macs": macs,
        "params": 49.0,
        "p_holm": 0.5,
        "sign": sign,
        "verdict_text": f"-1.0 of {plan}",
        "margin": margin,
        "margin_verdict": word,
        **more,
    }


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([row("a", 210.0)], "No plan is shown to be better. With a margin (margin=1), whether one is not worse"),
        (
            [row("a", 210.0, 1), row("b", 190.0)],
            "The cheapest plan that is better: a (+5.0% MACs, −2.0% parameters; with",
        ),
        ([row("a", 210.0, 0, 1.0, "undecided")], "No plan is shown to be not worse by more than 1 point."),
        (
            [
                row("a", 190.0, 0, 2.0, "undecided"),
                row("b", 195.0, 0, 2.0, "equivalent"),
                row("c", 199.0, 0, 2.0, "not worse"),
            ],
            "The cheapest plan that is not worse by more than 2 points: b (−2.5% MACs, −2.0% parameters).",
        ),
        # Better is not worse, and worse by less than the margin may be both.
        (
            [row("a", 195.0, 1, 1.0, "not worse"), row("b", 190.0, -1, 1.0, "worse")],
            "not worse by more than 1 point: a (",
        ),
    ],
)
def test_the_cheapest_that_is_not_worse(rows, sentence):
    assert sentence in summary([NONE, *rows]).cheapest


def test_what_was_not_tested_gets_no_sentence():
    assert summary([NONE, row("a", 100.0, p_holm=None)]).cheapest == ""
    assert summary([NONE]) is None
    assert summary([]) is None


def test_a_line_for_each_plan():
    found = summary([NONE, row("a", 1.0, -1), row("b", 2.0, 1)], [("Data", "cells")])
    assert [(line.plan, line.text, line.kind) for line in found.lines] == [
        ("a", "−1.0 of a", "worse"),
        ("b", "−1.0 of b", "better"),
    ]
    assert found.facts == (("Data", "cells"),)
