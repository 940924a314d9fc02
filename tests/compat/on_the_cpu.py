"""A plugin of pytest that runs other projects' tests, written for a GPU, on the CPU.

Tensors that a test asks for on a CUDA device are made on the CPU. FlashMLA's files are scripts, whose main()
calls one function per TestParam: here each TestParam is a test.
"""

import dataclasses
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

FLASH_MLA = "test_flash_mla"  # the function in each of its files


def is_cuda(value: Any) -> bool:
    return isinstance(value, (str, torch.device)) and str(value).startswith("cuda")


class OnTheCpu(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.Tensor.cuda:
            return args[0]
        if function is torch.Tensor.to:  # a number is a GPU too
            args = (args[0], *("cpu" if is_cuda(a) or type(a) is int else a for a in args[1:]))
        if is_cuda(kwargs.get("device")):
            kwargs = kwargs | {"device": "cpu"}
        return function(*args, **kwargs)


def without_a_gpu(patch: pytest.MonkeyPatch) -> None:
    for name in ("synchronize", "set_device", "manual_seed", "empty_cache"):
        patch.setattr(torch.cuda, name, lambda *_: None)
    patch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    patch.setattr(torch, "set_default_device", lambda *_: None)


def cases_of(module: types.ModuleType) -> list[Any]:
    """The TestParams of a file, less those that only measure."""
    if hasattr(module, "gen_testcase"):
        cases = [case.to_test_param() for case in module.gen_testcase()]
        return [case for case in cases if case.num_runs == 0]
    cases = []
    with pytest.MonkeyPatch.context() as patch:
        without_a_gpu(patch)
        patch.setattr(module, FLASH_MLA, cases.append)
        patch.setattr(torch, "set_default_dtype", lambda *_: None)
        module.main(torch.bfloat16)
    return [case for case in cases if not case.test_performance]


def name_of(case: Any) -> str:
    values = ((f.name, getattr(case, f.name)) for f in dataclasses.fields(case))
    return "-".join(name_of(v) if dataclasses.is_dataclass(v) else f"{name}{v}" for name, v in values)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.function.__name__ == FLASH_MLA:
        cases = cases_of(metafunc.module)
        metafunc.parametrize(metafunc.fixturenames[-1], cases, ids=map(name_of, cases))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Some of FlashMLA's tests return whether the result was right."""
    if pyfuncitem.originalname != FLASH_MLA:
        return None
    result = pyfuncitem.obj(pyfuncitem.callspec.params[pyfuncitem.fixturenames[-1]])
    assert result is None or result.is_correct
    return True


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    without_a_gpu(monkeypatch)
    before = torch.get_default_dtype()
    if request.function.__name__ == FLASH_MLA:
        torch.set_default_dtype(torch.bfloat16)
    with OnTheCpu():
        yield
    torch.set_default_dtype(before)
