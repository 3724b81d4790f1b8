"""The notation: what prints, parses back to itself; what does not parse, says where."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from foveate.errors import FoveateError
from foveate.spec import Placement, Plan, Spec

identifiers = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
literals = st.one_of(
    st.booleans(),
    st.none(),
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=12),
)
specs = st.builds(
    lambda name, options: Spec(name, tuple(options.items())),
    st.one_of(identifiers, identifiers.map("timm:{}".format)),
    st.dictionaries(identifiers, literals, max_size=3),
)
parts = st.from_regex(r"[a-z0-9_*]{1,6}", fullmatch=True)
site_names = st.one_of(st.lists(parts, min_size=1, max_size=4).map(".".join), st.integers(0, 999).map("#{}".format))
placements = st.one_of(
    st.builds(
        Placement,
        specs,
        st.sampled_from(["after", "replacing"]),
        st.lists(site_names, min_size=1, max_size=3).map(tuple),
    ),
    st.builds(Placement, specs, st.sampled_from(["as pool", "as head"])),
    st.builds(Placement, specs, st.just("as head"), st.lists(site_names, min_size=1, max_size=3).map(tuple)),
)
plans = st.lists(placements, min_size=1, max_size=4).map(lambda p: Plan(tuple(p)))


@given(plans)
@settings(max_examples=300, deadline=None)
def test_a_plan_prints_as_itself(plan):
    assert Plan.parse(str(plan)) == plan


notation_like = st.lists(
    st.sampled_from(
        [
            "ulsam",
            "se",
            "after",
            "replacing",
            "as",
            "pool",
            "head",
            "on",
            "(",
            ")",
            ",",
            ";",
            "=",
            "groups",
            "4",
            "-1",
            "1e3",
            "1.",
            "'x'",
            '"',
            "'",
            "blocks.5.1",
            "*",
            "#3",
            "#",
            ".",
            "True",
            "__import__('os')",
            "\\",
            "\n",
            " ",
            "é",
            ":",
        ]
    ),
    max_size=14,
).map(" ".join)


def is_a_plan_or_one_error_with_a_position(text):
    try:
        plan = Plan.parse(text)
    except FoveateError as error:
        assert "position" in str(error)
        assert "\n" not in str(error)
    else:
        assert Plan.parse(str(plan)) == plan


any_text = given(st.one_of(st.text(max_size=60), notation_like))


@any_text
@settings(max_examples=1500, deadline=None)
@example("ulsam(groups=1e999) after a")
@example("9" * 5000)
@example("se(x=" + "9" * 5000 + ") after a")
def test_any_text_is_a_plan_or_one_error_with_a_position(text):
    is_a_plan_or_one_error_with_a_position(text)


@pytest.mark.slow(reason="the test above with more texts", guards=("foveate/spec.py", "foveate/errors.py"))
@any_text
@settings(max_examples=10_000, deadline=None)
def test_any_of_many_texts_is_a_plan_or_one_error_with_a_position(text):
    is_a_plan_or_one_error_with_a_position(text)


def test_example_of_the_notation():
    plan = Plan.parse("ulsam(groups=4) replacing blocks.4.1, blocks.4.2; ulsam after blocks.5.2")
    assert plan == Plan(
        (
            Placement(Spec("ulsam", (("groups", 4),)), "replacing", ("blocks.4.1", "blocks.4.2")),
            Placement(Spec("ulsam"), "after", ("blocks.5.2",)),
        )
    )


@pytest.mark.parametrize(
    "text,message",
    [
        ("", "the text ends"),
        ("se aftr blocks.1", "did you mean 'after'"),
        ("se after", "a site is expected"),
        ("se(reduction=8, reduction=4) after a", "given twice"),
        ("se(reduction) after a", "'=' is expected"),
        ("se(reduction=os) after a", "is not a value"),
        ("se after a b", "'b' is left over"),
        ("se after a..b", "is not a site"),
        ("1x after a", "not the name of a mechanism"),
    ],
)
def test_errors_say_what_and_where(text, message):
    with pytest.raises(FoveateError, match=message) as caught:
        Plan.parse(text)
    assert "position" in str(caught.value)


def test_a_plan_is_text():
    with pytest.raises(FoveateError, match="a plan is text"):
        Plan.parse(3)
    plan = Plan.parse("se after a")
    assert Plan.parse(plan) is plan


def test_with_option_keeps_what_is_written():
    assert str(Spec.parse("se").with_option("start", "identity")) == "se(start='identity')"
    spec = Spec.parse("se(start='mechanism')")
    assert spec.with_option("start", "identity") is spec
