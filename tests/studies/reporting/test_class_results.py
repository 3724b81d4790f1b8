import torch

from foveate.studies.reporting.class_results import (
    MOST_CLASSES,
    changed_images,
    class_table,
    confusion_of,
    confusion_table,
    hardest_images,
)

LABELS = torch.tensor([0, 0, 1, 1, 1])
NONE = torch.tensor([[0, 1, 1, 1, 0], [0, 1, 1, 0, 0]])
PLAN = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 1, 1, 0]])
BOTH = {"none": NONE, "plan": PLAN}


def texts(table):
    return [[(cell.text, cell.small) for cell in row] for row in table.rows]


def test_the_confusion_matrix_counts_every_seed():
    assert confusion_of(LABELS, NONE, 2).tolist() == [[2, 2], [3, 3]]
    assert confusion_of(LABELS, NONE, 3).sum() == 10


def test_recall_of_each_class():
    table, left_out = class_table(("cat", "dog", "nobody"), LABELS, BOTH)
    assert table.plans == ["cat", "dog"]  # a class without images has no recall
    assert texts(table) == [
        [("2", ""), ("50.0", ""), ("100.0", "+50.0")],
        [("3", ""), ("50.0", ""), ("66.7", "+16.7")],
    ]
    assert left_out == ""


def test_of_many_classes_those_that_differ_are_shown():
    labels = torch.arange(100)
    plan = labels.clone()
    plan[70] = 0
    table, left_out = class_table([f"c{k}" for k in range(100)], labels, {"none": labels[None], "plan": plan[None]})
    assert len(table.plans) == MOST_CLASSES
    assert "c70" in table.plans
    assert f"{MOST_CLASSES} of 100" in left_out


def test_what_is_confused_most_often():
    table = confusion_table(("cat", "dog"), LABELS, BOTH)
    assert table.plans == ["dog, taken for cat", "cat, taken for dog"]
    assert texts(table) == [[("1.5", ""), ("1", "")], [("1", ""), ("0", "")]]
    assert confusion_table(("cat", "dog"), LABELS, {"none": LABELS[None]}) is None


def test_images_that_a_plan_gains_and_loses():
    assert changed_images(LABELS, NONE, PLAN, 5) == ([1, 3], [])
    assert changed_images(LABELS, PLAN, NONE, 1) == ([], [1])
    assert hardest_images(LABELS, BOTH, 5) == [4, 1]
    assert hardest_images(LABELS, {"none": LABELS[None]}, 5) == []
