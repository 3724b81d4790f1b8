"""The sweep over every network: some of them here, and what the table of all says."""

import csv
import importlib.util
import sys
from pathlib import Path

import pytest
import timm

pytestmark = pytest.mark.slow(
    reason="real networks of each family; make test has small ones", guards=("foveate/surgery/",)
)

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "sweep.py"
SAMPLE = (  # small ones, of many families
    *("dla46_c", "efficientformerv2_s0", "lcnet_050", "mobilevit_xxs", "nf_regnet_b0", "repghostnet_050"),
    *("tinynet_e", "torchvision:mnasnet0_5"),
)


@pytest.fixture(scope="module")
def sweep():
    spec = importlib.util.spec_from_file_location("sweep", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["sweep"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["sweep"]


@pytest.fixture(scope="module")
def rows():
    with SCRIPT.with_suffix(".csv").open(newline="") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("name", SAMPLE)
def test_attention_goes_in_works_is_saved_and_comes_out(sweep, name):
    row = sweep.examine(name)
    assert (row["verdict"], row.get("reason")) == ("passed", None)


def test_the_table_has_the_networks(sweep, rows):
    versions = {row["versions"].split(",")[0] for row in rows.values()}
    if versions != {f"timm {timm.__version__}"}:
        pytest.skip(f"the table is of {versions}")
    names = {name for _, name in sweep.names()}
    assert set(rows) == names


def test_attention_goes_into_nearly_all(rows):
    verdicts = [row["verdict"] for row in rows.values()]
    assert set(verdicts) <= {"passed", "failed", "not convolutional"}
    tried = len(verdicts) - verdicts.count("not convolutional")
    assert verdicts.count("passed") >= 0.995 * tried
    assert all(row["step"] and row["reason"] for row in rows.values() if row["verdict"] == "failed")
