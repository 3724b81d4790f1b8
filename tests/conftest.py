"""A small data set that a small network learns in a second; and which tests are slow.

``@pytest.mark.slow(reason="...", guards=("foveate/room/", "foveate/file.py"))`` marks a test that is only worth running
when something that it guards has changed. ``pytest`` alone runs all, ``pytest --guarded-since COMMIT`` leaves out those
slow tests whose guards, own file and the files that this one imports are as in that commit: for ``make test`` the last
one, for CI one that it has seen.
"""

import ast
import functools
import gc
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import none
from PIL import Image

from foveate.data import open_data

# A busy machine is not a fault of the code: nothing here is timed.
settings.register_profile("foveate", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("foveate")

FOUND = pytest.StashKey[dict[str, object]]()  # the numeric state before a test


def pytest_addoption(parser):
    parser.addoption("--guarded-since", metavar="COMMIT", help="leave out slow tests of what did not change since then")


def changed_files(root, commit):
    """What differs from a commit in the working tree, as paths from the root; None where git cannot say."""
    found = []
    for arguments in (
        ["diff", "--name-only", "--relative", commit, "--"],
        ["ls-files", "--others", "--exclude-standard"],
    ):
        said = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
        if said.returncode:
            return None
        found += said.stdout.splitlines()
    return found


@functools.cache
def imported_files(path, root):
    """The project's files that a file imports by their own names, as paths from the root."""
    wanted = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            wanted |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            wanted |= {name.name for name in node.names}
    files = {name.replace(".", "/") + end for name in wanted if "." in name for end in (".py", "/__init__.py")}
    return tuple(sorted(file for file in files if (root / file).is_file()))


def pytest_collection_modifyitems(config, items):
    # The longest tests first, so that no process is left with one at the end.
    items.sort(key=lambda item: item.path.name != "test_snippets.py")
    root, since = config.rootpath, config.getoption("--guarded-since")
    changed = changed_files(root, since) if since else []
    if changed is None and since == "HEAD":
        changed = []  # without git nothing is known to have changed
    left_out = []
    for item in items:
        mark = item.get_closest_marker("slow")
        if not mark:
            continue
        reason, guards = mark.kwargs.get("reason", ""), mark.kwargs.get("guards", ())
        missing = [guard for guard in guards if not (root / guard).exists()]
        if mark.args or len(reason) < 20 or isinstance(guards, str) or not guards or missing:
            raise pytest.UsageError(
                f"{item.nodeid}: slow(reason=..., guards=(...)) takes a sentence and a tuple of files or folders "
                f"(with / at the end); not there: {missing or 'none'}"
            )
        own = Path(item.path).relative_to(root).as_posix()
        guards = (*guards, own, *imported_files(item.path, root))
        if changed is not None and not any(file.startswith(guards) for file in changed):
            left_out.append(item)
    if since and left_out:
        gone = set(left_out)
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in gone]


def numeric_state():
    """What a process has one of, and on which last bits depend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.9 warns of this call
        precision = torch.get_float32_matmul_precision()
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "precision of float32 products": precision,
        "oneDNN": torch.backends.mkldnn.enabled,
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
    }


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    item.stash[FOUND] = numeric_state()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    """A test that leaves another numeric state fails, not another one after it that compares bits."""
    yield
    now = numeric_state()
    left = {name: (was, now[name]) for name, was in item.stash[FOUND].items() if was != now[name]}
    assert not left, f"left changed for all later tests, as (before, after): {left}"


def pytest_collection_finish(session):
    """What was imported and collected stays until the end: no garbage collection need look at it again."""
    if not gc.get_freeze_count():  # pytest may run within a test
        # Older hypothesis, at its first example, asks the collector who holds NumPy's generator; what is frozen,
        # as its own module then is, does not answer, and it warns. So the first example is run here.
        settings(max_examples=1, database=None)(given(none())(lambda _: None))()
        gc.collect()
        gc.freeze()
        session.config.add_cleanup(gc.unfreeze)


def pytest_sessionfinish(session, exitstatus):
    if session.config.getoption("--guarded-since") and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK  # nothing that a slow test guards has changed


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Two classes, a bright square left or right, as PNG files in class folders."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part, count in (("train", 16), ("val", 8)):
        for label, name in enumerate(("left", "right")):
            (root / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 80, (32, 32, 3), dtype=np.uint8)
                pixels[8:24, 2 + 16 * label : 14 + 16 * label] += 120
                Image.fromarray(pixels).save(root / part / name / f"{k}.png")
    return root


FORKS = """
import json, os, sys, traceback
import torch, torch._dynamo, timm
for line in sys.stdin:
    code, cases, folder = json.loads(line)
    statuses = []
    for number, (arguments, variables) in enumerate(cases):
        child = os.fork()
        if not child:
            status = 1
            try:
                for stream, name in ((1, "out"), (2, "err")):
                    os.dup2(os.open(f"{folder}/{number}.{name}", os.O_WRONLY | os.O_CREAT), stream)
                os.environ.update(variables)
                sys.argv[1:] = arguments
                exec(compile(code, "code", "exec"), {"__name__": "__main__"})
                status = 0
            except SystemExit as ended:
                status = ended.code or 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(json.dumps(statuses), flush=True)
"""


@pytest.fixture(scope="session")
def run_forked(tmp_path_factory):
    """Run code in a new process for each case, ``(arguments, environment variables)``, and say how each has ended.

    They are forks of one process that has imported torch and timm, which takes seconds, and nothing of ours.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", FORKS]

    def run(code, *cases):
        folder, cases = tmp_path_factory.mktemp("forks"), cases or [([], {})]
        server.stdin.write(json.dumps([code, cases, str(folder)]) + "\n")
        server.stdin.flush()
        statuses = json.loads(server.stdout.readline())
        texts = [[(folder / f"{k}.{name}").read_text("utf-8") for name in ("out", "err")] for k in range(len(cases))]
        return [subprocess.CompletedProcess(code, status, *text) for status, text in zip(statuses, texts, strict=True)]

    with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield run
        server.stdin.close()


@pytest.fixture
def data(folder):
    return open_data(folder)


@pytest.fixture
def agree():
    """Compares outputs and all gradients of a module with equations(module, x), in float64."""
    import torch  # most tests of the command line do without

    def compare(module, equations, x, bound=1e-9):
        x = x.double().requires_grad_()
        out, expected = module(x), equations(module, x)
        assert out.shape == expected.shape
        assert (out - expected).abs().max() <= bound
        weights = torch.randn_like(out)
        wanted = [x, *module.parameters()]
        ours = torch.autograd.grad((out * weights).sum(), wanted)
        theirs = torch.autograd.grad((expected * weights).sum(), wanted)
        for key, a, b in zip(["x", *dict(module.named_parameters())], ours, theirs, strict=True):
            assert (a - b).abs().max() <= bound * max(1, b.abs().max()), key

    torch.manual_seed(0)
    return compare


@pytest.fixture(scope="session")
def last_line():
    """What a script printed last, as JSON; it runs in a process of its own with one thread."""

    def run(script, *arguments):
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, *map(str, (script, *arguments))]
        said = subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout
        return json.loads(said.splitlines()[-1])

    return run
