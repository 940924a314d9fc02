"""Multi-head latent attention, with a cache of latents."""

import torch
from torch import Tensor, nn

from moela.nn.absorption import Dequantized, absorb, split_kv_b, unabsorb
from moela.nn.fp8_linear import E4M3, Fp8Linear
from moela.ops import _check, mla_cache_write, mla_decode, mla_prefill

NAME = "moela.nn.MlaAttention"


def rotate(x: Tensor, cos: Tensor, sin: Tensor, is_interleaved: bool) -> Tensor:
    """[..., R], angles [..., R / 2] -> [..., R]: pairs turned by their angles, in float32, rounded once.

    Pairs are (0, 1), (2, 3), … or, not interleaved, (0, R / 2), (1, R / 2 + 1), …; they stay where they are.
    """
    pairs = x.float().unflatten(-1, (-1, 2) if is_interleaved else (2, -1))
    a, b = pairs.unbind(-1 if is_interleaved else -2)  # [..., R / 2]
    turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1 if is_interleaved else -2)
    return turned.flatten(-2).to(x.dtype)


def attend_among(q: Tensor, k: Tensor, v: Tensor, sm_scale: float) -> Tensor:
    """[B, S, H, ...] each -> [B, S, H, V]: each of the tokens of a request to those up to it."""
    if q.dtype not in _check.FLOAT_DTYPES:  # float64, which checks of gradients take
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=sm_scale)
        return out.transpose(1, 2)
    B, S = q.shape[:2]
    ends = torch.arange(B + 1, dtype=torch.int32, device=q.device) * S
    tokens = (t.flatten(0, 1) for t in (q, k, v))
    out, _ = mla_prefill(*tokens, ends, ends, sm_scale=sm_scale)
    return out.unflatten(0, (B, S))


class MlaAttention(nn.Module):
    """Latent attention of DeepSeek-V2 and V3, Kimi-K2 and GLM-4.7, under the names of their checkpoints.

    Args:
        hidden, num_heads: H of the model, and of attention.
        sm_scale: what scores are multiplied by: (P + R)^-0.5, times the square of YaRN's mscale.
        q_lora_rank: of the queries' latent; None: q_proj makes queries of x.
        kv_lora_rank: L, of that of keys and values.
        qk_nope_head_dim, qk_rope_head_dim, v_head_dim: P, R and V of a head. R may be 0.
        is_interleaved: whether the rotated pairs are neighbours, as in DeepSeek's checkpoints.
        eps: of the norms.
        bias: whether q_a_proj, kv_a_proj_with_mqa and o_proj have one.
        device, dtype: of the parameters; float8_e4m3fn: each projection is an Fp8Linear. Of its `kv_b_proj`
            there is then also a dequantized copy once tokens were decoded.
    """

    def __init__(
        self,
        hidden: int,
        num_heads: int,
        *,
        sm_scale: float,
        q_lora_rank: int | None,
        kv_lora_rank: int = 512,
        qk_nope_head_dim: int = 128,
        qk_rope_head_dim: int = 64,
        v_head_dim: int = 128,
        is_interleaved: bool = True,
        eps: float = 1e-6,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.hidden, self.num_heads, self.sm_scale = hidden, num_heads, sm_scale
        self.is_interleaved = is_interleaved
        self.kv_lora_rank, self.v_head_dim = kv_lora_rank, v_head_dim
        self.qk_nope_head_dim, self.qk_rope_head_dim = qk_nope_head_dim, qk_rope_head_dim
        is_fp8 = dtype == E4M3

        def linear(K: int, N: int, bias: bool = False) -> nn.Module:
            if is_fp8:
                return Fp8Linear(K, N, bias, device=device)
            return nn.Linear(K, N, bias, device=device, dtype=dtype)

        def norm(size: int) -> nn.Module:
            return nn.RMSNorm(size, eps=eps, device=device, dtype=None if is_fp8 else dtype)

        query_size = num_heads * (qk_nope_head_dim + qk_rope_head_dim)
        if q_lora_rank is None:
            self.q_proj = linear(hidden, query_size)
        else:
            self.q_a_proj = linear(hidden, q_lora_rank, bias)
            self.q_a_layernorm = norm(q_lora_rank)
            self.q_b_proj = linear(q_lora_rank, query_size)
        self.kv_a_proj_with_mqa = linear(hidden, kv_lora_rank + qk_rope_head_dim, bias)
        self.kv_a_layernorm = norm(kv_lora_rank)
        self.kv_b_proj = linear(kv_lora_rank, num_heads * (qk_nope_head_dim + v_head_dim))
        self.o_proj = linear(num_heads * v_head_dim, hidden, bias)
        self._dequantized = Dequantized()

    def forward(
        self,
        x: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None,
        cache: Tensor | None = None,
        slot_mapping: Tensor | None = None,
        block_table: Tensor | None = None,
        seqlens: Tensor | None = None,
    ) -> Tensor:
        """Attend s_q new tokens of each of B requests to those before them.

        Without `seqlens` they are the first ones of their requests: they attend to each other, by keys and
        values of every head, by `mla_prefill`, which is differentiable once. With `seqlens` they attend to
        the cache, absorbed; that has no derivative.

        Args:
            x: [B, s_q, hidden] bfloat16, float16 or float32.
            position_embeddings: cosines and sines of the angles, [B, s_q, R / 2] each, or B = 1 for all
                requests. None: nothing turns.
            cache: [num_pages, page_size, row], which the new tokens are written to, as `mla_cache_write`
                does; row is L + R elements, or 656 bytes for L = 512 and R = 64. None: no cache.
            slot_mapping: [B * s_q] int32 or int64: the slots of the new tokens, -1 for none.
            block_table: [B, max_pages] int32, as in `mla_decode`; None: page b is that of request b.
            seqlens: [B] int32: tokens of each request in the cache, the new ones among them.

        Returns:
            [B, s_q, hidden] of x's dtype. Padding behind the last token of a request does not matter to it,
            nor, with `seqlens`, does padding before its first new one: the last of its s_q is its last.

        Numerics: those of the projections, of `mla_prefill` and of `mla_decode`; absorbed, a query and an
            output of a head are rounded to x's dtype once more. Angles turn in float32.

        Source: DeepSeek-V2, arXiv 2405.04434, section 2.1.
        """
        self._check(x, position_embeddings, cache, slot_mapping, block_table, seqlens)
        q_nope, q_pe = self._queries(x)
        latent = self.kv_a_proj_with_mqa(x)
        kv_c, k_pe = latent.split([self.kv_lora_rank, self.qk_rope_head_dim], -1)  # [B, s_q, L], [B, s_q, R]
        kv_c = self.kv_a_layernorm(kv_c).to(x.dtype)
        if position_embeddings is not None:
            cos, sin = position_embeddings
            k_pe = rotate(k_pe, cos, sin, self.is_interleaved)
            q_pe = rotate(q_pe, cos[:, :, None], sin[:, :, None], self.is_interleaved)
        if cache is not None:
            with torch.no_grad():
                mla_cache_write(kv_c.flatten(0, 1), k_pe.flatten(0, 1), cache, slot_mapping)
        if seqlens is None:
            out = self._expanded(q_nope, q_pe, kv_c, k_pe)
        else:
            out = self._absorbed(q_nope, q_pe, cache, block_table, seqlens)
        return self.o_proj(out.flatten(2))

    def _queries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, s_q, hidden] -> [B, s_q, H, P], [B, s_q, H, R]."""
        if hasattr(self, "q_proj"):
            q = self.q_proj(x)
        else:
            q_latent = self.q_a_layernorm(self.q_a_proj(x)).to(x.dtype)  # [B, s_q, q_lora_rank]
            q = self.q_b_proj(q_latent)
        sizes = [self.qk_nope_head_dim, self.qk_rope_head_dim]
        return q.unflatten(-1, (self.num_heads, sum(sizes))).split(sizes, -1)

    def _expanded(self, q_nope: Tensor, q_pe: Tensor, kv_c: Tensor, k_pe: Tensor) -> Tensor:
        """[B, s_q, H, V], of the tokens among themselves."""
        kv = self.kv_b_proj(kv_c).unflatten(-1, (self.num_heads, -1))  # [B, s_q, H, P + V]
        k_nope, v = kv.split([self.qk_nope_head_dim, self.v_head_dim], -1)
        k = torch.cat([k_nope, k_pe[:, :, None].expand(-1, -1, self.num_heads, -1)], -1)
        return attend_among(torch.cat([q_nope, q_pe], -1), k, v, self.sm_scale)

    def _absorbed(
        self, q_nope: Tensor, q_pe: Tensor, cache: Tensor, block_table: Tensor | None, seqlens: Tensor
    ) -> Tensor:
        """[B, s_q, H, V], of the tokens to the cache."""
        weight, L = self.kv_b_proj.weight, self.kv_lora_rank
        if weight.dtype == E4M3:
            weight = self._dequantized.get(weight, self.kv_b_proj.weight_scale_inv, q_nope.dtype)
        w_uk, w_uv = split_kv_b(weight, self.num_heads, self.qk_nope_head_dim)
        q = absorb(q_nope, q_pe, w_uk)
        out, _ = mla_decode(q, cache, block_table, seqlens, sm_scale=self.sm_scale, v_dim=L)
        return unabsorb(out, w_uv)

    def _check(
        self,
        x: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None,
        cache: Tensor | None,
        slot_mapping: Tensor | None,
        block_table: Tensor | None,
        seqlens: Tensor | None,
    ) -> None:
        """What the ops do not see."""
        _check.expect_dim(NAME, "x", x, 3)
        B, s_q = x.shape[:2]
        _check.expect_shape(NAME, "x", x, (B, s_q, self.hidden))
        for angles in position_embeddings or ():  # what broadcasts otherwise may turn heads for tokens
            B = 1 if angles.dim() == 3 and angles.size(0) == 1 else B
            _check.expect_shape(NAME, "position_embeddings", angles, (B, s_q, self.qk_rope_head_dim // 2))
        if cache is None:
            for name, given in (("slot_mapping", slot_mapping), ("seqlens", seqlens)):
                _check.expect(given is None, NAME, name, "None without a cache", "a tensor")
        else:
            _check.expect(slot_mapping is not None, NAME, "slot_mapping", "the slots of x in cache", "None")
        if seqlens is None:  # first tokens read no cache
            _check.expect(block_table is None, NAME, "block_table", "None without seqlens", "a tensor")

    def extra_repr(self) -> str:
        sizes = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        return ", ".join(f"{name}={getattr(self, name)}" for name in ("num_heads", *sizes, "sm_scale"))
