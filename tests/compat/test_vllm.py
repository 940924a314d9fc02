"""vLLM's conventions, and its own tests on moela."""

import moela
import pytest
import torch
from moela import info, testing


def states(T: int, H: int, D: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(T, H, D, generator=g), torch.randn(H, T, generator=g)


def test_states_are_merged_with_the_heads_of_lse_first(vllm):
    """Two parts of one softmax, as the sums that they stand for."""
    (a, lse_a), (b, lse_b) = states(5, 3, 8, 0), states(5, 3, 8, 1)
    out, lse = torch.empty_like(a), torch.empty_like(lse_a)
    vllm.merge_attn_states(out, a, lse_a, b, lse_b, lse)
    weight_a, weight_b = lse_a.exp().T[..., None], lse_b.exp().T[..., None]
    torch.testing.assert_close(out, (weight_a * a + weight_b * b) / (weight_a + weight_b))
    torch.testing.assert_close(lse, torch.logaddexp(lse_a, lse_b))


@pytest.mark.parametrize("empty", [torch.inf, -torch.inf])
def test_either_infinity_is_a_state_without_keys(vllm, empty):
    (a, lse_a), (b, lse_b) = states(5, 3, 8, 0), states(5, 3, 8, 1)
    lse_a[:, 1:] = empty
    lse_b[:, 2:] = empty
    out, lse = torch.empty_like(a), torch.empty_like(lse_a)
    vllm.merge_attn_states(out, a, lse_a, b, lse_b, lse)
    assert torch.equal(out[1], b[1])
    assert torch.equal(lse[:, 1], lse_b[:, 1])
    assert (out[2:] == 0).all()
    assert (lse[:, 2:] == -torch.inf).all()


def test_rows_of_656_bytes_have_the_largest_of_a_group_over_448(vllm):
    g = torch.Generator().manual_seed(0)
    kv_c, k_pe = (torch.randn(3, n, generator=g).bfloat16() for n in (512, 64))
    cache, slots = torch.zeros(2, 4, 656, dtype=torch.uint8), torch.tensor([5, -1, 2])
    vllm.concat_and_cache_mla(kv_c, k_pe, cache, slots, "fp8_ds_mla", torch.ones(1))
    row = cache.view(8, 656)[5]
    sf = kv_c[0].float().unflatten(0, (4, 128)).abs().amax(1) / 448
    assert torch.equal(row[512:528].clone().view(torch.float32), sf)
    codes = (kv_c[0].float() / sf.repeat_interleave(128)).to(torch.float8_e4m3fn)
    assert testing.same_bits(row[:512].clone(), codes.view(torch.uint8))
    assert testing.same_bits(row[528:].clone().view(torch.bfloat16), k_pe[0])
    assert cache.view(8, 656).any(1).nonzero().flatten().tolist() == [2, 5]


def test_a_cache_with_one_scale_factor_is_refused(vllm):
    x = moela.ops.SPECS["mla_cache_write"].make_inputs(T=2, L=512, R=64, page_size=4)
    with pytest.raises(NotImplementedError, match="one scale factor per tensor"):
        vllm.concat_and_cache_mla(*list(x.values())[:4], "fp8", torch.ones(1))


def test_its_tests_of_decoding_on_a_cpu_pass(run_peer, monkeypatch):
    """It allows 1.6 % of a bfloat16 element however small: rounding of the result, and no more. Tiles of AMX
    round the weights too (docs/adr/0011), which is within twice torch's error, but beyond that in 5 %."""
    if info.picked_isa() == "amx_bf16":
        monkeypatch.setenv("MOELA_CPU_ISA", "avx512")
    run_peer("vllm", "vllm/tests/kernels/attention/test_mla_decode_cpu.py", "test_mla_decode_cpu")
