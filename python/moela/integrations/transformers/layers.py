"""What of a model moela can take over, and what not and why: found, not changed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from transformers.integrations import moe

from moela.integrations.transformers import fp8
from moela.integrations.transformers.experts import experts_forward, fp8_experts_forward, uses_one_op
from moela.integrations.transformers.linear import fp8_linear_forward
from moela.integrations.transformers.mla_trial import find_mla
from moela.integrations.transformers.routers import find_router
from moela.integrations.transformers.takeover import Takeover, forward_slot, why_not

try:
    from transformers.integrations.finegrained_fp8 import FP8Experts, FP8Linear
except ImportError:  # until 5.6 it needs Triton; FP8 models do not load there either
    FP8Experts = FP8Linear = ()

STEPS = ("grouped_gemm", "moe_permute", "moe_unpermute")
FP8_STEPS = ("grouped_fp8_gemm", "moe_permute", "moe_unpermute")


@dataclass(frozen=True)
class Layer:
    """A layer of a kind that moela knows. `takeover`: how; or why not, as a sentence."""

    name: str
    kind: str
    module: nn.Module
    takeover: Takeover | str


def is_ours(module: nn.Module) -> bool:
    """Whether the class itself runs on moela, as those of a model loaded under `enable_cpu_fp8` do."""
    return type(module).forward.__module__.startswith("moela.")


def find(model: nn.Module) -> Iterator[Layer]:
    """The layers of `model`, in the order of its modules."""
    for name, module in model.named_modules():
        if type(module).__module__.startswith("moela.nn"):
            continue  # nothing to do
        if kind := _kind(name, module):
            yield Layer(name, kind, module, _FIND[kind](module))
        yield from _router(name, module)


def _kind(name: str, module: nn.Module) -> str | None:
    if "kv_b_proj" in module._modules:
        return "mla"
    if isinstance(module, nn.Linear):
        return "linear"
    is_stack = isinstance(w := getattr(module, "down_proj", None), Tensor) and w.dim() == 3
    is_list = isinstance(module, nn.ModuleList) and name.rpartition(".")[2] == "experts"
    return "experts" if is_stack or is_list else None


def _experts(module: nn.Module) -> Takeover | str:
    if isinstance(module, nn.ModuleList):
        return "a list of modules: moela needs their weights in one tensor"
    is_fp8 = isinstance(module, FP8Experts) and fp8.is_quantized(module.down_proj)
    function = fp8_experts_forward if is_fp8 else experts_forward
    if not is_ours(module):
        # A class under use_experts_implementation has that module's forward; a subclass may have its own.
        if getattr(type(module).forward, "__globals__", None) is not vars(moe):
            return "its class does not use transformers' experts interface"
        if is_fp8 and (reason := fp8.why_not(module, module.down_proj)):
            return reason
    ops = ("fused_experts",) if uses_one_op(module) else FP8_STEPS if is_fp8 else STEPS
    return _forward(module, function, ops, module.down_proj)


def _linear(module: nn.Module) -> Takeover | str:
    if not isinstance(module, FP8Linear) or not fp8.is_quantized(module.weight):
        return "not FP8: left to torch"
    if not is_ours(module):
        if type(module).forward is not FP8Linear.forward:
            return "its forward is not that of FP8Linear"
        if reason := fp8.why_not(module, module.weight):
            return reason
    return _forward(module, fp8_linear_forward, ("fp8_gemm",), module.weight)


_FIND = {"experts": _experts, "linear": _linear, "mla": find_mla}


def _forward(
    module: nn.Module, function: Callable[..., Tensor], ops: tuple[str, ...], weight: Tensor
) -> Takeover | str:
    slot = forward_slot(module)
    function = type(module).forward if is_ours(module) else function
    return why_not(module, slot) or Takeover(module, slot, function, ops, weight.device)


def _router(name: str, block: nn.Module) -> Iterator[Layer]:
    """The router of a block: the module beside the experts that every model calls gate or router."""
    child = next((c for c in ("gate", "router") if block._modules.get(c)), None)
    if child and "experts" in block._modules:
        router = block._modules[child]
        yield Layer(f"{name}.{child}".lstrip("."), "router", router, find_router(router, block))
