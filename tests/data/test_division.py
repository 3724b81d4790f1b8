"""Dividing by seed, by class and by block."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from foveate.data.division import sample, spread, stratified

labelled = st.lists(st.integers(0, 4), min_size=1, max_size=80)


@given(labels=labelled, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_stratified_parts_cover_everything_once(labels: list[int], fraction: float, seed: int) -> None:
    names = [f"{i}.jpg" for i in range(len(labels))]
    first, second = stratified(names, labels, fraction, seed)
    assert sorted(first + second) == list(range(len(labels)))
    assert (first, second) == (sorted(first), sorted(second))
    for label in set(labels):
        count, held = labels.count(label), [labels[i] for i in second].count(label)
        assert held == 0 if count == 1 else 1 <= held <= count - 1
        assert abs(held - count * fraction) <= 1


def test_stratified_is_the_same_on_every_machine() -> None:
    smallest = sorted("abcdefgh", key=lambda name: hashlib.sha256(f"0:{name}".encode()).digest())[:2]
    assert sorted(smallest) == ["f", "h"]
    assert stratified(list("abcdefgh"), [0] * 8, 0.25, 0)[1] == [5, 7]


def test_an_added_image_moves_few_others() -> None:
    names = [f"{i}.jpg" for i in range(200)]
    before = set(stratified(names, [0] * 200, 0.2, 0)[1])
    after = set(stratified([*names, "new.jpg"], [0] * 201, 0.2, 0)[1])
    assert len(before ^ after) <= 2


@given(labels=labelled, count=st.integers(1, 90), seed=st.integers(0, 99))
def test_sample_is_in_proportion(labels: list[int], count: int, seed: int) -> None:
    names = [f"{i}.jpg" for i in range(len(labels))]
    chosen = sample(names, labels, count, seed)
    assert len(chosen) == min(count, len(labels))
    assert chosen == sorted(set(chosen))
    if count >= len(set(labels)):
        assert {labels[i] for i in chosen} == set(labels)
    share = len(chosen) / len(labels)
    for label in set(labels):
        assert abs([labels[i] for i in chosen].count(label) - share * labels.count(label)) <= len(set(labels))


@given(
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=40),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
def test_blocks_stay_whole_and_spread(lengths: list[int], fraction: float, seed: int) -> None:
    blocks = [block for block, length in enumerate(lengths) for _ in range(length)]
    first, second = spread(blocks, fraction, seed)
    assert sorted(first + second) == list(range(len(blocks)))
    held = sorted({blocks[i] for i in second})
    assert not {blocks[i] for i in first} & set(held)
    assert len(held) == min(max(round(len(lengths) * fraction), 1), len(lengths) - 1)
    gaps = [after - before for before, after in zip(held, [*held[1:], held[0] + len(lengths)], strict=True)]
    assert max(gaps) - min(gaps) <= 1
