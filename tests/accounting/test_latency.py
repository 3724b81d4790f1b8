"""Time and memory beside a reference: who is run and when, what is refused, and the caller's things left alone."""

import random
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

import foveate as fv
from foveate.accounting.profiling.module_times import time_fractions
from foveate.accounting.profiling.rss import forget_peak, highest, now
from foveate.errors import FoveateError
from foveate.images import Preprocess
from foveate.surgery.model_copy import copied

CALLS = []


class Named(nn.Module):
    """Writes down its name, batch, dtype and layout when it is run."""

    def __init__(self, name):
        super().__init__()
        self.conv, self.name = nn.Conv2d(3, 4, 3), name

    def forward(self, x):
        layout = "channels_last" if x.is_contiguous(memory_format=torch.channels_last) else "contiguous"
        CALLS.append((self.name, len(x), str(x.dtype), layout, torch.get_num_threads(), self.training))
        return self.conv(x).mean((2, 3))


class Slow(nn.Module):
    def forward(self, x):
        time.sleep(0.01)
        return x


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def quick(model, size=16, **options):
    return fv.latency(model, size, **{"rounds": 3, "warmup": 1, "memory": False, **options})


def test_the_networks_take_turns(untouched):
    one, other = Named("A"), Named("B")
    with untouched(one), untouched(other):
        found = quick(one, reference=other)
    assert "".join(name for name, *_ in CALLS) == "AB" * 4
    (timing,) = found.timings
    assert found.reference == "Named"
    assert timing.ratio.low <= timing.ratio.median <= timing.ratio.high
    assert timing.seconds.count == 3
    assert timing.images_per_second == pytest.approx(1 / timing.seconds.median)
    assert all(training is False for *_, training in CALLS)


def test_a_model_with_a_plan_takes_turns_with_itself_without(blocks, untouched):
    fv.insert(blocks, "se after stage1.0", input_size=32)
    with untouched(blocks):
        found = quick(blocks, 32)
    assert "without its plan" in found.reference
    assert found.timings[0].ratio is not None
    assert "of the reference's time" in str(found)


def test_a_plain_model_is_measured_alone():
    found = quick(Named("A"))
    assert (found.reference, found.timings[0].ratio, found.timings[0].reference_seconds) == ("", None, None)
    assert str(found).count("\n") == 0


def test_each_setting_is_run_as_it_says():
    before = torch.get_num_threads()
    options = {"batch_size": (1, 3), "threads": [1, 2], "dtype": "bfloat16", "memory_format": "channels_last"}
    found = quick(Named("A"), **options)
    assert torch.get_num_threads() == before
    assert {call[1:5] for call in CALLS} == {
        (batch, "torch.bfloat16", "channels_last", threads) for batch in (1, 3) for threads in (1, 2)
    }
    assert [(t.setting.batch_size, t.setting.threads) for t in found.timings] == [(1, 1), (1, 2), (3, 1), (3, 2)]
    rows = found.as_dicts()
    assert len(rows) == 4
    assert rows[0]["dtype"] == "bfloat16"
    assert set(rows[0]) >= {
        "seconds",
        "seconds_low",
        "ratio",
        "ratio_high",
        "peak_bytes",
        "rounds",
        "device",
        "versions",
    }


def test_the_callers_things_are_left_alone_on_error_too(untouched):
    class Draws(nn.Module):
        def __init__(self, fails):
            super().__init__()
            self.conv, self.fails = nn.Conv2d(3, 2, 3), fails

        def forward(self, x):
            torch.rand(3), np.random.rand(), random.random()
            if self.fails and torch.is_inference_mode_enabled():
                raise RuntimeError("no\nfurther")
            return self.conv(x)

    for fails in (False, True):
        model = Draws(fails).train()
        hooked = []
        model.register_forward_hook(lambda *_, hooked=hooked: hooked.append(1))
        threads, python, numpy = torch.get_num_threads(), random.getstate(), np.random.get_state()
        with untouched(model):
            if fails:
                with pytest.raises(FoveateError, match="cannot run Draws on an image of 3 x 16 x 16") as caught:
                    quick(model, threads=2)
                assert "\n" not in str(caught.value)
            else:
                quick(model, threads=2)
        assert hooked == []
        assert torch.get_num_threads() == threads
        assert random.getstate() == python
        assert np.random.get_state()[1].tolist() == numpy[1].tolist()


@pytest.mark.parametrize(
    "options,said",
    [
        ({"dtype": "bfloat"}, "dtype='bfloat' does not exist; did you mean 'bfloat16'"),
        ({"memory_format": "channel_last"}, "did you mean 'channels_last'"),
        ({"backend": "onnxrt"}, "did you mean 'onnxruntime'"),
        ({"batch_size": 0}, "batch_size=0: write a whole number of at least 1"),
        ({"threads": (1, 1.5)}, "threads=1.5: write a whole number"),
        ({"batch_size": ()}, "is an empty list"),
        ({"rounds": 0}, "rounds=0"),
        ({"rounds": -3}, "rounds=-3: write a whole number of at least 1"),
        ({"rounds": 2.5}, "rounds=2.5"),
        ({"warmup": "1"}, "warmup='1': write a whole number of at least 0"),
        ({"seconds": float("nan")}, "seconds=nan: write a number of seconds above 0"),
        ({"seconds": "5"}, "seconds='5'"),
        ({"threads": 0}, "threads=0: write a whole number of at least 1"),
        ({"threads": 10**9}, "threads=1000000000: at most 1024"),
        ({"batch_size": 1.5}, "batch_size=1.5: write a whole number"),
        ({"dtype": torch.bfloat16}, "dtype=torch.bfloat16 does not exist; did you mean 'bfloat16'"),
        ({"memory_format": torch.channels_last}, "did you mean 'channels_last'"),
        ({"backend": None}, "backend=None does not exist"),
        ({"reference": "resnet18"}, "a network .* is expected, not a str: foveate.create_model"),
        ({"backend": "onnxruntime", "dtype": "bfloat16"}, "onnxruntime is measured in float32 and contiguous"),
    ],
)
def test_what_is_refused(options, said):
    with pytest.raises(FoveateError, match=said) as caught:
        quick(Named("A"), **options)
    assert "\n" not in str(caught.value)
    assert CALLS == []


def test_a_network_without_data_is_refused():
    with pytest.raises(FoveateError, match="has shapes and no data"):
        quick(nn.Conv2d(3, 4, 3, device="meta"))


def test_onnxruntime_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("foveate.accounting.profiling.runners.exported", lambda *_: None)
    with pytest.raises(FoveateError, match="needs the package onnxruntime: pip install"):
        quick(Named("A"), backend="onnxruntime")


def test_onnxruntime(untouched):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with untouched(model):
        found = quick(model, backend="onnxruntime", memory=sys.platform == "linux")
    assert "onnxruntime" in found.versions
    if sys.platform == "linux":
        assert found.timings[0].peak_bytes > 0


linux = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is measured on Linux")


@linux
def test_resident_memory_grows_and_is_forgotten():
    forget_peak()
    before = now()
    held = bytearray(64 << 20)
    assert highest() - before > 60 << 20
    del held
    forget_peak()
    assert highest() - before < 32 << 20


@linux
def test_peak_memory_of_a_fresh_process():
    """The weights, and the feature maps of the whole batch, which are most of it."""
    model = fv.create_model("test_resnet")
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    maps = 16 * fv.cost(model, 96).activation_bytes_inference
    (timing,) = fv.latency(model, 96, batch_size=16, rounds=1, warmup=0).timings
    assert weights + 0.6 * maps < timing.peak_bytes < weights + 3 * maps + (64 << 20)


@linux
def test_a_network_that_no_process_can_build_is_named():
    found = quick(Named("A"), memory=True)
    assert found.timings[0].peak_bytes is None
    (note,) = found.notes
    assert note.startswith("peak memory of Named cannot be measured: neither timm nor torchvision builds it by name")


def test_a_module_that_sleeps_takes_the_larger_share():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), Slow()), nn.ReLU())
    shares = time_fractions(copied(model, data=True), (3, 16, 16), rounds=3)
    assert shares[""] == pytest.approx(1)
    assert shares["1"] >= shares["1.1"] > 0.5
    assert sum(shares[name] for name in ("0", "1", "2")) <= 1 + 1e-9
    assert all(share >= 0 for share in shares.values())


def test_attention_is_timed_within_what_keeps_it(blocks):
    fv.insert(blocks, "se after stage1.0", input_size=32)
    blocks.stage1[0].foveate.register_module("fc2", nn.Sequential(blocks.stage1[0].foveate.fc2, Slow()))
    shares = time_fractions(copied(blocks, data=True), (3, 32, 32), rounds=3)
    assert shares["stage1"] >= shares["stage1.0"] >= shares["stage1.0.foveate"] >= shares["stage1.0.foveate.fc2"] > 0.4


def test_cost_with_time(blocks, untouched):
    fv.insert(blocks, "se replacing stage1.1", input_size=32)
    with untouched(blocks):
        found = fv.cost(blocks, 32, time=True)
    assert all(0 <= row.time_share <= 1 for row in (*found.modules, *found.baseline.modules))
    assert found.modules[0].time_share == pytest.approx(1)
    assert all(row.time_share is None for row in fv.cost(blocks, 32).modules)
    with pytest.raises(FoveateError, match="time is measured module by module"):
        fv.cost(blocks, 32, counting="paper", time=True)


def test_what_cannot_run_is_named_and_which_of_the_two_it_is(untouched):
    class Particular(nn.Module):
        def __init__(self, side):
            super().__init__()
            self.fc = nn.Linear(3 * side * side, 2)

        def forward(self, x):
            return self.fc(x.flatten(1))

    one, other = nn.Sequential(Particular(16)), Particular(32)
    with untouched(one), untouched(other):
        with pytest.raises(FoveateError, match="cannot run the reference, Particular, on an image of 3 x 16 x 16"):
            quick(one, reference=other)
        with pytest.raises(FoveateError, match="cannot run Particular on 2 images of 3 x 16 x 16"):
            quick(other, reference=one, batch_size=2)


def test_a_network_that_cannot_be_copied_is_named():
    model = Named("A")
    model.lines = (line for line in "ab")
    with pytest.raises(FoveateError, match="Named cannot be copied.*its attribute 'lines' holds a generator"):
        quick(model)


def test_a_compiled_network_is_measured_as_the_backend_says():
    compiled = torch.compile(Named("A"))
    quick(compiled, reference=nn.DataParallel(Named("B")))
    assert "".join(name for name, *_ in CALLS) == "AB" * 4
    assert compiled._orig_mod.training


class File:
    """An exported file, as ``latency`` sees it."""

    preprocess = Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3)
    batch = None

    def reopened(self, threads):
        return self

    def ready(self, images):
        return lambda: images


@pytest.mark.parametrize(
    "option,value",
    [
        ("input_size", 64),
        ("dtype", "bfloat16"),
        ("memory_format", ["channels_last"]),
        ("backend", ("eager", "compile")),
    ],
)
def test_what_a_file_does_not_leave_open_is_refused(option, value):
    for model, reference in ((File(), None), (Named("a"), File())):
        with pytest.raises(FoveateError, match=f"{option}=.*an exported file.*leave it out"):
            fv.latency(model, reference=reference, rounds=1, **{option: value})
    assert fv.latency(File(), memory_format=["contiguous"], backend=["eager"], rounds=3).timings
