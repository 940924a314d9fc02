"""The CUDA grouped_fp8_gemm, contiguous and masked, run on the host: within its bound on every tile and
schedule, without a race, and in the rows that belong to a group only."""

from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import gemm
import native
import pytest
import test_fp8_gemm
import torch
from gemm import ACCUM, SPLITS, TILES, TYPES
from moela import testing
from moela.ops._spec import rounding
from moela.ops.fp8_gemm import exact, make_inputs
from torch import Tensor

NAN = float("nan")
OFFSETS, COUNTS = 1, 2  # GroupKind
OUTSIDE = 3  # rows before the first group, and as many behind the last one


@dataclass
class Experts:
    """Inputs of one fp8_gemm per expert, to be stored as either op takes them."""

    inputs: list[dict]
    N: int
    K: int
    out_dtype: torch.dtype

    @property
    def sizes(self) -> list[int]:
        return [x["a"].size(0) for x in self.inputs]

    def weights(self, name: str) -> Tensor:
        return torch.stack([x[name].view(torch.uint8) for x in self.inputs])


def experts(sizes: list[int], N: int = 72, K: int = 300, out_dtype=torch.bfloat16, **kind) -> Experts:
    inputs = [make_inputs(M=M, N=N, K=K, seed=i, out_dtype=out_dtype, **kind) for i, M in enumerate(sizes)]
    return Experts(inputs, N, K, out_dtype)


@dataclass
class Run:
    """One launch: tile -1 is the plan's choice. What belongs to no group is NaN."""

    folder: Path
    kind: int = OFFSETS
    tile: int = -1
    splits: int = 0  # 0: the number in SPLITS
    num_sms: int = 2
    fraction_bits: int = 23
    schedule: str = "lazy"
    d_padding: int = 16  # elements between rows of d
    rows: int = 0  # masked: of each expert's matrix, at least the largest group
    program: Path | None = None  # with a planted fault

    def __call__(self, x: Experts) -> list[Tensor]:
        """d by expert."""
        places, num_rows, M, table = self.layout(x.sizes)
        a = torch.full((num_rows, x.K), NAN).to(torch.float8_e4m3fn)
        sf_a = torch.full((num_rows, -(-x.K // 128)), NAN)
        for place, inputs in zip(places, x.inputs, strict=True):
            a.view(torch.uint8)[place], sf_a[place] = inputs["a"].view(torch.uint8), inputs["sf_a"]
        lda, ldd = -(-x.K // 16) * 16 + 16, -(-x.N // 8) * 8 + self.d_padding
        gemm.write(self.folder / "a", gemm.with_padding(a, lda))
        gemm.write(self.folder / "sf_a", sf_a)
        gemm.write(self.folder / "b", gemm.with_padding(x.weights("b"), lda))
        gemm.write(self.folder / "sf_b", x.weights("sf_b"))
        gemm.write(self.folder / "table", torch.tensor(table, dtype=torch.int32))
        sf_dtype, splits = x.inputs[0]["sf_b"].dtype, self.splits or SPLITS.get(self.tile, 0)
        args = (self.tile, splits, self.kind, len(places), M, x.N, x.K, lda, lda, ldd, TYPES[sf_dtype])
        args = (*args, TYPES[x.out_dtype], self.num_sms, self.fraction_bits, self.schedule, self.folder)
        program = self.program or native.program("tests/emu/grouped_fp8_gemm.cpp")
        _, verdict = native.run(program, *map(str, args)).split("\n", 1)
        assert verdict == "right", verdict
        d = gemm.read(self.folder / "d", x.out_dtype, num_rows, ldd)
        written = torch.zeros(d.shape, dtype=torch.bool)
        for place in places:
            written[place, : x.N] = True
        poison = d.view(torch.uint8).view(*d.shape, -1) == 0xFF
        assert poison.all(-1)[~written].all(), "wrote outside the groups"
        return [d[place, : x.N] for place in places]

    def layout(self, sizes: list[int]) -> tuple[list[slice], int, int, list[int]]:
        """(rows of each expert, rows in all, M, table)."""
        if self.kind == COUNTS:
            M = max(self.rows, *sizes)
            places = [slice(e * (M + 1), e * (M + 1) + size) for e, size in enumerate(sizes)]
            return places, len(sizes) * (M + 1), M, sizes
        table = [OUTSIDE, *accumulate(sizes, initial=OUTSIDE)][1:]
        places = [slice(begin, begin + size) for begin, size in zip(table, sizes, strict=False)]
        return places, table[-1] + OUTSIDE, table[-1] + OUTSIDE, table


def check(run: Run, x: Experts) -> None:
    for got, inputs in zip(run(x), x.inputs, strict=True):
        d, magnitude = exact(**inputs)
        error = rounding(d, x.out_dtype) + ACCUM[run.fraction_bits] * magnitude
        testing.assert_within(got, d, error, "grouped_fp8_gemm")


@pytest.mark.parametrize("schedule", native.SCHEDULES)
@pytest.mark.parametrize("tile", TILES, ids=TILES.get)
def test_every_tile_is_right_under_every_schedule(tmp_path, tile, schedule):
    check(Run(tmp_path, tile=tile, schedule=schedule), experts([0, 1, 65, 0, 130, 3]))


@pytest.mark.parametrize("kind", [OFFSETS, COUNTS], ids=["contiguous", "masked"])
@pytest.mark.parametrize("tile", TILES, ids=TILES.get)
def test_groups_of_any_size(tmp_path, tile, kind):
    check(Run(tmp_path, tile=tile, kind=kind), experts([63, 64, 0, 127, 15, 16, 17, 2], N=136))


@pytest.mark.parametrize("kind", [OFFSETS, COUNTS], ids=["contiguous", "masked"])
@pytest.mark.parametrize("sizes", [[0, 0, 200], [0, 0, 0], [300]], ids=str)
def test_one_expert_has_all_rows_or_none_has_any(tmp_path, sizes, kind):
    for tile in (1, 3, 5):
        check(Run(tmp_path, tile=tile, kind=kind, rows=70), experts(sizes))


@pytest.mark.parametrize(("N", "K", "splits"), [(576, 200, 1), (41, 1100, 4), (131, 1030, 8), (8, 16, 1)])
def test_any_extents(tmp_path, N, K, splits):
    tiles = [tile for tile in TILES if (SPLITS[tile] > 1) == (splits > 1)]
    for tile in tiles:
        check(Run(tmp_path, tile=tile, splits=splits, num_sms=8), experts([20, 0, 70], N=N, K=K))


@pytest.mark.parametrize("kind", [OFFSETS, COUNTS], ids=["contiguous", "masked"])
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_outputs_and_scale_factors_of_every_type(tmp_path, out_dtype, kind):
    for sf_dtype in (torch.float32, torch.bfloat16, torch.float8_e8m0fnu):
        x = experts([70, 0, 10], out_dtype=out_dtype, sf_dtype=sf_dtype)
        for tile, d_padding in ((1, 16), (2, 3), (4, 16)):
            check(Run(tmp_path, tile=tile, kind=kind, d_padding=d_padding), x)


@pytest.mark.parametrize("splits", [1, 2])
def test_a_row_has_the_bits_that_fp8_gemm_gives_it_with_its_expert_alone(tmp_path, splits):
    """So it depends on neither the other rows nor the tile."""
    x = experts([7, 0, 64, 129], K=400, out_dtype=torch.float32)
    options = {"splits": splits, "num_sms": 4, "fraction_bits": 13}
    alone = [
        test_fp8_gemm.Run(tmp_path, tile=4 if splits == 1 else 9, **options)(inputs)[0]
        if len(inputs["a"])
        else None
        for inputs in x.inputs
    ]
    for tile in TILES:
        if (SPLITS[tile] > 1) != (splits > 1):
            continue
        for kind in (OFFSETS, COUNTS):
            for got, expected in zip(Run(tmp_path, kind=kind, tile=tile, **options)(x), alone, strict=True):
                assert expected is None or testing.same_bits(got, expected), TILES[tile]


# --- wrong results that others have had ------------------------------------------------------------------


@pytest.mark.parametrize("rows", [20, 40, 63, 64, 100])
@pytest.mark.parametrize("tile", TILES, ids=TILES.get)
def test_tiles_taller_than_a_masked_group_stay_within_it(tmp_path, tile, rows):
    """Where rows per expert were no multiple of the tile, the overhang went into the next expert's matrix."""
    check(Run(tmp_path, kind=COUNTS, tile=tile, rows=rows), experts([20, 1, 0, 19, 20]))


@pytest.mark.parametrize("schedule", native.SCHEDULES)
@pytest.mark.parametrize("kind", [OFFSETS, COUNTS], ids=["contiguous", "masked"])
def test_many_tiny_groups_do_not_overtake_each_other(tmp_path, kind, schedule):
    """Where a tensor map was rewritten for every group, loads of the group before could still be using it."""
    sizes = [(7 * e) % 4 for e in range(70)]
    for tile in (1, 4):
        run = Run(tmp_path, kind=kind, tile=tile, num_sms=4, schedule=schedule)
        check(run, experts(sizes, N=24, K=144))


def test_counts_that_are_wrong_stay_within_the_matrix(tmp_path):
    class Wrong(Run):
        def layout(self, sizes):
            places, num_rows, M, table = super().layout(sizes)
            return places, num_rows, M, [1_000_000 if x == 20 else -5 if x == 0 else x for x in table]

    check(Wrong(tmp_path, kind=COUNTS, tile=4), experts([20, 0, 3, 20]))


FAULT = "    if constexpr (kIsGrouped) is_clipped = tile.left + warp() / 4 * 64 + 64 <= tile.end;\n"


@pytest.mark.parametrize("kind", [OFFSETS, COUNTS], ids=["contiguous", "masked"])
def test_a_store_that_does_not_end_with_the_group_is_found_out(tmp_path, kind):
    header, source = "cuda/block/gemm_store.cuh", "tests/emu/grouped_fp8_gemm.cpp"
    run = Run(tmp_path, kind=kind, tile=2, program=native.program_without(FAULT, header, source), rows=100)
    with pytest.raises(AssertionError, match=r"race|wrote outside the groups|out of bounds"):
        check(run, experts([20, 5, 40]))
    check(replace(run, program=None), experts([20, 5, 40]))
