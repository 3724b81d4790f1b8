"""The audit's part of the report."""

import dataclasses
import re

import pytest

from foveate.studies.comparison.statistics import Difference
from foveate.studies.evaluation.audit_result import Audit, ModuleAudit
from foveate.studies.evaluation.low_precision import Survival
from foveate.studies.evaluation.verdict import Effect
from foveate.studies.reporting.audit_table import audit_part
from foveate.studies.reporting.html import write_report

OFF = Effect(Difference(-2.0, -3.0, -1.0, 1, 0.01), 0.01, 0.1, 500)
ROW = ModuleAudit(
    site="layer2.0", spec="ulsam(groups=4)", verb="after", gate=None, maps=4, entropy=0.9, area=0.5, varies=0.25,
    constant=0.0, contribution=0.065, off=OFF, shuffled=None, shuffles=None,
    bf16=Survival(1.0, 1.0, 0.02, 1.0), fp16=None, int8=None, time=0.0123, verdict="works",
    reason="without it -2.0 [-3.0, -1.0] points",
)  # fmt: skip


def found(*rows):
    return Audit(rows, "photos", 500, 90.0, 0.1, 32)


def test_a_row_and_a_line_for_each_module(tmp_path):
    bad = dataclasses.replace(ROW, site="layer3.0", verdict="harmful", reason="<b>without it</b>")
    page = write_report(tmp_path, title="t", audits={"ulsam <after> two": found(ROW, bad)}).read_text("utf-8")
    dots = [("better", "works"), ("worse", "harmful")]
    assert re.findall(r'<td class="whole".*?<span class="dot (\w+)"></span>(\w+)', page) == dots
    for words in (
        "−2.0",
        "[−3.0, −1.0]",
        "0.065",
        "0.02 – –",
        "1.2 %",
        "500 validation images",
        "ulsam &lt;after&gt; two",
    ):
        assert words in page
    assert "ulsam &lt;after&gt; two (layer3.0)" in page
    assert "&lt;b&gt;" in page
    written = write_report(tmp_path, title="t", audits={"ulsam": found(ROW)}).read_text("utf-8")
    assert "Does the attention do anything?" in written
    assert "(layer2.0)" not in written  # the only module of its plan needs no name


@pytest.mark.parametrize("row", [dataclasses.replace(ROW, off=None, contribution=None, entropy=None, varies=None)])
def test_what_was_not_measured_is_a_dash(tmp_path, row):
    page = write_report(tmp_path, title="t", audits={"head": found(row)}).read_text("utf-8")
    assert page.count("<span>–</span>") == 5


def test_without_audits_there_is_no_section():
    assert audit_part({}) is None
