"""What the CUDA kernels of mla_decode take, and what goes to another backend."""

import torch
from moela.ops import SPECS

SPEC = SPECS["mla_decode"]


def limits(changed: dict | None = None, **dims) -> str | None:
    return SPEC.cuda_limits(**SPEC.make_inputs(**{"B": 2, "H": 3, "S": 9, **dims}) | (changed or {}))


def test_the_widths_of_the_models_in_bfloat16_and_float16_are_taken():
    for L, R in ((512, 64), (512, 0), (256, 64)):
        assert limits(L=L, R=R) is None
    f16 = torch.float16
    assert limits(x_dtype=f16, cache_dtype=f16, page_size=3, s_q=2, num_parts=4) is None
    assert limits(page_size=None, batch_invariant=True, causal=False) is None
    assert limits(s_q=2, ragged=True) is None
    assert limits(cache_dtype=torch.uint8) is None
    assert limits(cache_dtype=torch.uint8, R=0, s_q=2, ragged=True) is None


def test_other_types_and_widths_are_not():
    assert "q is float16" in limits(x_dtype=torch.float16, cache_dtype=torch.uint8)
    assert "not 256 + 64" in limits(cache_dtype=torch.uint8, L=256)
    assert "float32 and float32" in limits(x_dtype=torch.float32, cache_dtype=torch.float32)
    assert "not 128 + 64" in limits(L=128)


def test_rows_that_tma_cannot_read_are_not_taken():
    cache = SPEC.make_inputs(B=2, H=3, S=9)["cache"]
    wide = torch.zeros(*cache.shape[:2], 580, dtype=cache.dtype)
    assert "those of cache do not" in limits({"cache": wide[..., :576]})
    around = torch.zeros(2, 1, 3, 584, dtype=torch.bfloat16)
    assert limits({"q": around[..., :576]}) is None
    assert "those of q do not" in limits({"q": around[..., 1:577]})


def test_the_stride_of_one_element_does_not_matter():
    q = torch.zeros(576 * 3, dtype=torch.bfloat16).as_strided((1, 1, 3, 576), (5, 7, 576, 1))
    assert limits({"q": q}, B=1) is None
