"""Slow tests: each says why and what it guards, and runs where that has changed."""

import shutil
import subprocess
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TESTS = """
import pytest
from product.room_of_helpers import four, five

def test_quick():
    pass

@pytest.mark.slow(reason="it trains a network for a minute", guards=("product/one.py", "product/room/"))
def test_slow():
    pass
"""


@pytest.fixture
def project(pytester):
    """A repository of two commits with this project's conftest.py."""
    pytester.makeini("[pytest]\nmarkers = slow: ...\naddopts = --strict-markers -p no:cacheprovider")
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text("utf-8"))
    pytester.makepyfile(TESTS)
    for file in ("one.py", "two.py", "room/three.py", "room_of_helpers/four.py", "room_of_helpers/__init__.py"):
        path = pytester.path / "product" / file
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("five = 5" if path.name == "__init__.py" else "")
    pytester.syspathinsert()
    git(pytester, "init", "-q")
    commit(pytester)
    return pytester


def git(pytester, *arguments):
    who = ("-c", "user.name=name", "-c", "user.email=name@example.org")
    subprocess.run(["git", *who, *arguments], cwd=pytester.path, check=True, capture_output=True)


def commit(pytester):
    git(pytester, "add", "--all")
    git(pytester, "commit", "-q", "-m", "change")


def run(pytester, *options):
    """Names of the tests that passed, and how many were left out."""
    result = pytester.runpytest_inprocess("-v", *options)
    names = [name for name in ("test_quick", "test_slow") if f"::{name} PASSED" in result.stdout.str()]
    assert result.ret == pytest.ExitCode.OK
    return names, result.parseoutcomes().get("deselected", 0)


def test_slow_tests_run_where_what_they_guard_has_changed(project):
    assert run(project) == (["test_quick", "test_slow"], 0)
    assert run(project, "-m", "not slow") == (["test_quick"], 1)
    assert run(project, "-m", "slow") == (["test_slow"], 1)
    assert run(project, "--guarded-since", "HEAD") == (["test_quick"], 1)
    assert run(project, "-m", "slow", "--guarded-since", "HEAD") == ([], 2)
    both = (["test_quick", "test_slow"], 0)
    assert run(project, "--guarded-since", "HEAD~1") == both  # there is no such commit: nothing is known
    for number, (file, slow) in enumerate(
        [
            ("product/two.py", False),
            ("product/one.py", True),
            ("product/room/three.py", True),
            ("product/room/4.py", True),
            ("product/room_of_helpers/four.py", True),
            ("product/room_of_helpers/other.py", False),
        ]
    ):
        expected = both if slow else (["test_quick"], 1)
        (project.path / file).write_text(f"x = {number}")
        assert run(project, "--guarded-since", "HEAD") == expected, file
        commit(project)
        assert run(project, "--guarded-since", "HEAD~1") == expected, file
        assert run(project, "--guarded-since", "HEAD") == (["test_quick"], 1)
    (file,) = project.path.glob("test_*.py")
    file.write_text(TESTS + "\n")
    assert run(project, "--guarded-since", "HEAD") == both


def test_without_git_nothing_has_changed(project):
    shutil.rmtree(project.path / ".git")
    assert run(project, "--guarded-since", "HEAD") == (["test_quick"], 1)
    assert run(project, "--guarded-since", "abcdef")[0] == ["test_quick", "test_slow"]


@pytest.mark.parametrize(
    "mark",
    [
        "slow",
        "slow(reason='it trains a network for a minute')",
        "slow(guards=('product/one.py',))",
        "slow(reason='slow', guards=('product/one.py',))",
        "slow(reason='it trains a network for a minute', guards='product/one.py')",
        "slow(reason='it trains a network for a minute', guards=('product/none.py',))",
    ],
)
def test_a_mark_without_a_reason_or_with_guards_that_are_not_there_is_an_error(project, mark):
    project.makepyfile(f"import pytest\n@pytest.mark.{mark}\ndef test(): pass")
    result = project.runpytest_inprocess("-m", "not slow")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "takes a sentence and a tuple" in result.stderr.str()
