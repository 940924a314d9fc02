"""Whether what moela computes is right: its logits against those of the dequantized model in float32.

Twice. With float32 activations there is nothing between the two but the order of float32 sums, so that one
wrong block of scale factors shows. In bfloat16, as it is used, the error is held against that of stock
transformers in bfloat16.

A router may send a token elsewhere when two of its scores are level within the rounding. Such a token is
another computation, not an error: it is counted, and not judged.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from moela.bench.demo_race import Pass
from torch import Tensor

# Of the tokens, may go elsewhere in float32. Scores are apart by some 2 %, rounding moves them by 1e-6.
MOST_REROUTED = 0.01
PRODUCTS_PER_LAYER = 6  # in a row: q_a, q_b (or kv_a, kv_b), attention, o_proj, gate_up, down
FLOAT32 = 2.0**-24
BF16_RATIO = 2.0  # at most this many times the error of stock bfloat16


class Comparison(NamedTuple):
    """One contestant against the reference: |logits - reference| / |reference| of the tokens judged."""

    worst: float
    worst_token: int
    total: float  # of all judged tokens as one vector
    num_rerouted: int
    num_same_next: int  # tokens of the prompt after which both expect the same
    num_tokens: int


def compare(got: Pass, reference: Pass) -> Comparison:
    same = torch.stack([(a == b).all(-1) for a, b in zip(got.experts, reference.experts, strict=True)]).all(0)
    error, norm = (got.logits - reference.logits).norm(dim=-1), reference.logits.norm(dim=-1)  # [P]
    relative = torch.where(same, error / norm, 0.0).nan_to_num(nan=torch.inf)
    total = (error[same].square().sum() / norm[same].square().sum()).sqrt().item()
    return Comparison(
        worst=relative.max().item(),
        worst_token=int(relative.argmax()),
        total=total,
        num_rerouted=int((~same).sum()),
        num_same_next=int((got.logits.argmax(-1) == reference.logits.argmax(-1)).sum()),
        num_tokens=len(same),
    )


def float32_bound(num_layers: int, widest: int) -> float:
    """How far two computations in float32 may be apart, relative to the norm of the logits.

    A sum of K products whose roundings are independent is off by at most 2^-24 sqrt(K) of its norm: K partial
    sums, each rounded by 2^-24 of what has grown as sqrt(k). Products follow each other, six per layer and
    the last one; normalisation keeps what one adds to the next as it is; both sides are off.
    """
    return 2 * (PRODUCTS_PER_LAYER * num_layers + 1) * FLOAT32 * widest**0.5


def faults_in_float32(found: Comparison, bound: float) -> str | None:
    """Why what moela computes with float32 activations is wrong, or None."""
    if found.num_rerouted > MOST_REROUTED * found.num_tokens:
        return (
            f"{found.num_rerouted} of {found.num_tokens} tokens went to other experts than in the "
            f"dequantized model, at most {MOST_REROUTED:.0%} may"
        )
    if not found.worst <= bound:
        return (
            f"logits of token {found.worst_token} are off by {found.worst:.1e} of their norm with float32 "
            f"activations, at most {bound:.1e} may be rounding"
        )
    return None


def faults_in_tokens(tokens: Sequence[int], reference: Sequence[int]) -> str | None:
    """Why what moela generates with float32 activations is wrong, or None.

    New tokens go another way than those of the prompt: they attend to the cache absorbed. Rounding moves the
    logits by some 1e-6 of their norm, which two tokens are closer than once in some thousand runs.
    """
    same = agreeing(tokens, reference)
    if same < len(reference):
        return (
            f"new token {same} is {tokens[same]} with float32 activations, the dequantized model generates "
            f"{reference[same]}"
        )
    return None


def faults_in_bf16(found: Comparison, stock: Comparison) -> str | None:
    """Why what moela computes in bfloat16 is wrong, or None."""
    if not found.total <= BF16_RATIO * stock.total:
        return (
            f"logits are off by {found.total:.1e} of their norm in bfloat16, at most {BF16_RATIO:g}x the "
            f"{stock.total:.1e} of stock transformers may be rounding"
        )
    return None


def agreeing(tokens: Sequence[int], reference: Sequence[int]) -> int:
    """How many generated tokens are the same until the first that is not."""
    pairs = enumerate(zip(tokens, reference, strict=True))
    return next((i for i, (a, b) in pairs if a != b), len(tokens))


def random_prompt(vocab: int, length: int) -> Tensor:
    """[1, length]"""
    return torch.randint(vocab, (1, length), generator=torch.Generator().manual_seed(0))
