"""Data for every test: which backends run here, and one runner per op, backend and device.

A backend that cannot run here is a skip with its reason, unless MOELA_TEST_REQUIRE names it ("cpu,triton"):
then its absence is an error, so that a build that failed silently cannot pass.
"""

import ctypes
import json
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Threads of torch that wait for work would take the cores of other test processes (pytest -n). OpenMP reads
# it once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# As those of numpy do, which multiplies the small matrices of Triton's interpreter: a hundredth of the time.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# inductor compiles here, not in processes that each import torch first.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import torch

# Triton reads it once, when it is imported. Without a GPU its kernels run in the interpreter, on CPU tensors.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

sys.path.insert(0, str(Path(__file__).parent / "ops"))  # pytest's importlib mode adds no folder itself

import bad_inputs
import calls
import interpreter
import moela
from moela import backends, testing
from moela.ops import SPECS, OpSpec

GOLDEN = Path(__file__).parent / "golden"
SUBJECTS: dict[str, Callable[[OpSpec], bool]] = {
    "batch_run": lambda spec: bool(spec.batch_args),
    "sf_run": lambda spec: " sf" in spec.schema,
    "run": lambda spec: True,
    "op": lambda spec: True,
}
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


@dataclass(frozen=True)
class Runner:
    """One op on one backend and device."""

    spec: OpSpec
    backend: str
    device: str

    @property
    def is_slow(self) -> bool:
        """Triton's interpreter: about a thousand times slower, so it gets small sizes."""
        return self.backend == "triton" and self.device == "cpu"

    def inputs(self, **dims: Any) -> dict[str, Any]:
        return self.spec.make_inputs(**dims, device=self.device)

    def skip_beyond_limits(self, inputs: dict[str, Any]) -> None:
        """What the CUDA kernel does not take is no fault: the op gives it to another backend."""
        limits = self.spec.cuda_limits if self.backend == "cuda" else None
        try:
            self.spec.check(**inputs)
        except ValueError:
            return  # a bad input: the op has to say so
        if limits and (reason := limits(**inputs)):
            pytest.skip(f"cuda: {reason}")

    def public(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        return self._call(self.spec.public, inputs)

    def __call__(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        return self._call(self.spec.op, inputs)

    def _call(self, function: Callable, inputs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        self.skip_beyond_limits(inputs)
        with moela.use_backend(self.backend):
            return calls.results(self.spec, function, inputs)

    def out(self, inputs: dict[str, Any], outputs: dict[str, torch.Tensor]) -> None:
        """The _out variant, which takes its dtype from the tensor that it is given."""
        args = {k: v for k, v in inputs.items() if k != self.spec.dtype_arg}
        with moela.use_backend(self.backend):
            assert self.spec.out_op(**(args | outputs)) is None

    def accum(self, inputs: dict[str, Any]) -> float:
        """What the accumulator may lose: see moela.testing."""
        first = next(iter(inputs.values()))
        on_hopper = self.device == "cuda" and torch.cuda.get_device_capability() == (9, 0)
        is_fp8 = first.dtype == torch.float8_e4m3fn or bool(inputs.get("quantize_activations"))
        is_kernel = self.backend in ("cuda", "triton")
        return testing.HOPPER_FP8_SUM if on_hopper and is_kernel and is_fp8 else testing.FLOAT32_SUM


def devices_of(backend: str) -> tuple[str, ...]:
    """Where a backend is tested. Triton's interpreter is tested only where there is no GPU."""
    return {"reference": DEVICES, "cpu": ("cpu",), "cuda": ("cuda",), "triton": DEVICES[-1:]}[backend]


def pairs() -> list[str]:
    return [f"{backend}-{device}" for backend in backends.BACKENDS for device in devices_of(backend)]


def usable_or_skip(op: str, backend: str, device: str) -> None:
    has_device = device == "cpu" or torch.cuda.is_available()
    reason = backends.why_not(backend, op, device) if has_device else f"there is no {device} device"
    if reason is None:
        return
    if backend in os.environ.get("MOELA_TEST_REQUIRE", "").split(","):
        pytest.fail(f"MOELA_TEST_REQUIRE asks for {backend}, but {op} on {device}: {reason}", pytrace=False)
    pytest.skip(f"{backend}: {reason}")


def runner(op: str, pair: str) -> Runner:
    backend, device = pair.split("-")
    usable_or_skip(op, backend, device)
    found = Runner(SPECS[op], backend, device)
    if found.is_slow:
        interpreter.hasten()
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`run` is every op on every backend, `op` every op; in test_<op>.py they are that op only.

    `batch_run` and `sf_run` are `run` for the ops that promise batch invariance, and that take scale factors.
    With `case` each also runs with each of its spec's cases, with `bad` with each of its bad inputs.
    """
    names = metafunc.fixturenames
    subject = next((n for n in SUBJECTS if n in names), None)
    if subject is None:
        return
    mine = [op for op in SPECS if metafunc.module.__name__.endswith(f"test_{op}")]
    ops = [op for op in mine or SPECS if SUBJECTS[subject](SPECS[op])]
    extra = next((n for n in ("case", "bad") if n in names), None)
    params = []
    for op in ops:
        for pair in [None] if subject == "op" else pairs():
            value, prefix = ((op, pair), f"{op}-{pair}") if pair else (op, op)
            if extra is None:
                params.append(pytest.param(value, id=prefix))
            elif extra == "case":
                params += [pytest.param(value, c, id=f"{prefix}-{case_id(c)}") for c in SPECS[op].cases]
            else:
                params += [pytest.param(value, b, id=f"{prefix}-{b.id}") for b in bad_inputs.BAD[op]]
    metafunc.parametrize(
        [subject, extra] if extra else subject, params, indirect=[subject] if subject != "op" else []
    )


def case_id(dims: dict[str, Any]) -> str:
    return "-".join(f"{k}={str(v).removeprefix('torch.')}" for k, v in dims.items())


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Runner:
    return runner(*request.param)


batch_run = sf_run = run


@pytest.fixture
def make_runner() -> Callable[[str, str], Runner]:
    """For a test of one op that needs another: (op, "<backend>-<device>") -> Runner."""
    return runner


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[], Any]], Any]:
    """(name, make) -> what make() gives, as JSON: one process of the run makes it, the others wait for it."""
    import fcntl  # Windows has none

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of the run; each process has one inside

    def get(name: str, make: Callable[[], Any]) -> Any:
        made = folder / f"{name}.json"
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                made.write_text(json.dumps(make()))
        return json.loads(made.read_text())

    return get


@pytest.fixture(scope="session")
def golden_fp8() -> dict[str, Any]:
    return json.loads((GOLDEN / "fp8.json").read_text())


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny models under the names that README and the guide load."""
    transformers = pytest.importorskip("transformers")
    sys.path.insert(0, str(Path(__file__).parent / "transformers"))
    import fp8_checkpoints

    folder = tmp_path_factory.mktemp("checkpoints")
    small = {"vocab_size": 64, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    small |= {"num_key_value_heads": 4, "moe_intermediate_size": 128, "intermediate_size": 128}
    qwen = transformers.Qwen3MoeConfig(**small, num_experts=8, num_experts_per_tok=2, head_dim=32)
    transformers.AutoModelForCausalLM.from_config(qwen).bfloat16().save_pretrained(folder / "Qwen3-30B-A3B")
    fp8_checkpoints.write(folder / "DeepSeek-V3")
    return folder


@pytest.fixture
def tiny_checkpoints(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """That folder, as the working directory of a snippet that may enable_cpu_fp8."""
    monkeypatch.chdir(tiny_models)
    yield tiny_models
    moela.disable_cpu_fp8()


@pytest.fixture(scope="session")
def guarded() -> Callable[[torch.Tensor, bool], torch.Tensor]:
    """(tensor, at_end) -> the same values on pages of their own, between two that cannot be accessed.

    The tensor ends (or begins) directly at such a page: one byte too many ends the process. The pages are not
    given back, so that a failing test can still print its tensors.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    page = mmap.PAGESIZE

    def place(t: torch.Tensor, at_end: bool) -> torch.Tensor:
        size = t.numel() * t.element_size()
        if size == 0:
            return t
        pages = -(-size // page) * page
        prot, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        first = libc.mmap(None, pages + 2 * page, prot, flags, -1, 0)
        assert libc.mprotect(first, page, 0) == 0
        assert libc.mprotect(first + page + pages, page, 0) == 0
        start = first + page + (pages - size if at_end else 0)
        placed = torch.frombuffer((ctypes.c_uint8 * size).from_address(start), dtype=torch.uint8)
        return placed.copy_(t.contiguous().view(-1).view(torch.uint8)).view(t.dtype).view(t.shape)

    return place
