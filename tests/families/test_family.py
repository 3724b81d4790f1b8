"""Families: what prints, parses back to itself; plans are counted, listed and drawn without duplicates."""

import itertools
import random
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from foveate.errors import FoveateError
from foveate.families.alternatives import Place, PlacementFamily, SpecFamily
from foveate.families.family import Family
from foveate.spec import Placement, Plan, Spec

values = st.lists(
    st.one_of(st.booleans(), st.none(), st.integers(-9, 99), st.sampled_from([0.5, 1.0, -0.0, 1e20, "a|b", "it's"])),
    min_size=1,
    max_size=3,
).map(tuple)
spec_families = st.builds(
    lambda name, options: SpecFamily(name, tuple(options.items())),
    st.sampled_from(["se", "ulsam", "timm:eca", "identity"]),
    st.dictionaries(st.sampled_from(["groups", "reduction", "bias"]), values, max_size=2),
)
specs = st.lists(st.one_of(st.none(), spec_families), min_size=1, max_size=3).map(tuple)
sites = st.sampled_from(["a", "b", "blocks.4.1", "blocks.4.*", "#3", "block:all", "any", "some", "of", "none"])
# "any of" before a site called "of" is the way to say it, so a list may not begin with any, of or some, of.
lists = st.lists(sites, min_size=1, max_size=3).map(tuple)
places = st.builds(Place, lists, st.sampled_from(["", "any of", "some of"]))
place_lists = st.lists(places, min_size=1, max_size=3).map(tuple)
placement_families = st.one_of(
    st.builds(
        PlacementFamily,
        specs,
        st.sampled_from([("after",), ("replacing",), ("after", "replacing"), ("replacing", "after")]),
        place_lists,
    ),
    st.builds(PlacementFamily, specs, st.sampled_from([("as pool",), ("as head",)])),
    st.builds(PlacementFamily, specs, st.just(("as head",)), place_lists),
)
families = st.lists(placement_families, min_size=1, max_size=3).map(lambda found: Family(tuple(found)))


@given(families)
@settings(max_examples=200, deadline=None)
def test_a_family_prints_as_itself(family):
    again = Family.parse(str(family))
    assert again == family
    assert str(again) == str(family)  # 1, 1.0 and True are equal in Python


TEXT = (
    "ulsam se none after replacing as pool head on any some of ( ) , ; = | | | groups 4 -1 1e3 1. 'x' \" ' "
    "blocks.5.1 block:all * #3 # . True \\ \n é :"
)
WORDS = TEXT.split(" ")
GOOD = "ulsam ( groups = 1 | 2 | 4 ) | none after | replacing any of a , b | some of c ; se as pool"


def random_texts(count):
    """Texts of the notation's words, half of them families with a few words exchanged."""
    draw = random.Random(0)
    good = GOOD.split(" ")
    for number in range(count):
        words = draw.choices(WORDS, k=draw.randrange(15))
        if number % 2:
            words = [draw.choice(WORDS) if draw.random() < 0.03 else word for word in good]
        yield " ".join(words)


def any_text_is_a_family_or_an_error(text):
    """Whether it is one."""
    try:
        family = Family.parse(text)
    except FoveateError as error:
        assert "position" in str(error)
        assert "\n" not in str(error)
        return False
    assert Family.parse(str(family)) == family
    assert str(Family.parse(str(family))) == str(family)
    return True


def test_ten_thousand_random_texts():
    found = Counter(any_text_is_a_family_or_an_error(text) for text in random_texts(10_000))
    assert found[True] > 2_000
    assert found[False] > 2_000


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
@example("se(x=" + "9" * 5000 + "|1) after a")
def test_any_text(text):
    any_text_is_a_family_or_an_error(text)


countable = families.filter(
    lambda family: (
        not any(place.needs_network or place.way == "some of" for each in family.placements for place in each.places)
    )
)


@given(countable)
@settings(max_examples=150, deadline=None)
def test_plans_are_those_of_the_product_each_once(family):
    """Against the definition: every combination of alternatives, written out."""

    def written_out(each):
        places = [(site,) for p in each.places if p.way for site in p.sites] + [
            p.sites for p in each.places if not p.way
        ]
        for spec in each.specs:
            if spec is None:
                yield None
                continue
            options = [[(key, value) for value in alternatives] for key, alternatives in spec.options]
            for chosen in itertools.product(*options):
                for verb, where in itertools.product(each.verbs, places or [()]):
                    yield Placement(Spec(spec.name, chosen), verb, where)

    expected = {
        str(Plan(tuple(placement for placement in chosen if placement)))
        for chosen in itertools.product(*map(written_out, family.placements))
    } - {""}
    found = [str(plan) for plan in family]
    assert len(found) == len(set(found)) == len(family)
    assert set(found) == expected


def test_the_example_of_the_notation():
    family = Family.parse("ulsam(groups=1|2|4|8|16) after|replacing blocks.4.1|blocks.4.2; se|none after blocks.5.2")
    assert len(family) == 5 * 2 * 2 * 2
    plans = [str(plan) for plan in family]
    assert plans[:3] == [
        "ulsam(groups=1) after blocks.4.1; se after blocks.5.2",
        "ulsam(groups=1) after blocks.4.1",
        "ulsam(groups=1) after blocks.4.2; se after blocks.5.2",
    ]
    assert Family.parse(str(family)) == family


def test_any_of_some_of_and_both():
    assert [str(p) for p in Family.parse("se after any of a, b, a")] == ["se after a", "se after b"]
    assert [str(p) for p in Family.parse("se after a, b | c")] == ["se after a, b", "se after c"]
    some = [p.placements[0].sites for p in Family.parse("se after some of a, b, c, b")]
    assert sorted(some) == sorted(s for k in (1, 2, 3) for s in itertools.combinations("abc", k))
    mixed = [str(p) for p in Family.parse("se after d | some of a, b | a, b | a | b, a")]
    assert mixed == [f"se after {text}" for text in ("d", "a", "b", "a, b", "b, a")]


def test_what_two_placements_give_twice_is_one_plan():
    family = Family.parse("se|none after a|b; se|none after a|b")
    found = [str(plan) for plan in family]
    assert len(found) == len(set(found)) == len(family) == 6  # one of two, or each of two twice
    assert {str(family.sample(seed)) for seed in range(100)} == set(found)


def test_large_families_are_counted_and_drawn_without_being_written_out():
    family = Family.parse(
        f"ulsam(groups=1|4) replacing some of {', '.join(f'b{k}' for k in range(70))}; se|none as pool"
    )
    assert family.size == 2 * (2**70 - 1) * 2
    with pytest.raises(FoveateError, match="too many plans"):
        len(family)
    assert Plan.parse(str(family.sample(7))) == family.sample(7) != family.sample(8)
    many = Family.parse("se|none after some of " + ",".join(f"b{k}" for k in range(20)) + "; se|none after b1, b2 | b3")
    with pytest.raises(FoveateError, match="are not compared"):
        next(iter(many))


def test_draws_are_of_equal_probability():
    family = Family.parse("se|none after a|b; cbam|none replacing some of c, d")
    drawn = Counter(str(family.sample(seed)) for seed in range(11_000))
    assert set(drawn) == {str(plan) for plan in family}
    assert len(drawn) == 3 * 4 - 1
    assert all(850 < count < 1_150 for count in drawn.values())  # 1,000 expected, five standard deviations


def test_choices_hold_the_network_without_attention():
    chosen = list(Family.parse("se|none after a; cbam|none after b").choices())
    assert len(chosen) == 4
    assert chosen[-1] == (None, None)


@pytest.mark.parametrize(
    "text,message",
    [
        ("", "the text ends"),
        ("se after a | cbam after b", "'after' is left over"),
        ("se|none as pool|as head", "have no alternatives"),
        ("none(x=1) after a", "is expected, not '\\('"),
        ("se(reduction=4|) after a", "is not a value"),
        ("se after|aftr a", "did you mean 'after'"),
        ("se after any of", "a site is expected"),
    ],
)
def test_errors_say_what_and_where(text, message):
    with pytest.raises(FoveateError, match=message) as caught:
        Family.parse(text)
    assert str(caught.value).startswith("cannot read the family: ")
    assert "position" in str(caught.value)


def test_other_errors():
    with pytest.raises(FoveateError, match="a family is text"):
        Family.parse(3)
    with pytest.raises(FoveateError, match="depends on the network.*resolve_family"):
        len(Family.parse("se after any of block:all"))
    with pytest.raises(FoveateError, match="'b' stands in two 'some of'"):
        len(Family.parse("se after some of a, b | some of b, c"))
    with pytest.raises(FoveateError, match="more than 10,000 specs"):
        len(Family.parse("se(" + ", ".join(f"o{k}=1|2|3|4|5|6|7|8|9|10" for k in range(5)) + ") after a"))
    with pytest.raises(FoveateError, match="no plan to draw"):
        Family.parse("none after a").sample(0)


def test_a_plan_says_that_alternatives_belong_to_a_family():
    with pytest.raises(FoveateError, match="'\\|' separates the alternatives of a family"):
        Plan.parse("se|cbam after a")
    with pytest.raises(FoveateError, match="'any of' and 'some of' stand in a family"):
        Plan.parse("se after any of block:all")


def test_a_plan_is_a_family_of_one():
    plan = Plan.parse("ulsam(groups=4) replacing a, b; se after c; gap as pool; saol as head on d")
    family = Family.parse(plan)
    assert list(family) == [plan]
    assert Family.parse(family) is family
