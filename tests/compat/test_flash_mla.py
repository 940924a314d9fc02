"""FlashMLA's conventions, and its own tests on moela."""

import moela
import pytest
import torch
from moela import testing
from torch import Tensor


def pages(num_pages: int, kv_heads: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(q of three requests, two tokens and six heads, a cache, its block table)."""
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(3, 2, 6, 576, generator=g)
    cache = torch.randn(num_pages, 64, kv_heads, 576, generator=g)
    return q, cache, torch.arange(num_pages, dtype=torch.int32).view(3, -1)


def test_lse_has_the_heads_first_and_plus_infinity_where_there_are_no_keys(flash_mla):
    q, cache, block_table = pages(6, 1)
    lens = torch.tensor([70, 0, 1], dtype=torch.int32)
    schedule, num_splits = flash_mla.get_mla_metadata(lens, 12, 1)
    out, lse = flash_mla.flash_mla_with_kvcache(
        q, cache, block_table, lens, 512, schedule, num_splits, causal=True
    )
    assert out.shape == (3, 2, 6, 512)
    assert lse.shape == (3, 6, 2)
    assert lse[0].isfinite().all()
    assert (lse[1] == torch.inf).all()
    assert (out[1] == 0).all()
    assert (lse[2, :, 0] == torch.inf).all()  # the first of two tokens sees none of one key
    assert lse[2, :, 1].isfinite().all()


def test_a_score_is_scaled_by_the_width_of_a_key_unless_told(flash_mla):
    q, cache, block_table = pages(3, 1)
    lens = torch.tensor([5, 64, 1], dtype=torch.int32)
    results = [
        flash_mla.flash_mla_with_kvcache(q, cache, block_table, lens, 512, None, softmax_scale=scale)
        for scale in (None, 576**-0.5)
    ]
    for default, explicit in zip(*results, strict=True):
        assert testing.same_bits(default, explicit)
    keys = cache.squeeze(2)[0, :5]
    expected = (q[0] @ keys.T * 576**-0.5).logsumexp(-1)  # [s_q, H]
    torch.testing.assert_close(results[0][1][0], expected.T)


def test_heads_share_the_keys_of_their_group(flash_mla):
    q, cache, block_table = pages(3, 2)
    lens = torch.tensor([5, 64, 1], dtype=torch.int32)
    out, lse = flash_mla.flash_mla_with_kvcache(q, cache, block_table, lens, 512, None)
    for kv_head, heads in enumerate((slice(0, 3), slice(3, 6))):
        alone, lse_alone = flash_mla.flash_mla_with_kvcache(
            q[:, :, heads], cache[:, :, kv_head, None], block_table, lens, 512, None
        )
        assert testing.same_bits(out[:, :, heads], alone)
        assert testing.same_bits(lse[:, heads], lse_alone)


def test_what_moela_has_not_is_refused(flash_mla):
    q, cache, _ = pages(3, 1)
    indices = torch.zeros(3, 2, 4, dtype=torch.int32)
    with pytest.raises(NotImplementedError, match="a second cache"):
        flash_mla.flash_mla_with_kvcache(
            q, cache, None, None, 512, None, indices=indices, extra_k_cache=cache
        )
    of_584_bytes = torch.zeros(3, 64, 1, 584, dtype=torch.uint8)
    with pytest.raises(NotImplementedError, match="rows of 584 bytes"):
        flash_mla.flash_mla_with_kvcache(q, of_584_bytes, None, None, 512, None, indices=indices)


def test_its_quantizer_writes_the_bytes_of_mla_cache_write(load_peer):
    """But for groups that are tiny as a whole, of which there are none here."""
    quant = load_peer("FlashMLA/tests/quant.py")
    rows = torch.randn(2, 64, 1, 576, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = quant.quantize_k_cache(rows, quant.FP8KVCacheLayout.V32_FP8Sparse)
    cache = torch.zeros(2, 64, 656, dtype=torch.uint8)
    kv_c, k_pe = rows.view(128, 576).split([512, 64], 1)
    moela.mla_cache_write(kv_c, k_pe, cache, torch.arange(128), ue8m0=True)
    assert testing.same_bits(cache, expected.squeeze(2).contiguous().view(torch.uint8))


@pytest.mark.parametrize("s_k", [20, 140])
def test_its_tests_of_dense_decoding_pass(run_peer, s_k):
    """Those of two requests with four tokens: 64 of each, with NaN in every page and row that is not used."""
    run_peer("flash_mla", "FlashMLA/tests/test_flash_mla_dense_decoding.py", f"[b2-s_q4-s_k{s_k}-")


@pytest.mark.skipif(not hasattr(moela, "mla_sparse"), reason="there is no mla_sparse")
def test_its_tests_of_sparse_decoding_pass(run_peer):
    """Four requests, a cache of rows of 656 bytes with NaN in every slot that is not named, sinks."""
    selected = "d_qk576 and b4- and topk64-"
    run_peer("flash_mla", "FlashMLA/tests/test_flash_mla_sparse_decoding.py", selected)
