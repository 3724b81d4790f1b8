"""The Triton kernels, compiled for GPUs that need not be here: Triton's interpreter knows no types and no registers.

What is compiled is what the passes launch for real sizes. A kernel that keeps its numbers in memory, for it has too few
registers, is slow: none may.
"""

import collections
import functools
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from foveate.kernels.gates import triton_launch as gates_triton
from foveate.kernels.ulsam import triton_launch as ulsam_triton

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
pytestmark = [
    pytest.mark.slow(
        reason="Triton compiles every kernel for a GPU, which takes seconds",
        guards=("foveate/kernels/gates/", "foveate/kernels/ulsam/", "constraints.txt"),
    ),
    pytest.mark.skipif(not TOOL.exists(), reason="Triton without CUDA's tools"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]
# Bytes of memory and registers that the worst pass of ULSAM takes. Compiled by Triton 3.5 to 3.8 (torch 2.9 to 2.14)
# they are up to 16 and 187: slower, with one program of 8 warps at a time.
STACK, REGISTERS = (0, 128) if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9) else (16, 192)
EVERY = [(torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last)]  # each type, each format
NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


class Compiler:
    """Stands in for the kernels: compiles what would be launched and keeps what it needs."""

    def __init__(self, capability, folder, passes):
        self.target, self.folder, self.found = GPUTarget("cuda", capability, 32), folder, passes._kernel
        self.registers, self.stack = {}, {}

    def kernel(self, name):
        compiled = functools.partial(self.compile, name, self.found(name))
        return collections.defaultdict(lambda: compiled)  # for any grid

    def compile(self, kernel, function, *arguments, num_warps, enable_fp_fusion, **tile):
        assert len(function.arg_names) == len(arguments) + len(tile)
        signature, constants, multiples = {}, {}, {}
        for k, name in enumerate(function.arg_names):
            value = arguments[k] if k < len(arguments) else tile[name]
            if isinstance(value, torch.Tensor):
                signature[name] = NAMES[value.dtype]
            elif isinstance(value, float):
                signature[name] = "fp32"
            elif k >= len(arguments) or value is None or value == 1:  # as Triton does
                signature[name], constants[(k,)] = "constexpr", value
            else:
                signature[name] = "i32"
            if isinstance(value, torch.Tensor) or (signature[name] == "i32" and value % 16 == 0):
                multiples[(k,)] = [["tt.divisibility", 16]]
        source = ASTSource(function, signature, constants, multiples)
        made = triton.compile(
            source, target=self.target, options={"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion}
        )
        file = self.folder / f"{len(self.stack)}.cubin"
        file.write_bytes(made.asm["cubin"])
        said = subprocess.run(
            [TOOL, "--dump-resource-usage", file], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        name = f"{kernel} {tile} {arguments[0].dtype}"
        self.registers[name] = int(re.search(r"REG:(\d+)", said)[1])
        self.stack[name] = int(re.search(r"STACK:(\d+)", said)[1])


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    return instead_of_launching(ulsam_triton, monkeypatch, tmp_path)


def instead_of_launching(passes, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    made = Compiler(90, tmp_path, passes)
    monkeypatch.setattr(passes, "_kernel", made.kernel)
    monkeypatch.setattr(passes, "processors_and_cache", lambda _: (132, 50 * 2**20))
    return made


@pytest.mark.parametrize("dtype,memory_format", EVERY)
def test_no_kernel_lacks_registers(dtype, memory_format, compiler):
    x = torch.zeros(2, 512, 14, 14, dtype=dtype).contiguous(memory_format=memory_format)
    folded, maps, centre = torch.zeros(3 * 512 + 4), torch.zeros(2, 4, 14, 14), torch.zeros(512)
    ulsam_triton.fold([torch.zeros(512)] * 12, 4, 1e-5, 1e-5)
    many = torch.zeros(33, 512, 14, 14, dtype=dtype).contiguous(memory_format=memory_format)
    ulsam_triton.infer(many, folded, 4)  # a group in one program
    ulsam_triton.scores(x, folded, 4)
    ulsam_triton.reweight(x, maps)
    ulsam_triton.moments(x)
    ulsam_triton.map_gradient(x, x, 4)
    ulsam_triton.gradients(x, x, folded, maps, maps, centre)
    ulsam_triton.add_affine_(x, x, centre, centre)
    assert len({name.split()[0] for name in compiler.stack}) == 8
    assert max(compiler.stack.values()) <= STACK, compiler.stack
    assert max(compiler.registers.values()) <= REGISTERS, compiler.registers  # 128: two programs of 8 warps at a time


@pytest.mark.parametrize("dtype,memory_format", EVERY)
def test_no_kernel_of_the_gates_lacks_registers(dtype, memory_format, monkeypatch, tmp_path):
    compiler = instead_of_launching(gates_triton, monkeypatch, tmp_path)
    for shape in ((2, 512, 14, 14), (1, 64, 112, 112)):
        x = torch.zeros(shape, dtype=dtype).contiguous(memory_format=memory_format)
        channels, positions = torch.zeros(shape[:2], dtype=dtype), torch.zeros(shape[0], 1, *shape[2:], dtype=dtype)
        for scores in (None, positions):
            gates_triton.pool_positions(x, scores, True, True)
        for scores in (None, channels):
            gates_triton.pool_channels(x, scores)
        gates_triton.gate(x, channels, positions)
    assert {name.split()[0] for name in compiler.stack} == {"pool", "join", "gate"}
    assert max(compiler.stack.values()) == 0, compiler.stack
    assert max(compiler.registers.values()) <= 80, compiler.registers  # six programs of 4 warps at a time, at least
