"""Whether waiting threads spin or sleep, decided by what the system says of a thread's wait for a core."""

import contextlib
import os
import sys
import threading
from pathlib import Path

import pytest
import torch

from foveate.kernels import waiting
from foveate.kernels.waiting import SharedCores

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone counts a thread's wait for a core")


class Machine:
    """A clock and a scheduler's count that a test sets."""

    def __init__(self, busy=0.0):
        self.seconds, self.ran, self.waited = 100.0, 1_000_000, int(1_000_000 * busy)

    def go_on(self, seconds, busy):
        self.seconds += seconds
        self.ran += int(seconds * 1e9 * (1 - busy))
        self.waited += int(seconds * 1e9 * busy)


@pytest.fixture
def machine(monkeypatch):
    found = Machine()
    monkeypatch.setattr(waiting, "_schedule", lambda: (found.ran, found.waited))
    monkeypatch.setattr(waiting.time, "perf_counter", lambda: found.seconds)
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield found
    torch.set_num_threads(before)


def wait_for(condition):
    """The system ends threads when it comes to it."""
    for _ in range(10_000):
        if condition():
            return
        os.sched_yield()
        threading.Event().wait(0.001)
    raise AssertionError("it does not come")


def threads():
    return len(list(Path("/proc/self/task").iterdir()))


def work(machine, cores, seconds, step, busy, kind=""):
    """A loop of equal steps; how long threads slept in it."""
    slept = 0.0
    for _ in range(round(seconds / step)):
        cores.look(kind)
        machine.go_on(step, busy)
        slept += step * cores.sleeping
    return slept


def test_threads_sleep_where_steps_are_then_faster_and_spin_where_they_are_not(machine):
    torch.ones(1 << 17)  # this thread's own team
    quiet = threads()
    with SharedCores() as cores:
        work(machine, cores, 0.9, 0.1, busy=0.4)
        assert not cores.sleeping  # too early
        work(machine, cores, 0.3, 0.1, busy=0.4)
        assert cores.sleeping  # a trial
        asleep = threads()
        assert asleep > quiet
        work(machine, cores, 1.2, 0.06, busy=0.4)
        assert cores.sleeping  # it was faster
        work(machine, cores, 2.1, 0.06, busy=0.4)
        assert not cores.sleeping  # the other trial
        work(machine, cores, 1.2, 0.1, busy=0.4)
        assert cores.sleeping  # it was slower
        work(machine, cores, 4.2, 0.06, busy=0)
        assert not cores.sleeping
        wait_for(lambda: threads() <= asleep - 2)  # the team's, too: with them OpenMP would go on sleeping
        work(machine, cores, 100, 0.03, busy=0)  # nobody else wants the cores now
        assert not cores.sleeping
        work(machine, cores, 1.2, 0.03, busy=0.04)
        assert not cores.sleeping
        work(machine, cores, 1.2, 0.03, busy=0.06)
        assert cores.sleeping
    assert not cores.sleeping
    wait_for(lambda: threads() <= asleep - 2)


def test_beside_workers_that_disturb_less_than_sleeping_costs_threads_go_on_spinning(machine):
    with SharedCores() as cores:
        slept = 0.0
        for _ in range(2000):
            slept += work(machine, cores, 0.1, 0.1 if cores.sleeping else 0.05, busy=0.1)
        assert not cores.sleeping
        assert 1 < slept < 12  # the trials of 200 seconds: after 1, 3, 6, 11, 20, 37, 70, 135 of them


def test_a_gain_that_is_noise_changes_nothing(machine):
    with SharedCores() as cores:
        slept = 0.0
        for _ in range(2000):
            slept += work(machine, cores, 0.1, 0.099 if cores.sleeping else 0.1, busy=0.1)
        assert 1 < slept < 12


def test_times_of_one_kind_alone_are_compared(machine):
    with SharedCores() as cores:
        work(machine, cores, 0.9, 0.05, busy=0.3, kind="evaluate")
        work(machine, cores, 0.3, 0.15, busy=0.3, kind="train")
        assert cores.sleeping
        work(machine, cores, 0.3, 0.045, busy=0.3, kind="evaluate")  # faster, but more of the time is training
        work(machine, cores, 1, 0.2, busy=0.3, kind="train")
        assert not cores.sleeping  # training is slower
        work(machine, cores, 0.9, 0.1, busy=0.3, kind="train")
        work(machine, cores, 1.3, 0.1, busy=0.3, kind="train")
        assert cores.sleeping
        work(machine, cores, 1.3, 0.02, busy=0.3, kind="other")  # nothing that could be compared
        assert not cores.sleeping


def test_a_loop_starts_anew_after_another(machine):
    cores = SharedCores()
    for _ in range(2):
        with cores:
            work(machine, cores, 1.2, 0.1, busy=0.4)
            assert cores.sleeping
            work(machine, cores, 1.2, 0.2, busy=0.4)
            assert not cores.sleeping
        machine.go_on(1000, busy=0)


def test_what_was_before_the_loop_decides_its_start(machine):
    machine.waited = machine.ran
    with SharedCores() as cores:
        assert cores.sleeping
        other = SharedCores()
        with contextlib.suppress(KeyError), other:
            assert other.sleeping
            raise KeyError
        assert not other.sleeping


def test_one_thread_fewer_is_taken_where_steps_are_then_faster_and_the_caller_asks(machine):
    said = []

    def seconds(cores):
        return 0.06 if torch.get_num_threads() == 1 else 0.1 if cores.sleeping else 0.15

    for fewer in (False, True):
        with SharedCores(fewer_threads=fewer, say=said.append) as cores:
            alone = 0
            for _ in range(1000):
                work(machine, cores, 0.1, seconds(cores), busy=0.3)
                alone += torch.get_num_threads() == 1
            if not fewer:
                assert (alone, said, cores.sleeping) == (0, [], True)
                continue
            assert alone > 900
            assert said == ["threads: 1 of 2 from here on, for a step takes 0.60 of the time with them"]
            for _ in range(2000):  # nobody else wants the cores: two threads that spin are the fastest
                faster = torch.get_num_threads() == 2 and not cores.sleeping
                work(machine, cores, 0.1, 0.04 if faster else 0.06, busy=0)
            assert torch.get_num_threads() == 2
            assert not cores.sleeping
            assert said[1:] == ["threads: 2 of 2 from here on, for a step takes 0.67 of the time with them"]
            for _ in range(1000):
                work(machine, cores, 0.1, seconds(cores), busy=0.3)
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2


def test_threads_can_be_fewer_where_a_users_setting_stands(machine, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    with contextlib.suppress(KeyError), SharedCores(fewer_threads=True) as cores:
        for _ in range(130):
            work(machine, cores, 0.1, 0.05 if torch.get_num_threads() == 1 else 0.1, busy=0.3)
            assert not cores.sleeping
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_a_users_setting_stands(machine, monkeypatch, name):
    monkeypatch.setenv(name, "ACTIVE")
    machine.waited = machine.ran
    with SharedCores() as cores:
        assert not cores.sleeping


def test_nothing_is_done_where_nothing_is_known_or_nobody_waits(machine, monkeypatch):
    machine.waited = machine.ran
    torch.set_num_threads(1)
    with SharedCores() as cores:
        assert not cores.sleeping
    torch.set_num_threads(2)
    monkeypatch.setattr(waiting, "_LINUX", False)
    with SharedCores() as cores:
        assert not cores.sleeping
    monkeypatch.setattr(waiting, "_LINUX", True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(10_000))
    with SharedCores() as cores:
        assert not cores.sleeping  # thousands of threads that do nothing are too many
    monkeypatch.setattr(waiting, "_schedule", lambda: None)
    with SharedCores() as cores:
        cores.look()
        assert not cores.sleeping


def test_teams_make_more_threads_than_cores(machine, monkeypatch):
    for cores, count, teams in ((2, 2, 1), (1, 2, 1), (4, 2, 3), (8, 4, 2), (64, 8, 9)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: range(cores))
        torch.set_num_threads(count)
        found = SharedCores()._teams()
        assert found == teams
        assert count + found * (count - 1) > cores >= count + (found - 1) * (count - 1) or found == 1


def test_the_systems_count():
    first = waiting._schedule()
    assert first is not None
    for _ in range(10_000):  # the system counts by ticks, some milliseconds long
        assert sum(range(30_000)) > 0
        if waiting._schedule()[0] > first[0]:
            return
    pytest.fail("the process computes and its count of time stays")


def test_the_system_says_nothing(monkeypatch):
    for text in ("", "one two", "1"):
        monkeypatch.setattr(waiting.Path, "read_text", lambda _, text=text: text)
        assert waiting._schedule() is None
    assert waiting._share((0, 0), (0, 0)) == 0


def test_results_are_the_same_bit_for_bit(machine):
    x = torch.randn(8, 64, 28, 28)
    convolution = torch.nn.Conv2d(64, 64, 3, padding=1)

    def gradients():
        convolution.zero_grad()
        convolution(x).square().sum().backward()
        return convolution.weight.grad.clone()

    spinning = gradients()
    machine.waited = machine.ran
    with SharedCores() as cores:
        assert cores.sleeping
        assert torch.equal(gradients(), spinning)
    assert torch.equal(gradients(), spinning)


def test_no_threads_are_to_be_had(machine, monkeypatch):
    def start(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(waiting.threading.Thread, "start", start)
    machine.waited = machine.ran
    with SharedCores() as cores:
        machine.go_on(5, busy=0)
        cores.look()
    assert not cores.sleeping
