"""Which `RouterSettings` a router of another library has: its attributes propose, a trial decides.

Names differ from model to model and from release to release, and a router that is misread is a wrong answer
without an error. In the trial the other library's own code and `run_router` get the same random rows and
parameters, and have to agree on what the experts are given.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from moela.nn._twin import Stub, tried_out, twin_of
from moela.nn.topk_router import RouterSettings, run_router
from moela.ops.moe_topk import GROUP_SCORES, SCORINGS

ROWS = 32  # of a trial
POOL = 2048  # rows to look for some where candidates differ that a trial does not tell apart
SHIFTS = (0.0, -4.0, -12.0)  # of all logits of a row, so that a sum of sigmoids is small, too
SEEDS = (0, 1)  # of the second trial, should the first have hit a tie within rounding
NUM_GROUPS, TOPK_GROUPS = ("n_group", "num_group", "num_groups"), ("topk_group", "topk_groups")
UNIT = 2.0**-24


@dataclass(frozen=True)
class Slot:
    """A tensor by the module and the name that hold it: `module.to()` and loading replace tensors."""

    module: nn.Module
    name: str  # in the state dict of the block, or of the router where there is no block
    attribute: str

    def get(self) -> Tensor:
        return getattr(self.module, self.attribute)


@dataclass(frozen=True)
class Recognised:
    """A router of another library, and how moela computes it."""

    settings: RouterSettings
    weight: Slot
    bias: Slot | None
    correction_bias: Slot | None

    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """weight [E, H], bias [E] or None and correction bias [E] or None, as they are now."""
        bias, correction = (None if s is None else s.get() for s in (self.bias, self.correction_bias))
        is_flat = correction is None or correction.dim() == 1
        return self.weight.get(), bias, correction if is_flat else correction.flatten()

    def run(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`run_router` with the tensors as they are now."""
        weight, bias, correction = self.tensors()
        return run_router(x, weight, self.settings, bias=bias, correction_bias=correction)


@dataclass(frozen=True)
class Trial:
    """What another library gave its experts for `x`, with these tensors."""

    x: Tensor  # [T, H]
    tensors: dict[str, Tensor]
    logits: Tensor  # [T, E], as they are without anything special
    topk_weights: Tensor
    topk_ids: Tensor


def recognise(router: nn.Module, block: nn.Module | None = None) -> Recognised | str:
    """How moela computes a router of transformers, or the reason why it cannot.

    Args:
        router: the module that makes logits of hidden states.
        block: the module that calls it and the experts. Needed where the router alone does not return
            (logits, topk_weights, topk_ids): transformers up to 5.12, and biases that the block has.

    Nothing is changed, no random state either, and nothing is taken from the values of the parameters.

    Two things differ from what is recognised, and are better so: transformers up to 5.12 writes 0 over the
    choices of groups that are out, which wins over a choice below 0; and where a model is bfloat16, some
    routers round scores, so that they tie, before they choose (DeepSeek-V4, Mistral 4).
    """
    name = type(router).__name__
    noise = [n for n, v in vars(router).items() if ("jitter" in n or "noise" in n) and v]
    if noise:
        return f"{name} adds noise in training ({noise[0]})"
    slots = _slots(router, block)
    if isinstance(slots, str):
        return f"{name} {slots}"
    reason = ""
    for seed in SEEDS:
        rows = _rows(ROWS, slots[0].get().size(1), seed)
        trial = _trial(router, block, slots, seed, rows)
        if isinstance(trial, str):
            return f"{name} {trial}"
        candidates = [*_candidates(router, block, slots, trial)]
        off = [_distance(found, trial) for found in candidates]
        agreeing = [found for found, d in zip(candidates, off, strict=True) if d <= 1]
        if len(agreeing) > 1:
            agreeing = _told_apart(agreeing, router, block, slots, seed, trial)
        if agreeing:
            return _with_dtypes(agreeing[0], router, block, slots, seed)
        nearest = candidates[off.index(min(off))].settings
        reason = f"{name} routes in no way that moela.moe_topk knows"
        if min(off) < math.inf:
            reason += f"; nearest is {nearest}, {min(off):.0f} times as far off as float32 explains"
    return reason


def _slots(router: nn.Module, block: nn.Module | None) -> tuple[Slot, Slot | None, Slot | None] | str:
    """Weight, bias and correction bias of a router, or what there is instead."""
    prefix = ""
    if block is not None:
        prefix = next((f"{n}." for n, m in block.named_modules() if m is router), None)
        if prefix is None:
            return f"is no part of the {type(block).__name__}"
    found = [
        Slot(module, f"{prefix}{path}{'.' * bool(path)}{n}", n)
        for path, module in router.named_modules()
        for n, t in (*module._parameters.items(), *module._buffers.items())
        if t is not None
    ]
    weights = [s for s in found if s.get().dim() == 2 and s.attribute == "weight"]
    if len(weights) != 1:
        return f"has {len(weights)} weight matrices where one is expected"
    [weight], E = weights, weights[0].get().size(0)
    bias = next((s for s in found if s.module is weight.module and s.attribute == "bias"), None)
    rest = [s for s in found if s not in (weight, bias)]
    odd = [s.attribute for s in rest if s.get().numel() != E]
    if odd:
        return f"has a tensor that is neither a weight nor a bias: {odd[0]}"
    own = () if block is None else (*block._parameters.items(), *block._buffers.items())
    rest += [Slot(block, n, n) for n, t in own if t is not None and t.numel() == E]
    if len(rest) > 1:
        return f"has more than one bias of the choice: {rest[0].attribute}, {rest[1].attribute}"
    return weight, bias, rest[0] if rest else None


def _rows(count: int, H: int, seed: int, sizes: tuple[float, ...] = (1.0,)) -> Tensor:
    """[count, H] float32. The weights' first column is 1, so that the first element shifts all logits."""
    x = torch.randn(count, H, generator=torch.Generator().manual_seed(~seed))
    x *= torch.tensor(sizes).repeat(count)[:count, None]
    x[:, 0] = torch.tensor(SHIFTS).repeat(count)[:count]
    return x


def _trial(router: nn.Module, block: nn.Module | None, slots: tuple, seed: int, x: Tensor) -> Trial | str:
    """Run the other library's code on the CPU, with random tensors of a seed, for `x`, in its dtype."""
    g = torch.Generator().manual_seed(seed)
    E, dtype = slots[0].get().size(0), x.dtype
    tensors = {}

    def tensor(name: str, t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t.cpu()
        if t.dim() == 2 and t.size(0) > 1:
            new = torch.randn(t.shape, generator=g) * 2 * t.size(1) ** -0.5
        else:  # above 0, as transformers up to 5.12 writes 0 over the choices of other groups
            new = torch.rand(t.shape, generator=g) * 0.5
        if name == slots[0].name:
            new[:, 0] = 1
        tensors[name] = new.to(dtype)
        return tensors[name]

    given: list[Tensor] = []

    def experts(hidden: Tensor, *args: Tensor, **kwargs: Tensor) -> Tensor:
        given.extend((*args, *kwargs.values()))
        return torch.zeros_like(hidden)

    def child(name: str) -> nn.Module | None:
        if name == "experts":
            return Stub(experts)
        return Stub(lambda hidden, *_, **__: torch.zeros_like(hidden)) if name.startswith("shared") else None

    def call() -> None:
        if block is None:
            given.extend(twin_of(router, tensor)(x))
        else:
            twin_of(block, tensor, child)(x[None])

    error = tried_out(call)
    if error is not None:
        return f"cannot be tried out: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    ids = [t for t in given if isinstance(t, Tensor) and t.dtype in (torch.int32, torch.int64)]
    shape = ids[0].shape if len(ids) == 1 else None
    weights = [t for t in given if isinstance(t, Tensor) and t.is_floating_point() and t.shape == shape]
    if len(weights) != 1 or len(shape) != 2 or shape[0] != len(x) or not 0 < shape[1] <= E:
        return "does not give its experts ids and weights [num_tokens, topk]"
    weight, bias = (None if s is None else tensors[s.name] for s in slots[:2])
    logits = nn.functional.linear(x, weight, bias)  # [T, E]
    return Trial(x, tensors, logits, weights[0], ids[0])


def _told_apart(
    agreeing: list[Recognised],
    router: nn.Module,
    block: nn.Module | None,
    slots: tuple,
    seed: int,
    trial: Trial,
) -> list[Recognised]:
    """Of candidates that agree with a trial those that do so too where they choose differently.

    By chance a few rows may have the same experts by two rules. Rows that tell them apart are looked for
    among many; where there are none, the rules are one.
    """
    weight, bias = (None if s is None else trial.tensors[s.name] for s in slots[:2])
    # Of large logits a group's best expert is often its only good one, which a sum of two does not prefer.
    pool = _rows(POOL, weight.size(1), seed, sizes=(1.0, 2.0, 4.0, 8.0))
    whole = replace(trial, x=pool, logits=nn.functional.linear(pool, weight, bias))
    ids = torch.stack([_choice(found, whole)[1] for found in agreeing])  # [candidates, POOL, topk]
    differ = (ids != ids[:1]).any(-1)  # [candidates, POOL]
    rows = torch.cat([mine.nonzero().flatten()[:ROWS] for mine in differ]).unique()
    if not len(rows):
        return agreeing
    trial = _trial(router, block, slots, seed, pool[rows])
    return [found for found in agreeing if _distance(found, trial) <= 1]


def _candidates(
    router: nn.Module, block: nn.Module | None, slots: tuple, trial: Trial
) -> Iterator[Recognised]:
    """What the attributes allow, the simple before the special."""
    attributes = {**({} if block is None else vars(block)), **vars(router)}
    numbers = {n: v for n, v in attributes.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    topk, (weight, bias, correction) = trial.topk_ids.size(1), slots
    scalings = {1.0: None} | {float(v): None for n, v in numbers.items() if "scal" in n} | {1 / topk: None}
    E = weight.get().size(0)
    num_groups = next((numbers[n] for n in NUM_GROUPS if n in numbers), 1)
    topk_groups = next((numbers[n] for n in TOPK_GROUPS if n in numbers), 1)
    groups = [(1, 1, "max")]
    if 0 < topk_groups < num_groups and E % num_groups == 0 and topk <= E // num_groups * topk_groups:
        groups += [(num_groups, topk_groups, name) for name in GROUP_SCORES]
    corrections = (correction, None) if correction else (None,)
    for mine, scoring, group, renormalize, scaling in itertools.product(
        corrections, SCORINGS, groups, (False, True), scalings
    ):
        settings = RouterSettings(topk, scoring, *group, renormalize, scaling)
        yield Recognised(settings, weight, bias, mine)


def _distance(found: Recognised, trial: Trial) -> float:
    """How far the weights are apart, in units of what float32 explains; inf: other experts are chosen.

    A score has an error of 2^-24 (12 + d) of itself, d how far its logit is below the largest, and of
    another's float32 we assume the same, and one rounding for each term of its sum over E. Renormalising
    divides by such scores and topk more roundings.
    """
    weights, ids = _choice(found, trial)
    theirs, their_ids = _by_id(trial.topk_weights, trial.topk_ids)
    if not torch.equal(ids, their_ids):
        return math.inf
    E, topk = trial.logits.size(1), ids.size(1)
    spread = (trial.logits.amax(-1) - trial.logits.amin(-1))[:, None]  # [T, 1]
    units = 2 * (2 * (12 + spread) + E + 2 * topk + 4)
    return ((weights - theirs).abs() / (UNIT * units * weights.abs())).nan_to_num(math.inf).amax().item()


def _choice(found: Recognised, trial: Trial) -> tuple[Tensor, Tensor]:
    """What moela gives the experts in a trial, ordered by id."""
    slot = found.correction_bias
    correction = None if slot is None else trial.tensors[slot.name].flatten()
    return _by_id(*found.settings.choose(trial.logits, correction))


def _by_id(weights: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    order = ids.argsort(-1)
    return weights.gather(-1, order), ids.gather(-1, order).int()


def _with_dtypes(
    found: Recognised, router: nn.Module, block: nn.Module | None, slots: tuple, seed: int
) -> Recognised:
    """The same with the dtypes that the router uses where everything is bfloat16.

    Logits rounded to bfloat16 change the weights of a trial, whose logits go beyond 12, far more than a
    rounding of the weights does. What does not run in bfloat16 has its product in float32.
    """
    rows = _rows(ROWS, slots[0].get().size(1), seed)
    trial = _trial(router, block, slots, seed, rows.bfloat16())
    if isinstance(trial, str):
        return found
    weights_dtype = torch.float32 if trial.topk_weights.dtype == torch.float32 else None
    theirs = _spread_out(trial.topk_weights.float(), trial.topk_ids, trial.logits.size(1))
    errors = {}
    for logits_dtype in (torch.float32, None):
        settings = replace(found.settings, logits_dtype=logits_dtype, weights_dtype=weights_dtype)
        mine = replace(found, settings=settings)
        tensors = (None if s is None else trial.tensors[s.name] for s in (mine.weight, mine.bias))
        choice = _choice(mine, replace(trial, logits=settings.logits(trial.x, *tensors)))
        # Scores that were rounded tie, so not every expert is chosen by both.
        errors[mine] = ((_spread_out(*choice, theirs.size(1)) - theirs).abs() / theirs).nanmean().item()
    return min(errors, key=errors.get)


def _spread_out(weights: Tensor, ids: Tensor, E: int) -> Tensor:
    """[T, topk] -> [T, E], NaN where an expert is not chosen."""
    return weights.new_full((weights.size(0), E), math.nan).scatter(1, ids.long(), weights)
