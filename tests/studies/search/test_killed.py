"""A search that is killed goes on to the same result, and two processes share one."""

import signal
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "killed_search.py"

pytestmark = pytest.mark.slow(
    reason="three searches of three plans, one of them killed twice; test_search.py goes on with one",
    guards=(
        "foveate/studies/search/",
        "foveate/studies/comparison/",
        "foveate/training/",
        "foveate/io.py",
        "tests/studies/search/killed_search.py",
    ),
)


@pytest.fixture(scope="module")
def searches(folder, tmp_path_factory, last_line):
    place = tmp_path_factory.mktemp("searches")
    return place, last_line(SCRIPT, folder, place)


def test_killed_twice_it_ends_with_the_same_trials(searches):
    place, codes = searches
    assert codes["whole"] == [0]
    assert codes["killed"] == [-signal.SIGKILL] * 2 + [0]
    expected = (place / "whole" / "search.csv").read_bytes()
    assert (place / "killed" / "search.csv").read_bytes() == expected
    for path in (place / "whole").glob("trials/*/predictions.*.safetensors"):
        assert (place / "killed" / path.relative_to(place / "whole")).read_bytes() == path.read_bytes()


def test_a_fit_goes_on_from_its_pause(searches):
    place, _ = searches
    fits = [line.split() for line in (place / "whole.log").read_text().splitlines()]
    assert [(until, epochs) for _, until, epochs in fits] == [("1", "1")] * 3 + [("3", "3")]
    (best,) = (place / "whole").glob("trials/*/result.3.json")
    history = next(best.parent.glob("attempt.*/summary.csv")).read_text().splitlines()
    assert [line.split(",")[0] for line in history[1:]] == ["0", "1", "2"]


def test_two_processes_share_a_search(searches):
    place, codes = searches
    assert codes["shared"] == [0, 0]
    assert (place / "shared" / "search.csv").read_bytes() == (place / "whole" / "search.csv").read_bytes()
    fits = (place / "shared.log").read_text().splitlines()
    assert len(fits) == len(set(fits)) == 4  # each once
