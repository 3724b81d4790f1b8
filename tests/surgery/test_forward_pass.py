"""What a head or a pool keeps between hooks belongs to one pass: never the map of another image, thread or copy."""

import contextlib
import copy
import gc
import io
import pickle
import threading
import warnings
import weakref

import pytest
import timm
import torch
import torchvision
from timm.utils import ModelEmaV3
from torch import nn
from torch.fx import symbolic_trace

import foveate as fv
from foveate.errors import FoveateError
from foveate.registry import names
from foveate.surgery import forward_pass

SIZE = 64
ENDS = [f"{name} as head" for name in names("heads")] + [f"{name} as pool" for name in names("pooling")]
NETWORKS = {
    "resnet": lambda: timm.create_model("test_resnet", num_classes=5),
    "mobilenet": lambda: timm.create_model("mobilenetv3_small_050", num_classes=5),  # a layer after the pool
    "convnext": lambda: timm.create_model("test_convnext", num_classes=5),  # pools inside its head
    # Pools by a function, has no halves; with fewer blocks than any by name.
    "shufflenet": lambda: torchvision.models.ShuffleNetV2([2, 2, 2], [8, 16, 32, 64, 128], num_classes=5),
}


def images(seed, batch=2):
    return torch.rand(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def build():
    """A network with a head or a pool, in eval mode; made once for each plan, and given as a copy."""
    made = {}

    def built(network, plan):
        if (network, plan) not in made:
            torch.manual_seed(0)
            made[network, plan] = fv.insert(NETWORKS[network]().eval(), plan, input_size=SIZE)
        return copy.deepcopy(made[network, plan])

    return built


@pytest.fixture(params=ENDS)
def plan(request):
    return request.param


@pytest.fixture(params=NETWORKS)
def network(request):
    return request.param


def nothing_is_left():
    thread = forward_pass._THREAD
    return thread.whole is None and not thread.parts and not thread.found


@pytest.mark.slow(
    reason="it tries every order of a pass for four ends",
    guards=(
        "foveate/surgery/",
        "foveate/heads/",
        "foveate/pooling/",
    ),
)
def test_halves_of_a_pass_in_any_order(build, plan):
    """forward_head gives the scores of the image whose features it gets, or refuses; never those of another."""
    for network in ("resnet", "mobilenet", "convnext"):
        model = build(network, plan)
        one, two = images(1), images(2)
        with torch.no_grad():
            expected = model(one), model(two)
            features = model.forward_features(one), model.forward_features(two)
            scores = model.forward_head(features[0]), model.forward_head(features[1]), model.forward_head(features[0])
            assert torch.equal(scores[0], expected[0]), network
            assert torch.equal(scores[1], expected[1]), network
            assert torch.equal(scores[2], expected[0]), network
            held = model.forward_features(one)
            assert torch.equal(model(two), expected[1])
            model.forward_head(held, pre_logits=True)
            assert torch.equal(model(two), expected[1])
            assert torch.equal(model.forward_head(held), expected[0])
            if "head" in plan:
                with pytest.raises(FoveateError, match="of the same forward pass"):
                    model.forward_head(held.clone())
            last = model.forward_intermediates(two)[0]
            assert torch.equal(model.forward_head(last), expected[1])
        # The maps go with the features that they belong to.
        seen = weakref.ref(held)
        del held, features, last
        gc.collect()
        assert seen() is None
        assert len(forward_pass._MAPS_OF_FEATURES) == 0
        assert nothing_is_left()


def test_threads(build, network, plan):
    model = build(network, plan)
    inputs = [images(seed) for seed in range(4)]
    wrong = []
    with torch.no_grad():
        expected = [model(x) for x in inputs]

    def work(index):
        with torch.no_grad():
            for step in range(8):
                which = (index + step) % 4
                if step % 2 and hasattr(model, "forward_head"):
                    given = model.forward_head(model.forward_features(inputs[which]))
                else:
                    given = model(inputs[which])
                if not torch.equal(given, expected[which]):
                    wrong.append(which)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_pass_inside_a_pass(build, plan):
    """A hook that runs the model on another image in the middle of a pass."""
    for network in ("resnet", "shufflenet"):
        model = build(network, plan)
        with torch.no_grad():
            expected = model(images(1)), model(images(2))
            inner = []
            middle = model.layer3 if network == "resnet" else model.stage3

            def again(*_, model=model, inner=inner, middle=middle):
                if not middle.busy:
                    middle.busy = True
                    inner.append(model(images(2)))
                    if hasattr(model, "forward_head"):
                        inner.append(model.forward_head(model.forward_features(images(2))))
                    middle.busy = False

            middle.busy = False
            middle.register_forward_hook(again)
            assert torch.equal(model(images(1)), expected[0])
            assert all(torch.equal(scores, expected[1]) for scores in inner)


def test_an_error_in_a_pass_leaves_nothing(build, network, plan):
    model = build(network, plan)
    with torch.no_grad():
        expected = model(images(1))
        last = list(model.modules())[-1]
        for error in (RuntimeError, KeyboardInterrupt):

            def fail(*_, error=error):
                raise error("stop")

            handle = last.register_forward_pre_hook(fail)
            with pytest.raises(error, match="stop"):
                model(images(2))
            if hasattr(model, "forward_head"):
                with contextlib.suppress(error):
                    model.forward_features(images(2))
            handle.remove()
            assert torch.equal(model(images(1)), expected)
            if hasattr(model, "forward_head"):
                assert torch.equal(model.forward_head(model.forward_features(images(1))), expected)
    forward_pass._THREAD.__init__()  # what an interrupt left is nobody's


def test_copies_after_a_pass_with_gradients(build, network, plan):
    model = build(network, plan).train()
    model(images(1)).sum().backward()
    if hasattr(model, "forward_features"):
        model.forward_features(images(2))
    copied = copy.deepcopy(model).eval()
    average = ModelEmaV3(model)
    average.update(model)
    loaded = pickle.loads(pickle.dumps(model)).eval()  # noqa: S301 - a model that was just made here
    model.eval()
    with torch.no_grad():
        expected = model(images(1))
        for other in (copied, average.module.eval(), loaded):
            assert torch.equal(other(images(1)), expected)
    state = {key: value.detach() for key, value in model.named_parameters()}
    assert torch.equal(torch.func.functional_call(model, state, (images(1),)), expected)
    assert nothing_is_left() or not hasattr(model, "forward_head")


def test_gradients_with_checkpointing(build, plan):
    model = build("resnet", plan).train()

    def gradients():
        model.zero_grad()
        torch.manual_seed(0)
        model(images(1, batch=4)).square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    model.set_grad_checkpointing(True)
    checkpointed = gradients()
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    assert nothing_is_left()


@pytest.mark.slow(
    reason="it traces by each of the tools for four ends",
    guards=(
        "foveate/surgery/",
        "foveate/heads/",
        "foveate/pooling/",
    ),
)
def test_tracers_leave_the_model_usable(build, plan):
    """torch.export, torch.jit.trace and torch.fx are right or refuse; afterwards the model is as before."""
    for network in ("resnet", "shufflenet"):
        model = build(network, plan)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracers' own making
            expected, other = model(images(1)), model(images(2))

            def same(given, model=model, expected=expected, other=other):
                torch.testing.assert_close(given(images(2)), other, rtol=1e-4, atol=1e-5)
                assert torch.equal(model(images(1)), expected)
                assert nothing_is_left()

            same(torch.export.export(model, (images(1),)).module())
            same(torch.jit.trace(model, (images(1),), check_trace=False))
            with contextlib.suppress(FoveateError):
                same(symbolic_trace(model))
            assert torch.equal(model(images(1)), expected)
            assert nothing_is_left()


def test_onnx(build):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = build("resnet", "saol as head")
    file = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own making
        expected = model(images(1))
        torch.onnx.export(model, (images(1),), dynamo=True, verbose=False).save(file)
        assert torch.equal(model(images(1)), expected)
        assert nothing_is_left()
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {session.get_inputs()[0].name: images(1).numpy()})
    torch.testing.assert_close(torch.from_numpy(given), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow(
    reason="it compiles real networks",
    guards=(
        "foveate/surgery/",
        "foveate/attention/",
    ),
)
@pytest.mark.parametrize("network", ["resnet", "shufflenet"])
def test_compile(build, network):
    """Of the whole model, of its forward alone, in halves, and with a break in the graph."""
    model = build(network, "saol as head")
    with torch.no_grad():
        expected = model(images(1)), model(images(2))
        torch._dynamo.reset()
        options = {"backend": "eager"}
        whole, forward = torch.compile(model, fullgraph=True, **options), torch.compile(model.forward, **options)
        for compiled in (whole, forward):
            for seed in (1, 2):
                torch.testing.assert_close(compiled(images(seed)), expected[seed - 1])
        if network == "resnet":
            features = torch.compile(model.forward_features, **options)
            one, two = features(images(1)), features(images(2))
            with contextlib.suppress(FoveateError):
                torch.testing.assert_close(model.forward_head(one), expected[0])
            with contextlib.suppress(FoveateError):
                torch.testing.assert_close(model.forward_head(two), expected[1])
        broken = copy.deepcopy(model)
        middle = broken.layer4 if network == "resnet" else broken.stage4
        middle.register_forward_hook(lambda *_: torch._dynamo.graph_break())
        torch._dynamo.reset()
        compiled = torch.compile(broken, **options)
        for seed in (1, 2, 1):
            torch.testing.assert_close(compiled(images(seed)), expected[seed - 1])
        assert torch.equal(model(images(1)), expected[0])
        forward_pass._THREAD.parts.clear()


def test_replicas_of_data_parallelism(build, plan):
    """What nn.DataParallel does: shallow copies, which share their hooks, each in a thread of its own."""
    model = build("resnet", plan)

    def replicate(module, factor):
        replica = module._replicate_for_data_parallel()
        replica._modules = {name: replicate(child, factor) for name, child in module.named_children()}
        for key, parameter in module._parameters.items():
            setattr(replica, key, None if parameter is None else parameter * factor)  # its own, as on another device
        return replica

    def scaled(factor):
        copied = copy.deepcopy(model)
        for parameter in copied.parameters():
            parameter.mul_(factor)
        return copied

    with torch.no_grad():
        factors = (1.0, 1.5, 0.5)
        expected = [scaled(factor)(images(seed)) for seed, factor in enumerate(factors)]
        replicas = [replicate(model, factor) for factor in factors]
        given = [None] * 3

        def work(index):
            with torch.no_grad():
                for _ in range(4):
                    given[index] = replicas[index](images(index))

        threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(one, other) for one, other in zip(given, expected, strict=True))


def test_a_network_in_a_network(build):
    """A head inside a network that has a head, too: each reads its own maps."""
    outer, inner = build("resnet", "saol as head"), build("resnet", "ltpa as head")

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.outer, self.inner = outer, inner

        def forward(self, x):
            return self.outer(x)

    seen = []
    outer.layer3.register_forward_hook(lambda *_: seen.append(inner.forward_head(inner.forward_features(images(2)))))
    with torch.no_grad():
        expected = build("resnet", "saol as head")(images(1)), inner(images(2))
        assert torch.equal(Both()(images(1)), expected[0])
        assert torch.equal(seen[-1], expected[1])


def test_remove_takes_the_hooks(build, network, plan):
    model = build(network, plan)
    fv.remove(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._forward_hooks_always_called for m in model.modules())
