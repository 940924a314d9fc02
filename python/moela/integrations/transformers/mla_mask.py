"""What a query may see, as transformers' masks say it and as `moela.mla_decode` takes it.

A query that sees some of the tokens of its request is a request of its own whose pages, of one token each,
are these tokens: padding on the left, windows and chosen tokens are all of this form.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_MEMO = "_moela_tokens"  # of a mask, which all layers of a model get


class Tokens(NamedTuple):
    """block_table [B * s_q, n] int32: of each query the tokens that it sees, then others; seqlens [B * s_q]
    int32: how many it sees. A token is counted from the first of its request."""

    block_table: Tensor
    seqlens: Tensor


def tokens_of(mask: Tensor) -> Tokens | None:
    """Of `mask` [B, 1, s_q, S]; None if it says more than yes or no, the same for all heads.

    A float mask, which is added to scores, has to be 0 or -Inf or the smallest number, and to leave each
    query a key: of one without any, torch averages all values, or none is a number. Its values are looked at,
    so it is unknown under torch.compile. An inference tensor does not tell whether it was changed, so it is
    looked at for each layer.
    """
    is_remembered = not torch.compiler.is_compiling() and not mask.is_inference()
    state = (id(mask), mask._version) if is_remembered else None  # a copy of a mask has its memo, too
    if is_remembered and (memo := getattr(mask, _MEMO, None)) and memo[0] == state:
        return memo[1]
    is_seen = _is_seen(mask)
    found = None if is_seen is None else _tokens(is_seen)
    if is_remembered:
        setattr(mask, _MEMO, (state, found))
    return found


def _is_seen(mask: Tensor) -> Tensor | None:
    if mask.dim() != 4 or mask.size(1) != 1:
        return None
    if mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point() or torch.compiler.is_compiling():
        return None
    is_seen, is_hidden = mask == 0, mask <= torch.finfo(mask.dtype).min
    is_known = (is_seen | is_hidden).all() & is_seen.any(-1).all()
    return is_seen if bool(is_known) else None


def chosen_tokens(indices: Tensor, mask: Tensor) -> Tokens:
    """Of `indices` [B, s_q, topk], distinct, those that a mask which `tokens_of` knows lets the query see."""
    is_seen = mask if mask.dtype == torch.bool else mask == 0
    is_seen = is_seen[:, 0].expand(indices.size(0), -1, -1).gather(-1, indices.long())  # [B, s_q, topk]
    return _compact(indices, is_seen)


def _tokens(is_seen: Tensor) -> Tokens:
    is_seen = is_seen[:, 0]  # [B, s_q, S]
    tokens = torch.arange(is_seen.size(-1), dtype=torch.int32, device=is_seen.device)
    return _compact(tokens.expand(is_seen.shape), is_seen)


def _compact(tokens: Tensor, is_seen: Tensor) -> Tokens:
    """[B, s_q, n] each: those that are seen to the front, in their order."""
    tokens, is_seen = tokens.flatten(0, 1), is_seen.flatten(0, 1)  # [B * s_q, n]
    place = torch.where(is_seen, is_seen.cumsum(-1) - 1, is_seen.size(-1))  # the others to a column beyond
    table = tokens.new_zeros((tokens.size(0), tokens.size(1) + 1), dtype=torch.int32)
    table.scatter_(-1, place, tokens.int())
    return Tokens(table[:, :-1], is_seen.sum(-1, dtype=torch.int32))
