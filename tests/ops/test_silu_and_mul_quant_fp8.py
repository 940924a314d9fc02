"""silu_and_mul_quant_fp8: the cast of the unrounded activation, and that its bound finds what is wrong."""

from typing import Any

import pytest
import torch
from moela import reference, testing
from torch import Tensor

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAN, INF = float("nan"), float("inf")


def assert_bound(run: Any, inputs: dict[str, Any], outputs: tuple[Tensor, ...]) -> None:
    for got, (exact, error) in zip(outputs, run.spec.bound(inputs, 0.0), strict=True):
        testing.assert_within(got, exact, error)


@pytest.mark.parametrize("ue8m0", [False, True])
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("group_size", [1, 7, 64, 128, 2**40])
def test_keeps_its_bound_for_every_group_size(run, group_size, dtype, ue8m0):
    for seed, kind in enumerate(({}, {"limit": 7.0}, {"limit": 7.0, "alpha": 1.702})):
        dims = {"M": 3, "K": 300, "group_size": group_size, "ue8m0": ue8m0, "x_dtype": dtype}
        inputs = run.inputs(**dims, **kind, seed=seed)
        assert_bound(run, inputs, run(inputs))


def test_is_the_cast_of_the_activation(run, make_runner):
    """float32 in: the activation alone is then not rounded before the cast either. On the CPU bit for bit."""
    inputs = run.inputs(M=9, K=300, limit=7.0, alpha=1.702, x_dtype=FP32)
    pair = f"{run.backend}-{run.device}"
    if run.backend == "cuda":
        pytest.skip("silu_and_mul has no CUDA kernel")
    (y,) = make_runner("silu_and_mul", pair)({k: inputs[k] for k in ("x", "limit", "alpha")})
    cast = make_runner("per_token_group_quant_fp8", pair)({"x": y, "group_size": 128, "ue8m0": False})
    for fused, separate in zip(run(inputs), cast, strict=True):
        assert testing.same_bits(fused, separate)


def test_does_not_round_the_activation_before_the_cast(run):
    """Rounded to bfloat16, the middle of two codes would be hit often, and the bound be broken."""
    inputs = run.inputs(M=9, K=512)
    (exact, error), _ = run.spec.bound(inputs, 0.0)
    rounded, _ = reference.per_token_group_quant_fp8(reference.silu_and_mul(inputs["x"]))
    assert_bound(run, inputs, run(inputs))
    assert ((rounded.double() - exact).abs() > error).any()


def test_a_group_of_zeros_has_the_smallest_scale_factor(run):
    x = torch.randn(3, 400, generator=torch.Generator().manual_seed(1)).to(run.device)
    x[1, :128] = 0  # gates
    q, sf = run({"x": x, "limit": None, "alpha": None, "group_size": 128, "ue8m0": False})
    assert sf[1, 0] == 2.0**-126
    assert (q[1, :128].double() == 0).all()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_group_with_nan_or_inf_dequantizes_to_nan(run, value):
    x = torch.randn(3, 600, generator=torch.Generator().manual_seed(1)).to(run.device)
    args = {"limit": None, "alpha": None, "group_size": 128, "ue8m0": False}
    clean = run({"x": x} | args)
    x[1, 130] = value
    q, sf = run({"x": x} | args)
    wide = q.double() * sf.double().repeat_interleave(128, -1)[:, :300]
    spoiled = torch.zeros(3, 300, dtype=torch.bool, device=x.device)
    spoiled[1, 128:256] = True
    assert torch.equal(wide.isnan(), spoiled)
    assert testing.same_bits(q[~spoiled], clean[0][~spoiled])


def test_the_bound_finds_what_is_wrong(run):
    for ue8m0 in (False, True):
        inputs = run.inputs(M=5, K=300, limit=7.0, alpha=1.702, ue8m0=ue8m0)
        q, sf = run(inputs)
        assert_bound(run, inputs, (q, sf))
        codes = q.view(torch.uint8)
        large = (2, int(q[2].double().abs().argmax()))

        def at(t: Tensor, index: tuple[int, int], value: Tensor) -> Tensor:
            t = t.clone()
            t[index] = value
            return t

        planted = {
            "one scale factor off": (q, at(sf, (3, 1), sf[3, 1] * (1 + 2.0**-6))),
            "one scale factor off by little": (q, at(sf, (3, 1), sf[3, 1] * (1 + 2.0**-14))),
            "one code off by two": (at(codes, large, codes[large] ^ 2).view(q.dtype), sf),
            "the sign of one code": (at(codes, large, codes[large] ^ 0x80).view(q.dtype), sf),
            "gate and up swapped": run(inputs | {"x": torch.cat(inputs["x"].chunk(2, -1)[::-1], -1)}),
            "alpha forgotten": run(inputs | {"alpha": None}),
            "a code of NaN": (at(codes, (0, 0), torch.tensor(0x7F)).view(q.dtype), sf),
        }
        for wrong in planted.values():
            with pytest.raises(AssertionError, match="out of bounds"):
                assert_bound(run, inputs, wrong)
