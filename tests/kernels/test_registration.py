"""A torch that does not register the operations: the definitions serve, with equal results, and one line says why."""

import json

import pytest

CODE = """
import json, logging, sys, unittest.mock
import torch, torch._dynamo, timm  # what torch registers itself

failing, lines = sys.argv[1], []

class Lines(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())

logging.getLogger("foveate").addHandler(Lines())
logging.getLogger("foveate").setLevel(logging.INFO)

def refuse(*args, **kwargs):
    raise RuntimeError("not with this torch\\nmore")

place = torch.library.Library if failing == "define" else torch.library
with unittest.mock.patch.object(place, failing or "Library", refuse if failing else torch.library.Library):
    import foveate.kernels.gates.op, foveate.kernels.ulsam.op
from foveate.attention.cbam import CBAM
from foveate.attention.se import SE
from foveate.attention.ulsam import ULSAM
from foveate.kernels import dispatch

found = {}
for kind in (ULSAM, SE, CBAM):
    torch.manual_seed(0)
    module, x = kind(16), torch.randn(2, 16, 5, 6, requires_grad=True)
    out = module(x)
    out.square().sum().backward()
    with torch.no_grad():
        inferred = module.eval()(x)
    compiled = torch.compile(module, backend="eager")(x)
    found[kind.__name__] = [t.detach().double().flatten().tolist() for t in (out, x.grad, inferred, compiled)]
reasons = {row[0]: row[-1].reason for row in dispatch.backends()}
print(json.dumps([found, lines, reasons, dispatch.choose(torch.ones(1, 16, 2, 2)).backend]))
"""


FAILING = {"": set(), "define": {"ulsam", "gates"}, "register_autograd": {"ulsam"}}


@pytest.fixture(scope="module")
def runs(run_forked):
    """What each of them prints, by what fails."""
    done = run_forked(CODE, *[([name], {}) for name in FAILING])
    for result in done:
        assert result.returncode == 0, result.stderr
    return {name: json.loads(result.stdout.splitlines()[-1]) for name, result in zip(FAILING, done, strict=True)}


@pytest.mark.parametrize("failing,families", list(FAILING.items())[1:])
def test_definitions_serve_and_one_line_for_each_family_says_why(failing, families, runs):
    usual = runs[""][0]
    found, lines, reasons, chosen = runs[failing]
    assert chosen == ""
    told = [line for line in lines if "no fused operations" in line]
    assert len(told) == len(families)
    for family in families:
        assert sum(f"for {family}, the plain ones serve: torch " in line for line in told) == 1
        assert reasons[family].endswith("does not register the operations: not with this torch")
    for name, values in usual.items():
        for expected, value in zip(values, found[name], strict=True):
            assert value == pytest.approx(expected, rel=1e-4, abs=1e-5), name
