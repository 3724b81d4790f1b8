"""Every result shows itself in a notebook: escaped, whole, and without a request."""

import inspect
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

import foveate as fv
from foveate.accounting.environment.diagnosis import Finding
from foveate.accounting.latency_result import Timing
from foveate.accounting.profiling.runners import BenchmarkConfig
from foveate.accounting.profiling.timer import Quantiles
from foveate.data import Split
from foveate.data.detection import DetectionSplit
from foveate.data.segmentation import SegmentationSplit
from foveate.explanations.result import Map
from foveate.exporters.result import Contribution
from foveate.exporters.table import ExportRow
from foveate.exporters.verify import Check
from foveate.html import html_curves, html_table
from foveate.studies.comparison.config import Setup
from foveate.studies.comparison.results import Row
from foveate.studies.deployment.plan_exports import _NUMBERS
from foveate.studies.evaluation.audit_result import ModuleAudit
from foveate.studies.evaluation.low_precision import Survival
from foveate.studies.evaluation.verdict import Effect
from foveate.studies.reproduction.results import Cell
from foveate.studies.search.costs import Budget
from foveate.studies.search.results import Trial
from foveate.training.metrics import measure

BAD = "<script>alert('x')</script>\x1b[31m"


def returned():
    """The public classes that a public function returns."""
    classes = {name for name in fv.__all__ if inspect.isclass(getattr(fv, name))}
    functions = [getattr(fv, name) for name in fv.__all__ if name not in classes]
    words = {word for f in functions for word in re.findall(r"\w+", str(inspect.signature(f).return_annotation))}
    return classes & words


def _analysis(plan=BAD):
    generator = np.random.default_rng(0)
    return fv.analyse({"none": generator.random((2, 40)) < 0.6, plan: generator.random((2, 40)) < 0.7}, "none")


def _comparison():
    return _comparison_of(BAD)


def _comparison_of(plan):
    analysis, cost = _analysis(plan), fv.Cost(10, 2_000_000, 30)
    scores = {"top1": (50.0, 60.0), "macro_f1": (50.0, 60.0)}
    rows = tuple(Row(label, cost, 0.1, scores, (1.0, 1.0), a) for label, a in (("none", None), (plan, analysis[plan])))
    setup = Setup("net", BAD, "", None, 80, 40, (0, 1), fv.Recipe(), {}, None)
    return fv.Comparison(rows, setup, Path(BAD), {}, {}, (), ())


def _fit():
    history = tuple({"epoch": n, "train_loss": 1 / (n + 1), "eval_loss": 1.0, "eval_top1": 0.1 * n} for n in range(3))
    return fv.Fit(history, measure(torch.eye(3), torch.arange(3)), 1.5, 30.0, Path(BAD), fv.Recipe())


def _exported():
    checks = (Check(BAD, passed=True, value=BAD, limit=BAD), Check("b", passed=None, value="c"))
    return fv.Exported(Path(BAD), "onnx", "fp32", {}, checks, 1.0, contributions=(Contribution(BAD, 1.0, 0.0),))


def _opened():
    opened = object.__new__(fv.ExportedClassifier)
    opened.path, opened.metadata = Path(BAD), {"architecture": BAD, "precision": "fp32", "classes": [BAD]}
    return opened


def _audit():
    effect = Effect(SimpleNamespace(mean=-2.0, low=-3.0, high=-1.0), 0.01, 0.1, 500)
    module = ModuleAudit(
        site=BAD, spec="ulsam(groups=4)", verb="after", gate=None, maps=4, entropy=0.9, area=0.5, varies=0.25,
        constant=0.0, contribution=0.065, off=effect, shuffled=None, shuffles=None,
        bf16=Survival(1.0, 1.0, 0.02, 1.0), fp16=None, int8=None, time=0.0123, verdict="works", reason=BAD,
    )  # fmt: skip
    return fv.Audit((module,), BAD, 500, 90.0, 0.1, 32)


def _explanation():
    pictures = tuple(Image.new("RGB", (32, 32)) for _ in range(9))
    one, many = torch.zeros(9, dtype=torch.long), (Map(BAD, torch.rand(9, 4, 4), BAD),)
    return fv.Explanation("gradcam", (BAD,) * 9, pictures, many, (), one, torch.ones(9), one, (BAD,))


def _latency():
    quantiles = Quantiles(1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 5)
    setting = BenchmarkConfig(1, 1, "float32", "contiguous", "eager")
    return fv.Latency((Timing(setting, quantiles, quantiles, quantiles, 10**6, None),), BAD, BAD, BAD, (BAD,))


_FAILED = {"plan": BAD, "format": "onnx", "precision": "int8", "status": "failed", "reason": BAD}


def _stream(predictions):
    predictions.set_classes([BAD, "b"], 2)
    yield fv.Prediction(BAD, 0, BAD, 0.7, ((BAD, 0.7),), torch.tensor([0.7, 0.3]))


def _maps(name):
    return SegmentationSplit(name, (), (), (), (), (255,) * 256)


def _boxes(name):
    return DetectionSplit(name, (), (), (), ())


def _search():
    plan, cost = fv.Plan.parse("se(mode='<script>') after a"), fv.Cost(10, 20, 30)
    trial = Trial(plan, cost, {1: 50.0})
    return fv.Search(str(plan), Budget(), cost, (trial,), (plan,), _comparison_of(str(plan)), (1, 0, 0), 1.0, 1.0)


def _cost():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)))
    return fv.cost(fv.insert(model, "se replacing 1", input_size=(3, 16, 16)), (3, 16, 16))


BUILT = {
    "Analysis": _analysis,
    "Audit": _audit,
    "Comparison": _comparison,
    "Cost": _cost,
    "DataReport": lambda: fv.DataReport(BAD, BAD, ((BAD, 1, 2),), ((BAD, BAD),), ((BAD,),), (), (), ()),
    "DetectionData": lambda: fv.DetectionData(BAD, (BAD,), _boxes("train"), _boxes("val"), BAD, BAD, ((BAD, BAD),)),
    "DetectionEvaluation": lambda: fv.DetectionEvaluation(0.5, 0.6, 0.4, torch.rand(1, 2), (), (), (BAD,)),
    "DetectionReport": lambda: fv.DetectionReport(BAD, BAD, ((BAD, 1, 2),), 0, (BAD,), ((BAD, BAD),), ()),
    "Detections": lambda: fv.Detections(iter(()), [(BAD, BAD)], (BAD,)),
    "Diagnosis": lambda: fv.Diagnosis((Finding(BAD, BAD, BAD, BAD, problem=True),)),
    "Evaluation": lambda: measure(torch.eye(3), torch.arange(3)),
    "Explanation": _explanation,
    "ExportTable": lambda: fv.ExportTable((ExportRow(BAD, BAD, "failed", BAD),)),
    "Exported": _exported,
    "ExportedClassifier": _opened,
    "Faithfulness": lambda: fv.Faithfulness(BAD, 3, (BAD,), (BAD,), ("drop",), {(BAD, BAD, "drop"): torch.rand(3)}),
    "Family": lambda: fv.Family.parse("ulsam(groups='<script>'|4) after a"),
    "Fit": _fit,
    "ImageData": lambda: fv.ImageData(BAD, (BAD,), Split("train", (), (), ()), Split("val", (), (), ()), BAD, BAD),
    "Latency": _latency,
    "LoadReport": lambda: fv.LoadReport((BAD,), (BAD,)),
    "PlanExports": lambda: fv.PlanExports(({**dict.fromkeys(_NUMBERS), **_FAILED},)),
    "Predictions": lambda: fv.Predictions(_stream, [(BAD, BAD)]),
    "Masks": lambda: fv.Masks(iter(()), [(BAD, BAD)], []),
    "Plan": lambda: fv.Plan.parse("ulsam(groups='<script>') after a"),
    "Protocol": lambda: fv.Protocol(BAD, BAD, BAD, (BAD,), 2, fv.Recipe()),
    "Recipe": lambda: fv.Recipe(optimiser="<script>"),
    "Reproduction": lambda: fv.Reproduction((), (Cell(BAD, BAD, BAD, "1", "", "cost", "1", "exact", "", "equal"),)),
    "Search": _search,
    "SegmentationData": lambda: fv.SegmentationData(BAD, (BAD,), _maps("train"), _maps("val"), BAD, BAD),
    "SegmentationEvaluation": lambda: fv.SegmentationEvaluation(0.1, 0.5, 0.6, torch.ones(2, 3, 3).long(), (BAD,) * 3),
    "SegmentationReport": lambda: fv.SegmentationReport(BAD, BAD, ((BAD, 1, 2),), ((BAD, BAD),), (BAD,), ()),
    "Sites": lambda: fv.Sites([fv.Site(BAD, 1, 2, 3, BAD, replaceable=True, stride=4)]),
}  # fmt: skip


class _Reader(HTMLParser):
    """Tags with their attributes; every tag that is opened is closed."""

    def __init__(self):
        super().__init__()
        self.tags, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def read(page):
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader.tags


def test_every_result_of_a_public_function_shows_itself():
    assert {name for name in returned() if not hasattr(getattr(fv, name), "_repr_html_")} == set()
    assert returned() == set(BUILT)


@pytest.mark.parametrize("name", sorted(BUILT))
def test_as_text_it_is_short(name):
    """What ``print`` and a console show: no values of tensors, no address, no page of fields."""
    made = BUILT[name]()
    for text in (str(made), repr(made)):
        assert len(text) < 1000, text
        assert "tensor(" not in text
        assert " at 0x" not in text


@pytest.mark.parametrize("name", sorted(BUILT))
def test_it_is_escaped_complete_and_needs_nothing_from_elsewhere(name):
    page = BUILT[name]()._repr_html_()
    tags = read(page)
    allowed = {
        *("p", "b", "br", "pre", "table", "thead", "tbody", "tr", "th", "td", "span", "details", "summary", "img")
    }
    assert {tag for tag, _ in tags} <= allowed | {"svg", "title", "polyline", "circle", "text"}
    for _, attributes in tags:
        assert not any(key.startswith("on") for key in attributes)
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert not re.search(
            r"color|background|url", attributes.get("style", "")
        )  # readable on light and on dark pages
    assert "\x1b" not in page
    assert "://" not in page  # pictures are letters, digits, + and /
    if name not in (
        "Cost",
        "DetectionEvaluation",
        "Evaluation",
        "Recipe",
        "SegmentationEvaluation",
    ):  # in these nothing is named by a user as he likes
        assert "&lt;script&gt;" in page


def test_a_cost_shows_what_was_replaced_before_what_came():
    text = re.sub(r"<[^>]+>", " ", _cost()._repr_html_())
    assert "with the plan" in text
    assert text.index("\N{MINUS SIGN} 1 Sequential") < text.index("+ 1 SE")
    assert [row.change for row in _cost().rows if row.name == "1"] == ["removed", "added"]


def test_a_comparison_shows_its_verdicts():
    comparison = _comparison()
    text = comparison._repr_html_()
    assert comparison.rows[1].verdict.split(":")[0].split(" by ")[0] in text
    assert "2,000,000" in text


def test_at_40_columns_a_comparison_keeps_the_plans():
    plan = "ulsam(groups=4) after blocks.5.2, blocks.6.0"
    file = io.StringIO()
    comparison = _comparison_of(plan)
    console = Console(file=file, width=40)
    console.print(comparison.table(console))
    for word in plan.split():
        assert word in file.getvalue()
    assert "55.0" in file.getvalue()  # the mean of its accuracies
    assert max(map(len, file.getvalue().splitlines())) <= 40


def test_an_explanation_shows_eight_pictures_and_counts_the_rest():
    page = _explanation()._repr_html_()
    assert page.count("<img") == 8
    assert "and 1 more images" in page


def test_curves_of_a_fit_hold_their_ends():
    page = _fit()._repr_html_()
    assert page.count("<svg") == 3
    assert "training loss: 0.3333 to 1, the last 0.3333" in page
    assert html_curves({"a": [float("nan")]}) == ""
    (line,) = [at for tag, at in read(html_curves({"a": [1.0, float("nan"), 3.0]})) if tag == "polyline"]
    assert line["points"].count(",") == 2


def test_a_long_table_says_how_long_it_is():
    page = html_table(("a",), [(n,) for n in range(250)])
    assert page.count("<tr>") == 201
    assert "and 50 more rows" in page


def test_sites_are_a_list():
    found = fv.sites(nn.Sequential(nn.Conv2d(3, 8, 3)), (3, 8, 8))
    assert isinstance(found, list)
    assert found == list(found)


def test_an_error_is_one_line():
    with pytest.raises(fv.FoveateError) as caught:
        fv.Plan.parse("se\x1b after")
    (line,) = caught.value._render_traceback_()
    assert line.startswith("FoveateError: ")
    assert "\x1b" not in line
    with pytest.raises(fv.FoveateError) as caught:
        fv.Recipe(lr=3)
    assert caught.value._render_traceback_()[0].startswith("WrongArguments: ")
