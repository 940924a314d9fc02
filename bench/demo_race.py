"""The contestants of the demo: what they compute, and how long that takes when they take turns."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from moela.bench.roofline import Probes
from moela.bench.timer import Timing, clock_for
from torch import Tensor, nn

WARM_TOKENS = 8
SHORT = 16  # tokens before those that are decoded with a short cache
ROUNDS = 3
PROBED = 5  # samples of the roofs in a round; they are short
SECONDS = 15.0  # no new round after this long
# What transformers has for the experts of its models, its default first. On the CPU each can be the faster.
EXPERTS = ("grouped_mm", "eager")
SLOW_SECONDS = 10.0  # a prefill that takes longer is not repeated to see whether another one is faster


class Pass(NamedTuple):
    """A prompt read and tokens generated, greedily.

    logits [P, vocab] are those of all tokens of the prompt, `experts` the chosen ones, a [P, topk] per layer
    that has any.
    """

    logits: Tensor
    experts: list[Tensor]
    tokens: list[int]
    prefill_seconds: float
    decode_seconds: list[float]


class Times(NamedTuple):
    """Of the whole prompt at once, of one new token after SHORT ones, and of one after the whole prompt."""

    prefill: Timing
    short: Timing
    long: Timing


@dataclass
class Racer:
    """A model in the race. `prefill` and `decode` name the implementation of its experts for each."""

    name: str
    net: nn.Module
    prefill: str | None = None
    decode: str | None = None
    first: Pass | None = None
    prefill_samples: list[float] = field(default_factory=list)
    short_samples: list[float] = field(default_factory=list)
    long_samples: list[float] = field(default_factory=list)

    def run(self, prompt: Tensor, new_tokens: int) -> None:
        done = run(self.net, prompt, new_tokens, self.prefill, self.decode)
        short = run(self.net, prompt[:, :SHORT], new_tokens, self.prefill, self.decode)
        self.first = self.first or done
        self.prefill_samples.append(done.prefill_seconds)
        self.short_samples += short.decode_seconds
        self.long_samples += done.decode_seconds

    def times(self) -> "Times":
        samples = (self.prefill_samples, self.short_samples, self.long_samples)
        return Times(*(Timing(tuple(s)) for s in samples))


@torch.inference_mode()
def run(
    net: nn.Module, prompt: Tensor, new_tokens: int, prefill: str | None = None, decode: str | None = None
) -> Pass:
    """Time one prefill of prompt [1, P] and one step per new token, with transformers' own cache."""
    now = clock_for("cpu").now
    _choose(net, prefill)
    with _Routing(net) as routing:
        start = now()
        out = net(prompt, use_cache=True)
        seconds = now() - start
    logits = out.logits[0].float()
    _choose(net, decode)
    tokens, steps = [], []
    while len(tokens) < new_tokens:
        token = out.logits[:, -1:].argmax(-1)  # [1, 1]
        tokens.append(int(token))
        start = now()
        out = step(net, token, out)
        steps.append(now() - start)
    return Pass(logits, routing.experts, tokens, seconds, steps)


def step(net: nn.Module, token: Tensor, before: Mapping[str, Any]) -> Mapping[str, Any]:
    """The call for one more token [1, 1] after the call that returned `before`; their cache grows."""
    cache_name = "cache" if "cache" in before else "past_key_values"  # since, and until, transformers 5.24
    return net(token, **{cache_name: before[cache_name]}, use_cache=True)


def _choose(net: nn.Module, experts: str | None) -> None:
    if experts is not None:
        net.set_experts_implementation(experts)


class _Routing:
    """Inside `with`, notes the experts that tokens are sent to, where the experts of a layer get them."""

    def __init__(self, net: nn.Module) -> None:
        self.experts: list[Tensor] = []
        self._layers = [module for name, module in net.named_modules() if name.endswith(".mlp.experts")]

    def __enter__(self) -> "_Routing":
        self._hooks = [layer.register_forward_pre_hook(self._note) for layer in self._layers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _note(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.experts.append(args[1].sort(-1).values)


def warm_up(racer: Racer, prompt: Tensor) -> None:
    run(racer.net, prompt[:, :WARM_TOKENS], 1, racer.prefill, racer.decode)


def choose_fastest(racer: Racer, prompt: Tensor) -> None:
    """Of transformers' implementations of experts, for the prompt and for one token."""
    prefills: dict[str, float] = {}
    decodes: dict[str, float] = {}
    for name in EXPERTS:
        done = run(racer.net, prompt, 3, name, name)
        prefills[name], decodes[name] = done.prefill_seconds, min(done.decode_seconds)
        if done.prefill_seconds > SLOW_SECONDS:
            break
    racer.prefill, racer.decode = (min(times, key=times.get) for times in (prefills, decodes))


def race(
    racers: Sequence[Racer], probes: Probes, prompt: Tensor, new_tokens: int, advance: Callable[[], object]
) -> dict[str, Timing]:
    """Let everybody run ROUNDS times, in turns; fewer where that takes long.

    Returns:
        what the probes of the machine's roofs took in the same rounds, by their names.
    """
    roofs: dict[str, list[float]] = {probe.name: [] for probe in probes.contestants}
    now, start = clock_for("cpu").now, time.perf_counter()
    collects = gc.isenabled()
    gc.disable()
    try:
        for turn in range(ROUNDS):
            if turn == 0 or time.perf_counter() - start < SECONDS:
                for racer in [*racers[turn % len(racers) :], *racers[: turn % len(racers)]]:
                    racer.run(prompt, new_tokens)
                for _ in range(PROBED):
                    for probe in probes.contestants:
                        begin = now()
                        probe.call()
                        roofs[probe.name].append(now() - begin)
            advance()
    finally:
        if collects:
            gc.enable()
    return {name: Timing(tuple(samples)) for name, samples in roofs.items()}
