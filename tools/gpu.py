"""All that a machine with a Hopper GPU has to say, in one command and nine minutes: `make gpu`.

Builds, runs conformance, the tests on CUDA and Triton, compute-sanitizer and the benchmarks, in the order of
what matters most. Needs no network. A step that fails or runs out of time does not stop the next one, and
what there is when the whole is cut off stays: a log per step, summary.json after each, the dumps and the
results of the bench.

    python3 tools/gpu.py out/gpu
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SECONDS = 540  # of all steps together
PYTEST = "python3 -m pytest -q -p no:cacheprovider"
PIP = "python3 -m pip install -q"
NVCC = "nvcc -std=c++20 -O3 -gencode arch=compute_90a,code=sm_90a -I csrc"


@dataclass(frozen=True)
class Step:
    name: str
    command: str  # for bash, in the root of the checkout; {out} is the folder of the results
    seconds: int  # at most


STEPS = (
    Step(
        "machine",
        "nvidia-smi; nvidia-smi --query-gpu=name,driver_version --format=csv > {out}/device.csv; lscpu; "
        "nvcc --version; python3 -c 'import torch, triton; print(torch.__version__, triton.__version__)'",
        30,
    ),
    # The primitives first: if they are not what the emulator says, nothing after them means much.
    Step("conform-build", f"mkdir -p build && {NVCC} -x cu tests/conform/conform.cpp -o build/conform", 90),
    Step(
        "conform",
        "python3 tests/conform/judge.py prepare {out}/conform && build/conform {out}/conform && "
        "cp {out}/device.csv {out}/conform/ && python3 tests/conform/judge.py check {out}/conform",
        60,
    ),
    Step("build", f"MOELA_CUDA=ON {PIP} --no-index --no-build-isolation --no-deps -e .", 150),
    Step("info", "moela info", 30),
    Step("tests-cuda", f"MOELA_TEST_REQUIRE=cuda {PYTEST} tests/ops -k cuda-cuda", 120),
    Step("tests-triton", f"MOELA_TEST_REQUIRE=triton {PYTEST} tests/ops -k triton-cuda", 150),
    # Virtual ranks wait for each other in kernels: none may be loaded while another runs.
    Step(
        "tests-ep",
        f"CUDA_MODULE_LOADING=EAGER MOELA_TEST_REQUIRE=cuda {PYTEST} tests/ep/test_on_gpu.py",
        90,
    ),
    Step(
        "memcheck",
        f"compute-sanitizer --tool memcheck --error-exitcode 1 {PYTEST} tests/ops/test_fp8_gemm.py "
        "tests/ops/test_grouped_fp8_gemm.py tests/ops/test_grouped_fp8_gemm_masked.py "
        "tests/ops/test_per_token_group_quant_fp8.py tests/ops/test_silu_and_mul_quant_fp8.py "
        "-k 'cuda-cuda and any'",
        60,
    ),
    Step(
        "memcheck-mla",
        f"compute-sanitizer --tool memcheck --error-exitcode 1 {PYTEST} tests/ops/test_mla_decode_on_gpu.py "
        "tests/ops/test_mla_schedule.py tests/ops/test_mla_sparse_on_gpu.py -k 'cuda-cuda and not graph'",
        60,
    ),
    Step(
        "bench",
        "moela bench fp8_gemm --model deepseek-v3 --tokens 1,16,64,256,1024,4096 --activations e4m3 "
        "--backends cuda,triton --json {out}/fp8_gemm.json",
        180,
    ),
    Step(
        "bench-ep",
        "CUDA_MODULE_LOADING=EAGER moela bench ep --device cuda:0 --transport local --ranks 4 "
        "--tokens 128,4096 --json {out}/ep.json",
        45,
    ),
    *(
        Step(
            f"bench-{op}",
            f"moela bench {op} --model deepseek-v3 --tokens 16,256,4096 --routing balanced,zipf "
            f"--activations e4m3 --backends cuda,triton --json {{out}}/{op}.json",
            90,
        )
        for op in ("grouped_fp8_gemm", "grouped_fp8_gemm_masked")
    ),
    *(
        Step(
            f"bench-{op}",
            f"moela bench {op} --model deepseek-v3 --backends cuda,triton --json {{out}}/{op}.json",
            60,
        )
        for op in ("per_token_group_quant_fp8", "silu_and_mul_quant_fp8")
    ),
    Step(
        "bench-mla_decode",
        "moela bench mla_decode --model deepseek-v3 --tokens 1024,8192 "
        "--backends cuda,triton --json {out}/mla_decode.json",
        60,
    ),
    Step(
        "bench-mla_schedule",
        "moela bench mla_schedule --model deepseek-v3 --tokens 1,128,1024 --backends cuda,triton "
        "--json {out}/mla_schedule.json",
        30,
    ),
    Step(
        "bench-mla_sparse",
        "moela bench mla_sparse --model deepseek-v3 --tokens 8192,131072 --backends cuda,triton "
        "--json {out}/mla_sparse.json",
        60,
    ),
)


@dataclass
class Outcome:
    name: str
    state: str  # passed, failed, out of time, not reached
    seconds: float = 0.0


def run(step: Step, out: Path, seconds: float) -> Outcome:
    """One step, its output in <name>.log. What it started ends with it."""
    start = time.monotonic()
    with (out / f"{step.name}.log").open("w") as log:
        command = ["timeout", "--kill-after=5", str(seconds), "bash", "-c", step.command.format(out=out)]
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    state = "passed" if code == 0 else "out of time" if code in (124, 137) else "failed"
    return Outcome(step.name, state, round(time.monotonic() - start, 1))


def run_all(steps: Sequence[Step], out: Path, seconds: float) -> list[Outcome]:
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    outcomes = [Outcome(step.name, "not reached") for step in steps]
    for i, step in enumerate(steps):
        left = end - time.monotonic()
        if left > 1:
            outcomes[i] = run(step, out, min(step.seconds, left))
        print(f"{outcomes[i].state:<12} {outcomes[i].seconds:6.1f} s  {step.name}", flush=True)
        (out / "summary.json").write_text(json.dumps([asdict(o) for o in outcomes], indent=1))
    return outcomes


def main(out: str) -> int:
    outcomes = run_all(STEPS, Path(out).resolve(), SECONDS)
    return 0 if all(o.state == "passed" for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
