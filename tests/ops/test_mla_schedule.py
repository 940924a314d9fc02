"""mla_schedule: every block in one part, pieces in order, and no more than the model of costs wants."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from moela.reference.mla_schedule import BLOCK, PIECE_BLOCKS, UNIT, merge_cost, piece_cost, split_costs

Position = tuple[int, int]  # (request, block)


@dataclass(frozen=True)
class Read:
    """A schedule as lists."""

    seqlens: list[int]
    rows: int
    num_parts: int
    begin: list[tuple[int, int, int]]  # of the parts and of the end: (request, block, piece)
    first_piece: list[int]

    @property
    def blocks(self) -> list[int]:
        return [-(-n // BLOCK) for n in self.seqlens]

    def of_part(self, part: int) -> list[tuple[int, int, int]]:
        """(request, first block, blocks) of each piece, in order; with batch_invariant each run of them."""
        (request, block, _), (last, end, _) = self.begin[part : part + 2]
        runs = []
        while (request, block) < (last, end):
            until = end if request == last else self.blocks[request]
            runs.append((request, block, until - block))
            request, block = request + 1, 0
        return runs

    def cost(self, part: int) -> int:
        return sum(blocks + piece_cost(self.rows) for _, _, blocks in self.of_part(part))

    @property
    def parts_with_work(self) -> int:
        return sum(bool(self.of_part(part)) for part in range(self.num_parts))


def read(run: Any, seqlens: list[int], rows=128, num_parts=132, batch_invariant=False) -> Read:
    lengths = torch.tensor(seqlens, dtype=torch.int32, device=run.device)
    [schedule] = run(
        {"seqlens": lengths, "rows": rows, "num_parts": num_parts, "batch_invariant": batch_invariant}
    )
    header, parts, requests = schedule.cpu().split([1, num_parts + 1, len(seqlens) + 1])
    assert header.tolist() == [[len(seqlens), num_parts, rows, batch_invariant]]
    assert not parts[:, 3].any()
    assert not requests[:, 2:].any()
    assert requests[:, 1].tolist() == [*seqlens, 0]
    begin = [tuple(row) for row in parts[:, :3].tolist()]
    return Read(seqlens, rows, num_parts, begin, requests[:, 0].tolist())


def lengths(B: int, S: int, seed: int) -> list[int]:
    """A third of them 0 and one long, as a serving batch may have them."""
    g = torch.Generator().manual_seed(seed)
    many = torch.randint(0, S + 1, (B,), generator=g) * (torch.rand(B, generator=g) > 0.3)
    if B:
        many[B // 2] = 20 * S
    return many.tolist()


BATCHES = [
    [],
    [0],
    [1],
    [64],
    [65],
    [4096],
    [131072],
    [0, 0, 0],
    [4096] * 128,
    [63, 64, 65, 0, 128],
    lengths(5, 3000, 0),
    lengths(100, 9000, 1),
    lengths(3000, 2000, 2),
]


def ids(batch: list[int]) -> str:
    return f"{len(batch)}x{max(batch, default=0)}"


def batches_and_parts(*num_parts: int) -> list[Any]:
    """Each with each, the empty batch first; thousands of requests, which take seconds, with one number."""
    return [
        pytest.param(
            batch,
            n,
            id=f"{ids(batch)}-{n}",
            marks=[pytest.mark.thorough] * (len(batch) > 1000 and n != num_parts[-2]),
        )
        for batch in BATCHES
        for n in num_parts
    ]


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize(("batch", "num_parts"), batches_and_parts(1, 7, 132, 1024))
def test_every_block_is_in_one_part_and_pieces_count_up(run, batch, num_parts, batch_invariant):
    """The parts meet without a gap; a request's pieces are runs of its blocks, numbered in order."""
    if run.is_slow and len(batch) * num_parts > 10**6:
        pytest.skip("slow; so many requests, and so many parts, are cases of their own")
    s = read(run, batch, num_parts=num_parts, batch_invariant=batch_invariant)
    B, piece = len(batch), 0
    assert s.begin[0] == (0, 0, 0)
    assert s.begin[-1] == (B, 0, s.first_piece[-1])
    runs = []
    for part in range(num_parts):
        assert s.begin[part] <= s.begin[part + 1]
        assert s.begin[part][2] == piece
        for request, block, count in s.of_part(part):
            if block == 0:
                assert s.first_piece[request] == piece
            fixed = -(-count // PIECE_BLOCKS) if batch_invariant else 1
            piece += max(fixed, 1)
            runs.append((request, block, count))
    assert s.first_piece[-1] == piece
    assert piece < B + num_parts or batch_invariant
    for b, blocks in enumerate(s.blocks):
        mine = [(block, count) for request, block, count in runs if request == b]
        ends = [block + count for block, count in mine]
        assert [block for block, _ in mine] == [0, *ends[:-1]]
        assert ends[-1] == blocks
        assert all(count > 0 for _, count in mine) or blocks == 0
        assert len(mine) == 1 or blocks > 0


@pytest.mark.parametrize("batch", BATCHES, ids=ids)
def test_batch_invariant_cuts_at_every_2048th_key_and_nowhere_else(run, batch):
    s = read(run, batch, num_parts=37, batch_invariant=True)
    assert all(block % PIECE_BLOCKS == 0 for _, block, _ in s.begin)
    for b, n in enumerate(batch):
        assert s.first_piece[b + 1] - s.first_piece[b] == max(-(-n // 2048), 1)


@pytest.mark.parametrize("rows", [1, 16, 128, 1000])
@pytest.mark.parametrize(("batch", "num_parts"), batches_and_parts(1, 20, 132)[3:])
def test_no_part_exceeds_what_the_model_says_of_the_best(run, batch, num_parts, rows):
    """By more than a block; and the largest part and the merge cost no more than whole requests would."""
    s = read(run, batch, rows=rows, num_parts=num_parts)
    piece = piece_cost(rows)
    total = sum(s.blocks) + piece * len(batch)
    costs = split_costs(torch.tensor(total), rows, num_parts)
    used = costs.tolist().index(costs.min().item()) + 1
    share = -(-total // used)
    largest = max(s.cost(part) for part in range(num_parts))
    whole = UNIT * (max(s.blocks) + piece) if len(batch) <= num_parts else costs.min().item() + 1
    if whole <= costs.min():
        assert largest == max(s.blocks) + piece
        assert s.first_piece[-1] == len(batch)
    else:
        assert largest <= share + piece + 1
        assert s.parts_with_work <= used


def test_batch_invariant_parts_exceed_an_even_share_by_less_than_a_piece(run):
    batch = lengths(100, 9000, 3)
    s = read(run, batch, rows=64, num_parts=40, batch_invariant=True)
    fixed = PIECE_BLOCKS + piece_cost(64)
    costs = [
        sum(count + piece_cost(64) * max(-(-count // PIECE_BLOCKS), 1) for _, _, count in s.of_part(part))
        for part in range(40)
    ]
    assert max(costs) <= -(-sum(costs) // 40) + fixed


@pytest.mark.parametrize("rows", [1, 16, 64, 128, 512])
def test_a_single_request_is_not_split_more_often_than_pays(run, rows):
    """The sum of share and merge is least near the root of their ratio, which rows bring down."""
    num_parts = 132 if rows <= 64 else 66
    s = read(run, [4096], rows=rows, num_parts=num_parts)
    best = ((64 + piece_cost(rows)) * UNIT / merge_cost(rows, num_parts)) ** 0.5
    assert s.parts_with_work <= best + 1
    assert s.parts_with_work < 64
    assert s.parts_with_work >= best / 2


def test_more_rows_are_split_less_often(run):
    parts = [read(run, [4096], rows=rows, num_parts=66).parts_with_work for rows in (16, 128, 1024)]
    assert parts == sorted(parts, reverse=True)
    assert parts[-1] < parts[0]


def test_short_requests_stay_whole(run):
    for batch in ([1], [64], [128] * 100, [4096] * 128):
        assert read(run, batch).first_piece[-1] == len(batch)


def test_a_long_request_among_short_ones_is_split(run):
    s = read(run, [512] * 20 + [131072] + [512] * 20, rows=64)
    assert s.first_piece[21] - s.first_piece[20] > 50
    assert s.first_piece[20] < 30


def test_a_negative_length_is_none_where_nobody_can_ask(run):
    """On a GPU lengths are not looked at; this is what a kernel would read."""
    if run.device == "cpu":
        pytest.skip("refused")
    s = read(run, [-5, 100])
    assert s.first_piece == [0, 1, 2]
