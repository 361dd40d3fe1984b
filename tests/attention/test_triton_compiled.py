"""Triton kernels compiled ahead of time, without a GPU: they fit in the registers and the shared memory of one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # bytes per block, by CUDA's programming guide
REGISTERS = 255  # per thread
COMBINATIONS = 2 * 2 * 3 + 3  # element sizes, head sizes and kernels; and kernels for rows of whole tiles
SPILLED = 192  # bytes; on an H200, three programs a multiprocessor that spill so much are faster than two without


@pytest.mark.parametrize("architecture", SHARED_MEMORY)
def test_every_shipped_kernel_fits_the_device(architecture):
    """Every kernel with every tile, and with all that takes registers: terms, segments and dropout."""
    kernels = run_this_file_without_interpreter(str(architecture))
    assert len(kernels) == COMBINATIONS
    for kernel in kernels:
        assert kernel["spilled"] <= (SPILLED if kernel["limited"] else 0), kernel
        assert kernel["registers"] <= REGISTERS, kernel
        assert kernel["shared"] <= SHARED_MEMORY[architecture], kernel


def test_a_second_launch_passes_what_triton_passed_in_the_first():
    """``launch`` calls the compiled kernel itself from the second time on, and compiles again where it has to."""
    first, second, other_type, unaligned, other_variant = run_this_file_without_interpreter("launches")
    assert first == second
    assert first["compiled"] == 1 and second["compiled"] == 1
    assert [each["compiled"] for each in (other_type, unaligned, other_variant)] == [2, 3, 4]


def run_this_file_without_interpreter(what):
    """The JSON objects, one per line, that this file prints when it is run as a script."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["BERT_CONVOLUTIONS_LAZY"] = "1"
    result = subprocess.run([sys.executable, __file__, what], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def record_launches():
    """Launch a kernel five times with a stand-in for a GPU's driver, and print what the driver was given."""
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    from bert_convolutions.attention.triton import band
    from bert_convolutions.attention.triton.launch import launch

    calls, compiled = [], []

    class Launcher:
        def __init__(self, source, metadata):
            compiled.append(source)

        def __call__(self, *given):
            grid, arguments = given[:3], given[9:]
            shown = [list(each.shape) if isinstance(each, torch.Tensor) else each for each in arguments]
            calls.append({"grid": grid, "arguments": shown, "compiled": len(compiled)})

    class Utilities:
        get_device_properties = staticmethod(lambda device: {"max_shared_mem": 2**20})
        load_binary = staticmethod(lambda *given: ("module", "function", 32, 0, 1024))

    class Driver:
        launcher_cls, utils = Launcher, Utilities()
        get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)

    driver.set_active(Driver())
    by_weights, parts = torch.zeros(1, 64, 8), torch.zeros(1, 1, 17, 5)
    constants = {"HEAD_SIZE": 16, "REACH": 2, "G": 8, "DYNAMIC": True, "FIXED": True, "PRECISION": "ieee"}
    constants |= {"BLOCK_D": 16, "BLOCK_G": 16, "TILE": 16}
    plain, half, shifted = torch.zeros(1024), torch.zeros(1024, dtype=torch.bfloat16), torch.zeros(1025)[1:]
    for projection, variant in ((plain, 0), (plain, 0), (half, 0), (shifted, 0), (plain, 1)):
        by_type = by_weights.to(projection.dtype)
        launch(
            *(band.kernel_gradient, (1, 1), (projection, by_type, parts), (64, 1, 64, 0.5), (variant,)),
            lambda changed=variant: constants | {"TILE": 32 if changed else 16},
        )
    for call in calls:
        print(json.dumps(call))


def compile_ahead(kernel, which, dtype, head_size, architecture, whole):
    """Compile a kernel as ``engine`` launches it, and read what ptxas says of it."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from bert_convolutions.attention.triton import engine
    from bert_convolutions.attention.triton.launch import choose_tiles

    value, weights = torch.empty(1, 512, 1, head_size, dtype=dtype), torch.empty(head_size, 17)
    inputs = engine.Inputs(value, value, value, weights, weights, weights, value, value, True, 0.1, 1.0)
    constants = engine.attention_constants(inputs, choose_tiles(dtype, head_size)[which], whole)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages", "maxnreg")}
    types = {"examples": "*i32", "seeds": "*i64", "scaling": "fp32", "rescale": "fp32"}
    types |= dict.fromkeys(("rows", "heads", "length", "band_size", "threshold"), "i32")
    types |= dict.fromkeys(("ends", "log_sum_exp", "row_statistics"), "*fp32")
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
    """Compile all, for the architecture on the command line, or record launches."""
    if sys.argv[1] == "launches":
        return record_launches()

    import torch

    from bert_convolutions.attention.triton import kernels, launch

    dtypes = {4: torch.float32, 2: torch.bfloat16}
    for size, head_size in launch.TILES:
        for which, kernel in enumerate((kernels.forward, kernels.backward_query, kernels.backward_key)):
            for whole in (True, False) if (size, head_size) == (2, 64) else (False,):
                compiled = compile_ahead(kernel, which, dtypes[size], head_size, int(sys.argv[1]), whole)
                print(json.dumps(compiled), flush=True)


if __name__ == "__main__":
    main()
