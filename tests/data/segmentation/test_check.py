from __future__ import annotations

import numpy as np
from PIL import Image

from foveate.data.segmentation import check_segmentation, open_segmentation


def test_every_label_map_is_read(plain, write_pair):
    report = check_segmentation(plain)
    assert report.sound
    counted = {name: train for name, train, _ in report.pixels}
    raw = np.concatenate([np.asarray(Image.open(plain / f"annotations/train/{n}.png")).ravel() for n in range(3)])
    assert counted == {name: int((raw == n).sum()) for n, name in enumerate(("sky", "road", "tree"))}
    write_pair(plain / "images/val/a.jpg", plain / "annotations/val/a.png", 0, (3,))
    write_pair(plain / "images/val/b.jpg", plain / "annotations/val/b.png", 0, (9,))
    (plain / "images/train/0.jpg").write_bytes((plain / "images/train/0.jpg").read_bytes()[:-60])
    report = check_segmentation(open_segmentation(plain))
    assert not report.sound
    assert report.ignored == ("val/a",)
    assert [name for name, _ in report.bad] == ["train/0", "val/b"]
    assert "number 9" in report.bad[1][1]
    assert report.to_dict()["ignored"] == ["val/a"]
    assert "nothing counts in val/a" in report._repr_html_()
