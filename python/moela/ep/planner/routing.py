"""Monte-Carlo routing: who gets the rows, where the closed form does not know.

Tokens are drawn, a router of the model chooses their experts (`moela.moe_topk`, groups and all), and the
choices are counted per rank and node. Batches are not drawn token by token: from the odds that a token goes
to a rank, a batch's rows for it are one binomial number. So thousands of ranks take a second.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moela.ep.planner.model import Traffic
from moela.ops import moe_topk
from moela.shapes import GroupShape

SAMPLED_TOKENS = 1 << 14  # the expected number of ranks gets a standard error of about 0.005
CHUNK = 1 << 12  # tokens at once: 4 MB of logits for 256 experts
BATCHES = 256
FILES = (".npy", ".pt", ".safetensors")
KINDS = "uniform, zipf:<exponent>, or a file of topk_ids that ends in " + ", ".join(FILES)


@dataclass(frozen=True)
class Routing:
    """Experts of tokens: topk_ids [num_tokens, K] int64; an id below 0 is no expert."""

    kind: str
    topk_ids: Tensor
    num_experts: int  # of the model


def check(kind: str) -> str:
    """`kind` if it is a kind of routing or the name of a file."""
    if kind == "uniform" or _exponent(kind) is not None:
        return kind
    if not is_file(kind):
        raise ValueError(f"routing: expected {KINDS}, got {kind!r}")
    if not Path(kind).is_file():
        raise ValueError(f"routing: expected a file that exists, got {kind!r}")
    return kind


def is_file(kind: str) -> bool:
    return Path(kind).suffix in FILES and _exponent(kind) is None


def _exponent(kind: str) -> float | None:
    found = re.fullmatch(r"zipf:(\d+(?:\.\d+)?)", kind)
    return float(found[1]) if found else None


def draw(
    kind: str,
    num_experts: int,
    topk: int,
    groups: GroupShape | None = None,
    num_tokens: int = SAMPLED_TOKENS,
    seed: int = 0,
) -> Routing:
    """Sample the experts of `num_tokens` tokens, or read all of a file.

    zipf:s gives the experts odds 1 / rank^s, in a shuffled order; a token's are drawn without replacement.
    Drawn as the largest of log(odds) plus Gumbel noise, which is the same, so that the model's own rule of
    groups can be applied to them as to logits. Recorded ids have been through the rule already.
    """
    check(kind)
    if is_file(kind):
        return Routing(kind, _recorded(Path(kind), num_experts, topk), num_experts)
    generator = torch.Generator().manual_seed(seed)
    rank = 1.0 + torch.randperm(num_experts, generator=generator)
    log_odds = -(_exponent(kind) or 0.0) * rank.log()
    rule = {}
    if groups:
        rule = {"num_groups": groups.num, "topk_groups": groups.topk, "group_score": groups.score}
    chosen = []
    for begin in range(0, num_tokens, CHUNK):
        tokens = min(CHUNK, num_tokens - begin)
        noise = torch.empty(tokens, num_experts).exponential_(generator=generator)
        logits = log_odds - noise.log()  # [tokens, E]
        chosen.append(moe_topk(logits, topk, scoring="sigmoid", **rule)[1].long())
    return Routing(kind, torch.cat(chosen), num_experts)


def _recorded(path: Path, num_experts: int, topk: int) -> Tensor:
    try:
        ids = _read(path)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each format has kinds of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"routing: {path}: expected a tensor in the format {path.suffix}: {reason}"
        ) from None
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point() or ids.size(0) == 0:
        got = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"routing: {path}: expected integers [num_tokens, topk], got {got}")
    if ids.size(1) != topk:
        raise ValueError(f"routing: {path}: expected topk = {topk} columns, got {ids.size(1)}")
    if ids.max() >= num_experts:
        raise ValueError(f"routing: {path}: expected ids below {num_experts}, got {int(ids.max())}")
    return ids.long()


def _read(path: Path) -> Tensor:
    if path.suffix == ".npy":
        import numpy

        return torch.from_numpy(numpy.load(path).astype("int64", casting="safe"))
    if path.suffix == ".pt":
        return torch.load(path, map_location="cpu", weights_only=True)
    from safetensors.torch import load_file

    tensors = load_file(path)
    name = "topk_ids" if "topk_ids" in tensors else next(iter(tensors), None)
    if name is None:
        raise ValueError("no tensors")
    return tensors[name]


@dataclass(frozen=True)
class Counts:
    """What a token's choices come to on N nodes of G GPUs: means, and the odds of each receiver of a row."""

    kappa_n: float
    kappa_r: float
    kappa_n_error: float
    kappa_r_error: float
    nodes: Tensor  # [N] rows of a token for each, float64
    ranks: Tensor  # [R]
    rank_rows: Tensor  # [R], a row per expert: up to K
    experts: Tensor  # [placed]
    K: int

    def traffic(self, T: int, seed: int = 0) -> Traffic:
        """Draw batches of T tokens a rank."""
        generator = torch.Generator().manual_seed(seed)
        tokens = T * len(self.ranks)
        phi_n, _ = _skew(self.nodes, tokens, generator)
        phi_r, phi_r_99 = _skew(self.ranks, tokens, generator)
        phi_k, phi_k_99 = _skew(self.rank_rows / self.K, tokens * self.K, generator)
        _, phi_e_99 = _skew(self.experts, tokens, generator)
        kappas = self.kappa_n, self.kappa_r, self.kappa_n_error, self.kappa_r_error
        return Traffic(*kappas, phi_n, phi_r, phi_k, phi_r_99, phi_k_99, phi_e_99)


def count(routing: Routing, placed: int, N: int, G: int, seed: int = 0) -> Counts:
    """Count the choices per expert, rank and node.

    `placed` experts lie on the ranks, in order. Beyond those of the model they are copies: number p is a copy
    of p mod num_experts, and a token goes to any of them alike.
    """
    E, R = routing.num_experts, N * G
    ids, is_expert = routing.topk_ids, routing.topk_ids >= 0  # [tokens, K]
    if placed > E:
        copies = (placed - ids - 1) // E + 1
        copy = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)) * copies
        ids = ids + copy.long().clamp(max=placed // E) * E
    ranks = torch.where(is_expert, ids * R // placed, -1)
    kappa_r, error_r, of_ranks = _distinct(ranks, R)
    kappa_n, error_n, of_nodes = _distinct(torch.where(is_expert, ranks // G, -1), N)
    of_experts = _share(ids[is_expert], placed, len(ids))
    rank_rows = _share(ranks[is_expert], R, len(ids))
    return Counts(kappa_n, kappa_r, error_n, error_r, of_nodes, of_ranks, rank_rows, of_experts, ids.size(1))


def _distinct(owners: Tensor, num_owners: int) -> tuple[float, float, Tensor]:
    """[tokens, K] -> mean number of different owners of a token, its standard error, each owner's odds."""
    owners = owners.sort(dim=1).values
    is_first = owners >= 0
    is_first[:, 1:] &= owners[:, 1:] != owners[:, :-1]
    counts = is_first.sum(1).double()
    error = counts.std().item() / len(counts) ** 0.5 if len(counts) > 1 else 0.0
    return counts.mean().item(), error, _share(owners[is_first], num_owners, len(owners))


def _share(owners: Tensor, num_owners: int, num_tokens: int) -> Tensor:
    """Occurrences of each owner per token, less what the sample's own noise adds to their spread.

    Counts scatter around their odds even if all odds are equal, and of thousands of ranks the largest count
    would pass for a busy rank. What a sample of this size scatters by itself is known, p (1 - p) /
    num_tokens, and that of num_owners such numbers to sqrt(2 / num_owners): deviations from the mean are made
    smaller until that much of their variance, and three times its error, is gone.
    """
    p = torch.bincount(owners, minlength=num_owners).double() / num_tokens
    mean, seen = p.mean(), p.var(correction=0).item()
    noise = (mean * (1 - mean).clamp(min=0) / num_tokens).item() * (1 + 3 * (2 / num_owners) ** 0.5)
    return mean + (p - mean) * (max(0.0, 1 - noise / seen) if seen > 0 else 0.0) ** 0.5


def _skew(p: Tensor, trials: int, generator: torch.Generator) -> tuple[float, float]:
    """The largest of binomial counts over their mean: median, and 99th percentile, of BATCHES draws."""
    if p.sum() == 0:
        return 1.0, 1.0
    counts = torch.full((BATCHES, len(p)), float(trials), dtype=torch.float64)
    rows = torch.binomial(counts, p.clamp(0, 1).expand(BATCHES, -1).contiguous(), generator=generator)
    largest = rows.amax(1) / (p.mean() * trials)
    return largest.quantile(0.5).item(), largest.quantile(0.99).item()
