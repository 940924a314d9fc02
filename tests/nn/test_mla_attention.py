"""MlaAttention: against the layers of transformers and against itself, expanded and absorbed."""

import copy
import importlib
import pickle
from typing import Any

import moela
import pytest
import stock
import torch
from moela.nn import MlaAttention, absorption
from moela.nn.mla_attention import rotate
from torch import Tensor, nn

HIDDEN, HEADS, L, R = 64, 4, 32, 16
THEIR_SIZES = {"hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_key_value_heads": HEADS}
THEIR_SIZES |= {"kv_lora_rank": L, "qk_rope_head_dim": R, "num_hidden_layers": 2}
# Dimensions P and V of a head, and whether queries have a latent.
KINDS = [(16, 16, 24), (24, 40, None)]


def layer_of(
    P: int = 16, V: int = 16, q_lora_rank: int | None = 24, seed: int = 0, **options
) -> MlaAttention:
    sizes = {"kv_lora_rank": L, "qk_nope_head_dim": P, "qk_rope_head_dim": R, "v_head_dim": V}
    sizes |= {"q_lora_rank": q_lora_rank, "sm_scale": 1.3 * (P + R) ** -0.5}
    layer = MlaAttention(HIDDEN, HEADS, **sizes | options)
    fill(layer, seed)
    return layer


def fill(layer: nn.Module, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for p in layer.parameters():
        noise = torch.randn(p.shape, generator=g)
        p.data.copy_(noise * p.size(-1) ** -0.5 if p.dim() > 1 else 1 + 0.1 * noise)


def rows(B: int, S: int, seed: int = 1) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """x [B, S, HIDDEN], and (cos, sin) [B, S, R / 2] each."""
    g = torch.Generator().manual_seed(seed)
    angles = torch.arange(S)[:, None] * 3.0 ** -torch.arange(R // 2)
    return torch.randn(B, S, HIDDEN, generator=g), tuple(
        t.expand(B, -1, -1) for t in (angles.cos(), angles.sin())
    )


class Pages:
    """A paged cache for B requests, its pages in no order and full of NaN."""

    def __init__(
        self, B: int, page_size: int = 3, pages: int = 5, dtype: torch.dtype = torch.float32
    ) -> None:
        row = L + R
        self.cache = torch.full((B * pages + 1, page_size, row), torch.nan).to(dtype)
        order = torch.randperm(B * pages, generator=torch.Generator().manual_seed(0)) + 1
        self.block_table, self.page_size = order.view(B, pages).int(), page_size

    def slots(self, begin: int, count: int) -> Tensor:
        """[B * count]"""
        places = torch.arange(begin, begin + count)
        pages = self.block_table[:, places // self.page_size]
        return (pages * self.page_size + places % self.page_size).flatten()

    def run(self, layer: MlaAttention, x: Tensor, angles: Any, counts: tuple[int, ...]) -> Tensor:
        """The first counts[0] tokens at first, then the others, so many at a time."""
        outs, begin = [], 0
        for count in counts:
            part = slice(begin, begin + count)
            of_cache = {"cache": self.cache, "slot_mapping": self.slots(begin, count)}
            if begin:
                seqlens = torch.full((len(x),), begin + count, dtype=torch.int32)
                of_cache |= {"block_table": self.block_table, "seqlens": seqlens}
            turned = None if angles is None else tuple(t[:, part] for t in angles)
            outs.append(layer(x[:, part], turned, **of_cache))
            begin += count
        return torch.cat(outs, 1)


def assert_close(got: Tensor, expected: Tensor, unit: float = 2.0**-16) -> None:
    assert got.shape == expected.shape
    assert (got.double() - expected.double()).abs().max() <= unit * expected.double().abs().max()


@pytest.mark.parametrize("is_interleaved", [True, False])
@pytest.mark.parametrize(("P", "V", "q_lora_rank"), KINDS)
@torch.no_grad()
def test_absorbed_over_pages_is_expanded(P, V, q_lora_rank, is_interleaved):
    layer = layer_of(P, V, q_lora_rank, is_interleaved=is_interleaved)
    x, angles = rows(2, 12)
    assert_close(Pages(2).run(layer, x, angles, (5, 1, 1, 4, 1)), layer(x, angles))


@torch.no_grad()
def test_one_page_per_request_needs_no_table():
    layer, (x, angles) = layer_of(), rows(2, 6)
    cache, slots = torch.full((2, 8, L + R), torch.nan), torch.arange(16).view(2, 8)
    layer(x[:, :5], tuple(t[:, :5] for t in angles), cache, slots[:, :5].flatten())
    seqlens = torch.tensor([6, 6], dtype=torch.int32)
    last = layer(x[:, 5:], tuple(t[:, 5:] for t in angles), cache, slots[:, 5].contiguous(), None, seqlens)
    assert_close(last, layer(x, angles)[:, 5:])


@torch.no_grad()
def test_requests_of_different_lengths():
    """Padded on the right: slots of -1 are not written, and nobody sees them."""
    layer, (x, angles) = layer_of(), rows(2, 7)
    lengths, pages = [6, 3], Pages(2)
    slots = pages.slots(0, 6).view(2, 6).clone()
    slots[1, 3:] = -1
    layer(x[:, :6], tuple(t[:, :6] for t in angles), pages.cache, slots.flatten())
    new = torch.tensor(lengths)
    slot = torch.stack([pages.slots(n, 1)[b] for b, n in enumerate(lengths)])
    turned = tuple(torch.stack([t[b, n : n + 1] for b, n in enumerate(lengths)]) for t in angles)
    token = torch.stack([x[b, n : n + 1] for b, n in enumerate(lengths)])
    out = layer(token, turned, pages.cache, slot, pages.block_table, (new + 1).int())
    for b, n in enumerate(lengths):
        whole = layer(x[b : b + 1, : n + 1], tuple(t[b : b + 1, : n + 1] for t in angles))
        assert_close(out[b, 0], whole[0, n])


@torch.no_grad()
def test_bfloat16_is_closer_absorbed_than_twice_expanded():
    layer, (x, angles) = layer_of(), rows(2, 12)
    for p in layer.parameters():
        p.data.copy_(p.bfloat16())
    x = x.bfloat16()
    exact = layer.double()(x.double(), angles).double()
    expanded = layer.bfloat16()(x, angles).double()
    absorbed = Pages(2, dtype=torch.bfloat16).run(layer, x, angles, (5, 1, 2, 1, 1, 1, 1)).double()
    error, allowed = ((t - exact)[:, 5:].square().mean().sqrt() for t in (absorbed, expanded))
    assert error <= 2 * allowed + 2.0**-9 * exact.square().mean().sqrt()


@torch.no_grad()
def test_new_tokens_of_different_numbers():
    """Padded on the left: a request's new tokens are the last of its row."""
    layer, (x, angles) = layer_of(), rows(2, 7)
    whole, pages = layer(x, angles), Pages(2)
    pages.run(layer, x[:, :4], angles, (4,))
    slots = pages.slots(4, 3).view(2, 3).clone()
    new = x[:, 4:].clone()
    turned = tuple(t[:, 4:].clone() for t in angles)
    slots[1, 2], slots[1, :2] = slots[1, 0].clone(), -1
    for t in (new, *turned):
        t[1, 2], t[1, :2] = t[1, 0].clone(), 3.0
    seqlens = torch.tensor([7, 5], dtype=torch.int32)
    out = layer(new, turned, pages.cache, slots.flatten(), pages.block_table, seqlens)
    assert_close(out[0], whole[0, 4:])
    assert_close(out[1, 2], whole[1, 4])


@torch.no_grad()
def test_float64_is_the_same():
    layer, (x, angles) = layer_of(), rows(2, 7)
    got = layer(x, angles)
    assert_close(got, layer.double()(x.double(), angles))


@torch.no_grad()
def test_fp8_weights_and_an_fp8_cache():
    P, V, L = 24, 40, 128  # scale blocks end inside heads
    plain, layer = (
        layer_of(P, V, kv_lora_rank=L, **({"dtype": d} if d else {})) for d in (None, torch.float8_e4m3fn)
    )
    state = {}
    for name, w in plain.state_dict().items():
        if w.dim() == 2:
            state[name], state[f"{name}_scale_inv"] = moela.per_block_quant_fp8(w)
            w.copy_(moela.per_block_dequant_fp8(state[name], state[f"{name}_scale_inv"], torch.float32))
        else:
            state[name] = w
    layer.load_state_dict(state)
    (x, angles), slots = rows(2, 6), torch.arange(16).view(2, 8)
    assert_close(layer(x, angles), plain(x, angles))
    for size, dtype, unit in ((L + R, torch.float32, 2.0**-16), (L + 4 + 2 * R, torch.uint8, 2.0**-4)):
        cache = torch.zeros(2, 8, size, dtype=dtype)
        layer(x[:, :5], tuple(t[:, :5] for t in angles), cache, slots[:, :5].flatten())
        last = (x[:, 5:], tuple(t[:, 5:] for t in angles), cache, slots[:, 5].contiguous(), None)
        out = layer(*last, torch.tensor([6, 6], dtype=torch.int32))
        assert_close(out, plain(x, angles)[:, 5:], unit)  # e4m3 has 4 bits
    cache, x = torch.zeros(2, 8, L + R, dtype=torch.bfloat16), x.bfloat16()  # the norms are float32
    first = layer(x, angles, cache, slots[:, :6].flatten())
    last = (x[:, 5:], *last[1:2], cache, *last[3:])
    last = layer(*last, torch.tensor([6, 6], dtype=torch.int32))
    assert first.dtype == last.dtype == torch.bfloat16
    assert_close(first, plain(x.float(), angles), 2.0**-5)
    assert_close(last, first[:, 5:], 2.0**-5)


def test_gradients_of_the_first_tokens():
    layer, (x, angles) = layer_of(), rows(1, 5)
    layer(x.requires_grad_(), angles).square().sum().backward()
    assert x.grad.abs().max() > 0
    assert all(p.grad.abs().max() > 0 for p in layer.parameters())


def test_gradients_beside_a_cache():
    """Which the tokens are written to as well: it keeps values, no graph."""
    layer, (x, angles), pages = layer_of(), rows(2, 5), Pages(2)
    grads = []
    for cache in ({}, {"cache": pages.cache, "slot_mapping": pages.slots(0, 5)}):
        layer(x, angles, **cache).square().sum().backward()
        grads.append([p.grad for p in layer.parameters()])
        layer.zero_grad()
    assert not pages.cache.requires_grad
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


@torch.no_grad()
def test_without_rotation():
    layer, (x, _) = layer_of(), rows(2, 8)
    assert_close(Pages(2).run(layer, x, None, (4, 1, 3)), layer(x, None))


@pytest.mark.parametrize("is_interleaved", [True, False])
def test_rotation_turns_pairs(is_interleaved):
    x, (_, (cos, sin)) = torch.randn(1, 5, R, generator=torch.Generator().manual_seed(0)), rows(1, 5)
    got = rotate(x, cos, sin, is_interleaved)
    pairs = x.view(1, 5, -1, 2) if is_interleaved else x.view(1, 5, 2, -1).mT
    wanted = torch.view_as_complex(pairs.contiguous()) * torch.complex(cos, sin)
    mine = got.view(1, 5, -1, 2) if is_interleaved else got.view(1, 5, 2, -1).mT
    torch.testing.assert_close(mine, torch.view_as_real(wanted))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": torch.zeros(3, HIDDEN)}, "moela.nn.MlaAttention: x: expected a 3-D tensor, got 2-D"),
        ({"cache": torch.zeros(1, 4, L + R)}, "slot_mapping: expected the slots of x in cache, got None"),
        (
            {"seqlens": torch.ones(1, dtype=torch.int32)},
            "seqlens: expected None without a cache, got a tensor",
        ),
        (
            {"block_table": torch.zeros(1, 1).int()},
            "block_table: expected None without seqlens, got a tensor",
        ),
        ({"slot_mapping": torch.zeros(1).int()}, "slot_mapping: expected None without a cache, got a tensor"),
        ({"x": torch.zeros(1, 1, 63)}, r"x: expected shape \[1, 1, 64\], got \[1, 1, 63\]"),
        *(
            (
                {"x": torch.zeros(2, 8, HIDDEN), "position_embeddings": (torch.ones(shape),) * 2},
                r"position_embeddings: expected shape \[[12], 8, 8\], got",
            )
            for shape in [(8, 8), (2, 8, R), (2, 7, 8), (3, 8, 8), (1, 1, 8)]
        ),
    ],
)
def test_refuses_what_the_ops_do_not_see(given, message):
    with pytest.raises(ValueError, match=message):
        layer_of()(**{"x": torch.zeros(1, 1, HIDDEN), "position_embeddings": None} | given)


@torch.no_grad()
def test_angles_of_all_requests():
    layer, (x, angles) = layer_of(), rows(3, 5)
    assert torch.equal(layer(x, tuple(t[:1] for t in angles)), layer(x, angles))


class TestDequantized:
    @pytest.fixture
    def weights(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        g = torch.Generator().manual_seed(0)
        pairs = (moela.per_block_quant_fp8(torch.randn(192, 64, generator=g)) for _ in range(2))
        return [tuple(nn.Parameter(t, requires_grad=False) for t in pair) for pair in pairs]

    def test_other_memory_behind_a_parameter_is_seen(self, weights):
        (codes, sf), (others, _) = weights
        note, other = absorption.Dequantized(), others.data
        before = note.get(codes, sf, torch.float32)
        assert note.get(codes, sf, torch.float32) is before
        codes.data = other
        after = note.get(codes, sf, torch.float32)
        assert torch.equal(after, moela.per_block_dequant_fp8(codes, sf, torch.float32))
        assert not torch.equal(after, before)

    @pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda note: pickle.loads(pickle.dumps(note))])
    def test_a_copy_knows_nothing(self, weights, how):
        """A parameter's version may begin anew in a copy, and reach the one that the original had."""
        note = absorption.Dequantized()
        note.get(*weights[0], torch.float32)
        assert how(note) == absorption.Dequantized()


class TestTransformers:
    """The same parameters in transformers' layers."""

    def theirs(self, model: str, name: str, P: int, V: int, q_lora_rank: int | None, **options) -> nn.Module:
        config_class = getattr(importlib.import_module("transformers"), f"{name}Config", None)
        if config_class is None:
            pytest.skip(f"this transformers has no {name}")
        sizes = {"qk_nope_head_dim": P, "v_head_dim": V, "q_lora_rank": q_lora_rank}
        config = config_class(**THEIR_SIZES | sizes | options)
        config._attn_implementation = "eager"
        return getattr(stock.modeling(model), f"{name}Attention")(config, 0).eval()

    @pytest.mark.parametrize(("P", "V", "q_lora_rank"), KINDS)
    @pytest.mark.parametrize(
        ("model", "name", "is_interleaved"),
        [
            ("deepseek_v2", "DeepseekV2", True),
            ("deepseek_v3", "DeepseekV3", True),
            ("glm4_moe_lite", "Glm4MoeLite", None),
        ],
    )
    @torch.no_grad()
    def test_computes_the_same(self, model, name, is_interleaved, P, V, q_lora_rank):
        theirs = self.theirs(model, name, P, V, q_lora_rank)
        fill(theirs, 0)
        if is_interleaved is None:
            is_interleaved = getattr(theirs.config, "rope_interleave", True)
        layer = layer_of(P, V, q_lora_rank, is_interleaved=is_interleaved, sm_scale=theirs.scaling)
        layer.load_state_dict(theirs.state_dict())
        x, (cos, sin) = rows(2, 9)
        if model == "deepseek_v2":
            embeddings = torch.complex(cos, sin)
        else:
            embeddings = tuple(torch.cat([t, t], -1) for t in (cos, sin))
        mask = torch.full((9, 9), torch.finfo(torch.float32).min).triu(1).expand(2, 1, 9, 9)
        expected = theirs(hidden_states=x, position_embeddings=embeddings, attention_mask=mask)[0]
        assert_close(layer(x, (cos, sin)), expected)
        assert_close(Pages(2).run(layer, x, (cos, sin), (4, 1, 3, 1)), expected)

    @torch.no_grad()
    def test_biases(self):
        theirs = self.theirs("deepseek_v3", "DeepseekV3", 16, 16, 24, attention_bias=True)
        fill(theirs, 0)
        layer = layer_of(bias=True, sm_scale=theirs.scaling)
        layer.load_state_dict(theirs.state_dict())
        x, (cos, sin) = rows(2, 6)
        mask = torch.full((6, 6), torch.finfo(torch.float32).min).triu(1).expand(2, 1, 6, 6)
        embeddings = tuple(torch.cat([t, t], -1) for t in (cos, sin))
        expected = theirs(hidden_states=x, position_embeddings=embeddings, attention_mask=mask)[0]
        assert_close(layer(x, (cos, sin)), expected)
        assert_close(Pages(2).run(layer, x, (cos, sin), (4, 2)), expected)


class TestCost:
    """Of DeepSeek-V3: absorbed pays for few new tokens behind a cache, never for first ones."""

    @pytest.mark.parametrize(
        ("s_q", "num_keys", "is_cheaper"),
        [
            (1, 2, True),
            (1, 100000, True),
            (170, 10**6, True),
            (171, 10**6, False),
            (92, 200, True),
            (93, 200, False),
            (7, 7, False),
            (1, 1, False),
        ],
    )
    def test_of_numbers(self, s_q, num_keys, is_cheaper):
        assert absorption.is_cheaper(s_q, num_keys, P=128, V=128, L=512) is is_cheaper

    def test_first_tokens_never(self):
        assert not absorption.is_cheaper(5, 5, P=400, V=400, L=32)
