"""indexer_cache_write: the bytes of a page, where a key goes, and what stays as it was."""

import moela
import pytest
import torch
from moela import testing
from moela.reference._indexer_cache import keys_of, parts

UNWRITTEN = 0xFF  # what make_inputs fills the cache with


@pytest.mark.parametrize("ue8m0", [False, True])
def test_a_page_is_codes_and_then_scale_factors(run, ue8m0):
    """8448 bytes for 64 keys of 128 columns; those of per_token_group_quant_fp8."""
    x = run.inputs(T=64, ue8m0=ue8m0, num_pages=2, hostile=False)
    slots = torch.randperm(64, generator=torch.Generator().manual_seed(3)).to(run.device)
    (cache,) = run(x | {"slot_mapping": slots})
    page = cache[0].flatten()
    assert page.numel() == 8448
    q, sf = moela.per_token_group_quant_fp8(x["k"], ue8m0=ue8m0)
    assert testing.same_bits(page[:8192].view(64, 128)[slots], q.view(torch.uint8))
    assert testing.same_bits(page[8192:].view(torch.float32)[slots], sf.flatten())
    assert not cache[1].any()


@pytest.mark.parametrize("D", [1, 32, 200, 700])
def test_a_key_of_any_width_has_one_scale_factor(run, D):
    x = run.inputs(T=5, D=D, page_size=5, num_pages=1, x_dtype=torch.float32, hostile=False)
    (cache,) = run(x | {"slot_mapping": torch.arange(5, device=run.device)})
    k, sf_k = keys_of(cache, torch.zeros(1, dtype=torch.int64, device=run.device))
    q, sf = moela.per_token_group_quant_fp8(x["k"], D)
    assert testing.same_bits(k, q)
    assert testing.same_bits(sf_k, sf.flatten())


def test_every_other_byte_of_the_cache_stays(run):
    """And of what lies between its pages."""
    x = run.inputs(T=7, D=40, page_size=3)
    P, page_size, row = x["cache"].shape
    around = torch.full((P + 2, page_size * row + 11), UNWRITTEN, dtype=torch.uint8, device=run.device)
    strided = around[1:-1, 3:-8].unflatten(1, (page_size, row))
    with moela.use_backend(run.backend):
        moela.indexer_cache_write(**x | {"cache": strided})
    (expected,) = run(x)
    assert testing.same_bits(strided, expected)
    strided.fill_(UNWRITTEN)
    assert (around == UNWRITTEN).all()
    slots = x["slot_mapping"]
    slots = slots[slots >= 0]
    for part in parts(expected):
        part[slots // page_size, slots % page_size] = UNWRITTEN
    assert (expected == UNWRITTEN).all()


def test_slots_of_minus_one_write_nothing(run):
    x = run.inputs(T=4, page_size=4)
    (cache,) = run(x | {"slot_mapping": torch.full_like(x["slot_mapping"], -1)})
    assert testing.same_bits(cache, x["cache"])


def test_a_bad_slot_is_refused_before_anything_is_written(run):
    if run.device != "cpu":
        pytest.skip("a GPU does not look at slots")
    x = run.inputs(T=3, page_size=4, hostile=False)
    before = x["cache"].clone()
    with pytest.raises(ValueError, match="got 1000000 at token 2"), moela.use_backend(run.backend):
        moela.indexer_cache_write(**x | {"slot_mapping": torch.tensor([0, 1, 10**6])})
    assert testing.same_bits(x["cache"], before)


def test_nan_of_a_key_is_its_own(run):
    x = run.inputs(T=4, page_size=4, num_pages=1, hostile=False)
    x["k"][2, 5] = float("nan")
    (cache,) = run(x | {"slot_mapping": torch.arange(4, device=run.device)})
    k, sf_k = keys_of(cache, torch.zeros(1, dtype=torch.int64, device=run.device))
    values = k.float() * sf_k[:, None]
    assert values[2].isnan().any()
    assert values[[0, 1, 3]].isfinite().all()
