"""What the tests of the CUDA mla_decode share: any valid schedule, and one launch on the host."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gemm
import native
import torch
from moela import testing
from moela.ops import SPECS
from torch import Tensor

KEYS = 64  # of a block
PLAIN, SEESAW, BYTES, FEW = range(4)  # plan::MlaDecodeSm90Path
FIXED = 32  # blocks of a piece of a batch-invariant schedule
TYPES = {torch.bfloat16: 0, torch.float16: 1}


def cut(
    seqlens: Sequence[int], num_parts: int, *, rows: int, seed: int | None, batch_invariant: bool = False
) -> Tensor:
    """A valid schedule: parts that end anywhere (evenly with seed None), some of them empty."""
    blocks = [(b, k) for b, n in enumerate(seqlens) for k in range(max(1, -(-n // KEYS)))]
    places = [i for i, (_, k) in enumerate(blocks) if not batch_invariant or k % FIXED == 0] + [len(blocks)]
    ends = random.Random(seed).choices(places, k=num_parts - 1)
    if seed is None:
        ends = [places[(i + 1) * (len(places) - 1) // num_parts] for i in range(num_parts - 1)]
    boundaries = [0, *sorted(ends), len(blocks)]
    starts = {i for i, (_, k) in enumerate(blocks) if k == 0} | set(boundaries[:-1])
    if batch_invariant:
        starts |= set(places[:-1])
    starts.discard(len(blocks))
    pieces_before = lambda place: sum(start < place for start in starts)  # noqa: E731
    at = lambda place: blocks[place] if place < len(blocks) else (len(seqlens), 0)  # noqa: E731
    table = [(len(seqlens), num_parts, rows, int(batch_invariant))]
    table += [(*at(place), pieces_before(place), 0) for place in boundaries]
    firsts = [blocks.index((b, 0)) for b in range(len(seqlens))]
    table += [(pieces_before(first), n, 0, 0) for first, n in zip(firsts, seqlens, strict=True)]
    return torch.tensor([*table, (len(starts), 0, 0, 0)], dtype=torch.int32)


def num_pieces(schedule: Tensor) -> int:
    return int(schedule[-1, 0])


def ragged_rows(x: dict, path: int) -> int:
    """Of a ragged batch's tiles, as the plan says."""
    rows, requests = x["q"].size(0) * x["q"].size(1), len(x["seqlens"])
    has_few = not x["batch_invariant"] and rows <= 16 * requests if path < 0 else path == FEW
    return 16 if has_few else 64


def tiles(x: dict, tile_rows: int) -> list[tuple[int, ...]]:
    """(request, first row, tokens, first token, keys that the last row sees) of a ragged batch's tiles."""
    H, bounds, found = x["q"].size(1), x["cu_seqlens_q"].tolist(), []
    for b, n in enumerate(x["seqlens"].tolist()):
        tokens = bounds[b + 1] - bounds[b]
        for row in range(0, tokens * H, tile_rows):
            last = min(row + tile_rows, tokens * H) - 1
            seen = n - (tokens - 1 - last // H) if x["causal"] else n
            found.append((b, row, tokens, bounds[b], max(seen, 0)))
    return found + [(0,) * 5] * (len(bounds) - 1 + x["q"].size(0) * H // tile_rows - len(found))


@dataclass
class Run:
    """One launch of mla_decode and of the merge; without a schedule of the arguments with one of cut()."""

    folder: Path
    parts: int = 3
    seed: int | None = 0  # of the schedule of the keys
    schedule: str = "lazy"  # of the threads
    path: int = -1  # or the plan's choice
    program: Path | None = None  # with a planted fault

    def __call__(self, x: dict, steps: int = 0) -> tuple[Tensor, Tensor]:
        """steps: x["seqlens"] [steps, B] has lengths for so many, each with a schedule made on the device."""
        q, cache, v_dim = x["q"], x["cache"], x["v_dim"]
        is_ragged = x["cu_seqlens_q"] is not None
        *leading, H, D = q.shape
        B, s_q = (len(x["cu_seqlens_q"]) - 1, *leading) if is_ragged else leading
        invariant, table = x["batch_invariant"], x["schedule"]
        if table is None and steps == 0:
            rows = ragged_rows(x, self.path) if is_ragged else s_q * H
            lengths = [tile[-1] for tile in tiles(x, rows)] if is_ragged else x["seqlens"].tolist()
            table = cut(lengths, self.parts, rows=rows, seed=self.seed, batch_invariant=invariant)
        names = ("q", "cache", "block_table", "seqlens", "cu_seqlens_q")
        inputs = {n: x[n] for n in names} | {"schedule": table}
        for name, t in inputs.items():
            if t is not None:
                gemm.write(self.folder / name, t if t._base is None else t._base)
        for name in ("out", "lse"):
            (self.folder / name).unlink(missing_ok=True)
        stride_tb = 0 if x["block_table"] is None else x["block_table"].stride(0)
        strides = (0, *q.stride()[:2]) if is_ragged else q.stride()[:3]
        args = (TYPES[q.dtype], int(cache.dtype == torch.uint8), B, s_q, H, D, v_dim, *strides)
        args = (*args, *cache.shape[:2], *cache.stride()[:2], int(x["block_table"] is not None), stride_tb)
        args = (*args, int(is_ragged), int(x["causal"]), int(invariant), x["sm_scale"])
        parts = self.parts if table is None else int(table[0, 1]) if is_ragged else table.size(0) - B - 3
        args = (*args, self.path, parts, steps, self.schedule, self.folder)
        program = self.program or native.program("tests/emu/mla_decode.cpp")
        self.plan, verdict = native.run(program, *map(str, args)).split("\n", 1)
        assert verdict == "right", verdict
        shape = (*((steps,) if steps else ()), *leading, H)
        out = gemm.read(self.folder / "out", q.dtype, *shape, v_dim)
        return out, gemm.read(self.folder / "lse", torch.float32, *shape)


def check(run: Run, x: dict) -> None:
    bound = SPECS["mla_decode"].bound(x, testing.FLOAT32_SUM)
    for name, got, (exact, error) in zip(("out", "lse"), run(x), bound, strict=True):
        testing.assert_within(got, exact, error, name)


def assert_same_bits(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert testing.same_bits(one, other)
