"""The papers' tables: every computable cell comes out or is declared, and nothing changes unseen."""

import csv
import io
import itertools
import json
import re
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from torchvision.models.detection import maskrcnn_resnet50_fpn

import foveate as fv
from foveate.accounting.counting.paper import PRINTED
from foveate.cli import main
from foveate.studies.reporting.charts.labelling import Box
from foveate.studies.reproduction import figures as reproduce_pictures
from foveate.studies.reproduction import markdown as reproduce_page
from foveate.studies.reproduction.counters import count
from foveate.studies.reproduction.paper_tables import FOUND, Number, names, read_measured, read_table, spearman
from foveate.studies.reproduction.reproduce import reproduce

ROOT = Path(__file__).parents[3]
MEASURED = ROOT / "benchmarks" / "tradeoff.csv"

VERDICTS = {
    "equal": 171,
    "equal, truncated": 12,
    "paper inconsistent": 21,
    "not published": 6,
    "not built": 10,
    "needs training": 299,
}
RULES = {"exact": 97, "paper": 53, "mmcv": 15, "arithmetic": 10, "fvcore": 6, "fvcore, training": 2}

# What cannot be equal: (table, number of the row, column) -> the printed text and ours.
DECLARED = {
    ("overhead-ulsam", 3, "#Params (norm.)"): ("33×", "32.0"),
    ("overhead-ulsam", 5, "#Params (norm.)"): ("33×", "32.1"),
    ("imagenet-after", 5, "#Params"): ("3.4M", "3.50"),
    ("fine-grained-mv2", 1, "#Params"): ("3.4M", "3.50"),
    ("fine-grained-mv2", 5, "#FLOPs"): ("224.16M", "223.770"),
    ("ablation-mv2", 1, "#Params"): ("3.4M", "3.50"),
    ("ulsam-statements", 1, "stated"): ("0.27%", "0.210"),
    ("ulsam-statements", 3, "stated"): ("25%", "12.7"),
    ("ulsam-statements", 9, "stated"): ("0.1%", "0.20"),
    ("ulsam-blog", 2, "stated"): ("25%", "12.7"),
    ("talk-statements", 3, "stated"): ("10^9", "10^6"),
    ("tradeoff", 5, "nb params"): ("19.0", "19.34"),
    ("tradeoff", 5, "FLOPs"): ("4.2", "4.39"),
    ("tradeoff", 6, "nb params"): ("30.0", "30.39"),
    ("tradeoff", 6, "FLOPs"): ("9.9", "10.27"),
    ("tradeoff", 17, "nb params"): ("116.0", "115.74"),
    ("upernet", 2, "#params"): ("52.0", "55.05"),
    ("upernet", 2, "FLOPs"): ("1099", "1112.7"),
    ("upernet", 9, "#params"): ("121.0", "121.28"),
    ("upernet", 12, "#params"): ("121.0", "121.28"),
    ("mask-rcnn", 1, "GFLOPs"): ("180", "268.9"),
    ("mask-rcnn", 2, "GFLOPs"): ("260", "348.8"),
    ("mask-rcnn", 3, "GFLOPs"): ("424", "513.7"),
    ("mask-rcnn", 12, "#params"): ("44.9M", "45.44"),
    ("mask-rcnn", 12, "GFLOPs"): ("264", "281.3"),
    ("mask-rcnn", 13, "#params"): ("67.4M", "67.93"),
    ("mask-rcnn", 13, "GFLOPs"): ("339", "357.0"),
}


COUNTED = pytest.mark.slow(
    reason="it builds and counts every network of the tables; tests/accounting counts one of each kind in every run",
    guards=(
        *("foveate/accounting/", "foveate/attention/", "foveate/dense/", "foveate/heads/", "foveate/networks/"),
        *("foveate/pooling/", "foveate/studies/reproduction/", "foveate/surgery/"),
    ),
)


@pytest.fixture(scope="module")
def everything():
    return reproduce(measured=MEASURED if MEASURED.is_file() else None)


@COUNTED
def test_every_computable_cell_comes_out_or_is_declared(everything):
    assert [cell for cell in everything.cells if cell.verdict == "differs"] == []
    counts = everything.counts()
    measured = counts.pop("needs a measurement", 0) + counts.pop("measured", 0)
    assert counts == VERDICTS
    assert measured == 48
    assert everything.rules() == RULES
    assert len(everything.computed) == 210
    ways = {
        "in exact counting": 97,
        "with the paper's own baseline": 31,
        "by the paper's formula": 22,
        "by mmcv's rule": 15,
        "by arithmetic": 10,
        "by fvcore's rule": 6,
        "by fvcore's rule in training mode": 2,
    }
    assert everything.counted_by() == ways
    assert sum(ways.values()) == 183
    assert "183 of 210 computable ones reproduced (97 in exact counting, " in str(everything)


@COUNTED
def test_every_baseline_of_the_papers_counting_is_one_that_its_authors_print(everything):
    """Else "with the paper's own baseline" would be said of a network that was counted exactly."""
    found = {cell.how for cell in everything.cells if cell.counting == "paper" and cell.how.startswith("network(")}
    for how in found:
        name = re.search(r"mobilenetv[12]_\d+", how)[0]
        base = count({"of": "network", "name": name})
        assert (base.params, base.macs) in PRINTED, how
    assert len(found) > 10


@COUNTED
def test_what_is_declared_is_what_does_not_come_out(everything):
    found = {
        (cell.table, cell.number, cell.column): (cell.printed, cell.ours)
        for cell in everything.computed
        if cell.verdict in ("paper inconsistent", "not published")
    }
    assert found == DECLARED
    for table in everything.tables:
        for row in table.rows:
            for column in {**row.inconsistent, **row.unpublished}:
                assert (table.name, row.number, column) in DECLARED, "declared, and yet it comes out"


@COUNTED
def test_each_table_of_accuracies_says_what_was_found_of_its_claims(everything):
    page = (Path(__file__).parents[3] / "docs" / "reports" / "evidence.md").read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    sections = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for table in everything.tables:
        kinds = {cell.kind for cell in everything.of(table.name).cells}
        assert ("accuracy" in kinds) == bool(table.claims), table.name
        for claim in table.claims:
            assert claim.found in FOUND
            assert claim.text.endswith(".")
            assert claim.because.endswith(".")
            assert claim.section in sections if claim.found != "not testable here" else not claim.section


@COUNTED
def test_every_cell_says_where_it_is_from_and_what_was_counted(everything):
    assert set(names()) == {table.name for table in everything.tables}
    for cell in everything.cells:
        assert cell.source
        assert "arXiv:" in cell.paper
        assert cell.number >= 1
        if cell.verdict in ("paper inconsistent", "not published", "not built"):
            assert cell.reason, cell
        if cell in everything.computed:
            assert cell.ours
            assert "(" in cell.how


# Numbers in a reason that are neither printed in its table nor ours: how they come about.
WORKED_OUT = {
    "22.5": lambda: _difference_of_mask_rcnn("params", 10**6, 1),
    "75": lambda: _difference_of_mask_rcnn("macs", 10**9, 0),
    "3,504,872": lambda: f"{count({'of': 'network', 'name': 'mobilenetv2_100'}).params:,}",
    "1.53": lambda: str(_top1_of_ablation_mv2("vanilla") - _top1_of_ablation_mv2("13, 14, 16, 17")),
    "25.6": lambda: f"{count({'of': 'network', 'name': 'resnet50'}).params / 1e6:.1f}",
}


def _top1_of_ablation_mv2(label):
    (row,) = (row for row in read_table("ablation-mv2").rows if label in row.label.lower())
    return Number.parse(row.printed[2]).value


def _difference_of_mask_rcnn(measure, scale, digits):
    small, large = (row.ours for row in read_table("mask-rcnn").rows if "patchconvnet" in str(row.ours))
    return f"{(getattr(count(large), measure) - getattr(count(small), measure)) / scale:.{digits}f}"


@COUNTED
def test_every_number_in_a_reason_is_a_number_that_was_worked_out(everything):
    """It is printed, it is ours, it is the difference of the two, it says what was counted, or it is counted here."""
    printed = {cell.printed.rstrip("M%×") for cell in everything.cells}
    ours = {cell.ours for cell in everything.computed}
    unknown = set()
    for reason, cells in everything.reasons().items():
        pairs = [(Decimal(c.ours), Number.parse(c.printed).value) for c in cells if c.ours and "^" not in c.ours]
        counted = {number for c in cells for number in re.findall(r"\d+", c.how)}
        known = printed | ours | counted | {str(abs(round(own - other))) for own, other in pairs}
        for number in re.findall(r"(?<![\w^-])\d[\d,.]*\d|(?<![\w^-])\d(?!\w)", reason):
            if number in known or any(one.startswith(number) for one in ours):
                continue
            if number not in WORKED_OUT or WORKED_OUT[number]() != number:
                unknown.add((number, reason))
    assert unknown == set()


@COUNTED
def test_the_difference_of_each_resnets_row_is_its_own(everything):
    rows = {cell.row: cell for cell in everything.of("mask-rcnn").cells if cell.column == "GFLOPs"}
    (reason,) = {cell.reason for name, cell in rows.items() if name.startswith("ResNe")}
    said = dict(re.findall(r"(ResNe[\w-]+) by (\d+)", reason))
    assert len(said) == 3
    for name, difference in said.items():
        cell = next(cell for row, cell in rows.items() if row.replace("-", "").startswith(name.replace("-", "")))
        assert round(Decimal(cell.ours) - Decimal(cell.printed)) == int(difference)


@COUNTED
def test_a_formula_that_is_not_the_modules_says_so(everything):
    for cell in everything.cells:
        if cell.table.startswith("overhead") and cell.counting == "paper":
            assert cell.reason, cell


@pytest.mark.parametrize(
    "subject,counting,expected",
    [
        ({"of": "mechanism", "spec": "bam", "channels": 512, "side": 14}, "paper", (83_968, 16_490_496)),
        ({"of": "mechanism", "spec": "bam", "channels": 512, "side": 14}, "exact", (68_513, 6_862_976)),
        ({"of": "network", "name": "mobilenetv2_100_ulsam_13_14_16_17"}, "exact", (2_630_936, 224_544_384)),
        ({"of": "network", "name": "mobilenetv2_100"}, "paper", (3_400_000, 300_000_000)),
        ({"of": "upernet", "backbone": "patchconvnet_s60"}, "exact", (57_113_508, 951_162_863_616)),
    ],
)
def test_counts(subject, counting, expected):
    found = count(subject, counting)
    assert (found.params, found.macs) == expected


def test_exact_is_what_cost_counts():
    with torch.device("meta"):
        model = fv.insert(fv.create_model("mobilenetv1_050"), "ulsam(groups=2) replacing blocks.3.5")
    cost = fv.cost(model)
    found = count({"of": "network", "name": "mobilenetv1_050", "plan": "ulsam(groups=2) replacing blocks.3.5"})
    assert (found.params, found.macs) == (cost.params, cost.macs)


# ResNet-18 at 64 pixels: (channels, side) of what each batch norm gets, and of what each ReLU gives.
NORMED = [(64, 32), *[(64, 16)] * 4, *[(128, 8)] * 5, *[(256, 4)] * 5, *[(512, 2)] * 5]
ACTIVATED = [(64, 32), *[(64, 16)] * 4, *[(128, 8)] * 4, *[(256, 4)] * 4, *[(512, 2)] * 4]


def test_the_rules_of_other_counters_by_hand():
    subject = {"of": "network", "name": "resnet18", "size": 64}
    exact = count(subject)
    normed, activated = (sum(c * side**2 for c, side in maps) for maps in (NORMED, ACTIVATED))
    assert count(subject, "fvcore").macs == exact.macs + 2 * normed
    assert count(subject, "fvcore, training").macs == exact.macs + 5 * normed
    pooled = 64 * 32**2 + 512 * 2**2
    assert count(subject, "mmcv").macs == exact.macs + 2 * normed + activated + pooled
    assert count(subject, "mmcv").params == exact.params


def test_layer_norms_attention_products_and_frozen_parts():
    vit = {"of": "network", "name": "deit_tiny_patch16_224"}
    normed, products, biases = 25 * 197 * 192, 12 * 2 * 197**2 * 192, 196 * 192
    assert count(vit, "fvcore").macs == count(vit).macs + 5 * normed
    assert count(vit, "mmcv").macs == count(vit).macs - products + 2 * normed + biases
    subject = {"of": "mask_rcnn", "backbone": "resnet18", "features": [1, 2, 3, 4], "size": [64, 96]}
    frozen = {**subject, "frozen": ["conv1", "bn1", "layer1"]}
    assert count(subject).params - count(frozen, "mmcv").params == 9_408 + 128 + 147_968


def test_mask_rcnn_is_the_network_that_trains_with_the_parameters_of_torchvisions():
    with torch.device("meta"):
        whole = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=81)
        ours = fv.create_detector("resnet50", "mask_rcnn", classes=80)
    subject = {"of": "mask_rcnn", "backbone": "resnet50", "features": [1, 2, 3, 4], "size": [64, 64]}
    expected = sum(p.numel() for p in whole.parameters())
    assert count(subject).params == expected == 44_400_693 == sum(p.numel() for p in ours.parameters())
    assert count(subject).macs == fv.cost(ours, 64).macs


def test_patchconvnets_difference_is_that_of_its_trunks():
    small, large = (row.ours for row in read_table("mask-rcnn").rows if "patchconvnet" in str(row.ours))
    assert count(large).params - count(small).params == 47_723_896 - 25_231_096 == 22_492_800
    assert round((count(large).macs - count(small).macs) / 1e9, 1) == 75.2


def test_counting_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    count({"of": "network", "name": "resnet10t", "size": 64})
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.empty(1).device.type == "cpu"


@pytest.mark.parametrize(
    "text,value,rounded,truncated",
    [
        ("25.6", "25.557", True, False),
        ("22.0", "22.0507", False, True),
        ("300.01M", "300.0157", False, True),
        ("0.5", "0.45", True, False),
        ("512×", "512", True, True),
        ("82.16×", "82.1633", True, True),
        ("33×", "32.1", False, False),
        ("9.1%", "9.054", True, False),
        ("10^9", "1000000", False, False),
    ],
)
def test_rounded_and_truncated(text, value, rounded, truncated):
    number = Number.parse(text)
    assert number.is_rounded(Decimal(value)) is rounded
    assert number.is_truncated(Decimal(value)) is truncated


def test_a_number_of_tens_and_how_ours_is_written():
    assert Number.parse("30 times", -1).is_rounded(Decimal("31.06"))
    assert not Number.parse("30 times").is_rounded(Decimal("31.06"))
    assert Number.parse("25.6").text(Decimal("25.557")) == "25.56"
    assert Number.parse("952").text(Decimal("951.96")) == "952.0"
    assert Number.parse("10^9").text(Decimal(10**6)) == "10^6"


def test_users_errors_are_one_line():
    for call, said in (
        (lambda: reproduce("overhed"), "did you mean 'overhead'"),
        (lambda: reproduce("../overhead"), "no table is called"),
        (lambda: count({"of": "network", "name": "resnet18"}, "exat"), "did you mean 'exact'"),
        (lambda: count({"of": "netwrk"}), "did you mean 'network'"),
        (lambda: Number.parse("about 5"), "not a printed number"),
    ):
        with pytest.raises(fv.FoveateError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", names())
def test_tables_are_whole(name):
    table = read_table(name)
    assert len({column.name for column in table.columns}) == len(table.columns)
    for row in table.rows:
        assert len(row.printed) == len(table.columns)
        columns = {column.name for column in table.columns}
        assert {*row.inconsistent, *row.unpublished} <= columns
        for text in row.printed:
            assert text in ("", "-") or Number.parse(text)


@COUNTED
def test_csv_has_a_line_for_each_cell(everything, tmp_path):
    file = everything.write_csv(tmp_path / "new" / "cells.csv")
    lines = list(csv.DictReader(io.StringIO(file.read_text("utf-8"))))
    assert len(lines) == len(everything.cells)
    assert [line["ours"] for line in lines] == [cell.ours for cell in everything.cells]
    for folder in ("", tmp_path):
        with pytest.raises(fv.FoveateError, match="is a folder: name a file in it"):
            everything.write_csv(folder)
        with pytest.raises(fv.FoveateError, match="is a folder: name a file in it"):
            fv.write_page(everything, folder)
    (tmp_path / "taken").touch()
    with pytest.raises(fv.FoveateError, match="cannot make the folder"):
        everything.write_csv(tmp_path / "taken" / "cells.csv")


@COUNTED
def test_page_is_what_the_code_gives(everything):
    assert (ROOT / "docs" / "reports" / "reproduce.md").read_text("utf-8") == reproduce_page.page(everything)


@COUNTED
def test_page_and_pictures_are_written(everything, tmp_path):
    fv.write_page(everything, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text("utf-8")
    for name in reproduce_pictures.PICTURES:
        assert f"(images/{name})" in text
        with Image.open(tmp_path / "images" / name) as picture:
            assert picture.width >= 800
    with pytest.raises(fv.FoveateError, match="without naming one"):
        fv.write_page(everything.of("overhead"), tmp_path / "page.md")


@COUNTED
def test_no_name_lies_over_a_point_or_another_name(everything):
    for column, _ in reproduce_pictures.PICTURES.values():
        points = reproduce_pictures.dots(everything, column)
        assert len(points) == 24
        found = reproduce_pictures.label_positions(points)
        boxes = [box for box, _ in found]
        for a, b in itertools.combinations(boxes, 2):
            assert a.right <= b.left or b.right <= a.left or a.bottom <= b.top or b.bottom <= a.top
        assert {" ".join(lines) for _, lines in found} == {point.name for point in points}


def test_a_name_is_drawn_in_the_middle_of_its_box():
    figure = Figure((10, 7))
    for box, side, x, middle in (
        (Box(200, 100, 300, 140), "left", 200, 120),
        (Box(20, 500, 120, 560), "right", 120, 530),
    ):
        reproduce_pictures._name(figure, (160.0, 300.0), box, ("a name",))
        drawn = figure.texts[-1]
        assert (drawn.get_ha(), drawn.get_va()) == (side, "center")
        assert drawn.get_position() == pytest.approx((x / 1000, 1 - middle / 700))


@COUNTED
def test_terminal(everything):
    console = Console(file=io.StringIO(), width=80)
    everything.print(console)
    said = console.file.getvalue()
    assert all(name in said for name in names())
    console = Console(file=io.StringIO(), width=120)
    everything.of("fine-grained-mv2").print(console)
    said = console.file.getvalue()
    assert "223.770" in said
    assert "No set of residual blocks" in said


def table_of(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["network", "speed_ratio", "memory_ratio", "reason"])
        writer.writerows(rows)
    return path


def test_measurements_stand_beside_the_printed(tmp_path):
    rows = [("ResNet-50", 1, 1, ""), ("RegNetY-4GF", 0.7, 1.4, ""), ("NFNet-F1", "", "", "too large")]
    file = table_of(tmp_path / "measured.csv", [*rows, ("DeiT", 1, 1, "")])
    found = reproduce("tradeoff", measured=file)
    cells = {(cell.row, cell.kind): cell for cell in found.cells}
    assert cells["RegNetY-4GF", "speed"].ours == "0.70"
    assert cells["RegNetY-4GF", "memory"].verdict == "measured"
    assert cells["NFNet-F1", "speed"].verdict == "needs a measurement"
    assert cells["NFNet-F1", "speed"].reason == "too large"
    text = reproduce_page.page(found)
    assert "2 networks, Spearman's rank correlation with the paper's order 1.00" in text
    assert "* NFNet-F1: too large" in text


def test_measurements_that_cannot_be_read(tmp_path):
    with pytest.raises(fv.FoveateError, match="cannot read"):
        read_measured(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(fv.FoveateError, match="which has columns network"):
        read_measured(tmp_path / "other.csv")
    table_of(tmp_path / "words.csv", [("ResNet-50", "fast", 1, "")])
    with pytest.raises(fv.FoveateError, match="is not a table of"):
        read_measured(tmp_path / "words.csv")


def test_spearman():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # 1 - 6 * (1 + 1 + 0 + 0) / (4 * 15); ties share a rank.
    assert spearman([1, 2, 3, 4], [2, 1, 3, 4]) == pytest.approx(0.8)
    assert spearman([1, 1, 2], [1, 1, 5]) == pytest.approx(1)


def run(capsys, *arguments):
    try:
        main(list(arguments))
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    said = capsys.readouterr()
    return code, said.out, said.err


def test_command(capsys, tmp_path):
    code, out, _ = run(capsys, "reproduce", "overhead", "--json", "--csv", str(tmp_path / "cells.csv"))
    found = json.loads(out)
    assert code == 0
    assert found["counts"] == {"equal": 10}
    assert len(found["cells"]) == len((tmp_path / "cells.csv").read_text().splitlines()) - 1 == 10
    _, out, _ = run(capsys, "reproduce", "overhead", "--csv", "-")
    assert out == (tmp_path / "cells.csv").read_text()
    code, out, _ = run(capsys, "reproduce", "overhead")
    assert "10 of 10 computable ones reproduced" in out
    for arguments, said in (
        (["overhaed"], "did you mean 'overhead'"),
        (["overhead", "--page", str(tmp_path / "page.md")], "--page shows all tables"),
        (["overhead", "--json", "--csv", "-"], "give --csv a file"),
        (["overhead", "--csv", ""], "--csv '' is a folder"),
        (["--page", str(tmp_path)], "is a folder: name a file in it"),
        (["--page", str(tmp_path / "cells.csv" / "page.md")], "is not a folder to write in"),
        (["overhead", "--csv", str(tmp_path)], "name a file in it"),
    ):
        code, _, err = run(capsys, "reproduce", *arguments)
        assert code == 2
        assert said in err
        assert err.strip().count("\n") == 0
