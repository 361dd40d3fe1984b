"""Triton's kernels compiled ahead for GPUs that are not there: they fit into their registers and shared memory."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # bytes that a block can have, by CUDA's programming guide
REGISTERS = 255  # that a thread can have
COMBINATIONS = 2 * 2 * 3 + 3  # of element size, head size and kernel; and of rows that are whole numbers of tiles
SPILLED = 192  # bytes: on an H200, three programs on a multiprocessor with as few were faster than two with none


@pytest.mark.parametrize("architecture", SHARED_MEMORY)
def test_every_shipped_kernel_fits_the_device(architecture):
    """Of all kernels and tiles, with all that takes registers: terms, segments and dropout."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, __file__, str(architecture)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    kernels = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(kernels) == COMBINATIONS
    for kernel in kernels:
        assert kernel["spilled"] <= (SPILLED if kernel["limited"] else 0), kernel
        assert kernel["registers"] <= REGISTERS, kernel
        assert kernel["shared"] <= SHARED_MEMORY[architecture], kernel


def compile_ahead(kernel, which, dtype, head_size, architecture, whole):
    """Compile a kernel as ``engine`` launches it, and read what ptxas says of it."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from bert_convolutions.attention.triton import engine
    from bert_convolutions.attention.triton.band import BandShape

    shape, terms = BandShape(rows=1, heads=1, length=512, reach=8), engine.Terms(True, True, True, True)
    constants = engine.kernel_constants(which, dtype, head_size, shape, terms, segments=True, dropout=True)
    constants["WHOLE"] = whole
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages", "maxnreg")}
    types = {"examples": "*i32", "seeds": "*i64", "scaling": "fp32", "rescale": "fp32"}
    types |= dict.fromkeys(("rows", "heads", "length", "band_size", "threshold"), "i32")
    types |= dict.fromkeys(("ends", "log_sum_exp", "by_row"), "*fp32")
    others = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}[dtype]
    signature = {name: "constexpr" if name in constants else types.get(name, others) for name in kernel.arg_names}
    pointers = [(index,) for index, name in enumerate(kernel.arg_names) if signature[name].startswith("*")]
    source = ASTSource(
        kernel,
        signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={argument: [["tt.divisibility", 16]] for argument in [*pointers, (kernel.arg_names.index("band_size"),)]},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    target = re.search(r"\.target (\w+)", compiled.asm["ptx"])[1]
    command = [assembler, "-v", f"-arch={target}", "-o", os.devnull, "/dev/stdin"]
    said = subprocess.run(command, input=compiled.asm["ptx"], capture_output=True, text=True, check=True).stderr
    spilled = re.findall(r"(\d+) bytes spill", said)
    registers = re.search(r"Used (\d+) registers", said)[1]
    return {
        "kernel": kernel.__name__,
        "element": dtype.itemsize,
        "head": head_size,
        "limited": options["maxnreg"] < REGISTERS,
        "spilled": sum(map(int, spilled)),
        "registers": int(registers),
        "shared": compiled.metadata.shared,
    }


def main():
    """Compile all, for the architecture on the command line."""
    import torch

    from bert_convolutions.attention.triton import kernels, tiling

    dtypes = {4: torch.float32, 2: torch.bfloat16}
    for size, head_size in tiling.TILES:
        for which, kernel in enumerate((kernels.forward, kernels.backward_query, kernels.backward_key)):
            for whole in (True, False) if (size, head_size) == (2, 64) else (False,):
                compiled = compile_ahead(kernel, which, dtypes[size], head_size, int(sys.argv[1]), whole)
                print(json.dumps(compiled), flush=True)


if __name__ == "__main__":
    main()
