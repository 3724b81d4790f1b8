import base64
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from foveate.errors import FoveateError
from foveate.studies.reporting.html import write_report

EVIL = '<script>alert("1")</script>&amp;\'"'
ROWS = [
    {
        "plan": "none",
        "params": 3_373_000,
        "macs": 385_100_000,
        "top1": 86.44,
        "top1_per_seed": [86.1, 86.78],
        "macro_f1": 83.1,
        "difference": None,
        "verdict": "baseline",
        "images_per_second": 33.2,
    },
    {
        "plan": EVIL,
        "params": 3_406_000,
        "macs": 385_300_000,
        "top1": 88.9,
        "top1_per_seed": [88.7, 89.1],
        "macro_f1": 85.6,
        "difference": -2.46,
        "difference_low": -4.06,
        "difference_high": 0.86,
        "verdict": EVIL,
        "images_per_second": 1037.2,
        "battery use": EVIL,
    },
]


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.inside = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self.inside:
            self.words.append(data.strip())

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def picture(width=20, height=10, noise=False):
    rng = np.random.default_rng(0)
    pixels = (
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8) if noise else np.zeros((height, width, 3), np.uint8)
    )
    return Image.fromarray(pixels)


def png(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def path(tmp_path):
    return write_report(
        tmp_path / "new" / "run",
        title=EVIL,
        rows=ROWS,
        figures=[(EVIL, picture())],
        galleries=[(EVIL, [(f"{EVIL}.png", picture(1000)), ("bytes", png(picture()))]), ("empty", [])],
        notes=(note for note in [EVIL, "second"]),
        commands=[f"echo {EVIL}", "foveate demo"],
    )


@pytest.fixture
def page(path):
    return Page(path.read_text(encoding="utf-8"))


def test_one_file_that_asks_for_nothing(path, page):
    assert path.name == "report.html"
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>\n")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form", "a", "video", "audio"}
    for tag, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on") or key in ("style", "href", "srcset")], tag
        assert attributes.get("src", "data:image/").startswith("data:image/")
    assert "url(" not in path.read_text(encoding="utf-8")
    assert "@import" not in path.read_text(encoding="utf-8")


def test_content_security_policy(path, page):
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "unsafe" not in policy
    (style,) = re.findall(r"<style>(.*?)</style>", path.read_text(encoding="utf-8"), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert rules["style-src"] == f"'sha256-{digest}'"


def test_all_text_is_text(page):
    # Title twice, plan twice, verdict, its own column, figure, gallery heading, note: each as it was written.
    assert page.words.count(EVIL) == 9
    assert f"{EVIL}.png" in page.words
    assert f"echo {EVIL}\nfoveate demo" in page.words
    assert [image["alt"] for image in page.all("img")] == [EVIL, f"{EVIL}.png", "bytes"]


def test_the_table(page):
    words = page.words
    for cell in ("3,373,000", "+0.98 %", "385.1 M", "+0.05 %", "86.4", "86.1, 86.8", "−2.5", "[−4.1, +0.9]", "33"):
        assert cell in words
    assert "1,037" in words
    heads = [attrs["data-label"] for attrs in page.all("td")][:8]
    assert heads == [
        *(
            "Parameters",
            "MACs",
            "Top-1 %",
            "Macro-F1 %",
            "Difference, points",
            "Verdict",
            "Training, images/s",
            "battery use",
        )
    ]


def test_pictures_are_whole(page):
    sizes = []
    for attributes in page.all("img"):
        data = base64.b64decode(attributes["src"].split(",", 1)[1])
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            sizes.append(image.size)
        assert (int(attributes["width"]), int(attributes["height"])) == image.size
    assert sizes == [(20, 10), (1000, 10), (20, 10)]
    assert [attrs.get("class") for attrs in page.all("figure")] == [None, "wide", None]


def test_a_large_photograph_is_a_jpeg(tmp_path):
    small = write_report(tmp_path, title="t", figures=[("p", picture(600, 600, noise=True))]).stat().st_size
    assert small < 1.4 * len(png(picture(600, 600, noise=True)))
    assert "data:image/jpeg" in (tmp_path / "report.html").read_text()


def test_parts_without_content_are_left_out(tmp_path):
    page = Page(write_report(tmp_path, title="only a title").read_text())
    assert not page.all("h2")
    assert not page.all("table")
    assert not page.all("svg")


@pytest.mark.parametrize("cost", [None, float("nan"), "many"])
def test_rows_without_a_cost_are_in_the_table_only(tmp_path, cost):
    page = Page(write_report(tmp_path, title="t", rows=[{"plan": "p", "macs": cost, "top1": 50.0}]).read_text())
    assert page.all("table")
    assert not page.all("svg")


def test_the_same_input_gives_the_same_bytes(path, tmp_path):
    first = write_report(tmp_path / "a", title="t", rows=ROWS).read_bytes()
    assert write_report(tmp_path / "b", title="t", rows=ROWS).read_bytes() == first


def test_a_name_that_is_not_valid_text(tmp_path):
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    assert "caf?.png" in write_report(tmp_path, title=name).read_text(encoding="utf-8")


@pytest.mark.parametrize("bad", [b"GIF89a", b"", "path.png", None])
def test_what_is_no_picture(tmp_path, bad):
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(FoveateError, match="the picture 'p' is "):
        write_report(tmp_path, title="t", figures=[("p", bad)])
    assert (tmp_path / "report.html").read_text() == "old"


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(FoveateError, match="cannot (write|make)"):
        write_report(tmp_path / "taken", title="t")
    assert (tmp_path / "taken").read_text() == "mine"


FULL = [
    {**ROWS[0], "sign": None, "difference_per_seed": None, "verdict_text": None},
    {
        **ROWS[1],
        "difference_per_seed": [-1.5, -3.42],
        "sign": -1,
        "verdict_text": f"worse by 2.5 points {EVIL}",
        "power_text": "2 seeds and 90 images show 4.0 points",
        "p": 0.0123,
        "p_holm": 0.0246,
        "bootstrap_low": -4.0,
        "bootstrap_high": -1.2,
        "only_plan_right": 1200,
        "only_baseline_right": 1300,
        "p_mcnemar": 1e-9,
        "seed_sd": 1.36,
        "seeds_needed": None,
        "images_needed": 12_000,
        "smallest_difference": 4.0,
    },
]


@pytest.fixture
def full(tmp_path):
    return Page(write_report(tmp_path, title="t", rows=FULL, seeds=(7, 9)).read_text(encoding="utf-8"))


def test_verdicts_in_words(full):
    assert f": worse by 2.5 points {EVIL}" in full.words
    assert ": 2 seeds and 90 images show 4.0 points" in full.words
    assert "Verdict" not in full.words  # the lines say it


def test_every_run_is_shaded_by_its_difference(full):
    cells = [attrs for attrs in full.all("td") if attrs["data-label"] in ("Seed 7", "Seed 9")]
    # 88.7 and 89.1 against 86.1 and 86.78: +2.6 is the most.
    assert [cell.get("class") for cell in cells] == ["number", "number", "number up3", "number up3"]
    assert "+2.6" in full.words
    assert {"+2.2 or more", "−0.4 or less", "less than 0.4 apart"} <= set(full.words)


def test_statistics(full):
    for cell in ("0.012", "0.025", "[−4.0, −1.2]", "1,200 / 1,300", "< 0.001", "1.4", "– / 12,000", "4.0"):
        assert cell in full.words


def test_a_margin_has_a_table_of_its_own(tmp_path):
    margin = {"margin": 1.0, "margin_verdict": "not worse", "p_not_worse": 0.031, "p_equivalent": 0.2, "p_worse": 1.0}
    page = Page(write_report(tmp_path, title="t", rows=[FULL[0], {**FULL[1], **margin}]).read_text(encoding="utf-8"))
    for cell in ("Not worse?", "Margin, points", "1", "not worse", "0.031", "0.20"):
        assert cell in page.words
    assert "Not worse?" not in Page(write_report(tmp_path, title="t", rows=FULL).read_text(encoding="utf-8")).words


def test_differences_seed_by_seed(full):
    seeds = [circle for circle in full.all("circle") if circle["class"] == "seed"]
    assert len(seeds) == 2 * (4 + 2)  # both plots, for a broad and a narrow page
    assert {attrs["class"] for attrs in full.all("path")} == {"whisker worse"}


def test_one_seed_has_no_table_of_runs(tmp_path):
    rows = [{**row, "top1_per_seed": [row["top1"]]} for row in ROWS]
    page = Page(write_report(tmp_path, title="t", rows=rows).read_text(encoding="utf-8"))
    assert "Every run" not in page.words
    assert "Statistics" not in page.words
