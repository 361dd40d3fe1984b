"""Triton kernels compiled ahead of time, without a GPU: they fit in the registers and the shared memory of one.

``python tests/attention/test_triton_compiled.py 90 63`` prints the figures for sm_90 and a reach of 63, the largest.
There, six kernels in float32 spill registers, up to 19 kB: they work, but slowly.
"""

import json
import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("triton")

SHARED_MEMORY = 99 * 1024  # bytes per block of 8.6, 8.9 and 12.0 (RTX 30 to 50, A10, L4); 8.0 and 9.0 have more
REGISTERS = 255  # per thread
COMBINATIONS = (2 * 2 + 1) * 8  # element and head sizes, and rows of whole tiles; launches of 7 kernels
SPILLED = 192  # bytes, by Triton 3.7; on an H200, three programs that spill so much are faster than two without


@pytest.mark.parametrize("architecture", [80, 90])
def test_every_shipped_kernel_fits_the_device(architecture):
    """Every kernel with every tile, and with all that takes registers: terms, segments and dropout."""
    kernels = run_this_file_without_interpreter(str(architecture), "8")
    assert len(kernels) == COMBINATIONS
    for kernel in kernels:
        assert kernel["spilled"] <= (SPILLED if kernel["limited"] else 0), kernel
        assert kernel["registers"] <= REGISTERS, kernel
        assert kernel["shared"] <= SHARED_MEMORY, kernel


def test_a_second_launch_passes_what_triton_passed_in_the_first():
    """``launch`` calls the compiled kernel itself from the second time on, and compiles again where it has to."""
    first, second, other_type, unaligned, other_variant = run_this_file_without_interpreter("launches")
    assert first == second
    assert first["compiled"] == 1 and second["compiled"] == 1
    assert [each["compiled"] for each in (other_type, unaligned, other_variant)] == [2, 3, 4]


def run_this_file_without_interpreter(*arguments):
    """The JSON objects, one per line, that this file prints when it is run as a script."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["BERT_CONVOLUTIONS_LAZY"] = "1"
    result = subprocess.run([sys.executable, __file__, *arguments], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def use_driver(architecture, launched):
    """Give Triton a stand-in for a GPU's driver, which calls ``launched`` with the kernel's source and arguments."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Launcher:
        def __init__(self, source, metadata):
            self.source = source

        def __call__(self, *given):
            launched(self.source, *given)

    class Utilities:
        get_device_properties = staticmethod(lambda device: {"max_shared_mem": 2**20})
        load_binary = staticmethod(lambda *given: ("module", "function", 32, 0, 1024))

    class Driver:
        launcher_cls, utils = Launcher, Utilities()
        get_current_target = staticmethod(lambda: GPUTarget("cuda", architecture, 32))
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)

    driver.set_active(Driver())


def record_launches():
    """Launch a kernel five times, and print what the driver was given."""
    import torch

    from bert_convolutions.attention.triton import band
    from bert_convolutions.attention.triton.launch import launch

    calls, compiled = [], []

    def record(source, *given):
        if not any(source is each for each in compiled):
            compiled.append(source)
        grid, arguments = given[:3], given[9:]
        shown = [list(each.shape) if isinstance(each, torch.Tensor) else each for each in arguments]
        calls.append({"grid": grid, "arguments": shown, "compiled": len(compiled)})

    use_driver(90, record)
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


def compile_ahead(architecture, reach, sizes):
    """Compile all kernels as ``engine`` launches them, with a stand-in for a driver, and yield what ptxas says of each.

    ``sizes`` are bytes per element, head size and S.
    """
    import torch
    from triton.backends.nvidia.compiler import get_ptxas

    from bert_convolutions.attention.triton import engine, launch

    use_driver(architecture, lambda *given: None)
    for size, head_size, length in sizes:
        launch._COMPILED.clear()
        dtype = {4: torch.float32, 2: torch.bfloat16}[size]
        value, weights = torch.zeros(1, length, 1, head_size, dtype=dtype), torch.zeros(head_size, 2 * reach + 1)
        examples, seed = torch.zeros(3, 1, length, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
        terms = weights, weights, torch.zeros(1, 2 * reach + 1)
        inputs = engine.Inputs(value, value, value, *terms, examples, seed, True, 0.1, 1.0)
        engine.backward(inputs, engine.forward(inputs), value)
        for compiled, _ in launch._COMPILED.values():
            ptx = compiled.asm["ptx"]
            target = re.search(r"\.target (\w+)", ptx)[1]
            command = [get_ptxas(architecture).path, "-v", f"-arch={target}", "-o", os.devnull, "/dev/stdin"]
            said = subprocess.run(command, input=ptx, capture_output=True, text=True, check=True).stderr
            yield {
                "kernel": compiled.metadata.name,
                "element": size,
                "head": head_size,
                "limited": (compiled.metadata.maxnreg or REGISTERS) < REGISTERS,
                "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", said))),
                "registers": int(re.search(r"Used (\d+) registers", said)[1]),
                "shared": compiled.metadata.shared,
            }


def main():
    """Print what ptxas says of all kernels for an architecture and a reach, or record launches."""
    if sys.argv[1] == "launches":
        return record_launches()
    from bert_convolutions.attention.triton.launch import TILES

    for kernel in compile_ahead(int(sys.argv[1]), int(sys.argv[2]), [*((*each, 500) for each in TILES), (2, 64, 512)]):
        print(json.dumps(kernel), flush=True)


if __name__ == "__main__":
    main()
