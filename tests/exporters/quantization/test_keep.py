"""When attention is kept out of 8 bits, and what is said of it."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from foveate.exporters.options import ExportOptions
from foveate.exporters.program import AttentionSite
from foveate.exporters.quantization.attention_nodes import AttentionNodes
from foveate.exporters.quantization.keep import REMEDY, Quantizer, quantize_keeping

CLASSES, IMAGES = 4, 40


class Network(nn.Module):
    """Gives the class that an image names; of a part of the images only with its attention."""

    def __init__(self, needed):
        super().__init__()
        self.needed = needed
        self.network = nn.Module()
        self.network.site = nn.Module()
        self.network.site.foveate = Attention()

    def forward(self, images):
        classes = images[:, 0].long()
        off = self.network.site.foveate(images)[:, 1] == 0
        moved = off & (images[:, 2] < self.needed)
        return (nn.functional.one_hot((classes + moved) % CLASSES, CLASSES).float(),)


class Attention(nn.Module):
    def forward(self, x):
        return x + 1 - x[:, 1:2]


@dataclass
class Tool:
    """A quantizer that changes the class of some images and spoils what the attention adds, if it is not kept."""

    wrong: int
    correlation: float
    calls: list = field(default_factory=list)

    def quantizer(self):
        nodes = AttentionNodes(AttentionSite("site", "site.foveate"), ("node",), "x", "out", "out")
        return Quantizer((nodes,), self.quantize, self.reader)

    def quantize(self, kept):
        self.calls.append(tuple(kept))
        return tuple(kept)

    def reader(self, file):
        def read(images):
            classes = torch.from_numpy(images[:, 0]).long()
            wrong = torch.from_numpy(images[:, 2]) >= IMAGES - (self.wrong if file == () else 0)
            logits = nn.functional.one_hot((classes + wrong) % CLASSES, CLASSES).float().numpy()
            draw = np.random.default_rng(len(images))
            x, added, noise = (draw.normal(size=(len(images), 2, 3, 3)) for _ in range(3))
            mixed = self.correlation * added + np.sqrt(1 - self.correlation**2) * noise
            return logits, [x, x + (mixed if file == () else added)]

        return read


def kept(*, needed, wrong, correlation, keep="auto"):
    images = np.stack([np.arange(IMAGES) % CLASSES, np.zeros(IMAGES), np.arange(IMAGES)], axis=1).astype(np.float32)
    program = SimpleNamespace(
        network=Network(needed), options=ExportOptions("int8", keep=keep), sites=[AttentionSite("site", "site.foveate")]
    )
    program.images, program.notes, program.contributions, program.agreement_without = images, [], (), None
    tool = Tool(wrong, correlation)
    file = quantize_keeping(program, tool.quantizer())
    return file, tool.calls, program


def test_what_is_lost_and_needed_is_kept():
    file, calls, program = kept(needed=20, wrong=3, correlation=0.5)
    assert (file, calls) == (("site",), [(), ("site",)])
    assert program.agreement_without == 0.5
    [one] = program.contributions
    assert one.correlation == pytest.approx(1)
    assert one.remedy == REMEDY
    [note] = program.notes
    assert "switching it off changes 50.0% of the predictions, 8 bits 7.5%" in note
    assert "-> 1.000" in note


def test_what_the_network_does_not_need_is_said_to_be_below_the_noise():
    file, calls, program = kept(needed=3, wrong=3, correlation=0.5)
    assert (file, calls) == ((), [()])
    assert program.contributions[0].lost
    assert not program.contributions[0].remedy
    assert "below the quantization noise of this network" in program.notes[0]
    assert "changes 7.5% of the predictions, 8 bits change 7.5%" in program.notes[0]


def test_what_survives_is_left():
    file, _, program = kept(needed=20, wrong=3, correlation=0.99)
    assert file == ()
    assert "is kept" in program.notes[0]


def test_keep_none_says_what_was_lost():
    file, calls, program = kept(needed=20, wrong=3, correlation=0.5, keep="none")
    assert (file, calls) == ((), [()])
    assert "LOST" in program.notes[0]
    assert "keep='auto'" in program.notes[0]


def test_keep_attention_asks_nothing():
    file, calls, program = kept(needed=0, wrong=3, correlation=0.5, keep="attention")
    assert (file, calls) == (("site",), [("site",)])
    assert program.contributions[0].remedy == REMEDY
    assert program.agreement_without == 1.0
    assert "is kept" in program.notes[0]
