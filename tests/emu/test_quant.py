"""The CUDA per_token_group_quant_fp8, run on the host: the bits of the definition, without a race."""

import native
import pytest
import torch
from moela import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(1, 128), (5, 200), (7, 576), (3, 7), (2, 330)]


@pytest.mark.parametrize("padding", [8, 5], ids=["aligned", "odd"])  # columns between rows
@pytest.mark.parametrize("ue8m0", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("M", "K"), SHAPES)
def test_the_kernel_has_the_bits_of_the_definition(tmp_path, M, K, dtype, ue8m0, padding):
    generator = torch.Generator().manual_seed(M * K)
    rows = torch.randn(M, K + padding, generator=generator).mul_(3).to(dtype)  # rows further apart than K
    rows[0, :4] = torch.tensor([float("nan"), 0.0, 1e-30, -6e4])
    x, (x_file, q_file, sf_file) = rows[:, :K], (tmp_path / n for n in ("x", "q", "sf"))
    x_file.write_bytes(rows.view(torch.uint8).numpy().tobytes())
    args = (DTYPES.index(dtype), M, K, K + padding, 128, int(ue8m0), "lazy", x_file, q_file, sf_file)
    assert native.run(native.program("tests/emu/quant.cpp"), *map(str, args)) == "right"

    q, sf = reference.per_token_group_quant_fp8(x, 128, ue8m0)
    codes = q.view(torch.uint8)
    codes[q.isnan()] = 0x7F  # the sign of a NaN is not defined; the instruction gives this one
    assert q_file.read_bytes() == codes.numpy().tobytes()
    got_sf = torch.frombuffer(bytearray(sf_file.read_bytes()), dtype=torch.float32).view_as(sf)
    torch.testing.assert_close(got_sf, sf, rtol=0, atol=0, equal_nan=True)
