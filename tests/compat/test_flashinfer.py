"""FlashInfer's conventions, and its own tests on moela."""

import math

import torch
from moela import testing


def test_lse_has_base_two(flashinfer):
    g = torch.Generator().manual_seed(0)
    (a, b), (lse_a, lse_b) = torch.randn(2, 5, 3, 8, generator=g), torch.randn(2, 5, 3, generator=g)
    out, lse = flashinfer.merge_state(a, lse_a, b, lse_b)
    weight_a, weight_b = lse_a.exp2()[..., None], lse_b.exp2()[..., None]
    torch.testing.assert_close(out, (weight_a * a + weight_b * b) / (weight_a + weight_b))
    torch.testing.assert_close(lse, torch.logaddexp2(lse_a, lse_b))


def test_many_states_are_merged_as_two_at_a_time(flashinfer):
    g = torch.Generator().manual_seed(0)
    v, s = torch.randn(5, 4, 3, 8, generator=g), torch.randn(5, 4, 3, generator=g)
    s[1, 2] = -torch.inf
    out, lse = flashinfer.merge_states(v, s)
    weights = s.exp2()[..., None]
    torch.testing.assert_close(out, (weights * v).sum(1) / weights.sum(1))
    torch.testing.assert_close(lse, s.exp2().sum(1).log2())


def test_merging_in_place_leaves_rows_alone_that_the_mask_leaves_out(flashinfer):
    g = torch.Generator().manual_seed(0)
    (a, b), (lse_a, lse_b) = torch.randn(2, 5, 3, 8, generator=g), torch.randn(2, 5, 3, generator=g)
    expected = flashinfer.merge_state(a, lse_a, b, lse_b)
    v, s, mask = a.clone(), lse_a.clone(), torch.tensor([1, 0, 1, 1, 0], dtype=torch.bool)
    flashinfer.merge_state_in_place(v, s, b, lse_b, mask)
    for got, merged, before in zip((v, s), expected, (a, lse_a), strict=True):
        assert testing.same_bits(got[mask], merged[mask])
        assert testing.same_bits(got[~mask], before[~mask])


def test_requests_of_several_lengths_over_pages_of_one_token(flashinfer):
    """Against the softmax of each request by itself."""
    g = torch.Generator().manual_seed(0)
    rows, lens = [2, 0, 3, 2], [7, 4, 5, 0]
    q_nope, q_pe = torch.randn(7, 4, 512, generator=g), torch.randn(7, 4, 64, generator=g)
    ckv, kpe = torch.randn(20, 1, 512, generator=g), torch.randn(20, 1, 64, generator=g)
    ends = [torch.tensor([0, *values]).cumsum(0).int() for values in (rows, lens)]
    pages = torch.randperm(20, generator=g)[:16].int()
    wrapper = flashinfer.BatchMLAPagedAttentionWrapper(torch.empty(0))
    scale = 0.05
    wrapper.plan(*ends, pages, torch.tensor(lens).int(), 4, 512, 64, 1, False, scale, q_nope.dtype, ckv.dtype)
    out, lse = wrapper.run(q_nope, q_pe, ckv, kpe, return_lse=True)
    for request in range(4):
        mine = slice(*ends[0][request : request + 2])
        keys = torch.cat([ckv, kpe], 2).squeeze(1)[pages[slice(*ends[1][request : request + 2])].long()]
        scores = torch.cat([q_nope, q_pe], 2)[mine] @ keys.T * scale  # [rows, H, keys]
        torch.testing.assert_close(lse[mine], scores.logsumexp(-1) / math.log(2))
        torch.testing.assert_close(out[mine], scores.softmax(-1) @ keys[:, :512])


def test_its_tests_of_decoding_pass(run_peer):
    """Without a rotated part; of requests with three lengths, none among them; with NaN in unused rows."""
    selected = (
        "test_batch_mla_without_kpe",
        "test_batch_mla_varlen and 16-3-514- and -0-1]",
        "test_batch_mla_oob and (16-3-17-3] or 16-7-33-2])",
    )
    selected = " or ".join(f"({part})" for part in selected)
    run_peer("flashinfer", "flashinfer/tests/attention/test_deepseek_mla.py", f"fa2 and ({selected})")


def test_its_tests_of_appending_to_a_cache_pass(run_peer):
    run_peer("flashinfer", "flashinfer/tests/attention/test_mla_page.py", "test_append_mla_paged_kv_cache")
