"""mla_norm_rope_cache_write: the norm, the rotation, and that a row is the one of mla_cache_write."""

from typing import Any

import moela
import pytest
import torch
from moela import testing
from moela.ops._spec import rounding
from moela.reference._mla_cache import decode
from torch import Tensor

UNIT = 2.0**-24  # one rounding of float32
UNWRITTEN = 0xFF  # what make_inputs fills the cache with


def written(run: Any, inputs: dict[str, Any]) -> Tensor:
    """The rows of the tokens with a slot [tokens, row]."""
    (cache,) = run(inputs)
    slots = inputs["slot_mapping"]
    return cache.flatten(0, 1)[slots[slots >= 0].long()]


def exact_rows(inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """(row of each token with a slot, what each element is the sum of in magnitude), float64."""
    kv, weight, cos, sin = (inputs[n].double() for n in ("kv", "weight", "cos", "sin"))
    c, pe = kv.tensor_split([weight.size(0)], 1)
    kv_c = c / (c.square().mean(1, keepdim=True) + inputs["eps"]).sqrt() * weight
    even, odd = (pe[:, 0::2], pe[:, 1::2]) if inputs["interleaved"] else pe.chunk(2, 1)
    sums = [(even * cos, -odd * sin), (odd * cos, even * sin)]

    def joined(halves: list[Tensor]) -> Tensor:
        return torch.stack(halves, 2).flatten(1) if inputs["interleaved"] else torch.cat(halves, 1)

    rotated, magnitude = joined([a + b for a, b in sums]), joined([a.abs() + b.abs() for a, b in sums])
    is_here = inputs["slot_mapping"] >= 0
    return torch.cat([kv_c, rotated], 1)[is_here], torch.cat([kv_c.abs(), magnitude], 1)[is_here]


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_is_the_norm_and_the_rotation_rounded_once(run, x_dtype, interleaved):
    """In a latent a square, 7 halves, 3 blocks, the mean and eps are rounded, which the root makes count
    half; then the root, a quotient and two products: 10.5. In a rotation two products and a sum."""
    dims = {"T": 12, "L": 512, "R": 64, "page_size": 16, "x_dtype": x_dtype, "cache_dtype": torch.float32}
    inputs = run.inputs(**dims, interleaved=interleaved)
    exact, magnitude = exact_rows(inputs)
    error = 12 * UNIT * magnitude
    testing.assert_within(written(run, inputs), exact, error + rounding(exact.abs() + error, x_dtype))


@pytest.mark.parametrize("interleaved", [True, False])
def test_is_what_model_code_computes_op_by_op(run, interleaved):
    """As transformers does: bfloat16 before the product with the weight, and in each step of the rotation.

    Three roundings of its own, and ours; interleaved pairs come out of it apart.
    """
    dims = {"T": 12, "L": 512, "R": 64, "page_size": 16, "cache_dtype": torch.float32}
    x = run.inputs(**dims, angle_dtype=torch.bfloat16, interleaved=interleaved, hostile=False)
    kv_c, k_pe = x["kv"].tensor_split([512], 1)
    wide = kv_c.float()
    variance = wide.pow(2).mean(-1, keepdim=True)
    kv_c = x["weight"] * (wide * torch.rsqrt(variance + x["eps"])).to(kv_c.dtype)
    a, b = (k_pe[:, 0::2], k_pe[:, 1::2]) if interleaved else k_pe.chunk(2, 1)
    cos, sin = x["cos"], x["sin"]
    k_pe = torch.cat([a * cos - b * sin, b * cos + a * sin], 1)
    rows = written(run, x)
    if interleaved:
        rows = torch.cat([rows[:, :512], rows[:, 512::2], rows[:, 513::2]], 1)
    magnitude = exact_rows(x | {"interleaved": interleaved})[1]
    if interleaved:
        magnitude = torch.cat([magnitude[:, :512], magnitude[:, 512::2], magnitude[:, 513::2]], 1)
    testing.assert_within(rows, torch.cat([kv_c, k_pe], 1).double(), 4.1 * 2.0**-8 * magnitude)


@pytest.mark.parametrize("ue8m0", [False, True])
@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_row_of_bytes_is_the_one_that_mla_cache_write_writes(run, make_runner, x_dtype, ue8m0):
    """Of the normalized and rotated parts in the dtype of kv, which a cache of that dtype holds."""
    dims = {"T": 9, "L": 512, "R": 64, "page_size": 4, "x_dtype": x_dtype, "hostile": False}
    plain = run.inputs(**dims, cache_dtype=x_dtype)
    parts = written(run, plain)
    cast = run.inputs(**dims, cache_dtype=torch.uint8, ue8m0=ue8m0)
    of_parts = {k: cast[k] for k in ("cache", "slot_mapping", "ue8m0")}
    of_parts |= {"kv_c": parts[:, :512], "k_pe": parts[:, 512:]}
    write = make_runner("mla_cache_write", f"{run.backend}-{run.device}")
    assert testing.same_bits(*run(cast), *write(of_parts))


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.uint8], ids=str)
def test_every_other_byte_of_the_cache_stays(run, cache_dtype):
    """And of what lies between its pages and slots."""
    x = run.inputs(T=5, L=128, R=10, page_size=3, cache_dtype=cache_dtype)
    P, page_size, row = x["cache"].shape
    around = x["cache"].new_empty((P + 1, page_size + 2, row + 11))
    around.view(torch.uint8).fill_(UNWRITTEN)
    strided = around[:P, 1 : page_size + 1, 3 : row + 3]
    with moela.use_backend(run.backend):
        moela.mla_norm_rope_cache_write(**x | {"cache": strided})
    (expected,) = run(x)
    assert testing.same_bits(strided, expected)
    slots = x["slot_mapping"].long()
    for cache in (expected, strided):
        of_slots = slots[slots >= 0]
        cache[of_slots // page_size, of_slots % page_size] = x["cache"][0, 0]
    assert testing.same_bits(expected, x["cache"])
    assert (around.view(torch.uint8) == UNWRITTEN).all()


def test_takes_tables_as_models_have_them(run):
    """Rows of transformers' [B, S, R], and of a table with cosines and sines side by side."""
    x = run.inputs(T=6, L=128, R=16, page_size=8)
    expected = run(x)
    cos, sin = (torch.cat([x[n], x[n]], 1).view(2, 3, 16) for n in ("cos", "sin"))
    of_transformers = {"cos": cos.flatten(0, 1)[:, :8], "sin": sin.flatten(0, 1)[:, :8]}
    assert testing.same_bits(*run(x | of_transformers), *expected)
    cos_sin = torch.cat([x["cos"], x["sin"]], 1)
    of_a_table = dict(zip(("cos", "sin"), cos_sin.chunk(2, 1), strict=True))
    assert testing.same_bits(*run(x | of_a_table), *expected)


def test_pairs_apart_are_interleaved_pairs_in_another_order(run):
    x = run.inputs(T=6, L=128, R=16, page_size=8, hostile=False)
    apart = torch.cat([x["kv"][:, :128], x["kv"][:, 128::2], x["kv"][:, 129::2]], 1)
    rows = written(run, x)
    expected = torch.cat([rows[:, :128], rows[:, 128::2], rows[:, 129::2]], 1)
    assert testing.same_bits(written(run, x | {"kv": apart, "interleaved": False}), expected)


def test_nothing_is_turned_at_the_first_position(run):
    x = run.inputs(T=6, L=128, R=16, page_size=8, x_dtype=torch.float32, cache_dtype=torch.float32)
    rows = written(run, x | {"cos": torch.ones_like(x["cos"]), "sin": torch.zeros_like(x["sin"])})
    assert torch.equal(rows[:, 128:], x["kv"][x["slot_mapping"] >= 0][:, 128:])


def test_nan_of_a_latent_is_nan_in_all_of_it_and_nowhere_else(run):
    x = run.inputs(T=4, L=256, R=16, page_size=2, cache_dtype=torch.float32, hostile=False)
    expected = written(run, x)
    x["kv"][1, 130] = float("nan")
    rows = written(run, x)
    assert rows[1, :256].isnan().all()
    assert testing.same_bits(rows[1, 256:], expected[1, 256:])
    assert testing.same_bits(rows[[0, 2, 3]], expected[[0, 2, 3]])


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.uint8], ids=str)
def test_a_latent_of_zeros_gives_zeros(run, cache_dtype):
    x = run.inputs(T=3, L=128, R=4, page_size=2, cache_dtype=cache_dtype, hostile=False)
    x["kv"][:, :128] = 0
    assert not decode(written(run, x), 128)[:, :128].any()
