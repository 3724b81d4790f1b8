"""A planned network in the hands of what trains it: data parallelism, layer-wise learning rates, worker processes."""

import multiprocessing
from datetime import timedelta

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import foveate as fv

PLAN = "ulsam(groups=4) replacing blocks.3.1; se after blocks.4; gap as pool"


def planned():
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv2_035", num_classes=5)
    return fv.insert(model, PLAN, input_size=64, seed=0)


def images(seed=0, count=4):
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def work(place, model, results):
    """In a process of its own: a copy of a model, and the other half of the batch in data parallel training."""
    torch.set_num_threads(1)
    results.put(model(images(count=1)).detach().numpy().tolist())
    train_in_parallel(1, 2, place)


def train_in_parallel(rank, world, place):
    """One step of data parallel training; batch norms in eval mode, so that the gradients are those of the batch."""
    within = {"timeout": timedelta(seconds=120)}
    distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=world, **within)
    model = DistributedDataParallel(planned().eval())
    half = images().chunk(world)[rank]
    model(half).square().mean().backward()
    gradients = {name: p.grad.tolist() for name, p in model.module.named_parameters() if "foveate" in name}
    distributed.barrier()
    distributed.destroy_process_group()
    return gradients


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    """The scores of a model in a worker process, and the gradients that this one and that give together."""
    place = tmp_path_factory.mktemp("group") / "group"
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    worker = context.Process(target=work, args=(place, planned().eval(), results), daemon=True)
    worker.start()
    scores = results.get(timeout=120)
    gradients = train_in_parallel(0, 2, place)
    worker.join(timeout=60)
    assert worker.exitcode == 0
    return scores, gradients


@pytest.mark.slow(
    reason="it starts processes; tests/training has them in every run",
    guards=(
        "foveate/surgery/",
        "foveate/attention/",
    ),
)
def test_data_parallel_gradients_are_those_of_the_whole_batch(worked):
    found = worked[1]
    model = planned().eval()
    model(images()).square().mean().backward()
    expected = {name: p.grad for name, p in model.named_parameters() if "foveate" in name}
    assert found.keys() == expected.keys()
    largest = max(float(grad.abs().max()) for grad in expected.values())
    assert largest > 0
    for name, grad in expected.items():  # some are 0 in theory, as of a shift that the softmax cancels
        torch.testing.assert_close(torch.tensor(found[name]), grad, rtol=1e-4, atol=1e-5 * largest)


def test_parallel_on_one_process(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/one", rank=0, world_size=1)
    try:
        model = planned().eval()
        before = model(images())
        parallel = DistributedDataParallel(model)
        assert torch.equal(parallel(images()), before)
        with pytest.raises(fv.FoveateError, match="compiled or wrapped"):
            fv.insert(DistributedDataParallel(timm.create_model("mobilenetv2_035")), "se after blocks.4")
        assert fv.plan_of(parallel) == fv.plan_of(model)  # a wrapper carries the plan of the network inside
    finally:
        distributed.destroy_process_group()


def rates(model):
    groups = param_groups_layer_decay(model, weight_decay=0.01, layer_decay=0.5)
    of = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    return {name: of[id(p)] for name, p in model.named_parameters()}


def test_layer_decay_gives_attention_the_rate_of_its_block():
    plain, of = rates(timm.create_model("mobilenetv2_035", num_classes=5)), rates(planned())
    for block in ("blocks.3.1.", "blocks.4.2."):
        own = {of[name] for name in of if name.startswith(block) and "foveate" in name}
        assert own == {plain[name] for name in plain if name.startswith(block)}


def test_a_worker_process_gets_the_model(worked):
    found = torch.tensor(worked[0])
    torch.testing.assert_close(found, planned().eval()(images(count=1)).detach(), rtol=1e-5, atol=1e-6)
