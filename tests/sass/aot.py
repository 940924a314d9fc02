"""Compile what every Triton launch() launches on a target, without a GPU; print facts of the code as JSON.

    python tests/sass/aot.py sm_90 [sample TYPE ... | VARIANT ...]

A process of its own, because Triton reads TRITON_INTERPRET once. launch() runs with tensors in host memory
and a driver that only names the target; a hook takes the signature, the constants and the alignments that
Triton derived from the arguments and stops the launch. So what is compiled is what would run, not a copy of
it kept here.
"""

import json
import os
import sys
import time
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import launches
import launches_attention
import launches_ep
import machine_code
import triton
from launches import Launch
from moela.kernels import _fp8
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

VARIANTS = launches.VARIANTS | launches_attention.VARIANTS | launches_ep.VARIANTS


def gpu_target(name: str) -> GPUTarget:
    return GPUTarget("cuda", int(name[3:]), 32) if name.startswith("sm_") else GPUTarget("hip", name, 64)


def moela_target(name: str) -> _fp8.Target:
    return _fp8.cuda_target(int(name[3:]), 100) if name.startswith("sm_") else _fp8.hip_target(name, 100)


class NoDevice:
    """What a launch asks of Triton's driver before it compiles."""

    def __init__(self, target: GPUTarget):
        self.target = target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


def what_is_launched(launch: Launch) -> dict[str, dict[str, Any]]:
    """The arguments of triton.compile for the kernels that `launch` launches, by their names."""
    seen = {}

    def hook(*, fn, compile, **_):
        source = ASTSource(fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0])
        options = {k: compile[k] for k in ("num_warps", "num_ctas", "num_stages", "enable_fp_fusion")}
        name = fn.jit_function.__name__.strip("_").removesuffix("_kernel")
        seen[name] = {"src": source, "options": options}
        return True  # stop here

    knobs.runtime.jit_cache_hook = hook
    function, args, kwargs = launch
    function(*args, **kwargs)
    return seen


def facts(compilation: dict[str, Any], kernel: CompiledKernel) -> dict[str, Any]:
    """Without those of NVIDIA's machine code."""
    result = {
        "num_warps": kernel.metadata.num_warps,
        "num_stages": compilation["options"]["num_stages"],
        "shared": kernel.metadata.shared,
        "uses_descriptors": any(
            str(t).startswith("tensordesc") for t in compilation["src"].signature.values()
        ),
    }
    if "amdgcn" in kernel.asm:
        return result | machine_code.of_amdgcn(kernel.asm["amdgcn"])
    return result | {"ptx": machine_code.opcodes_of_assembly(kernel.asm["ptx"])}


def sample(types: tuple[str, ...]) -> list[str]:
    """Of each op the first variant of each of the types; of an op that has none of them, its first."""
    of_op: dict[str, dict[str, str]] = {}
    for variant in VARIANTS:
        op, kind, *_ = variant.split("-")
        of_op.setdefault(op, {}).setdefault(kind, variant)
    return [
        variant
        for first in of_op.values()
        for variant in [first[t] for t in types if t in first] or list(first.values())[:1]
    ]


def main(name: str, *only: str) -> None:
    only = sample(only[1:]) if only[:1] == ("sample",) else only
    target = gpu_target(name)
    triton.runtime.driver.set_active(NoDevice(target))
    _fp8.target_of = lambda device: moela_target(name)
    result, cubins = {}, {}
    for variant, make in VARIANTS.items():
        if only and variant not in only:
            continue
        try:
            kernels = what_is_launched(make())
            for kernel, compilation in kernels.items():
                label = variant if len(kernels) == 1 else f"{variant}-{kernel}"
                started = time.perf_counter()
                compiled = triton.compile(target=target, **compilation)
                seconds = round(time.perf_counter() - started, 2)
                result[label] = facts(compilation, compiled) | {"seconds": seconds}
                if target.backend == "cuda":
                    cubins[label] = compiled.asm["cubin"]
        except Exception as error:
            result[variant] = {"error": f"{type(error).__name__}: {error}"[-2000:]}
    if cubins:
        for label, found in zip(cubins, machine_code.of_cubins(cubins.values(), name), strict=True):
            result[label] |= found
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
