"""Latent attention with the up-projection of keys and values absorbed into query and output.

A head's key is ``w_uk @ latent`` and its value ``w_uv @ latent``. So ``q . (w_uk @ latent)`` is
``(w_uk.T @ q) . latent``, and a weighted sum of values is w_uv times that of latents: new tokens attend to
latents as they lie in the cache, and none of these is expanded.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from moela.ops import grouped_gemm, per_block_dequant_fp8
from moela.reference.fp8_gemm import BLOCK


def split_kv_b(weight: Tensor, num_heads: int, qk_nope_head_dim: int) -> tuple[Tensor, Tensor]:
    """The weight [H * (P + V), L] of `kv_b_proj` -> w_uk [H, P, L], w_uv [H, V, L], its views."""
    per_head = weight.view(num_heads, -1, weight.size(1))
    return per_head[:, :qk_nope_head_dim], per_head[:, qk_nope_head_dim:]


def absorb(q_nope: Tensor, q_pe: Tensor, w_uk: Tensor) -> Tensor:
    """[B, s_q, H, P], [B, s_q, H, R], [H, P, L] -> [B, s_q, H, L + R], what `moela.mla_decode` takes."""
    return torch.cat([_per_head(q_nope, w_uk.mT), q_pe], -1)


def unabsorb(out: Tensor, w_uv: Tensor) -> Tensor:
    """What `moela.mla_decode` returns, [B, s_q, H, L], and [H, V, L] -> [B, s_q, H, V]."""
    return _per_head(out, w_uv)


def _per_head(x: Tensor, w: Tensor) -> Tensor:
    """[B, s_q, H, K], [H, N, K] -> [B, s_q, H, N]. A head's tokens are the rows of an expert."""
    B, s_q, H, K = x.shape
    rows = x.permute(2, 0, 1, 3).reshape(H * B * s_q, K)
    offsets = torch.arange(H + 1, dtype=torch.int32, device=x.device) * (B * s_q)
    return grouped_gemm(rows, w, offsets).view(H, B, s_q, w.size(1)).permute(1, 2, 0, 3)


def is_cheaper(s_q: int, num_keys: int, P: int, V: int, L: int) -> bool:
    """Whether the s_q last of num_keys tokens are attended with fewer multiplications when absorbed.

    Of a head: a query and a key cost 2 L + R absorbed, P + R + V expanded. The up-projections cost L (P + V),
    absorbed for each query, expanded for each key. For DeepSeek-V3 that is so for up to 170 new tokens behind
    a long cache. First tokens, which have no others before them, gain nothing where L > (P + V) / 2.
    """
    return s_q < num_keys and s_q * num_keys * (2 * L - P - V) < (num_keys - s_q) * L * (P + V)


@dataclass
class Dequantized:
    """The weight of an FP8 `kv_b_proj` as it was last, dequantized: every step needs all of it.

    What torch does not count goes unnoticed: writes through `.data`, and to inference tensors. A copy, or a
    pickle, is empty. A compiled graph cannot ask whether a weight was written to: it dequantizes each time.
    """

    codes: Tensor | None = field(default=None, repr=False)
    sf: Tensor | None = field(default=None, repr=False)
    version: tuple[Any, ...] = ()
    places: tuple[int, ...] = ()
    weight: Tensor | None = field(default=None, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def get(self, codes: Tensor, sf: Tensor, dtype: torch.dtype) -> Tensor:
        """codes [N, K], sf [ceil(N / 128), ceil(K / 128)] or one number -> [N, K] of dtype."""
        if torch.compiler.is_compiling():
            return _dequantize(codes, sf, dtype)
        version = (dtype, *(None if t.is_inference() else t._version for t in (codes, sf)))
        places = (codes.data_ptr(), sf.data_ptr())
        is_same = codes is self.codes and sf is self.sf
        if not (is_same and version == self.version and places == self.places):
            self.weight = _dequantize(codes, sf, dtype)
            self.codes, self.sf, self.version, self.places = codes, sf, version, places
        return self.weight


def _dequantize(codes: Tensor, sf: Tensor, dtype: torch.dtype) -> Tensor:
    N, K = codes.shape
    blocks = sf if sf.dim() == 2 else sf.reshape(1, 1).expand(-(-N // BLOCK), -(-K // BLOCK))
    return per_block_dequant_fp8(codes, blocks, dtype)
