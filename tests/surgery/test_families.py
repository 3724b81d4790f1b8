"""Families on a network: patterns become the names of its sites."""

import pytest

import foveate as fv
from foveate.errors import FoveateError


def test_patterns_become_sites(blocks):
    names = [site.name for site in fv.sites(blocks, 64) if site.kind == "block" and site.replaceable]
    assert len(names) > 1
    family = fv.resolve_family(blocks, "ulsam(groups=1|2) replacing any of block:replaceable", 64)
    assert str(family) == f"ulsam(groups=1|2) replacing any of {', '.join(names)}"
    assert len(family) == 2 * len(names)
    some = fv.resolve_family(blocks, fv.Family.parse("se after some of block:replaceable, #0"), 64)
    assert len(some) == 2 ** len({*names, fv.sites(blocks, 64)[0].name}) - 1
    for plan in (*family, some.sample(0)):
        fv.remove(fv.insert(blocks, plan, input_size=64))


def test_two_patterns_for_one_site_are_one_alternative(blocks):
    first = fv.sites(blocks, 64)[0].name
    assert len(fv.resolve_family(blocks, f"se after any of #0, {first}", 64)) == 1
    assert len(fv.resolve_family(blocks, f"se after #0 | {first}", 64)) == 1


def test_errors_name_what_exists(blocks):
    with pytest.raises(FoveateError, match="no site 'stag1.0'; did you mean"):
        fv.resolve_family(blocks, "se after any of stag1.0", 64)


def test_a_model_with_a_plan_is_looked_at_without_it(blocks):
    plain = fv.resolve_family(blocks, "se after any of block:all", 64)
    fv.insert(blocks, "se replacing stage1.1", input_size=64)
    before = str(fv.plan_of(blocks))
    assert fv.resolve_family(blocks, "se after any of block:all", 64) == plain
    assert str(fv.plan_of(blocks)) == before
