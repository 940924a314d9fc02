"""mla_cache_write: the bytes of a row, where it goes, and what stays as it was."""

from typing import Any

import moela
import pytest
import torch
from moela import testing
from moela.reference._mla_cache import decode
from torch import Tensor

UNWRITTEN = 0xFF  # what make_inputs fills the cache with


def written(run: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """(rows of the tokens with a slot [tokens, row], which tokens those are)."""
    (cache,) = run(inputs)
    slots = inputs["slot_mapping"]
    return cache.flatten(0, 1)[slots[slots >= 0].long()], slots >= 0


def test_a_row_of_floats_is_the_latent_and_then_the_rotated_part(run):
    inputs = run.inputs(T=6, L=512, R=64, page_size=16)
    rows, is_here = written(run, inputs)
    assert testing.same_bits(rows[:, :512], inputs["kv_c"][is_here])
    assert testing.same_bits(rows[:, 512:], inputs["k_pe"][is_here])


@pytest.mark.parametrize("ue8m0", [False, True])
def test_a_row_of_bytes_is_codes_scale_factors_and_bfloat16(run, ue8m0):
    """656 of them: those of per_token_group_quant_fp8, and k_pe."""
    inputs = run.inputs(T=6, L=512, R=64, page_size=16, cache_dtype=torch.uint8, ue8m0=ue8m0)
    rows, is_here = written(run, inputs)
    assert rows.size(1) == 656
    q, sf = moela.per_token_group_quant_fp8(inputs["kv_c"][is_here], ue8m0=ue8m0)
    assert testing.same_bits(rows[:, :512], q.view(torch.uint8))
    assert testing.same_bits(rows[:, 512:528].contiguous().view(torch.float32), sf)
    assert testing.same_bits(rows[:, 528:].contiguous().view(torch.bfloat16), inputs["k_pe"][is_here])


def test_every_other_byte_of_the_cache_stays(run):
    """And of what lies between its pages and slots."""
    x = run.inputs(T=5, L=128, R=8, page_size=3, cache_dtype=torch.uint8)
    P, page_size, row = x["cache"].shape
    around = torch.full((P + 1, page_size + 2, row + 11), UNWRITTEN, dtype=torch.uint8, device=run.device)
    strided = around[:P, 1 : page_size + 1, 3 : row + 3]
    with moela.use_backend(run.backend):
        moela.mla_cache_write(**x | {"cache": strided})
    (expected,) = run(x)
    assert testing.same_bits(strided, expected)
    strided.fill_(UNWRITTEN)
    assert (around == UNWRITTEN).all()
    slots = x["slot_mapping"].long()
    expected.flatten(0, 1)[slots[slots >= 0]] = UNWRITTEN
    assert (expected == UNWRITTEN).all()


def test_slots_of_minus_one_write_nothing(run):
    x = run.inputs(T=4, L=128, R=8, page_size=4)
    (cache,) = run(x | {"slot_mapping": torch.full_like(x["slot_mapping"], -1)})
    assert testing.same_bits(cache, x["cache"])


def test_a_bad_slot_is_refused_before_anything_is_written(run):
    x = run.inputs(T=3, L=128, R=8, page_size=4, hostile=False)
    before = x["cache"].clone()
    slots = torch.tensor([0, 1, 10**6], device=run.device)
    if run.device != "cpu":
        pytest.skip("a GPU does not look at slots")
    with pytest.raises(ValueError, match="got 1000000 at token 2"), moela.use_backend(run.backend):
        moela.mla_cache_write(**x | {"slot_mapping": slots})
    assert testing.same_bits(x["cache"], before)


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.uint8], ids=str)
def test_nan_of_a_token_is_nan_in_its_row_and_in_no_other(run, cache_dtype):
    x = run.inputs(T=4, L=256, R=16, page_size=2, cache_dtype=cache_dtype, hostile=False)
    x["kv_c"][1, 130] = float("nan")
    x["k_pe"][2, 3] = float("nan")
    rows, _ = written(run, x)
    values = decode(rows.cpu(), 256)
    assert values[[0, 3]].isfinite().all()
    assert values[1, 130].isnan()
    assert values[1, :128].isfinite().all()
    assert values[2].isnan().nonzero().flatten().tolist() == [256 + 3]


@pytest.mark.parametrize("ue8m0", [False, True])
def test_a_latent_of_zeros_gives_zeros(run, ue8m0):
    """Though the scale factor of its codes is none that amax gives."""
    x = run.inputs(T=3, L=128, R=4, page_size=2, cache_dtype=torch.uint8, ue8m0=ue8m0, hostile=False)
    x["kv_c"].zero_()
    rows, _ = written(run, x)
    assert not decode(rows, 128)[:, :128].any()


@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float16], ids=str)
def test_codes_are_those_of_flash_mla_down_to_its_least_scale_factor(run, x_dtype):
    """FlashMLA (tests/quant.py) rounds up max(amax / 448, 1e-4), so a group below 0.027 has coarser codes."""
    x = run.inputs(
        T=40, L=512, R=64, page_size=16, x_dtype=x_dtype, cache_dtype=torch.uint8, ue8m0=True, hostile=False
    )
    rows, _ = written(run, x)
    groups = x["kv_c"].float().unflatten(1, (4, 128))  # [T, 4, 128]
    amax = groups.abs().amax(2)
    sf = 2.0 ** (amax / 448).clamp(min=1e-4).log2().ceil()
    codes = (groups / sf[..., None]).to(torch.float8_e4m3fn).flatten(1)
    is_same = amax / 448 > 2.0**-14  # which 1e-4 is rounded up from
    assert is_same.any()
    assert not is_same.all()
    assert torch.equal(rows[:, 512:528].contiguous().view(torch.float32)[is_same], sf[is_same])
    ours = rows[:, :512].unflatten(1, (4, 128))
    assert testing.same_bits(ours[is_same], codes.view(torch.uint8).unflatten(1, (4, 128))[is_same])


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.uint8], ids=str)
def test_reaches_slots_beyond_the_offsets_of_32_bits(run, cache_dtype):
    """Of a cache of more than 2^31 elements, of which only the pages that are written take memory."""
    x = run.inputs(T=2, L=512, R=64, page_size=64, cache_dtype=cache_dtype, hostile=False)
    page_size, row = x["cache"].shape[1:]
    num_pages = 2**31 // (page_size * row) + 2
    cache = torch.empty(num_pages, page_size, row, dtype=cache_dtype, device=run.device)
    x["slot_mapping"] = torch.tensor([0, num_pages * page_size - 1], device=run.device)
    with moela.use_backend(run.backend):
        moela.mla_cache_write(**x | {"cache": cache})
    rows, _ = written(run, x | {"cache": x["cache"], "slot_mapping": torch.tensor([0, 1], device=run.device)})
    assert testing.same_bits(torch.stack([cache[0, 0], cache[-1, -1]]), rows)


def test_is_what_compiled_code_sees_afterwards(op):
    """The cache is changed in the middle of a graph."""
    x = moela.ops.SPECS[op].make_inputs(T=3, L=128, R=8, page_size=4, cache_dtype=torch.float32)

    def step(cache: Tensor) -> Tensor:
        before = cache.nan_to_num().sum()
        moela.mla_cache_write(**x | {"cache": cache})
        return cache.nan_to_num().sum() - before

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert compiled(x["cache"].clone()) == step(x["cache"].clone()) != 0
