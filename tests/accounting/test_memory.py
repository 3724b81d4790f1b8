"""Memory by hand, and what is predicted without data against what tensors with data take."""

import gc
import weakref

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import foveate as fv
from foveate.accounting.memory import training_memory
from foveate.errors import FoveateError

SIZE, FLOAT = 16, 4
HW = SIZE * SIZE
IMAGE = 3 * HW * FLOAT


def chain(*parts):
    return nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), *parts)


MAP = 8 * HW * FLOAT  # what the chain's convolution gives
INFERENCE = {
    # The caller holds the image all the time. A part holds what it got, and gives something new.
    "one convolution": (chain(), IMAGE + MAP),
    "then a ReLU": (chain(nn.ReLU()), IMAGE + 2 * MAP),
    "in place": (chain(nn.ReLU(inplace=True)), IMAGE + MAP),
    "three after each other, of which two are alive": (chain(nn.ReLU(), nn.ReLU(), nn.ReLU()), IMAGE + 2 * MAP),
    "a view": (chain(nn.Flatten()), IMAGE + MAP),
}


@pytest.mark.parametrize("name", INFERENCE)
def test_inference_by_hand(name):
    model, expected = INFERENCE[name]
    assert fv.cost(model, SIZE).activation_bytes_inference == expected


def test_a_skip_connection_is_alive():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return x + self.conv(self.conv(x))

    # The image; the second convolution's input and output, and then its output and the sum.
    assert fv.cost(Skip(), SIZE).activation_bytes_inference == 3 * IMAGE


TRAINING = {
    # A convolution keeps its input; a ReLU what it gives, which is also the next one's input; a norm its input, and
    # mean and deviation of each channel.
    "a convolution": (chain(), IMAGE),
    "then a ReLU": (chain(nn.ReLU()), IMAGE + MAP),
    "two ReLUs keep two": (chain(nn.ReLU(), nn.ReLU()), IMAGE + 2 * MAP),
    "in place they keep one": (chain(nn.ReLU(), nn.ReLU(inplace=True)), IMAGE + MAP),
    "kept by two, counted once": (chain(nn.ReLU(), nn.Conv2d(8, 3, 1)), IMAGE + MAP),
    "a norm": (chain(nn.BatchNorm2d(8)), IMAGE + MAP + 2 * 8 * FLOAT),
    "SiLU keeps its input": (chain(nn.SiLU()), IMAGE + MAP),
    "a sum keeps nothing": (chain(nn.Hardtanh(), nn.Flatten()), IMAGE + MAP),
    "max-pool keeps its input and where the maxima were": (chain(nn.MaxPool2d(2)), IMAGE + MAP + MAP // 4 * 2),
    "dropout draws in training": (chain(nn.Dropout(0.5)), IMAGE + MAP),
    "one value for each channel": (chain(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8)), IMAGE + 3 * 8 * FLOAT),
}


@pytest.mark.parametrize("name", TRAINING)
def test_training_by_hand(name, untouched):
    model, expected = TRAINING[name]
    with untouched(model):
        assert fv.cost(model, SIZE).activation_bytes_training == expected


def test_what_is_frozen_keeps_nothing():
    model = chain(nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU())
    everything = fv.cost(model, SIZE).activation_bytes_training
    model[0].requires_grad_(False)
    assert fv.cost(model, SIZE).activation_bytes_training == everything - IMAGE
    model.requires_grad_(False)
    assert fv.cost(model, SIZE).activation_bytes_training == 0


class Alive(TorchDispatchMode):
    """Bytes of the tensors with data that are alive, seen in another way than ours: every storage, by its memory."""

    def __init__(self, *known):
        super().__init__()
        self.seen, self.now, self.peak = set(), 0, 0
        self.known = {tensor.data_ptr() for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.add(tensor)
        return result

    def add(self, tensor):
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place and place not in self.seen and place not in self.known:
            self.seen.add(place)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.free, place, storage.nbytes())

    def free(self, place, size):
        self.seen.discard(place)
        self.now -= size


NETWORKS = ("test_resnet", "test_efficientnet", "test_convnext", "test_vit")


@pytest.mark.parametrize("name", NETWORKS)
def test_saved_and_alive_without_data_are_those_with_data(name):
    model = timm.create_model(name)
    cost = fv.cost(model, 160)
    image = torch.zeros(1, 3, 160, 160)
    known = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.train()(image)
    assert cost.activation_bytes_training == sum(storage.nbytes() for storage in kept.values())
    del output
    model.eval()
    with torch.no_grad(), Alive(*model.parameters(), *model.buffers()) as alive:
        alive.add(image)
        model(image)
    assert alive.peak == pytest.approx(cost.activation_bytes_inference, rel=0.01)


def test_attention_of_a_plan_takes_memory(blocks):
    fv.insert(blocks, "non_local after stage1.1", input_size=32)
    cost = fv.cost(blocks, 32)
    plus = cost - cost.baseline
    inside, elements = 4 * 16 * 16, 8 * 16 * 16
    assert plus.activation_bytes_training > FLOAT * (3 * inside + elements)
    # The map of all pairs, 256 x 256, is in no tensor.
    assert plus.activation_bytes_training < FLOAT * 256 * 256


@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_takes_what_is_predicted(name, untouched):
    model = timm.create_model(name)
    with untouched(model):
        predicted = training_memory(model, 4, 160)
    images = torch.zeros(4, 3, 160, 160)
    own = [*model.parameters(), *model.buffers()]
    gc.collect()
    with Alive(*own) as alive:
        alive.add(images)
        F.cross_entropy(model.train()(images), torch.zeros(4, dtype=torch.long)).backward()
    measured = alive.peak + sum(tensor.numel() * tensor.element_size() for tensor in own)
    assert predicted == pytest.approx(measured, rel=0.03)


def test_a_training_step_by_hand():
    """After the ReLU: the image, what it got and gave. Going back: what it gave, and two gradients of that size."""
    weights = 24 * FLOAT
    found = training_memory(chain(nn.ReLU()), 5, SIZE)
    assert found == pytest.approx(weights + 5 * (IMAGE + 2 * MAP), abs=200)


def test_what_a_training_step_grows_with():
    model = timm.create_model("test_resnet")
    weights = sum(parameter.numel() for parameter in model.parameters()) * FLOAT
    one, two, four = (training_memory(model, batch_size, 160) for batch_size in (16, 32, 64))
    assert four - two == pytest.approx(2 * (two - one), rel=0.02)
    assert training_memory(model, 16, 160, optimizer_tensors=2) == one + 2 * weights
    model.requires_grad_(False)
    model.fc.requires_grad_(True)
    frozen = training_memory(model, 16, 160, optimizer_tensors=2)
    assert frozen < one / 2
    assert frozen - training_memory(model, 16, 160) == 2 * FLOAT * (model.fc.weight.numel() + 1000)


def test_a_network_that_needs_data(untouched):
    class Needs(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)

        def forward(self, x):
            return self.conv(x).relu() if x.sum().item() < 1 else x

    model = Needs()
    with untouched(model):
        assert fv.cost(model, SIZE).activation_bytes_training == IMAGE + MAP
        assert training_memory(model, 2, SIZE) > 2 * (IMAGE + MAP)


def test_a_network_that_does_not_train_as_it_is(untouched, caplog):
    class Detects(nn.Module):
        """As torchvision's detectors, which want the answers in training mode."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)

        def forward(self, x, targets=None):
            if self.training and targets is None:
                raise ValueError("targets should not be none when in training mode")
            return self.conv(x)

    model = Detects().train()
    with untouched(model):
        assert fv.cost(model, SIZE).activation_bytes_training == IMAGE
    assert "Detects does not run in training mode; its training activations are eval mode's" in caplog.text
    assert "targets should not be none" in caplog.text
    with pytest.raises(FoveateError, match="cannot count a training step of Detects on 2 images .*targets") as caught:
        training_memory(model, 2, SIZE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "batch_size,options",
    [(0, {}), (-1, {}), (2.5, {}), (2, {"optimizer_tensors": -1}), (2, {"optimizer_tensors": 0.5})],
)
def test_numbers_out_of_range(batch_size, options):
    with pytest.raises(FoveateError, match="=-?[0-9.]+: write a whole number of at least [01]"):
        training_memory(chain(), batch_size, SIZE, **options)


def test_no_network():
    with pytest.raises(FoveateError, match="a network .* is expected, not a str: foveate.create_model"):
        training_memory("resnet18", 2)


def test_in_inference_mode_a_training_step_takes_the_same():
    model = chain(nn.ReLU(), nn.Conv2d(8, 3, 1))
    cost, step = fv.cost(model, SIZE), training_memory(model, 2, SIZE)
    with torch.inference_mode():
        assert fv.cost(model, SIZE) == cost
        assert training_memory(model, 2, SIZE) == step
        fresh = chain(nn.ReLU(), nn.Conv2d(8, 3, 1))
        assert fv.cost(fresh, SIZE) == cost
