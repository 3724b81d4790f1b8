"""A mechanism costs three new files and no edit: one is added to a copy of the project, which then knows it."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULE = '''
"""Toy: every channel times a learned weight, from Nobody et al., https://arxiv.org/abs/0000.00000."""

from torch import Tensor, nn
import torch

from foveate.errors import FoveateError

__all__ = ["Toy"]


class Toy(nn.Module):
    """Every channel times a learned weight.

    Args:
        channels: C of x.
        scale: multiplies all weights, more than 0.

    Shape:
        x: (B, C, H, W) -> (B, C, H, W). The map: (B, C).

    Raises:
        FoveateError: the scale is not more than 0.
    """

    map_axes = "b c"

    def __init__(self, channels: int, *, scale: float = 1.0) -> None:
        super().__init__()
        if not scale > 0:
            raise FoveateError(f"toy: scale={scale} must be more than 0")
        self.scale = scale
        self.weight = nn.Parameter(torch.rand(channels))

    def attend(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        return (self.scale * torch.sigmoid(self.weight)).expand(x.shape[0], -1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x * self.attend(x)[..., None, None].to(x.dtype)
'''
TEST = """
import pytest
import torch

from foveate.attention.toy import Toy
from foveate.errors import FoveateError


def test_equals_the_equation():
    module, x = Toy(4, scale=2.0).double(), torch.rand(2, 4, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(module(x), x * 2 / (1 + torch.exp(-module.weight))[:, None, None])


def test_scale_is_positive():
    with pytest.raises(FoveateError, match="more than 0"):
        Toy(4, scale=0.0)
"""
PAGE = """# toy

Every channel times a learned weight. At 512x14x14: 512 parameters, 0 MACs.

| option | here, by default |
|---|---|
| `scale` | 1.0 |
"""
NEW = {"foveate/attention/toy.py": MODULE, "tests/attention/test_toy.py": TEST, "docs/attention/toy.md": PAGE}
USE = """
import os, sys
os.chdir(sys.argv[1])
sys.path[:0] = [os.getcwd(), "docs"]
import pytest, torch
files = ["attention/test_toy.py", "attention/test_contract.py", "test_architecture.py"]
quiet = ["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]  # what is imported is
code = pytest.main([*quiet, "-k", "toy or no_circle", *(f"tests/{file}" for file in files)])
import foveate as fv, navigation
assert fv.__file__ == os.path.abspath("foveate/__init__.py")
assert "toy" in fv.names()
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
fv.insert(model, "toy(scale=0.5) after 0", input_size=8)
with_it = fv.cost(model, 8)
assert with_it.params == with_it.baseline.params + 8
assert "'attention/toy.md'" in str(navigation.navigation(navigation.Path("docs")))
try:
    fv.build("toy(scal=2.0)", 4)
except fv.FoveateError as error:
    assert "did you mean 'scale'" in str(error)
sys.exit(code)
"""


@pytest.fixture
def copy(tmp_path):
    """What a clone has of the package, its tests of attention, and its pages."""
    for folder in ("foveate", "tests/attention", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    for file in ("pyproject.toml", "tests/conftest.py", "tests/test_architecture.py"):
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


def test_a_mechanism_is_three_new_files_and_no_edit(copy, run_forked):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    for file, text in NEW.items():
        assert not (copy / file).exists()
        (copy / file).write_text(text.lstrip(), "utf-8")
    (done,) = run_forked(USE, ([str(copy)], {}))
    assert done.returncode == 0, done.stdout + done.stderr
    passed = int(done.stdout.splitlines()[-1].split(" passed")[0].split()[-1])
    assert passed > 15  # the contract's tests took it in by themselves
    assert all(path.read_bytes() == content for path, content in before.items())
