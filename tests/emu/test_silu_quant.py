"""The CUDA silu_and_mul_quant_fp8, run on the host: within the bound of the op, without a race."""

import native
import pytest
import torch
from moela import testing
from moela.ops import SPECS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# (M, K, elements between rows, group_size): aligned rows with whole and part groups, then all that is not.
SHAPES = [
    (1, 128, 0, 128),
    (5, 200, 8, 128),
    (7, 576, 8, 128),
    (3, 7, 0, 128),
    (5, 200, 3, 128),
    (2, 300, 4, 64),
]
KINDS = [(None, None), (7.0, 1.702)]


def run(tmp_path, x, K, group_size, ue8m0, limit, alpha):
    """The kernel on x [M, 2 * K], whose rows may be further apart."""
    M, ldx, files = x.size(0), x.stride(0), [tmp_path / n for n in ("x", "q", "sf")]
    files[0].write_bytes(x._base.view(torch.uint8).numpy().tobytes())
    numbers = ("inf" if limit is None else limit, alpha or 1.0, float(alpha is not None))
    args = (DTYPES.index(x.dtype), M, K, ldx, group_size, int(ue8m0), *numbers, "lazy", *files)
    assert native.run(native.program("tests/emu/silu_quant.cpp"), *map(str, args)) == "right"
    q = torch.frombuffer(bytearray(files[1].read_bytes()), dtype=torch.uint8).view(torch.float8_e4m3fn)
    sf = torch.frombuffer(bytearray(files[2].read_bytes()), dtype=torch.float32)
    return q.view(M, K), sf.view(M, -1)


@pytest.mark.parametrize(("limit", "alpha"), KINDS)
@pytest.mark.parametrize("ue8m0", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("M", "K", "pad", "group_size"), SHAPES)
def test_the_kernel_keeps_the_bound_of_the_op(tmp_path, M, K, pad, group_size, dtype, ue8m0, limit, alpha):
    generator = torch.Generator().manual_seed(M * K)
    rows = torch.randn(M, 2 * K + pad, generator=generator).mul_(3).to(dtype)
    rows[:, 2 * K :] = float("nan")  # what no kernel may read
    rows[0, 3], rows[M - 1, K] = -90.0, 6e4
    if M > 1:
        rows[1, 5] = float("nan")
    x = rows[:, : 2 * K]
    outputs = run(tmp_path, x, K, group_size, ue8m0, limit, alpha)
    inputs = {"x": x, "limit": limit, "alpha": alpha, "group_size": group_size, "ue8m0": ue8m0}
    for got, (exact, error) in zip(outputs, SPECS["silu_and_mul_quant_fp8"].bound(inputs, 0.0), strict=True):
        testing.assert_within(got, exact, error)
