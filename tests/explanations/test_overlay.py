import numpy as np
import pytest
import torch
from PIL import Image

from foveate.explanations.overlay import COLUMNS, MOST, colours, is_uniform, scale_words
from foveate.explanations.result import Explanation, Map

GREY = Image.new("RGB", (40, 24), (120, 120, 120))


def explanation(maps=(), channels=(), label="dog", targets=None):
    return Explanation(
        "attention",
        ("image",),
        (GREY,),
        tuple(maps),
        tuple(channels),
        torch.tensor([0]),
        torch.tensor([0.9]),
        targets,
        (label,),
    )


def ramp(name="m", module="m", scale=1.0):
    return Map(name, scale * torch.arange(12.0).reshape(1, 3, 4), module)


@pytest.mark.parametrize(
    ("values", "uniform"),
    [
        (torch.full((7, 7), 1 / 49), True),
        (torch.zeros(7, 7), True),
        (1 / 49 * (1 + 4e-4 * torch.linspace(-1, 1, 49).reshape(7, 7)), True),
        (1 / 49 * (1 + 1e-2 * torch.linspace(-1, 1, 49).reshape(7, 7)), False),
        (torch.linspace(-1e-9, 1e-9, 9).reshape(3, 3), False),
    ],
)
def test_a_uniform_map_is_drawn_flat(values, uniform):
    assert is_uniform(values) == uniform
    drawn = colours(GREY, values)
    assert (np.ptp(drawn, axis=(0, 1)).max() < 1e-12) == uniform
    assert ("uniform" in scale_words(values, softmax=False)) == uniform


def test_scale_words():
    peak = torch.full((7, 7), (1 - 0.2) / 48)
    peak[0, 0] = 0.2
    assert scale_words(peak, softmax=True) == ("min 0.0167\n0.82× uniform", "max 0.2\n9.8× uniform")
    assert scale_words(peak, softmax=False) == ("min 0.0167", "max 0.2")
    assert scale_words(torch.zeros(2, 2), softmax=False) == ("all zero", "uniform")
    assert scale_words(torch.full((2, 2), 0.25), softmax=True) == ("0.25 everywhere", "uniform")
    assert scale_words(torch.tensor([[0.99, 1.01]]) / 2, softmax=True)[1] == "max 0.505\n1.010× uniform"
    assert scale_words(torch.tensor([[1e-20, 1.0]]), softmax=True)[0] == "min ≈0\n<0.01× uniform"


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("column", [0, 2, 4])
def test_a_map_lies_where_it_belongs(row, column):
    values = torch.zeros(3, 5)
    values[row, column] = 1
    drawn = colours(GREY, values).sum(axis=2)
    # A cell covers 8 x 8 pixels; bilinear interpolation is symmetric about the middle of the cell.
    weight = drawn - drawn.min()
    ys, xs = np.nonzero(weight > 0.9 * weight.max())
    assert ys.min() >= 8 * row
    assert ys.max() < 8 * (row + 1)
    assert xs.min() >= 8 * column
    assert xs.max() < 8 * (column + 1)
    if row == 1 and column == 2:
        assert (ys.mean(), xs.mean()) == (11.5, 19.5)


def test_brighter_means_larger():
    drawn = colours(GREY, torch.linspace(0, 1, 40).reshape(1, 40))[0].sum(axis=1)
    assert (np.diff(drawn) > 0).all()


def test_colour_means_the_map_alone():
    red = Image.new("RGB", (40, 24), (255, 0, 0))
    values = torch.full((3, 5), 0.5)
    assert np.ptp(colours(red, values), axis=2).max() < 1e-9


@pytest.mark.parametrize("maps", [0, 1, 4, 5, 16, 40])
@pytest.mark.parametrize("channels", [0, 2])
def test_nothing_is_clipped(maps, channels):
    long = "blocks.4.1.a_rather_long_name_of_a_module.conv_pw"
    found = explanation(
        [ramp(f"{long} subspace {n}/{maps}", long) for n in range(maps)],
        [(long, torch.rand(1, 300))] * channels,
        label="a class with a very long name, longer than the picture is wide",
    )
    pixels = np.asarray(found.draw())
    frame = np.concatenate([pixels[:3].ravel(), pixels[-3:].ravel(), pixels[:, :3].ravel(), pixels[:, -3:].ravel()])
    assert (frame == 255).all()
    assert pixels.shape[1] < COLUMNS * 300


def test_sites_with_one_map_share_a_row():
    shared = explanation([ramp(f"s{k}", f"s{k}") for k in range(4)]).draw()
    apart = explanation([ramp(f"s{k} subspace {n}/2", f"s{k}") for k in range(2) for n in range(2)]).draw()
    assert shared.width > shared.height
    assert apart.height > 1.5 * shared.height


def test_of_many_maps_those_that_vary_most_are_drawn():
    def panels(count):
        return explanation([ramp(f"m {n}/{count}", "m", n + 1.0) for n in range(count)]).draw()

    assert abs(panels(MOST).height - panels(4 * MOST).height) < 40  # a line of text says how many are left out


@pytest.mark.parametrize("label", ["$x^", "犬", "a\\b_c%", "<b>"])
def test_any_name_can_be_written(label):
    found = explanation([ramp(label, label)], [(label, torch.rand(1, 4))], label, torch.tensor([0]))
    assert found.draw().width > 100


def test_channel_weights_of_any_sign():
    for weights in (torch.zeros(1, 5), -torch.rand(1, 5), torch.rand(1, 1)):
        assert explanation((), [("se", weights)]).draw().height > 100


def test_cells_are_of_one_colour_each():
    values = torch.tensor([[0.0, 1.0], [0.5, 0.25]])
    smooth, cells = (np.unique(colours(GREY, values, 1.0, smooth=how).reshape(-1, 3), axis=0) for how in (True, False))
    assert len(cells) == 4
    assert len(smooth) > 4
    cell = colours(GREY, values, 1.0, smooth=False)
    assert np.array_equal(cell[0, 0], cell[11, 19])  # 24 x 40 pixels: cells of 12 x 20
    assert not np.array_equal(cell[11, 19], cell[11, 20])


def test_the_true_class_is_beside_the_prediction():
    found = explanation([ramp()])
    plain, right, wrong = (np.asarray(found.draw(true=name)) for name in ("", "dog", "cat"))
    assert plain.shape != right.shape
    assert not np.array_equal(right, wrong)
