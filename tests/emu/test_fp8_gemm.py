"""The CUDA fp8_gemm, run on the host: within its bound on every tile and schedule, without a race."""

from dataclasses import dataclass, replace
from pathlib import Path

import gemm
import native
import pytest
import torch
from gemm import ACCUM, SPLITS, TILES, TYPES
from moela import testing
from moela.ops._spec import rounding
from moela.ops.fp8_gemm import exact, make_inputs
from torch import Tensor


@dataclass
class Run:
    """One launch: tile -1 is the plan's choice."""

    folder: Path
    tile: int = -1
    splits: int = 0  # 0: the number in SPLITS
    num_sms: int = 2
    fraction_bits: int = 23
    schedule: str = "lazy"
    d_padding: int = 16  # elements between rows of d
    program: Path | None = None  # with a planted fault

    def __call__(self, x: dict) -> tuple[Tensor, str]:
        """(d, the plan that ran)."""
        (M, K), N, out = x["a"].shape, x["b"].size(0), x["out_dtype"]
        ld = -(-K // 16) * 16 + 16
        ldd = -(-N // 8) * 8 + self.d_padding
        for name in ("a", "b"):
            gemm.write(self.folder / name, gemm.with_padding(x[name], ld))
        for name in ("sf_a", "sf_b", "bias"):
            if x[name] is not None:
                gemm.write(self.folder / name, x[name])
        bias = -1 if x["bias"] is None else TYPES[x["bias"].dtype]
        splits = self.splits or SPLITS.get(self.tile, 0)
        args = (
            self.tile,
            splits,
            M,
            N,
            K,
            ld,
            ld,
            ldd,
            TYPES[x["sf_b"].dtype],
            bias,
            TYPES[out],
            self.num_sms,
        )
        args = (*args, self.fraction_bits, self.schedule, self.folder)
        program = self.program or native.program("tests/emu/fp8_gemm.cpp")
        plan, verdict = native.run(program, *map(str, args)).split("\n", 1)
        assert verdict == "right", verdict
        d = gemm.read(self.folder / "d", out, M, ldd)
        assert d[:, N:].isnan().all(), "wrote between the rows of d"
        return d[:, :N], plan


def check(run: Run, x: dict) -> None:
    d, magnitude = exact(**x)
    error = rounding(d, x["out_dtype"]) + ACCUM[run.fraction_bits] * magnitude
    testing.assert_within(run(x)[0], d, error, "fp8_gemm")


@pytest.mark.parametrize("schedule", native.SCHEDULES)
@pytest.mark.parametrize("tile", TILES, ids=TILES.get)
def test_every_tile_is_right_under_every_schedule(tmp_path, tile, schedule):
    x = make_inputs(M=150, N=200, K=520, bias=True)
    check(Run(tmp_path, tile=tile, schedule=schedule), x)


@pytest.mark.parametrize("tile", TILES, ids=TILES.get)
@pytest.mark.parametrize(
    ("M", "N", "K"),
    [(1, 128, 128), (1, 1, 1), (3, 576, 200), (64, 40, 129), (129, 65, 1024), (260, 136, 2304)],
)
def test_any_extents(tmp_path, tile, M, N, K):
    if K <= 128 * (SPLITS[tile] - 1):
        pytest.skip("a split would be empty: the plan does not split so few steps")
    check(Run(tmp_path, tile=tile), make_inputs(M=M, N=N, K=K, seed=M))


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("tile", [1, 5, 9], ids=TILES.get)
def test_output_bias_and_scale_factors_of_every_type(tmp_path, tile, out_dtype):
    for sf_dtype in (torch.float32, torch.bfloat16, torch.float8_e8m0fnu):
        x = make_inputs(M=70, N=136, K=256, bias=True, sf_dtype=sf_dtype, out_dtype=out_dtype)
        for bias_dtype in (torch.float32, torch.bfloat16, torch.float16):
            check(Run(tmp_path, tile=tile), x | {"bias": x["bias"].to(bias_dtype)})


def test_rows_of_d_that_tma_cannot_store_are_stored_all_the_same(tmp_path):
    x = make_inputs(M=20, N=131, K=256)
    for tile in (0, 1, 2, 3):
        check(Run(tmp_path, tile=tile, d_padding=3), x)


def test_is_within_its_bound_with_the_accumulator_that_hopper_is_reported_to_have(tmp_path):
    check(Run(tmp_path, fraction_bits=13), make_inputs(M=64, N=128, K=2048))


def test_the_accumulator_of_13_bits_would_miss_the_bound_of_a_float32_one(tmp_path):
    """So the two bounds are different claims, and the model does something."""
    x = make_inputs(M=64, N=128, K=2048, out_dtype=torch.float32)
    d, magnitude = exact(**x)
    got, _ = Run(tmp_path, fraction_bits=13)(x)
    with pytest.raises(AssertionError, match="out of bounds"):
        testing.assert_within(
            got, d, rounding(d, torch.float32) + testing.FLOAT32_SUM * magnitude, "fp8_gemm"
        )


@pytest.mark.parametrize("splits", [1, 2, 4, 8])
def test_a_row_does_not_depend_on_its_batch_or_its_tile(tmp_path, splits):
    """So the plan may choose by M among the tiles that split the sum over K in the same way."""
    x = make_inputs(M=140, N=136, K=1100, bias=True, out_dtype=torch.float32)
    part = x | {"a": x["a"][5:12], "sf_a": x["sf_a"][5:12]}
    tiles = [tile for tile in TILES if (SPLITS[tile] > 1) == (splits > 1)]
    run = Run(tmp_path, splits=splits, num_sms=8, fraction_bits=13)
    full, _ = replace(run, tile=tiles[0])(x)
    for tile in tiles:
        assert testing.same_bits(replace(run, tile=tile)(x)[0], full), TILES[tile]
        assert testing.same_bits(replace(run, tile=tile)(part)[0], full[5:12]), TILES[tile]


def test_the_split_of_the_sum_shows_in_the_bits(tmp_path):
    """Or the test above would show nothing."""
    x = make_inputs(M=3, N=64, K=1100, out_dtype=torch.float32)
    one, two = (Run(tmp_path, tile=9, splits=splits, num_sms=4)(x)[0] for splits in (1, 2))
    assert not testing.same_bits(one, two)


@pytest.mark.parametrize("M", [1, 15, 16, 17, 33, 64])
@pytest.mark.parametrize(("N", "K", "splits"), [(65, 1152, 8), (200, 900, 8), (130, 400, 4)])
def test_a_cluster_shares_a_sum(tmp_path, M, N, K, splits):
    """Few steps, rows and columns that end within a tile, more tiles than clusters."""
    tile = 9 if M <= 16 else 10 if M <= 32 else 11
    run = Run(tmp_path, tile=tile, splits=splits, num_sms=2 * splits)
    check(run, make_inputs(M=M, N=N, K=K, seed=M, bias=True))


@pytest.mark.parametrize("schedule", native.SCHEDULES)
@pytest.mark.parametrize("splits", [4, 8])
def test_a_cluster_shares_sums_under_every_schedule(tmp_path, splits, schedule):
    run = Run(tmp_path, tile=9, splits=splits, num_sms=splits, schedule=schedule)
    check(run, make_inputs(M=20, N=200, K=1024))


# A wait that is left out: the header that has it, the line, and what the emulator calls it.
FAULTS = {
    "buffer": ("block/gemm_reduce.cuh", "  mbarrier_wait_cluster(is_empty, parity ^ 1);\n", "race"),
    "sums": ("block/gemm_reduce.cuh", "  mbarrier_wait_cluster(is_full, parity);\n", "(race|uninitialised)"),
    "exit": (
        "block/gemm_block.cuh",
        "  if constexpr (C::kSharesSum) wait_reduced<C>(parity);\n",
        "exit",
    ),
}


@pytest.mark.parametrize("schedule", native.SCHEDULES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_reduction_without_one_of_its_waits_is_found_out(tmp_path, fault, schedule):
    lines = [(f"cuda/{header}", line) for header, line, _ in FAULTS.values()]
    program = native.program_without_one_of(lines, list(FAULTS).index(fault), "tests/emu/fp8_gemm.cpp")
    run = Run(tmp_path, tile=9, splits=4, num_sms=4, schedule=schedule, program=program)
    with pytest.raises(AssertionError, match=f"{FAULTS[fault][2]}:"):
        run(make_inputs(M=20, N=200, K=512))


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(AssertionError, match="a split of the sum over K would be empty"):
        Run(tmp_path, tile=9, splits=4, num_sms=4)(make_inputs(M=1, N=64, K=384))


def test_a_nan_reaches_its_row_or_column_only(tmp_path):
    x = make_inputs(M=70, N=140, K=256)
    for name, where in (("a", (3, 200)), ("b", (7, 0))):
        spoiled = x[name].clone()
        spoiled.view(torch.uint8)[where] = 0x7F
        d, _ = Run(tmp_path, tile=1)(x | {name: spoiled})
        isnan = d.isnan()
        expected = torch.zeros_like(isnan)
        expected[where[0] if name == "a" else slice(None), where[0] if name == "b" else slice(None)] = True
        assert torch.equal(isnan, expected)
