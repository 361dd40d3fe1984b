"""Python's share of the attention core on a GPU, measured without a GPU: everything runs except the kernels.

    python -m benchmarks.launch_overhead

Triton gets a driver for a GPU that doesn't exist: it compiles and looks up its kernels, but launches nothing. Prints
microseconds of CPU time per call, the minimum over rounds of 40 calls.
"""

import argparse
import time

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from bert_convolutions.attention.composite import CompositeAttention
from bert_convolutions.attention.segments import Segments
from bert_convolutions.attention.spec import parse_kernel
from bert_convolutions.attention.triton.engine import attend_triton

CALLS = 40
KERNELS = ("dot_product", "qk_convfixed_convq_convk 8")


class NoDriver:
    """The parts of a driver that Triton uses, for sm_90."""

    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    launcher_cls = staticmethod(lambda source, metadata: lambda *given: None)

    class utils:  # noqa: N801
        """Device properties and binaries."""

        get_device_properties = staticmethod(lambda device: {"max_shared_mem": 2**20})
        load_binary = staticmethod(lambda *given: ("module", "function", 32, 0, 1024))


def measure(kernel: str, dropout: float, packed: bool, rounds: int) -> tuple[float, float]:
    """Microseconds of a forward pass, and of forward plus backward."""
    module = CompositeAttention(32, 2, parse_kernel(kernel)).train()
    segments = Segments.from_mask(torch.ones(1, 16)).with_spans() if packed else Segments()
    heads = [torch.randn(1, 16, 2, 16).bfloat16().transpose(1, 2).requires_grad_() for _ in range(3)]
    wanted = [*heads, *(parameter for name, parameter in module.named_parameters() if name.endswith("_param"))]

    def forward() -> Tensor:
        parts = module.score_parts(heads[0], heads[1], segments, torch.bfloat16)
        return attend_triton(parts, heads[2], dropout)[0]

    def step() -> None:
        context = forward()
        torch.autograd.grad(context, wanted, torch.ones_like(context))

    fastest = []
    for function in (forward, step):
        times = []
        for _ in range(rounds):
            start = time.process_time()
            for _ in range(CALLS):
                function()
            times.append((time.process_time() - start) / CALLS * 1e6)
        fastest.append(min(times))
    return fastest[0], fastest[1]


def main() -> None:
    """Measure all settings and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    driver.set_active(NoDriver())
    torch.set_num_threads(1)
    print(f"{'kernel':30} {'dropout':>8} {'packed':>7} {'forward':>8} {'and backward':>13}")
    for kernel in KERNELS:
        for dropout, packed in ((0.0, False), (0.1, True)):
            forward, step = measure(kernel, dropout, packed, options.rounds)
            print(f"{kernel:30} {dropout:8} {packed!s:>7} {forward:8.0f} {step:13.0f}")


if __name__ == "__main__":
    main()
