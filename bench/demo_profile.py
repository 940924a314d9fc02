"""Where the time of a model goes, by what its modules are for, beside the least that the machine allows."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from moela.bench.demo_race import step
from moela.bench.roofline import Roofline
from moela.bench.timer import clock_for
from torch import Tensor, nn

# By the qualified name of a module, the first that fits.
_PARTS = (
    (r"\.mlp\.experts$", "routed experts"),
    (r"\.mlp\.shared_experts\b", "shared expert"),
    (r"\.mlp\.gate$", "router"),
    (r"\.mlp\b", "dense MLP"),
    (r"\.kv_b_proj$", "kv_b_proj"),
    (r"\.self_attn\..*_proj", "other projections of attention"),
    (r"\.self_attn$", "attention itself"),
    (r"^lm_head$", "lm_head"),
)
ABSORBED = "attention itself, kv_b_proj absorbed"
REST = "rest: norms, residuals, Python"


@dataclass
class Part:
    """Of one call of the model: seconds in modules of this part, and what its products read and compute."""

    name: str
    seconds: float = 0.0
    bytes: int = 0
    flops: int = 0

    def floor(self, roofline: Roofline) -> float:
        """Seconds."""
        return roofline.time_floor(self.flops, self.bytes)


def part_of(name: str) -> str:
    """The part that a module belongs to, by its qualified name."""
    return next((part for pattern, part in _PARTS if re.search(pattern, name)), REST)


def profile_prefill(net: nn.Module, prompt: Tensor, repeats: int) -> list[Part]:
    return _profile(net, lambda: net(prompt, use_cache=True), repeats)


@torch.inference_mode()
def profile_decode(net: nn.Module, prompt: Tensor, repeats: int) -> list[Part]:
    """Of a patched model: nobody calls its kv_b_proj for one token."""
    out = net(prompt, use_cache=True)
    return _profile(net, lambda: step(net, prompt[:, -1:], out), repeats, is_absorbed=True)


@torch.inference_mode()
def _profile(
    net: nn.Module, call: Callable[[], object], repeats: int, is_absorbed: bool = False
) -> list[Part]:
    """Medians over calls; the longest part first."""
    samples: dict[str, list[Part]] = {}
    for _ in range(repeats):
        with _parts(net, is_absorbed) as parts:
            call()
        for part in parts.values():
            samples.setdefault(part.name, []).append(part)
    found = [
        Part(name, median(p.seconds for p in parts), parts[-1].bytes, parts[-1].flops)
        for name, parts in samples.items()
    ]
    return sorted(found, key=lambda part: -part.seconds)


@contextmanager
def _parts(net: nn.Module, is_absorbed: bool) -> Iterator[dict[str, Part]]:
    """Filled by hooks: each module's time without that of the modules it calls.

    A kv_b_proj that is absorbed has no hook, which would have to be called, and counts with its attention.
    """
    now = clock_for("cpu").now
    parts: dict[str, Part] = {}
    inner = [0.0]  # per call that is under way, the seconds of what it called
    starts: list[float] = []

    def before(*_: object) -> None:
        inner.append(0.0)
        starts.append(now())

    def after(part: Part) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, out: object) -> None:
            seconds = now() - starts.pop()
            part.seconds += seconds - inner.pop()
            inner[-1] += seconds
            is_attention = part.name == ABSORBED
            num_bytes, flops = absorbed_cost(module, out[0]) if is_attention else cost(module, args)
            part.bytes += num_bytes
            part.flops += flops

        return hook

    hooks = []
    for name, module in net.named_modules():
        what = REST if hasattr(module, "experts") else part_of(name)  # an MoE block only adds
        if is_absorbed and name.endswith(".kv_b_proj"):
            continue
        if is_absorbed and hasattr(module, "kv_b_proj"):
            what = ABSORBED
        part = parts.setdefault(what, Part(what))
        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after(part))]
    try:
        yield parts
    finally:
        for hook in hooks:
            hook.remove()


def cost(module: nn.Module, args: Sequence[object]) -> tuple[int, int]:
    """(bytes, flops) of a module's own products: its weights read once, those of experts that are chosen."""
    own = dict(module.named_parameters(recurse=False))
    if "gate_up_proj" in own:
        ids: Tensor = args[1]
        num_bytes = sum(p.nbytes for p in own.values()) * ids.unique().numel() // len(own["gate_up_proj"])
        return num_bytes, 2 * ids.numel() * sum(own[n][0].numel() for n in ("gate_up_proj", "down_proj"))
    weight = own.get("weight")
    if weight is None or weight.dim() < 2 or isinstance(module, nn.Embedding):
        return 0, 0
    return sum(p.nbytes for p in own.values()), 2 * args[0].numel() // weight.size(1) * weight.numel()


def absorbed_cost(attention: nn.Module, out: Tensor) -> tuple[int, int]:
    """(bytes, flops) of a layer's kv_b_proj absorbed, for out [B, s_q, hidden] of the dtype it is held in."""
    count = attention.kv_b_proj.weight.numel()
    return count * out.element_size(), 2 * count * out.size(0) * out.size(1)


def bytes_per_token(net: nn.Module, topk: int) -> int:
    """What one decoded token reads of a model's weights."""
    total = 0
    for module in net.modules():
        own = dict(module.named_parameters(recurse=False))
        share = topk / len(own["gate_up_proj"]) if "gate_up_proj" in own else 1
        if not isinstance(module, nn.Embedding):
            total += int(share * sum(p.nbytes for p in own.values()))
    return total
